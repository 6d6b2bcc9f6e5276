"""ROCO's layout: captions, keywords and licences of each split, and one picture a caption."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.phantoms import streams
from tools.phantoms.breast import draw_mammogram, draw_spot, random_mammogram
from tools.phantoms.captions import keywords, say
from tools.phantoms.chest import draw_chest, random_chest
from tools.phantoms.ct import draw_ct, random_ct


def random_pair(rng):
    """What one picture shows, and its caption: a dict for `draw_pair`."""
    side, arrow = str(rng.choice(("left", "right"))), bool(rng.random() < 0.04)
    label, pick = bool(rng.random() < 0.02), rng.random()
    random_picture = random_mammogram if pick < 0.58 else random_chest if pick < 0.8 else random_ct
    shown, template, words = random_picture(rng)
    caption = say(template, rng, side=side, Side=side.capitalize(), **words)
    caption = caption[:-1] + " (arrow)." if arrow else caption
    return {"side": side, "arrow": arrow, "label": label, "caption": caption, **shown}


def draw_pair(path, spec, rng):
    """Draw and write the picture of one pair."""
    if spec["type"] == "spot":
        h, w = rng.integers(260, 500, 2)
        a = draw_spot(int(h), int(w), spec["lesion"], rng)
    else:
        h, w = int(rng.integers(520, 800)), int(rng.integers(520, 800))
        if spec["type"] == "mammogram":
            lesions = [spec["lesion"]]
            a, _ = draw_mammogram(h, int(w * 0.75), spec["side"].upper(), spec["view"], spec["density"], lesions, rng)
        else:
            draw_body = draw_chest if spec["type"] == "chest" else draw_ct
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
    rng = streams.generator(seed, streams.ROCO_PLAN)
    numbers, index, jobs = rng.permutation(int(1.3 * sum(sizes.values())) + 9) + 1, 0, []
    for split, size in sizes.items():
        folder = root / split / "radiology"
        (folder / "images").mkdir(parents=True)
        captions, words, licences = [], [], ["ROCO_ID,PMC_ID,CC"]
        for number in np.sort(numbers[index : index + size]):
            name, spec_rng = f"ROCO_{number:05d}", streams.generator(seed, streams.ROCO_CAPTIONS, index)
            spec = random_pair(spec_rng)
            captions.append(f"{name}\t {spec['caption']}")
            words.append("\t".join((name, "", *keywords(spec["caption"], spec_rng))))
            licences.append(f"{name},PMC{9000000 + number}_phantom-{number:05d}.jpg,CC0")
            if index % 97 != 50:
                stream = (seed, streams.ROCO_PICTURES, index)
                jobs.append((draw_pair, folder / "images" / f"{name}.jpg", spec, stream))
            index += 1
        for file, lines in (("captions.txt", captions), ("keywords.txt", words), ("licences.txt", licences)):
            (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return jobs
