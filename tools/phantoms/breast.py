"""The breast: close views of a lesion (CBIS crops, spot compression), full mammograms, and what is said of them."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.phantoms.drawing import as_uint8, resized
from tools.phantoms.lesions import CLASSES, IMPRESSIONS, TASKS, lesion_map, lesion_words, random_lesion
from tools.phantoms.noise import texture

DENSITY = ("almost entirely fatty", "scattered fibroglandular", "heterogeneously dense", "extremely dense")
VIEWS = {"CC": "{CC|craniocaudal|cranio-caudal}", "MLO": "{MLO|mediolateral oblique}"}
CAPTION = (
    "{{Mammogram|Mammography} of the <side> breast{, <view> view,|} {shows|showing|demonstrates|reveals}"
    " <what><note>.|<what>{ <seen>|} on {the <view> view|<view> mammogram}"
    "{ of the <side> breast|} (<dense> breast)<note>.|<Side> <view> {mammogram|view}: <what><note>."
    "|{Digital|Screening|Diagnostic} mammogram, <side> {<view> view|breast}, {with|showing} <what>{ in a"
    " <dense> breast|}<note>.|<what>.}"
)


def random_mammogram(rng):
    """What a mammogram or a spot view shows, the template of its caption, and the template's words."""
    kind = "spot" if rng.random() < 0.75 else "mammogram"
    task, look = str(rng.choice(TASKS, p=(0.38, 0.62))), str(rng.choice(CLASSES))
    view, density = str(rng.choice(("CC", "MLO"))), int(rng.integers(1, 5))
    lesion = random_lesion(task, look, rng)
    words = {
        "view": VIEWS[view] + (" {spot compression|magnification|spot magnification|coned}" if kind == "spot" else ""),
        "what": lesion_words(lesion),
        "seen": "are seen" if task == "calc" else "is seen",
        "note": "{|, " + IMPRESSIONS[look] + "}",
        "dense": DENSITY[density - 1],
    }
    return {"type": kind, "view": view, "density": density, "lesion": lesion}, CAPTION, words


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
