"""Draw phantoms: computer-made radiographs in the on-disk layouts of ROCO and of CBIS-DDSM (Kaggle JPEG edition).

The whole pipeline can then run with no medical data. Nothing here comes from a patient, and a figure measured on
phantoms says that the code works, never that a method does.

    OUT/roco/{train,validation,test}/radiology/{captions.txt,keywords.txt,licences.txt,images/ROCO_00001.jpg}
    OUT/cbis/csv/{calc,mass}_case_description_{train,test}_set.csv, OUT/cbis/csv/dicom_info.csv
    OUT/cbis/jpeg/<SeriesInstanceUID>/{1,2}-NNN.jpg     crops, ROI masks and full mammograms

The class of a lesion is in its shape only. Exposure (mean and spread of the grey levels), size, texture and grain are
drawn apart from it, and the summed brightness of a lesion follows its extent, not its class.
"""

import argparse
import csv
import functools
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

VERSION = 1  # part of the settings: raise it when the drawing changes, so that an old folder is not taken for a new one
ROCO, CBIS, PLAN = 1, 2, 3  # random streams, see `default_rng([seed, kind, index])`
UID_ROOT = "1.3.6.1.4.1.9590.100.1.2."
TASKS = ("calc", "mass")
CLASSES = ("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK")
ATYPICAL = 0.06  # share of CBIS lesions that look like one of the other two classes

# What each class usually looks like: (calc types, distributions) and (mass shapes, margins), and how it is said.
CALCS = {
    "MALIGNANT": (
        ("PLEOMORPHIC", "FINE_LINEAR_BRANCHING", "PLEOMORPHIC-FINE_LINEAR_BRANCHING"),
        ("CLUSTERED", "CLUSTERED", "LINEAR", "SEGMENTAL"),
    ),
    "BENIGN": (("AMORPHOUS", "PUNCTATE", "PUNCTATE-AMORPHOUS"), ("CLUSTERED", "CLUSTERED", "REGIONAL", "SEGMENTAL")),
    "BENIGN_WITHOUT_CALLBACK": (
        ("COARSE", "LUCENT_CENTER", "ROUND_AND_REGULAR-LUCENT_CENTER"),
        ("DIFFUSELY_SCATTERED", "DIFFUSELY_SCATTERED", "REGIONAL", "CLUSTERED"),
    ),
}
MASSES = {
    "MALIGNANT": (("IRREGULAR", "IRREGULAR-ARCHITECTURAL_DISTORTION"), ("SPICULATED", "ILL_DEFINED-SPICULATED")),
    "BENIGN": (("LOBULATED",), ("OBSCURED", "MICROLOBULATED", "ILL_DEFINED")),
    "BENIGN_WITHOUT_CALLBACK": (("OVAL", "ROUND"), ("CIRCUMSCRIBED",)),
}
WORDS = {
    "PLEOMORPHIC": "{fine pleomorphic|pleomorphic|irregular pleomorphic} {calcifications|microcalcifications}",
    "FINE_LINEAR_BRANCHING": "{fine linear branching|linear and branching|casting-type} {calcifications|"
    "microcalcifications}",
    "PLEOMORPHIC-FINE_LINEAR_BRANCHING": "pleomorphic and {fine linear|linear branching} {calcifications|"
    "microcalcifications}",
    "AMORPHOUS": "{amorphous|hazy amorphous|indistinct amorphous} {calcifications|microcalcifications}",
    "PUNCTATE": "{punctate|tiny punctate|fine punctate} {calcifications|microcalcifications}",
    "PUNCTATE-AMORPHOUS": "punctate and amorphous {calcifications|microcalcifications}",
    "COARSE": "{coarse|large coarse|coarse popcorn-like} calcifications",
    "LUCENT_CENTER": "{lucent-centered|ring-shaped lucent-centered|rim} calcifications",
    "ROUND_AND_REGULAR-LUCENT_CENTER": "round {and regular|smooth} lucent-centered calcifications",
    "CLUSTERED": "{clustered|grouped|a cluster of|a tight group of}",
    "LINEAR": "{linearly arranged|a line of}",
    "SEGMENTAL": "{segmental|segmentally distributed}",
    "REGIONAL": "{regional|an area of}",
    "DIFFUSELY_SCATTERED": "{scattered|diffusely scattered|multiple scattered}",
    "IRREGULAR": "{an irregular|an irregularly shaped}",
    "IRREGULAR-ARCHITECTURAL_DISTORTION": "{an irregular distorting|an irregular}",
    "LOBULATED": "a {lobulated|lobular|multilobulated}",
    "OVAL": "an {oval|ovoid|oval smooth}",
    "ROUND": "a {round|rounded|round smooth}",
    "SPICULATED": "{spiculated mass|mass with spiculated margins|stellate spiculated mass}",
    "ILL_DEFINED-SPICULATED": "{ill-defined spiculated mass|spiculated mass with indistinct margins}",
    "OBSCURED": "{mass with obscured margins|partly obscured mass}",
    "MICROLOBULATED": "{microlobulated mass|mass with microlobulated margins}",
    "ILL_DEFINED": "{mass with ill-defined margins|ill-defined mass}",
    "CIRCUMSCRIBED": "{circumscribed mass|well-circumscribed mass|mass with sharply circumscribed margins}",
}
IMPRESSIONS = {
    "MALIGNANT": "{highly suspicious for malignancy|suggestive of carcinoma|histology confirmed carcinoma|"
    "suspicious for breast cancer}",
    "BENIGN": "{biopsy was benign|core biopsy showed fibrocystic change|histology showed benign change|"
    "indeterminate, proven benign at biopsy}",
    "BENIGN_WITHOUT_CALLBACK": "{typically benign|a typically benign appearance, no recall needed|"
    "consistent with a benign finding that needs no work-up}",
}
DENSITY = ("almost entirely fatty", "scattered fibroglandular", "heterogeneously dense", "extremely dense")
CHEST = {  # finding -> words; those of a lung say on which side
    "normal": "{no acute abnormality|clear lungs|normal heart size and clear lungs}",
    "effusion": "{a pleural effusion|pleural fluid|blunting of the costophrenic angle by effusion} on the <side>",
    "nodule": "a {solitary pulmonary nodule|rounded nodule|coin lesion} in the <side> lung",
    "pneumothorax": "a <side>-sided {pneumothorax|pneumothorax with a visible pleural line}",
    "consolidation": "{consolidation|patchy airspace opacity|pneumonia} in the <side> lung",
    "cardiomegaly": "{cardiomegaly|an enlarged cardiac silhouette|marked enlargement of the heart}",
}
CTS = {
    "abdomen": {
        "normal": "{no focal lesion|normal appearance of the liver and kidneys}",
        "liver": "{a hypodense lesion in the liver|a low-attenuation hepatic lesion|hepatic metastasis}",
        "cyst": "{a simple cyst of the <side> kidney|a <side> renal cyst}",
        "stone": "{a calculus in the <side> kidney|<side> nephrolithiasis}",
        "aneurysm": "{an abdominal aortic aneurysm|aneurysmal dilatation of the aorta}",
    },
    "chest": {
        "normal": "{clear lungs|no pulmonary lesion}",
        "nodule": "{a pulmonary nodule in the <side> lung|a solid <side> lung nodule}",
        "effusion": "{a <side> pleural effusion|layering <side> pleural fluid}",
    },
    "brain": {
        "normal": "{no intracranial abnormality|normal ventricles and brain parenchyma}",
        "ring": "{a ring-enhancing lesion|a rim-enhancing abscess} in the <side> hemisphere with surrounding edema",
        "haemorrhage": "{a hyperdense intracerebral hemorrhage|an acute parenchymal hematoma} on the <side>",
        "subdural": "{a crescentic subdural hematoma|a subdural collection} over the <side> convexity",
        "infarct": "{a hypodense infarct|low attenuation of an ischemic infarct} in the <side> hemisphere",
    },
}
STOPWORDS = set("a an and are as at by for from in is it its no of on or over that the this to was were with".split())


