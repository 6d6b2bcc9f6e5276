"""Masses: the shapes and margins of each class, how they are said, and how they are drawn."""

import numpy as np

from tools.phantoms.drawing import polar

# class -> (shapes, margins) that it usually has
LOOKS = {
    "MALIGNANT": (("IRREGULAR", "IRREGULAR-ARCHITECTURAL_DISTORTION"), ("SPICULATED", "ILL_DEFINED-SPICULATED")),
    "BENIGN": (("LOBULATED",), ("OBSCURED", "MICROLOBULATED", "ILL_DEFINED")),
    "BENIGN_WITHOUT_CALLBACK": (("OVAL", "ROUND"), ("CIRCUMSCRIBED",)),
}
WORDS = {
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
