"""The chest film: its findings, how they are said, and how they are drawn."""

from PIL import Image, ImageDraw

from tools.phantoms.drawing import develop, oval

FINDINGS = {  # finding -> words; those of a lung say on which side
    "normal": "{no acute abnormality|clear lungs|normal heart size and clear lungs}",
    "effusion": "{a pleural effusion|pleural fluid|blunting of the costophrenic angle by effusion} on the <side>",
    "nodule": "a {solitary pulmonary nodule|rounded nodule|coin lesion} in the <side> lung",
    "pneumothorax": "a <side>-sided {pneumothorax|pneumothorax with a visible pleural line}",
    "consolidation": "{consolidation|patchy airspace opacity|pneumonia} in the <side> lung",
    "cardiomegaly": "{cardiomegaly|an enlarged cardiac silhouette|marked enlargement of the heart}",
}
VIEWS = {"PA": "{PA|posteroanterior|frontal}", "lateral": "lateral"}
CAPTION = (
    "{<view> chest {radiograph|X-ray|film} {shows|showing|demonstrating|reveals} <what>.|Chest X-ray"
    " (<view> view){ on admission|}: <what>.|{Radiograph of the chest|Plain chest film}, <view>, {with|showing}"
    " <what>.}"
)


def random_chest(rng):
    """What a chest film shows, the template of its caption, and the template's words."""
    view = str(rng.choice(("PA", "PA", "lateral")))
    finding = str(rng.choice(("normal", "effusion", "nodule") if view == "lateral" else tuple(FINDINGS)))
    words = {"view": VIEWS[view], "what": FINDINGS[finding]}
    return {"type": "chest", "view": view, "finding": finding}, CAPTION, words


def draw_chest(h, w, spec, rng):
    """Chest film, uint8 [h, w]."""
    canvas = Image.new("L", (w // 2, h // 2))
    draw_anatomy(ImageDraw.Draw(canvas), spec["view"], spec["finding"], spec["side"], rng)
    return develop(canvas, h, w, h / 240, rng)


def draw_anatomy(draw, view, finding, side, rng):
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