# ---------------------------------------------------------------- grey levels and texture


@functools.lru_cache(maxsize=4)
def noise_bank(slope, n=1024):
    """Field [n, n] of zero mean and unit variance whose amplitude spectrum falls as 1/f**slope (float32).

    Images take random windows of it: a field of their own would cost an FFT each.
    """
    rng = np.random.default_rng(int(slope * 100))
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    f[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) / f**slope, s=(n, n))
    return (field / field.std()).astype(np.float32)


def texture(h, w, slope, rng):
    """Random window [h, w] of a noise bank, randomly flipped and transposed."""
    bank = noise_bank(slope)
    if rng.random() < 0.5:
        bank = bank.T
    y, x = rng.integers(0, bank.shape[0] - h + 1), rng.integers(0, bank.shape[1] - w + 1)
    return bank[y : y + h, x : x + w][:: int(rng.choice((-1, 1))), :: int(rng.choice((-1, 1)))]


def resized(a, h, w):
    """Array [h0, w0] resampled to [h, w] (bicubic)."""
    return np.asarray(Image.fromarray(np.asarray(a, np.float32)).resize((w, h), Image.Resampling.BICUBIC))


def as_uint8(a):
    return (np.clip(a, 0, 1) * 255 + 0.5).astype(np.uint8)


def oval(draw, cx, cy, rx, ry, fill):
    """Filled ellipse; centre and radii as fractions of the canvas."""
    w, h = draw.im.size
    draw.ellipse(((cx - rx) * w, (cy - ry) * h, (cx + rx) * w, (cy + ry) * h), fill=fill)


# ---------------------------------------------------------------- lesions


def polar(centre, r, angle):
    """Polygon corners [(x, y), ...] at distances r (px) from the centre in directions angle (rad)."""
    return list(zip(centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle), strict=True))


def draw_mass(draw, centre, radius, shape, margins, rng):
    """Mass of about `radius` px on an "L" canvas; returns the blur (px) of its margin."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    axis, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    stretch = 1 + (0.06 if shape == "ROUND" else rng.uniform(0.12, 0.3)) * np.cos(2 * (angle - axis))
    if "SPICULATED" in margins:
        jags = np.interp(angle, np.linspace(0, 2 * np.pi, 23), rng.uniform(-0.25, 0.25, 23), period=2 * np.pi)
        draw.polygon(polar(centre, 0.6 * radius * stretch * (1 + jags), angle), fill=255)
        for a in np.arange(n := rng.integers(9, 15)) * 2 * np.pi / n + rng.uniform(-0.15, 0.15, n):
            tip, half, bend = radius * rng.uniform(1.5, 2.2), rng.uniform(0.13, 0.22), rng.uniform(-0.15, 0.15)
            spike = polar(centre, np.array([0.45 * radius, tip, 0.45 * radius]), a + np.array([-half, bend, half]))
            draw.polygon(spike, fill=255)
    elif shape == "LOBULATED":
        lobes, depth = int(rng.integers(4, 7)), rng.uniform(0.45, 0.62)
        scallops = depth * (np.abs(np.sin((angle - phase) * lobes / 2)) - 0.6)
        if margins == "MICROLOBULATED":
            scallops += 0.10 * np.abs(np.sin((angle + phase) * 9))
        draw.polygon(polar(centre, radius * stretch * (1 + scallops), angle), fill=255)
    else:
        draw.polygon(polar(centre, radius * stretch, angle), fill=255)
    if "SPICULATED" not in margins:  # as many strands of tissue, but in no order: to count edges tells nothing
        for _ in range(rng.integers(8, 15)):
            (foot,) = polar(centre, radius * rng.uniform(0.9, 1.9, 1), rng.uniform(0, 2 * np.pi, 1))
            a = rng.uniform(0, 2 * np.pi) + np.array([0, 0.16, np.pi, np.pi + 0.16])
            draw.polygon(polar(foot, radius * rng.uniform(0.35, 0.6) * np.array([1, 1, 1, 1]), a), fill=255)
    return radius * rng.uniform(0.03, 0.10)


def draw_calcs(draw, centre, spread, unit, kind, distribution, rng):
    """Calcifications on an "L" canvas; unit is 1/112 of the crop's shorter side (px), spread the extent (px)."""
    w, h = draw.im.size
    grain, axis, area = unit * rng.uniform(0.7, 1.4), rng.uniform(0, np.pi), 0.0
    target = rng.uniform(180, 450) * unit**2  # the same for every kind: the sum of the brightness is no clue
    while area < target:
        along, across = rng.normal(0, 0.5, 2) * spread
        if distribution in ("LINEAR", "SEGMENTAL"):
            along, across = 1.5 * along, across * (0.25 if distribution == "LINEAR" else 0.5)
        x = centre[0] + along * np.cos(axis) - across * np.sin(axis)
        y = centre[1] + along * np.sin(axis) + across * np.cos(axis)
        if distribution in ("DIFFUSELY_SCATTERED", "REGIONAL"):
            reach = 0.45 if distribution == "DIFFUSELY_SCATTERED" else 0.3
            x, y = centre[0] + rng.uniform(-reach, reach) * w, centre[1] + rng.uniform(-reach, reach) * h
        part = str(rng.choice(kind.split("-")))
        if part == "FINE_LINEAR_BRANCHING" or (part == "PLEOMORPHIC" and rng.random() < 0.5):
            turn, width, step = rng.normal(axis, 0.5), grain * rng.uniform(1.1, 1.8), grain * rng.uniform(2.5, 4.5)
            trunk = turn + np.cumsum(rng.normal(0, 0.35, 3))
            points = np.cumsum(np.vstack([[x, y], step * np.column_stack([np.cos(trunk), np.sin(trunk)])]), axis=0)
            draw.line([tuple(p) for p in points], fill=255, width=max(1, round(width)), joint="curve")
            fork = turn + rng.choice((-1, 1)) * rng.uniform(0.6, 1.0)
            tip = points[1] + 1.6 * step * np.array([np.cos(fork), np.sin(fork)])
            draw.line([tuple(points[1]), tuple(tip)], fill=255, width=max(1, round(width)))
            area += 4.6 * step * width
        elif part == "PLEOMORPHIC":
            r = grain * rng.uniform(0.8, 2.6) * rng.uniform(0.4, 1.5, 6)
            draw.polygon(polar((x, y), r, np.sort(rng.uniform(0, 2 * np.pi, 6))), fill=255)
            area += 2.0 * float(np.mean(r**2))
        else:
            big = part not in ("PUNCTATE", "AMORPHOUS")
            r = grain * (rng.uniform(3.6, 6.0) if big else rng.uniform(0.9, 1.6))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=150 if part == "AMORPHOUS" else 255)
            area += np.pi * r * r
            if part in ("LUCENT_CENTER", "ROUND_AND_REGULAR"):
                hole = r * rng.uniform(0.5, 0.7)
                draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=40)
                area -= np.pi * hole * hole * 0.85
    return unit * rng.uniform(0.35, 0.6)


