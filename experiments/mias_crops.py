"""Cut mini-MIAS into two sets of crops for a probe: lesions against normal tissue, benign against malignant lesions.

python experiments/mias_crops.py sets/mias sets/mias_crops

sets/mias has labels.csv (image, abnormality, severity, x, y, radius) and images/mdbNNN.jpg, 1024 x 1024. A lesion's
crop is the square around its circle, half as wide again and at least 96 pixels. Each image without a lesion gives one
crop of the size of a lesion drawn at random, at a random place inside the breast. y counts from the bottom; rows
without coordinates are left out; the films of a patient are (odd, even) numbers.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SMALLEST, WIDEN = 96, 1.5


def main(root: Path, out: Path) -> None:
    rng = np.random.default_rng(0)
    with open(root / "labels.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lesions = [row for row in rows if row["radius"] and row["abnormality"] != "NORM"]
    sizes = [max(SMALLEST, round(2 * WIDEN * float(row["radius"]))) for row in lesions]
    (out / "images").mkdir(parents=True, exist_ok=True)
    crops = []
    for number, (row, size) in enumerate(zip(lesions, sizes, strict=True)):
        name = f"{row['image']}_{number}.png"
        centre = float(row["x"]), 1024 - float(row["y"])
        cut(Image.open(root / "images" / f"{row['image']}.jpg").convert("L"), centre, size).save(out / "images" / name)
        crops.append((name, row["image"], "lesion", "malignant" if row["severity"] == "M" else "benign"))
    for row in rows:
        if row["abnormality"] == "NORM":
            image = Image.open(root / "images" / f"{row['image']}.jpg").convert("L")
            size = int(rng.choice(sizes))
            name = f"{row['image']}_normal.png"
            cut(image, inside_breast(image, size, rng), size).save(out / "images" / name)
            crops.append((name, row["image"], "normal", ""))
    with open(out / "crops.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "patient", "lesion", "severity"))
        writer.writerows((name, f"p{(int(image[3:]) - 1) // 2:03d}", *labels) for name, image, *labels in crops)
    counts = {label: sum(label in row for row in crops) for label in ("lesion", "normal", "benign", "malignant")}
    print(", ".join(f"{count} {label}" for label, count in counts.items()), f"in {out}")


def cut(image: Image.Image, centre, size: int) -> Image.Image:
    left, top = (round(min(max(0, value - size / 2), 1024 - size)) for value in centre)
    return image.crop((left, top, left + size, top + size))


def inside_breast(image: Image.Image, size: int, rng) -> tuple[float, float]:
    """A centre whose crop is tissue nearly everywhere: brighter than the film around it, labels aside."""
    pixels = np.asarray(image) > 40
    best, centre = -1.0, (512.0, 512.0)
    for _ in range(200):
        x, y = rng.uniform(size / 2, 1024 - size / 2, 2)
        left, top = round(x - size / 2), round(y - size / 2)
        share = pixels[top : top + size, left : left + size].mean()
        if share > 0.98:
            return x, y
        if share > best:
            best, centre = share, (x, y)
    return centre


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
