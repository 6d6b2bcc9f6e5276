"""Three views of a sample, from files and from the cache, against SLIP's pipeline of Pillow and torchvision.

python benchmarks/input.py                       # made-up radiographs of 0.7 megapixels
python benchmarks/input.py --images FOLDER       # JPEGs of a folder, brought to 0.7 megapixels

One core: every side runs in this process with one thread, in turn; its CPU time is what counts, so that other work on
the machine matters less. SLIP's side: decode to RGB, one crop and two SimCLR views with colour, blur and flip, floats
out. Ours: decode, draw all parameters and cut the three crops, bytes out; colour, blur and flip are the device's work
and are added in the rows "and colour on the CPU". The loader's rows are wall time through one DataLoader worker,
batches of 64 collated, and ours with colour and blur left to the device.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T

from data import augment
from data import cache
from data import images
from data import views
from data.batches import open_loader
from tools.phantoms import make_phantoms

CPU = torch.device("cpu")
NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Blur:
    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class SlipViews(torch.utils.data.Dataset):
    """SLIP's train transforms (its main.py and datasets.py) as its users run them."""

    def __init__(self, paths):
        end = [T.ToTensor(), T.Normalize(*NORM)]
        self.paths = paths
        self.clip = T.Compose([T.RandomResizedCrop(224, scale=(0.5, 1.0)), *end])
        self.ssl = T.Compose(
            [
                T.RandomResizedCrop(224, scale=(0.08, 1.0)),
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                T.RandomGrayscale(p=0.2),
                T.RandomApply([Blur()], p=0.5),
                T.RandomHorizontalFlip(),
                *end,
            ]
        )

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with open(self.paths[i], "rb") as file:
            image = Image.open(file).convert("RGB")
        return self.clip(image), self.ssl(image), self.ssl(image)