def lesion_map(h, w, lesion, rng):
    """Brightness [h, w] a lesion adds (float32): its sum depends on its extent and not on its class."""
    zoom = max(1, round(500 / min(h, w)))  # small crops are drawn larger and reduced, for clean thin lines
    canvas = Image.new("L", (w * zoom, h * zoom))
    draw, side = ImageDraw.Draw(canvas), min(h, w) * zoom
    centre = np.array(canvas.size) * (0.5 + rng.uniform(-0.06, 0.06, 2))
    if lesion["task"] == "mass":
        radius = side * rng.uniform(0.21, 0.28)
        blur = draw_mass(draw, centre, radius, lesion["kind"], lesion["detail"], rng)
        total = np.pi * radius**2
    else:
        blur = draw_calcs(
            draw, centre, side * rng.uniform(0.2, 0.32), side / 112, lesion["kind"], lesion["detail"], rng
        )
        total = 300 * (side / 112) ** 2
    a = np.asarray(canvas.filter(ImageFilter.GaussianBlur(blur)).reduce(zoom), np.float32)
    return a * np.float32(total / zoom**2 / max(float(a.sum()), 1.0))


# ---------------------------------------------------------------- mammograms


def strands(h, w, rng):
    """Vessels and ligaments [h, w], 0..1: thin curved lines that every class has."""
    canvas = Image.new("L", (w, h))
    draw, t = ImageDraw.Draw(canvas), np.linspace(0, 1, 12)[:, None]
    for _ in range(rng.integers(2, 12)):
        a, b, c = rng.uniform(-0.1, 1.1, (3, 2)) * (w, h)
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        width = max(1, round(min(h, w) / 112 * rng.uniform(0.6, 2.2)))
        draw.line([tuple(p) for p in curve], fill=int(rng.integers(60, 220)), width=width, joint="curve")
    return np.asarray(canvas.filter(ImageFilter.GaussianBlur(min(h, w) / 250)), np.float32) / 255


def draw_spot(h, w, lesion, rng):
    """Close view of a lesion, uint8 [h, w]: a CBIS crop or a spot-compression view."""
    a = texture(h, w, float(rng.choice((1.35, 1.6, 1.85))), rng)
    a = (a - a.mean()) / a.std() + rng.uniform(0.05, 0.2) * texture(h, w, 0.9, rng)
    a += rng.uniform(0.3, 1.6) * strands(h, w, rng)
    a += (rng.uniform(2.4, 4.6) if lesion["task"] == "mass" else rng.uniform(1.9, 3.6)) * lesion_map(h, w, lesion, rng)
    # exposure: after this neither the mean nor the spread knows what was drawn
    return as_uint8((a - a.mean()) / a.std() * rng.uniform(0.10, 0.17) + rng.uniform(0.38, 0.60))


