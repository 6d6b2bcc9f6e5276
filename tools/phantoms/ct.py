"""Axial CT slices of abdomen, chest and brain: their findings, how they are said, and how they are drawn."""

import numpy as np
from PIL import Image, ImageDraw

from tools.phantoms.drawing import develop, oval

FINDINGS = {
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
CAPTION = (
    "{{Axial|Transverse} {CT|computed tomography} {scan|image|slice} of the <part> {shows|showing|revealing}"
    " <what>.|{Contrast-enhanced |}CT <part>{, axial section|}: <what>.|{CT|Computed tomography} of the <part>"
    " {demonstrates|shows} <what>.}"
)


def random_ct(rng):
    """What a slice shows, the template of its caption, and the template's words."""
    part = str(rng.choice(tuple(FINDINGS)))
    finding = str(rng.choice(tuple(FINDINGS[part])))
    return {"type": "ct", "part": part, "finding": finding}, CAPTION, {"part": part, "what": FINDINGS[part][finding]}


def draw_ct(h, w, spec, rng):
    """Axial slice, uint8 [h, w]; the patient's right is on the left of the picture."""
    canvas = Image.new("L", (w // 2, h // 2))
    draw, x, scale = ImageDraw.Draw(canvas), 0.68 if spec["side"] == "left" else 0.32, rng.uniform(0.92, 1.05)
    if spec["part"] == "brain":
        draw_brain(draw, spec["finding"], x, scale, rng)
    else:
        oval(draw, 0.5, 0.5, 0.47 * scale, 0.38 * scale, 70)  # fat under the skin
        oval(draw, 0.5, 0.5, 0.43 * scale, 0.33 * scale, 125)
        draw_organs = draw_chest_organs if spec["part"] == "chest" else draw_abdominal_organs
        draw_organs(draw, spec["finding"], x, rng)
        oval(draw, 0.5, 0.70, 0.06, 0.06, 240)  # vertebra
        oval(draw, 0.5, 0.77, 0.03, 0.025, 90)
    return develop(canvas, h, w, h / 700, rng)


def draw_brain(draw, finding, x, scale, rng):
    """x: where the finding lies, as a fraction of the width; so below."""
    oval(draw, 0.5, 0.5, 0.40 * scale, 0.46 * scale, 250)
    oval(draw, 0.5, 0.5, 0.37 * scale, 0.43 * scale, 230 if finding == "subdural" else 105)
    if finding == "subdural":  # the brain is pushed away from the blood under the skull
        oval(draw, 0.5, 0.5, 0.37 * scale, 0.43 * scale, 105)
        oval(draw, 0.5 + 0.1 * np.sign(x - 0.5), 0.5, 0.27 * scale, 0.36 * scale, 215)
        oval(draw, 0.5 + 0.03 * np.sign(x - 0.5), 0.5, 0.28 * scale, 0.36 * scale, 105)
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


def draw_chest_organs(draw, finding, x, rng):
    for lung in (0.29, 0.71):
        oval(draw, lung, 0.5, 0.15, 0.25, 18)
    oval(draw, 0.53, 0.44, 0.13, 0.13, 150)
    if finding == "nodule":
        oval(draw, x - 0.03, rng.uniform(0.4, 0.6), 0.04, 0.04, 160)
    elif finding == "effusion":
        oval(draw, x, 0.70, 0.13, rng.uniform(0.08, 0.12), 120)


def draw_abdominal_organs(draw, finding, x, rng):
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
