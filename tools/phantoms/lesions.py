"""A lesion of a breast: its class, its looks, the words for it, and the brightness that it adds."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.phantoms import calcifications, masses

TASKS = ("calc", "mass")
CLASSES = ("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK")
IMPRESSIONS = {
    "MALIGNANT": "{highly suspicious for malignancy|suggestive of carcinoma|histology confirmed carcinoma|"
    "suspicious for breast cancer}",
    "BENIGN": "{biopsy was benign|core biopsy showed fibrocystic change|histology showed benign change|"
    "indeterminate, proven benign at biopsy}",
    "BENIGN_WITHOUT_CALLBACK": "{typically benign|a typically benign appearance, no recall needed|"
    "consistent with a benign finding that needs no work-up}",
}


def random_lesion(task, look, rng):
    """Lesion that looks as a class usually does: {"task", "look", "kind", "detail"}."""
    kinds, details = (calcifications if task == "calc" else masses).LOOKS[look]
    return {"task": task, "look": look, "kind": str(rng.choice(kinds)), "detail": str(rng.choice(details))}


def lesion_words(lesion):
    """Template that names a lesion: distribution and type of calcifications, shape and margins of a mass."""
    if lesion["task"] == "calc":
        return f"{calcifications.WORDS[lesion['detail']]} {calcifications.WORDS[lesion['kind']]}"
    return f"{masses.WORDS[lesion['kind']]} {masses.WORDS[lesion['detail']]}"


def lesion_map(h, w, lesion, rng):
    """Brightness [h, w] a lesion adds (float32): its sum depends on its extent and not on its class."""
    zoom = max(1, round(500 / min(h, w)))  # small crops are drawn larger and reduced, for clean thin lines
    canvas = Image.new("L", (w * zoom, h * zoom))
    draw, side = ImageDraw.Draw(canvas), min(h, w) * zoom
    centre = np.array(canvas.size) * (0.5 + rng.uniform(-0.06, 0.06, 2))
    if lesion["task"] == "mass":
        radius = side * rng.uniform(0.21, 0.28)
        blur = masses.draw_mass(draw, centre, radius, lesion["kind"], lesion["detail"], rng)
        total = np.pi * radius**2
    else:
        spread, unit = side * rng.uniform(0.2, 0.32), side / 112
        blur = calcifications.draw_calcifications(draw, centre, spread, unit, lesion["kind"], lesion["detail"], rng)
        total = 300 * unit**2
    a = np.asarray(canvas.filter(ImageFilter.GaussianBlur(blur)).reduce(zoom), np.float32)
    return a * np.float32(total / zoom**2 / max(float(a.sum()), 1.0))