def make_files(folder: Path, source: str | None, count: int, colour: float) -> list[str]:
    """JPEGs of 0.7 megapixels, stored as RGB as ROCO's are; a share `colour` of them is coloured."""
    if source is None:
        make_phantoms(folder / "phantoms", seed=0, pairs=count, validation_pairs=2, calc=(2, 2), mass=(2, 2), workers=2)
        found = sorted((folder / "phantoms" / "roco" / "train").rglob("*.jpg"))
    else:
        found = sorted(Path(source).rglob("*.jpg"))
    paths = []
    for number in range(count):
        image = Image.open(found[number * len(found) // count]).convert("L")
        scale = (0.7e6 / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
        pixels = np.stack([np.asarray(image)] * 3, axis=-1)
        if number < colour * count:
            pixels[..., 0] = 255 - pixels[..., 0] // 2
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def cpu_time(sides: dict, repeats: int) -> dict[str, list[float]]:
    """As common.in_turn, in CPU seconds of this process."""
    seconds = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, function in sides.items():
            started = time.process_time()
            function()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def error(paths, kept) -> list[float]:
    """Mean absolute error in grey levels of the crops against Pillow's, from the files and from the cache."""
    files = images.Files(paths.__getitem__, len(paths))
    sums = []
    for source in (files, kept):
        data = views.TrainViews(source, None, "slip", 224, 0)
        for i, path in enumerate(paths):
            rows = data.draw(0, i)[1]
            batch = data.__getitems__([(0, i)])
            crops = batch["gray" if len(batch["gray"]) else "colour"][0, :, 0].numpy()
            image = images.read_image(path)
            for view, row in zip(crops, rows, strict=True):
                left, top, width, height = (int(value) for value in row[: views.HEIGHT + 1])
                box = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.BILINEAR)
                sums.append(np.abs(np.asarray(box).reshape(224, 224, -1)[..., 0].astype(float) - view).mean())
    half = len(sums) // 2
    return [statistics.mean(sums[:half]), statistics.mean(sums[half:])]


def one_set(say, paths: list[str], kept, repeats: int, title: str) -> None:
    slip = SlipViews(paths)
    few = paths[: len(paths) // 4]
    files = images.Files(paths.__getitem__, len(paths))
    straight, cached = (views.TrainViews(source, None, "slip", 224, 0) for source in (files, kept))
    keys = [(1, i) for i in range(len(paths))]

    def with_colour(data):
        for start in range(0, len(keys), 32):
            augment.make_views(data.__getitems__(keys[start : start + 32]), *NORM, CPU)

    def forgetful():
        files.gray.fill_(False)  # as in a first epoch
        straight.__getitems__(keys)

    sides = {
        "SLIP": lambda: [slip[i] for i in range(len(few))],
        "files, first epoch": forgetful,
        "files, later epochs": lambda: straight.__getitems__(keys),
        "cache": lambda: cached.__getitems__(keys),
        "files, and colour on the CPU": lambda: with_colour(straight),
        "cache, and colour on the CPU": lambda: with_colour(cached),
    }
    times = cpu_time(sides, repeats)
    each = {name: [one / len(few if name == "SLIP" else paths) for one in values] for name, values in times.items()}
    say(f"{title}: CPU time a sample on one core, {repeats} repeats in turn")
    for name, values in each.items():
        against = common.spread(common.ratios(each["SLIP"], values), 1)
        say(f"  {name:30s} {1e3 * statistics.median(values):6.2f} ms   {against} times SLIP's rate")


def through_worker(say, paths, kept, repeats: int, batches: int) -> None:
    """Wall time a sample through one worker of a DataLoader."""

    def slip():
        data = torch.utils.data.ConcatDataset([SlipViews(paths)] * 8)
        made = torch.utils.data.DataLoader(data, 64, num_workers=1)
        return rate(made, max(2, batches // 16))

    def ours(source):
        data = views.TrainViews(source, None, "slip", 224, 0)
        keys = [[(e, i % len(paths)) for i in range(64 * e, 64 * e + 64)] for e in range(batches + 2)]
        with open_loader(data, keys, 1, CPU) as made:
            return rate(made, batches)

    files = images.Files(paths.__getitem__, len(paths))
    sides = {"SLIP": slip, "files": lambda: ours(files), "cache": lambda: ours(kept)}
    rates = {name: [] for name in sides}
    for _ in range(repeats):
        for name, function in sides.items():
            rates[name].append(function())
    say(f"one DataLoader worker, batches of 64, wall time, {repeats} repeats in turn")
    for name, values in rates.items():
        against = common.spread([one / other for one, other in zip(values, rates["SLIP"], strict=True)], 1)
        say(f"  {name:30s} {statistics.median(values):6.0f} samples/s   {against} times SLIP's rate")


def rate(loader, batches: int) -> float:
    """Samples a second over some batches, after the first, which waits for the worker to start."""
    iterator = iter(loader)
    next(iterator)
    started = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batches * 64 / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default=None, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=64, help="through the worker")
    args = parser.parse_args()
    torch.set_num_threads(1)
    say = common.Record("input", "torchvision", "pillow", "opencv-python-headless")
    with tempfile.TemporaryDirectory() as temporary:
        for share, title in ((0.05, "ROCO-like, 5% coloured"), (1.0, "all coloured")):
            folder = Path(temporary) / f"{share}"
            folder.mkdir()
            paths = make_files(folder, args.images, args.count, share)
            kept = cache.Cache(folder / "cache", paths.__getitem__, len(paths))
            missing = kept.open()
            kept.folder.mkdir()
            kept.build(missing)
            kept.open()
            one_set(say, paths, kept, args.repeats, title)
            if share < 1:
                through_worker(say, paths, kept, args.repeats, args.batches)
            straight, cached = error(paths, kept)
            say(f"  mean error of a crop against Pillow's: files {straight:.2f}, cache {cached:.2f} grey levels\n")
    say.save()


if __name__ == "__main__":
    main()