def draw_mammogram(h, w, side, view, density, lesions, rng):
    """Full view: (uint8 [h, w], [(x, y, radius) of each lesion in px]). The chest wall is left for a LEFT breast."""
    y, x = np.mgrid[0 : 1 : 1j * (h // 4), 0 : 1 : 1j * (w // 4)].astype(np.float32)
    reach, half, middle = rng.uniform(0.62, 0.9), rng.uniform(0.32, 0.42), 0.5 + 0.08 * (view == "MLO")
    r = np.hypot(x / reach, (y - middle) / half)
    if view == "MLO":  # the armpit's fat above the breast
        r = np.minimum(r, np.hypot(x / (0.75 * reach), (y - 0.15) / 0.45))
    breast = np.clip((1 - r) * 5, 0, 1) ** 0.7
    gland = np.exp(-(((x - 0.4 * reach) / (0.36 * reach)) ** 2) - ((y - middle) / (0.55 * half)) ** 2)
    muscle = np.zeros_like(x)
    if view == "MLO":
        edge = x / rng.uniform(0.36, 0.5) + y / rng.uniform(0.5, 0.7) - 1
        muscle = np.clip(0.5 - edge * 12, 0, 1)
    breast, gland, muscle = (resized(m, h, w) for m in (breast, gland, muscle))
    tissue = texture(h, w, 1.6, rng)
    a = breast * (0.24 + 0.05 * density * np.clip(gland * (1.6 + tissue), 0, 3) + 0.04 * tissue) + 0.4 * muscle
    a += 0.10 * breast * strands(h, w, rng)
    places = []
    for lesion in lesions:
        n = int(h * rng.uniform(0.30, 0.42))
        # the lesion's own brightness map, laid over the breast; its frame may stick out of the film
        fx, fy = reach * rng.uniform(0.25, 0.62), middle + half * rng.uniform(-0.45, 0.45)
        left, top = int(np.clip(fx * w - n / 2, 0, max(w - n, 0))), int(np.clip(fy * h - n / 2, 0, h - n))
        patch = lesion_map(n, n, lesion, rng)[:, : w - left]
        a[top : top + n, left : left + n] += (0.28 if lesion["task"] == "mass" else 0.5) * patch
        places.append((left + n // 2, top + n // 2, int(0.28 * n)))
    a = as_uint8(a * rng.uniform(0.85, 1.15) + 0.006 * texture(h, w, 0.9, rng) + 0.02)
    if side == "RIGHT":
        a, places = a[:, ::-1], [(w - 1 - px, py, pr) for px, py, pr in places]
    film = Image.fromarray(np.ascontiguousarray(a))
    corner = (0.78 * w, 0.04 * h) if side == "LEFT" else (0.05 * w, 0.04 * h)
    ImageDraw.Draw(film).text(corner, side[0] + view, fill=230, font=ImageFont.load_default(size=h / 28))
    return np.asarray(film), places


# ---------------------------------------------------------------- chest films and CT


def draw_chest(draw, view, finding, side, rng):
    """Chest film on an "L" canvas; the patient's left is on the right of a PA film."""
    w, h = draw.im.size
    jitter = rng.uniform(-0.02, 0.02, 4)
    draw.rectangle((0, 0, w, h), fill=25)
    oval(draw, 0.5, 0.75, 0.5, 0.68, 135)
    if view == "lateral":
        lungs, sick = [(0.5, 0.45, 0.3, 0.34)], (0.55, 0.42, 0.22, 0.3)
    else:
        lungs = [(0.29 + jitter[0], 0.46, 0.165, 0.32), (0.71 + jitter[1], 0.46, 0.165, 0.32)]
        sick = lungs[side == "left"]
    for lung in lungs:
        oval(draw, *lung, 55)
    outward = 1 if sick[0] > 0.5 else -1
    if finding == "pneumothorax":  # no markings outside the line of the collapsed lung
        oval(draw, *sick, 15)
        oval(draw, sick[0] - outward * 0.05, sick[1] + 0.05, sick[2] * 0.66, sick[3] * 0.8, 120)
        oval(draw, sick[0] - outward * 0.05, sick[1] + 0.05, sick[2] * 0.62, sick[3] * 0.78, 70)
    for i in range(9):  # ribs
        y = 0.12 + 0.075 * i + jitter[2]
        for x0, x1 in ((0.12, 0.5), (0.5, 0.88)):
            if view == "PA":
                draw.arc((x0 * w, y * h, x1 * w, (y + 0.16) * h), 180, 360, fill=115, width=max(2, h // 60))
            else:
                draw.line((0.2 * w, (y + 0.1) * h, 0.8 * w, (y - 0.02) * h), fill=85, width=max(2, h // 70))
    big = rng.uniform(1.5, 1.8) if finding == "cardiomegaly" else rng.uniform(0.85, 1.1)
    if view == "PA":
        draw.rectangle((0.465 * w, 0, 0.535 * w, h), fill=165)
        oval(draw, 0.5 + 0.045 * big, 0.63, 0.125 * big, 0.15 * big**0.6, 175)
        for x in (0.3, 0.7):  # clavicles
            draw.line((x * w, 0.14 * h, (0.5 + (x - 0.5) * 0.2) * w, 0.19 * h), fill=150, width=max(2, h // 50))
    else:
        draw.rectangle((0.74 * w, 0.05 * h, 0.86 * w, h), fill=165)
        oval(draw, 0.38, 0.62, 0.15 * big, 0.13 * big, 165)
    for x in (0.27, 0.73):
        oval(draw, x, 0.93 + jitter[3], 0.25, 0.17, 185)
    if finding == "effusion":
        oval(draw, sick[0] + outward * 0.06, sick[1] + 0.3, sick[2] * 1.1, rng.uniform(0.14, 0.24), 190)
    elif finding == "nodule":
        r = rng.uniform(0.035, 0.055)
        oval(draw, sick[0] + rng.uniform(-0.06, 0.06), sick[1] + rng.uniform(-0.15, 0.1), r, r * w / h, 185)
    elif finding == "consolidation":
        for _ in range(9):
            x, y = sick[0] + rng.uniform(-0.07, 0.07), sick[1] + rng.uniform(0.0, 0.16)
            oval(draw, x, y, 0.05, 0.045, int(rng.integers(115, 170)))


def draw_ct(draw, part, finding, side, rng):
    """Axial CT slice on an "L" canvas; the patient's right is on the left of the picture."""
    x = 0.68 if side == "left" else 0.32
    s = rng.uniform(0.92, 1.05)
    if part == "brain":
        oval(draw, 0.5, 0.5, 0.40 * s, 0.46 * s, 250)
        oval(draw, 0.5, 0.5, 0.37 * s, 0.43 * s, 230 if finding == "subdural" else 105)
        if finding == "subdural":  # the brain is pushed away from the blood under the skull
            oval(draw, 0.5, 0.5, 0.37 * s, 0.43 * s, 105)
            oval(draw, 0.5 + 0.1 * np.sign(x - 0.5), 0.5, 0.27 * s, 0.36 * s, 215)
            oval(draw, 0.5 + 0.03 * np.sign(x - 0.5), 0.5, 0.28 * s, 0.36 * s, 105)
        for side_x in (0.46, 0.54):
            oval(draw, side_x, 0.45, 0.025, 0.10, 45)
        y = rng.uniform(0.38, 0.62)
        if finding == "ring":
            for r, grey in ((0.13, 75), (0.085, 225), (0.06, 60)):
                oval(draw, x, y, r, r, grey)
        elif finding == "haemorrhage":
            oval(draw, x, y, rng.uniform(0.07, 0.1), rng.uniform(0.07, 0.12), 215)
        elif finding == "infarct":
            oval(draw, x, y, rng.uniform(0.09, 0.12), rng.uniform(0.12, 0.16), 62)
        return
    oval(draw, 0.5, 0.5, 0.47 * s, 0.38 * s, 70)  # fat under the skin
    oval(draw, 0.5, 0.5, 0.43 * s, 0.33 * s, 125)
    if part == "chest":
        for lung in (0.29, 0.71):
            oval(draw, lung, 0.5, 0.15, 0.25, 18)
        oval(draw, 0.53, 0.44, 0.13, 0.13, 150)
        if finding == "nodule":
            oval(draw, x - 0.03, rng.uniform(0.4, 0.6), 0.04, 0.04, 160)
        elif finding == "effusion":
            oval(draw, x, 0.70, 0.13, rng.uniform(0.08, 0.12), 120)
    else:
        oval(draw, 0.31, 0.46, 0.18, 0.22, 160)  # liver
        oval(draw, 0.66, 0.38, 0.12, 0.09, 115)  # stomach
        oval(draw, 0.66, 0.34, 0.07, 0.04, 10)  # gas in it
        oval(draw, 0.82, 0.52, 0.06, 0.12, 155)  # spleen
        for kidney in (0.34, 0.66):
            oval(draw, kidney, 0.66, 0.065, 0.075, 185)
        if finding == "aneurysm":
            oval(draw, 0.49, 0.56, 0.10, 0.09, 140)
        oval(draw, 0.48, 0.58, 0.035, 0.035, 205)  # aorta
        if finding == "liver":
            oval(draw, rng.uniform(0.26, 0.36), rng.uniform(0.38, 0.52), 0.065, 0.065, 85)
        elif finding == "cyst":
            oval(draw, x + 0.02 * np.sign(x - 0.5), 0.64, 0.055, 0.06, 80)
        elif finding == "stone":
            oval(draw, x + 0.02, 0.66, 0.018, 0.018, 255)
    oval(draw, 0.5, 0.70, 0.06, 0.06, 240)  # vertebra
    oval(draw, 0.5, 0.77, 0.03, 0.025, 90)


def draw_body(h, w, spec, rng):
    """Chest film or CT slice, uint8 [h, w]; drawn at half size, as it is blurred anyway."""
    canvas = Image.new("L", (w // 2, h // 2))
    draw = ImageDraw.Draw(canvas)
    if spec["type"] == "chest":
        draw_chest(draw, spec["view"], spec["finding"], spec["side"], rng)
    else:
        draw_ct(draw, spec["part"], spec["finding"], spec["side"], rng)
    blur = h / 240 if spec["type"] == "chest" else h / 700
    a = resized(np.asarray(canvas.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255, h, w)
    a = a * (1 + 0.08 * texture(h, w, 1.6, rng)) + 0.006 * texture(h, w, 0.9, rng)
    return as_uint8(a * rng.uniform(0.85, 1.1))


# ---------------------------------------------------------------- captions


def say(template, rng, **words):
    """Fill in <name>s, then choose one of each {this|that}, inner braces first."""
    while "<" in template:
        template = re.sub(r"<(\w+)>", lambda m: words[m[1]], template)
    while "{" in template:
        template = re.sub(r"\{([^{}]*)\}", lambda m: str(rng.choice(m[1].split("|"))), template)
    template = re.sub(r" +", " ", template).strip()
    return template[0].upper() + template[1:]


def random_lesion(task, look, rng):
    """Lesion that looks as a class usually does: {"task", "look", "kind", "detail"}."""
    kinds, details = (CALCS if task == "calc" else MASSES)[look]
    return {"task": task, "look": look, "kind": str(rng.choice(kinds)), "detail": str(rng.choice(details))}


def lesion_words(lesion):
    """Template that names a lesion: distribution and type of calcifications, shape and margins of a mass."""
    first, second = ("detail", "kind") if lesion["task"] == "calc" else ("kind", "detail")
    return f"{WORDS[lesion[first]]} {WORDS[lesion[second]]}"


def roco_spec(rng):
    """What one ROCO picture shows, and its caption: a dict for `draw_roco`."""
    side, arrow = str(rng.choice(("left", "right"))), bool(rng.random() < 0.04)
    spec = {"side": side, "arrow": arrow, "label": bool(rng.random() < 0.02)}
    pick = rng.random()
    if pick < 0.58:
        spec["type"] = "spot" if rng.random() < 0.75 else "mammogram"
        task, look = str(rng.choice(TASKS, p=(0.38, 0.62))), str(rng.choice(CLASSES))
        spec |= {"view": str(rng.choice(("CC", "MLO"))), "density": int(rng.integers(1, 5))}
        spec["lesion"] = random_lesion(task, look, rng)
        view = {"CC": "{CC|craniocaudal|cranio-caudal}", "MLO": "{MLO|mediolateral oblique}"}[spec["view"]]
        if spec["type"] == "spot":
            view += " {spot compression|magnification|spot magnification|coned}"
        template = (
            "{{Mammogram|Mammography} of the <side> breast{, <view> view,|} {shows|showing|demonstrates|reveals}"
            " <what><note>.|<what>{ <seen>|} on {the <view> view|<view> mammogram}"
            "{ of the <side> breast|} (<dense> breast)<note>.|<Side> <view> {mammogram|view}: <what><note>."
            "|{Digital|Screening|Diagnostic} mammogram, <side> {<view> view|breast}, {with|showing} <what>{ in a"
            " <dense> breast|}<note>.|<what>.}"
        )
        note = "{|, " + IMPRESSIONS[look] + "}"
        words = {
            "view": view,
            "what": lesion_words(spec["lesion"]),
            "note": note,
            "dense": DENSITY[spec["density"] - 1],
        }
        words["seen"] = "are seen" if task == "calc" else "is seen"
    elif pick < 0.8:
        spec |= {"type": "chest", "view": str(rng.choice(("PA", "PA", "lateral")))}
        findings = ("normal", "effusion", "nodule") if spec["view"] == "lateral" else tuple(CHEST)
        spec["finding"] = str(rng.choice(findings))
        view = {"PA": "{PA|posteroanterior|frontal}", "lateral": "lateral"}[spec["view"]]
        template = (
            "{<view> chest {radiograph|X-ray|film} {shows|showing|demonstrating|reveals} <what>.|Chest X-ray"
            " (<view> view){ on admission|}: <what>.|{Radiograph of the chest|Plain chest film}, <view>, {with|showing}"
            " <what>.}"
        )
        words = {"view": view, "what": CHEST[spec["finding"]]}
    else:
        spec |= {"type": "ct", "part": str(rng.choice(tuple(CTS)))}
        spec["finding"] = str(rng.choice(tuple(CTS[spec["part"]])))
        template = (
            "{{Axial|Transverse} {CT|computed tomography} {scan|image|slice} of the <part> {shows|showing|revealing}"
            " <what>.|{Contrast-enhanced |}CT <part>{, axial section|}: <what>.|{CT|Computed tomography} of the <part>"
            " {demonstrates|shows} <what>.}"
        )
        words = {"part": spec["part"], "what": CTS[spec["part"]][spec["finding"]]}
    caption = say(template, rng, side=side, Side=side.capitalize(), **words)
    spec["caption"] = caption[:-1] + " (arrow)." if arrow else caption
    return spec


def keywords(caption, rng):
    """Words of a caption as ROCO gives them: lower case, no stop words, no final s, in no order."""
    words = {w.removesuffix("s") for w in re.findall(r"[a-z]+", caption.lower().replace("-", "")) if w not in STOPWORDS}
    return [str(w) for w in rng.permutation(sorted(words))]


# ---------------------------------------------------------------- ROCO


def draw_roco(path, spec, rng):
    """Draw and write one ROCO picture."""
    if spec["type"] == "spot":
        h, w = rng.integers(260, 500, 2)
        a = draw_spot(int(h), int(w), spec["lesion"], rng)
    else:
        h, w = int(rng.integers(520, 800)), int(rng.integers(520, 800))
        if spec["type"] == "mammogram":
            lesions = [spec["lesion"]]
            a, _ = draw_mammogram(h, int(w * 0.75), spec["side"].upper(), spec["view"], spec["density"], lesions, rng)
        else:
            a = draw_body(h, w, spec, rng)
    film = Image.fromarray(a)
    if spec["arrow"] or spec["label"]:
        film = film.convert("RGB")
        draw, (w, h) = ImageDraw.Draw(film), film.size
        colour = tuple(int(c) for c in rng.choice(((255, 220, 0), (255, 40, 40), (80, 220, 255)), axis=0))
        if spec["arrow"]:
            x, y, n = 0.3 * w, 0.3 * h, 0.04 * h
            draw.line((x - 3 * n, y - 3 * n, x, y), fill=colour, width=max(2, h // 120))
            draw.polygon(((x + n, y + n), (x + n / 3, y - n), (x - n, y + n / 3)), fill=colour)
        else:
            draw.text(
                (0.05 * w, 0.9 * h), str(rng.choice(("A", "B", "Case 1"))), colour, ImageFont.load_default(h / 16)
            )
    film.save(path, quality=85, optimize=True)


def plan_roco(root, sizes, seed):
    """Write the text files of each split; the pictures to draw are returned as jobs.

    sizes: pairs per split. Ids are shared out over the splits and have gaps, and one caption in 97 has no picture, as
    after a real download.
    """
    rng = np.random.default_rng([seed, PLAN, 0])
    numbers, index, jobs = rng.permutation(int(1.3 * sum(sizes.values())) + 9) + 1, 0, []
    for split, size in sizes.items():
        folder = root / split / "radiology"
        (folder / "images").mkdir(parents=True)
        captions, words, licences = [], [], ["ROCO_ID,PMC_ID,CC"]
        for number in np.sort(numbers[index : index + size]):
            name, spec_rng = f"ROCO_{number:05d}", np.random.default_rng([seed, PLAN, 1, index])
            spec = roco_spec(spec_rng)
            captions.append(f"{name}\t {spec['caption']}")
            words.append("\t".join((name, "", *keywords(spec["caption"], spec_rng))))
            licences.append(f"{name},PMC{9000000 + number}_phantom-{number:05d}.jpg,CC0")
            if index % 97 != 50:
                jobs.append(("roco", seed, index, folder / "images" / f"{name}.jpg", spec))
            index += 1
        for file, lines in (("captions.txt", captions), ("keywords.txt", words), ("licences.txt", licences)):
            (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return jobs


# ---------------------------------------------------------------- CBIS-DDSM


def draw_cbis(files, film, rng):
    """Draw and write one full mammogram with the masks and crops of its lesions.

    film: {"side", "view", "density", "lesions"}; files: [full, (crop, mask), ...] in the order of the lesions.
    Returns [(path, rows, columns, smallest, largest grey level)]. A crop is drawn afresh at a higher resolution than
    the small full mammogram has.
    """
    h = int(rng.integers(560, 780))
    full, places = draw_mammogram(h, int(h * rng.uniform(0.5, 0.66)), rng=rng, **film)
    pictures = [(files[0], full)]
    for lesion, (x, y, r), (crop, mask) in zip(film["lesions"], places, files[1:], strict=True):
        side, aspect = rng.uniform(150, 380), rng.uniform(0.75, 1.33)
        size = np.clip((side * aspect**0.5, side / aspect**0.5), 150, 450).astype(int)
        pictures.append((crop, draw_spot(int(size[0]), int(size[1]), lesion, rng)))
        canvas = Image.new("L", full.shape[::-1])
        wobble = r * (1 + 0.15 * np.cos(3 * np.linspace(0, 6.28, 60) + rng.uniform(0, 6)))
        ImageDraw.Draw(canvas).polygon(polar((x, y), wobble, np.linspace(0, 6.28, 60)), fill=255)
        pictures.append((mask, np.asarray(canvas)))
    for path, a in pictures:
        Image.fromarray(a).save(path, quality=85, optimize=True)
    return [(path, *a.shape, int(a.min()), int(a.max())) for path, a in pictures]


def plan_films(task, n_rows, rng):
    """Films with n_rows lesions in all: [(patient, film)], patients not yet numbered, for one task and split."""
    deck, films, rows, patient = [], [], 0, 0
    shares = (7, 7, 6) if task == "calc" else (8, 8, 4)  # without-callback masses are rarer in CBIS: too few to score
    while rows < n_rows:
        if not deck:  # dealt in shuffled rounds, each class first once: small trees have all three too
            rest = rng.permutation([c for c, n in zip(CLASSES, shares, strict=True) for _ in range(n - 1)])
            deck = [*CLASSES, *map(str, rest)][::-1]
        label = deck.pop()
        sides = ("LEFT", "RIGHT") if rng.random() < 0.08 else (str(rng.choice(("LEFT", "RIGHT"))),)
        density = int(rng.integers(1, 5))
        for side in sides:
            lesions = []
            for _ in range(1 + int(rng.choice(3, p=(0.80, 0.15, 0.05)))):
                other = str(rng.choice([c for c in CLASSES if c != label]))
                lesion = random_lesion(task, other if rng.random() < ATYPICAL else label, rng)
                assessments = {"MALIGNANT": (4, 4, 4, 5, 5, 3), "BENIGN": (4, 4, 4, 3, 2, 0)}.get(
                    label, (2, 2, 2, 2, 3)
                )
                lesion |= {"pathology": label, "assessment": int(rng.choice(assessments))}
                lesions.append(lesion | {"subtlety": int(rng.choice((2, 3, 3, 4, 4, 5, 5)))})
            for view in ("CC", "MLO") if rng.random() < 0.85 else (str(rng.choice(("CC", "MLO"))),):
                keep = lesions[: n_rows - rows]
                rows += len(keep)
                if keep:
                    films.append((patient, {"side": side, "view": view, "density": density, "lesions": keep}))
        patient += 1
    return films


def new_uid(rng):
    return UID_ROOT + str(int.from_bytes(rng.bytes(16), "big"))


def write_rows(path, rows, end):
    with open(path, "w", encoding="utf-8", newline="") as f:
        csv.writer(f, lineterminator=end).writerows(rows)


def plan_cbis(root, counts, seed):
    """Write the four case CSVs; returns (jobs, {image path: what dicom_info.csv says of it}).

    counts: {(task, "train" | "test"): rows}. The quirks of the published files are kept: CRLF, a line feed inside the
    last path, `breast density` beside `breast_density`, file names in the cells that do not tell a crop from a mask,
    some rows with crop and mask in two series, one mask without SeriesDescription.
    """
    rng = np.random.default_rng([seed, PLAN, 2])
    (root / "csv").mkdir(parents=True)
    jobs, headers = [], {}

    def add_series(folder, study, descriptions, film):
        """One new series; returns (its UID, the path of each of its images)."""
        uid, paths = new_uid(rng), []
        (root / "jpeg" / uid).mkdir(parents=True)
        prefixes = ("1", "2") if rng.random() < 0.8 else ("2", "1")
        for prefix, description in zip(prefixes[: len(descriptions)], descriptions, strict=True):
            name = f"{prefix if len(descriptions) > 1 else 1}-{rng.integers(1, 300):03d}"
            paths.append(root / "jpeg" / uid / f"{name}.jpg")
            headers[paths[-1]] = {
                "SeriesDescription": description, "SeriesInstanceUID": uid, "StudyInstanceUID": study,
                "SOPInstanceUID": new_uid(rng), "PatientID": folder, "PatientName": folder,
                "BodyPartExamined": "BREAST", "PatientOrientation": film["view"], "Laterality": film["side"][0],
                "StudyTime": f"{rng.integers(8, 20):02d}{rng.integers(60):02d}{rng.integers(60):02d}",
            }  # fmt: skip
        return uid, paths

    for task in TASKS:
        numbers = rng.permutation(2600) + 1  # one pool for both splits: no patient is in two
        for split in ("train", "test"):
            films = plan_films(task, counts[task, split], rng)
            n_patients = films[-1][0] + 1
            names, numbers = np.sort(numbers[:n_patients]), numbers[n_patients:]
            density, kinds = ("breast density", "calc type,calc distribution")
            if task == "mass":
                density, kinds = ("breast_density", "mass shape,mass margins")
            header = f"patient_id,{density},left or right breast,image view,abnormality id,abnormality type,{kinds}"
            header += ",assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
            rows = [header.split(",")]
            for patient, film in films:
                name = f"P_{names[patient]:05d}"
                folder = f"{task.capitalize()}-{'Training' if split == 'train' else 'Test'}_{name}"
                folder += f"_{film['side']}_{film['view']}"
                study = new_uid(rng)
                uid, files = add_series(folder, study, ["full mammogram images"], film)
                full_cell = f"{folder}/{study}/{uid}/000000.dcm"
                for number, lesion in enumerate(film["lesions"], 1):
                    own, study = f"{folder}_{number}", new_uid(rng)
                    cells = [f"{own}/{study}/", f"{own}/{study}/"]
                    apart = len(rows) == 5 and split == "train" if task == "calc" else rng.random() < 0.06
                    if apart:
                        uid, (crop,) = add_series(own, study, ["cropped images"], film)
                        other_study = new_uid(rng)
                        other, (mask,) = add_series(own, other_study, ["ROI mask images"], film)
                        cells = [f"{cells[0]}{uid}/000000.dcm", f"{own}/{other_study}/{other}/000000.dcm"]
                    else:
                        uid, (crop, mask) = add_series(own, study, ["cropped images", "ROI mask images"], film)
                        ends = (1, 0) if task == "calc" else (0, 1)
                        cells = [f"{c}{uid}/00000{end}.dcm" for c, end in zip(cells, ends, strict=True)]
                    cells[task == "mass"] += "\n"
                    files.append((crop, mask))
                    if (task, split, len(rows)) == ("calc", "test", 3):  # the published file has one such mask
                        plain = {"BodyPartExamined": f"{film['side'].capitalize()} Breast"}
                        plain |= {"PatientID": f"{own.split('_', 1)[1]}.dcm", "PatientName": f"{name}^{name}"}
                        headers[mask] |= plain | {"SeriesDescription": "", "Laterality": "", "StudyTime": ""}
                    detail = "" if lesion["detail"] == "DIFFUSELY_SCATTERED" and number % 2 else lesion["detail"]
                    rows.append(
                        [name, film["density"], film["side"], film["view"], number]
                        + ["calcification" if task == "calc" else "mass", lesion["kind"], detail]
                        + [lesion["assessment"], lesion["pathology"], lesion["subtlety"], full_cell, *cells]
                    )
                jobs.append(("cbis", seed, len(jobs), files, film))
            write_rows(root / "csv" / f"{task}_case_description_{split}_set.csv", rows, "\r\n")
    return jobs, headers


DICOM_COLUMNS = (
    "file_path,image_path,AccessionNumber,BitsAllocated,BitsStored,BodyPartExamined,Columns,ContentDate,ContentTime,"
    "ConversionType,HighBit,InstanceNumber,LargestImagePixelValue,Laterality,Modality,PatientBirthDate,PatientID,"
    "PatientName,PatientOrientation,PatientSex,PhotometricInterpretation,PixelRepresentation,ReferringPhysicianName,"
    "Rows,SOPClassUID,SOPInstanceUID,SamplesPerPixel,SecondaryCaptureDeviceManufacturer,"
    "SecondaryCaptureDeviceManufacturerModelName,SeriesDescription,SeriesInstanceUID,SeriesNumber,"
    "SmallestImagePixelValue,SpecificCharacterSet,StudyDate,StudyID,StudyInstanceUID,StudyTime"
).split(",")


def write_dicom_info(root, headers, drawn, seed):
    """csv/dicom_info.csv: 38 columns, one row per image, in no order. drawn: rows of `draw_cbis`."""
    rows = []
    for path, height, width, low, high in drawn:
        odd = not headers[path]["SeriesDescription"]
        name = f"{path.parent.name}/{path.stem}"
        row = headers[path] | {
            "file_path": f"CBIS-DDSM/dicom/{name}.dcm", "image_path": f"CBIS-DDSM/jpeg/{name}.jpg",
            "BitsAllocated": 8 if odd else 16, "BitsStored": 8 if odd else 16, "HighBit": 7 if odd else 15,
            "Rows": height, "Columns": width,
            "LargestImagePixelValue": high * (1 if odd else 257), "SmallestImagePixelValue": low * (1 if odd else 257),
            "ContentDate": "20160426", "ContentTime": "131732.685000", "StudyDate": "" if odd else "20160720",
            "ConversionType": "WSD", "InstanceNumber": 1, "Modality": "MG", "PhotometricInterpretation": "MONOCHROME2",
            "PixelRepresentation": 0, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "SamplesPerPixel": 1,
            "SecondaryCaptureDeviceManufacturer": "MathWorks", "SecondaryCaptureDeviceManufacturerModelName": "MATLAB",
            "SeriesNumber": 1, "SpecificCharacterSet": "ISO_IR 100", "StudyID": "DDSM",
        }  # fmt: skip
        rows.append([row.get(column, "") for column in DICOM_COLUMNS])
    order = np.random.default_rng([seed, PLAN, 3]).permutation(len(rows))
    write_rows(root / "csv" / "dicom_info.csv", [DICOM_COLUMNS, *(rows[i] for i in order)], "\n")


# ---------------------------------------------------------------- the whole


def draw_job(job):
    """One unit of work for a worker; its randomness comes from (seed, kind, index) and not from the worker."""
    kind, seed, index, target, what = job
    if kind == "roco":
        return draw_roco(target, what, np.random.default_rng([seed, ROCO, index]))
    return draw_cbis(target, what, np.random.default_rng([seed, CBIS, index]))


README = """These are phantoms: pictures drawn by tools/make_phantoms.py, not radiographs of patients.

The folders are laid out as ROCO (roco/) and CBIS-DDSM on Kaggle (cbis/), so that the pipeline can run without medical
data. The names, UIDs, captions and diagnoses are made up. Figures measured here say nothing about real images.
Settings are in phantoms.json; the same settings give the same bytes.
"""


def make_phantoms(out, seed=0, pairs=1600, validation_pairs=200, calc=(360, 240), mass=(360, 240), workers=1):
    """Write the phantoms to `out`, all at once or not at all; False if they are there already.

    pairs, validation_pairs: captions of ROCO train and validation (test has half as many as validation).
    calc, mass: (train, test) rows of the CBIS case CSVs, one lesion in one view each.
    Raises FileExistsError if `out` exists with other settings. The bytes do not depend on `workers`.
    """
    out = Path(out)
    settings = {"version": VERSION, "seed": seed, "pairs": pairs, "validation_pairs": validation_pairs}
    settings |= {"calc": list(calc), "mass": list(mass)}
    if out.exists():
        marker = out / "phantoms.json"
        if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == settings:
            return False
        raise FileExistsError(f"{out} exists and was not made with these settings")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        sizes = {"train": pairs, "validation": validation_pairs, "test": validation_pairs // 2}
        counts = {
            (t, s): n for t, ns in (("calc", calc), ("mass", mass)) for s, n in zip(("train", "test"), ns, strict=True)
        }
        jobs, headers = plan_cbis(temporary / "cbis", counts, seed)
        jobs += plan_roco(temporary / "roco", sizes, seed)
        if workers > 1:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                done = pool.map(draw_job, jobs, chunksize=8)
        else:
            done = [draw_job(job) for job in jobs]
        write_dicom_info(temporary / "cbis", headers, [row for rows in done if rows for row in rows], seed)
        (temporary / "README.txt").write_text(README, encoding="utf-8")
        (temporary / "phantoms.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's folders are private
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw phantom radiographs in the layouts of ROCO and CBIS-DDSM.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist yet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=1600, help="image-caption pairs of ROCO train (1600)")
    parser.add_argument(
        "--validation-pairs", type=int, default=200, help="of ROCO validation (200); test has half as many"
    )
    parser.add_argument("--calc", type=int, nargs=2, default=(360, 240), metavar=("TRAIN", "TEST"), help="CSV rows")
    parser.add_argument("--mass", type=int, nargs=2, default=(360, 240), metavar=("TRAIN", "TEST"), help="CSV rows")
    parser.add_argument("--workers", type=int, default=2, help="processes (2); the files do not depend on it")
    args = vars(parser.parse_args(argv))
    try:
        made = make_phantoms(**args)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args['out']}: {'phantoms written' if made else 'these phantoms are here already, nothing to do'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
