"""The hardest and the easiest test cases of a probe, with what its encoder looks at in them (evaluation/gradcam.py)."""

import torch

from evaluation.encoder import Encoder, open_probed
from evaluation.fitted import Fitted, open_fitted
from evaluation.gradcam import grad_cam
from tools.plots import label
from tools.report_page.pictures import as_image, overlay
from utils import InputError

KINDS = (("hardest", "Hardest test cases"), ("easiest", "Easiest test cases"))
MOST = 12  # cases of each kind: as many as results.json names
HOW_TO_READ = (
    "Maps: Grad-CAM (Selvaraju et al., ICCV 2017) on the last stage of the encoder, of a class's score in the probe, "
    "on the image as the probe saw it; beside it the image at its own aspect. The maps of a case have one scale, which "
    "ends at their greatest value. A map of {} cells tells where roughly, and not what is seen there."
)


def case_groups(results: dict, count: int) -> tuple[list[dict], str]:
    """-> groups of {title, mapped, others}, and a note on the maps: how to read them, or why there are none.

    The cases are those of results.json. `mapped` are those of the first `count` of each kind whose image is there, with
    `maps`, [(class, PIL image)]; `others` are the rest. With a count of 0 the note is empty.
    """
    groups = [{"title": title, "mapped": [], "others": results[kind]} for kind, title in KINDS if results.get(kind)]
    if not groups or not count:
        named = not count or not results.get("multi_label")
        return groups, "" if named else "Where the encoder looks is not shown: no case of several findings is named."
    try:
        encoder, fitted = open_probed(results["folder"], amp="off"), open_fitted(results["folder"])
        for group in groups:
            maps = {one["id"]: maps_of(one, encoder, fitted) for one in group["others"][:count]}
            group["mapped"] = [one | maps[one["id"]] for one in group["others"] if maps.get(one["id"])]
            group["others"] = [one for one in group["others"] if not maps.get(one["id"])]
    except InputError as error:
        return groups, f"Where the encoder looks is not shown: {error}."
    cells = [one["cells"] for group in groups for one in group["mapped"]]
    if not cells:
        return groups, "Where the encoder looks is not shown: none of the images is there any more."
    return groups, HOW_TO_READ.format(cells[0])


def maps_of(case: dict, encoder: Encoder, fitted: Fitted) -> dict | None:
    """-> `maps`, [(words, PIL image)] of the predicted class and of the actual one if it is another, and their `cells`;
    None if the image cannot be read. Raises InputError if there are no maps of this encoder or probe."""
    try:
        pixels = encoder.pixels([case["path"]])
    except InputError:
        return None
    names = dict.fromkeys((case["predicted"], case["label"]))
    targets = torch.tensor([[fitted.classes.index(name) for name in names]], device=encoder.device)
    (heat,) = grad_cam(encoder.model, fitted.scores, pixels, targets, fitted.features == "projected").cpu().numpy()
    picture, most = as_image(pixels[0], *encoder.mean_std), heat.max()
    roles = ("predicted", "actual") if len(names) == 2 else ("predicted, rightly",)
    found = []
    for name, role, one in zip(names, roles, heat, strict=True):
        words = f"{label(name)} ({role}){'' if one.any() else ': 0 everywhere'}"
        found.append((words, overlay(picture, one / most if most else one)))
    return {"maps": found, "cells": " x ".join(map(str, heat.shape[1:]))}
