"""Calcifications: the types and distributions of each class, how they are said, and how they are drawn."""

import numpy as np

from tools.phantoms.drawing import polar

# class -> (types, distributions) that it usually has
LOOKS = {
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
}


def draw_calcifications(draw, centre, spread, unit, kind, distribution, rng):
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
