"""Plant three faults of each kind in a copy of image-caption pairs, and let tools/doctor.py look for them; run by hand.

python tests/programs/planted.py --pairs /data/radiology_pairs     # writes benchmarks/results/doctor.txt
python tests/programs/planted.py --pairs phantoms/roco --no-record

FOLDER is in ROCO's layout, and is copied first. Says for each kind how many of its faults were found, and how many
other findings of the kind there are; those of the copy before anything was planted are counted apart. Exit code 1 if a
fault was not found, or if the check wrote into the data.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "benchmarks")]

import options  # noqa: F401  (before torch)
import numpy as np
from PIL import Image

from tools import doctor
from tools.checks import page

EACH = 3
ARGUMENTS = "--arch resnet10t --text-model tiny --pretrained none --image-size 112 --batch-size 8 --workers 1".split()
LONG = " ".join(f"finding number {number} is described here at length." for number in range(40))


class Copy:
    """A copy of pairs, whose rows and files are changed; each row is given to one fault alone."""

    def __init__(self, root: Path):
        self.root = root
        self.lines = {split: self.captions(split).read_text().splitlines() for split in ("train", "validation")}
        self.free = {split: list(range(len(lines))) for split, lines in self.lines.items()}
        for rows in self.free.values():
            random.Random(0).shuffle(rows)

    def captions(self, split: str) -> Path:
        return self.root / split / "radiology" / "captions.txt"

    def image(self, split: str, key: str) -> Path:
        folder = self.root / split / "radiology" / "images"
        return next(folder.glob(f"{key}.*"), folder / f"{key}.jpg")

    def take(self, split: str = "train", words: int = 0, side: int = 0) -> tuple[int, str, str]:
        """A row that no fault has had: number, id, caption. It has an image that can be resized, and enough words."""
        for row in self.free[split]:
            key, _, text = self.lines[split][row].partition("\t")
            path = self.image(split, key)
            if len(text.split()) >= words and path.exists():
                with Image.open(path) as image:
                    if min(image.size) >= side and np.asarray(image).std() > 20:
                        self.free[split].remove(row)
                        return row, key, text.strip()
        sys.exit(f"{self.root}: too few pairs to plant the faults in")

    def set(self, row: int, key: str, text: str, split: str = "train") -> None:
        self.lines[split][row] = f"{key}\t {text}"

    def write(self) -> None:
        for split, lines in self.lines.items():
            self.captions(split).write_text("\n".join(lines) + "\n")


# Each plants one fault, the `number`-th of its kind, and returns the words by which it must be found.


def missing(copy: Copy, number: int) -> list[str]:
    _, key, _ = copy.take()
    copy.image("train", key).unlink()
    return [key]


def truncated(copy: Copy, number: int) -> list[str]:
    _, key, _ = copy.take()
    path = copy.image("train", key)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * (0.9, 0.5, 0.1)[number])])
    return [key]


def damaged(copy: Copy, number: int) -> list[str]:
    """A PNG whose middle is altered: a look at both ends does not find it."""
    _, key, _ = copy.take()
    path = copy.image("train", key)
    with Image.open(path) as image:
        image.save(path.with_suffix(".png"))
    path.unlink()
    contents = bytearray(path.with_suffix(".png").read_bytes())
    middle = len(contents) * (number + 2) // 6
    contents[middle : middle + 100] = bytes(byte ^ 255 for byte in contents[middle : middle + 100])
    path.with_suffix(".png").write_bytes(contents)
    return [key]


def not_an_image(copy: Copy, number: int) -> list[str]:
    _, key, _ = copy.take()
    copy.image("train", key).write_bytes((b"<html>404 Not Found</html>", b"", b"\0" * 5000)[number])
    return [key]


def same_bytes(copy: Copy, number: int) -> list[str]:
    (_, one, _), (_, other, _) = copy.take(), copy.take()
    shutil.copyfile(copy.image("train", one), copy.image("train", other))
    return [one, other]


def same_pixels(copy: Copy, number: int) -> list[str]:
    """The same pixels as PNG, BMP or TIFF."""
    (_, one, _), (_, other, _) = copy.take(), copy.take()
    target = copy.image("train", other)
    with Image.open(copy.image("train", one)) as image:
        image.save(target.with_suffix((".png", ".bmp", ".tif")[number]))
    target.unlink()
    return [one, other]


def near_image(copy: Copy, number: int) -> list[str]:
    """Encoded again at a low quality, made smaller, or made brighter and larger."""
    (_, one, _), (_, other, _) = copy.take(side=200), copy.take(side=200)
    with Image.open(copy.image("train", one)) as image:
        image = image.convert("RGB")
    if number:
        scale = (0.6, 1.3)[number - 1]
        image = image.resize([round(side * scale) for side in image.size], Image.BICUBIC)
    if number == 2:
        image = image.point(lambda value: min(255, round(1.1 * value) + 4))
    target = copy.image("train", other)
    target.unlink()
    image.save(target.with_suffix(".jpg"), quality=(40, 80, 90)[number])
    return [one, other]


def nothing_shown(copy: Copy, number: int) -> list[str]:
    _, key, _ = copy.take()
    target = copy.image("train", key)
    target.unlink()
    Image.new("L", (300, 200 + number), (0, 128, 255)[number]).save(target.with_suffix(".png"))
    return [key]


def in_both_splits(copy: Copy, number: int) -> list[str]:
    (_, one, _), (_, other, _) = copy.take(side=200), copy.take("validation", side=200)
    target = copy.image("validation", other)
    if number < 2:
        target.unlink()
        shutil.copyfile(copy.image("train", one), target.with_suffix(".jpg"))
        return [one, other]
    with Image.open(copy.image("train", one)) as image:
        image.convert("RGB").resize((image.width // 2, image.height // 2), Image.BICUBIC).save(target, quality=85)
    return [one, other]


def caption_in_both(copy: Copy, number: int) -> list[str]:
    (_, _, text), (row, other, _) = copy.take(words=6), copy.take("validation")
    copy.set(row, other, text, "validation")
    return [text]


def same_caption(copy: Copy, number: int) -> list[str]:
    (_, one, text), (row, other, _) = copy.take(words=6), copy.take()
    copy.set(row, other, text)
    return [one, other]


def folded_caption(copy: Copy, number: int) -> list[str]:
    (_, one, text), (row, other, _) = copy.take(words=6), copy.take()
    copy.set(row, other, (text.upper(), text.replace(" ", ", ") + "!", text.title() + " ...")[number])
    return [one, other]


def near_caption(copy: Copy, number: int) -> list[str]:
    """One word more, one less, two that changed places."""
    (_, one, text), (row, other, _) = copy.take(words=12), copy.take()
    words = text.split()
    changed = (["Planted", *words], words[:-1], [words[-1], *words[1:-1], words[0]])[number]
    copy.set(row, other, " ".join(changed))
    return [one, other]


def empty_caption(copy: Copy, number: int) -> list[str]:
    row, key, _ = copy.take()
    copy.lines["train"][row] = (key, f"{key}\t", f"{key}\t   ")[number]
    return [key]


def no_word(copy: Copy, number: int) -> list[str]:
    row, key, _ = copy.take()
    copy.set(row, key, ("-", "...", "?!")[number])
    return [key]


def placeholder(copy: Copy, number: int) -> list[str]:
    row, key, _ = copy.take()
    copy.set(row, key, ("N/A", "No caption available", "Replace this - DESCRIPTION OF THE IMAGE")[number])
    return [key]


def long_caption(copy: Copy, number: int) -> list[str]:
    row, key, text = copy.take()
    copy.set(row, key, f"{text} {number} {LONG}")
    return [key]


def bad_row(copy: Copy, number: int) -> list[str]:
    """An id that is a path, one that comes twice, a hidden file's."""
    row, _, text = copy.take()
    if number == 1:
        _, key, _ = copy.take()
        copy.lines["train"].append(f"{key}\t {text}")
        return [f"'{key}' comes twice"]
    bad = ("../../secret", "", ".hidden")[number]
    copy.set(row, bad, text)
    return [f"row {row + 1}", bad]


# The kind of finding that each must be found as, in `Section.named`.
KINDS: dict[str, tuple[Callable, str]] = {
    "missing image": (missing, "train captions without an image"),
    "file cut short": (truncated, "images cannot be read"),
    "file damaged inside": (damaged, "images cannot be read"),
    "no image": (not_an_image, "images cannot be read"),
    "same bytes": (same_bytes, "groups of the same image"),
    "same pixels, another format": (same_pixels, "groups of the same image"),
    "encoded or resized again": (near_image, "pairs of nearly the same image"),
    "image that shows nothing": (nothing_shown, "images show nothing"),
    "image in both splits": (in_both_splits, "images are in train and validation"),
    "caption in both splits": (caption_in_both, "captions are in train and validation"),
    "same caption": (same_caption, "captions are there more than once"),
    "same but for case, punctuation": (folded_caption, "captions differ in case or punctuation alone"),
    "nearly the same caption": (near_caption, "pairs of captions are nearly the same"),
    "row without a caption": (empty_caption, "train rows without a caption"),
    "caption without a word": (no_word, "captions hold no word"),
    "placeholder": (placeholder, "captions look like placeholders"),
    "caption that is cut": (long_caption, "captions are cut"),
    "bad row": (bad_row, "bad rows of the train captions"),
}
ALSO = {"images are in train and validation": "pairs of nearly the same image are in train and validation"}


def plant(root: Path, each: int = EACH) -> dict[str, list[list[str]]]:
    """Change the pairs in `root` -> {kind: the words by which each fault must be found}."""
    copy = Copy(root)
    planted = {kind: [function(copy, number) for number in range(each)] for kind, (function, _) in KINDS.items()}
    copy.write()
    return planted


def examine(root: Path, *words: str) -> tuple[list, object, object]:
    args = doctor.parse(["main.py", "--root", str(root), *ARGUMENTS, *words])
    sections, found = doctor.examine(args)
    return sections, found, args


def named(sections) -> dict[str, list[str]]:
    return {what: names for section in sections for what, names in section.named.items()}


def judge(planted: dict, sections) -> dict[str, tuple[int, int]]:
    """{kind: (faults found, findings of the kind in all)}."""
    names, results = named(sections), {}
    for kind, faults in planted.items():
        what = KINDS[kind][1]
        listed = [*names.get(what, []), *names.get(ALSO.get(what), [])]
        found = sum(any(all(word in name for word in words) for name in listed) for words in faults)
        results[kind] = found, len(listed)
    return results


def files(root: Path) -> dict:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--html", metavar="FILE", help="write the check's page, too")
    parser.add_argument("--no-record", action="store_true", help="do not write benchmarks/results/doctor.txt")
    args = parser.parse_args()
    import common

    record = common.Record("doctor", "pillow", "opencv-python-headless", "numpy")
    record.lines[0] = f"$ python tests/programs/planted.py --pairs {args.pairs.name}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "pairs"
        shutil.copytree(args.pairs, root)
        words = "--output-dir", f"{folder}/run"
        before = {what: len(names) for what, names in named(examine(root, *words)[0]).items()}
        planted = plant(root)
        untouched, started = files(root), time.perf_counter()
        sections, found, settled = examine(root, *words)
        seconds = time.perf_counter() - started
        results = judge(planted, sections)
        record(f"{'planted':32} {'found':>8} {'findings':>9} {'before':>7}")
        for kind, (hits, total) in results.items():
            already = before.get(KINDS[kind][1], 0)
            record(f"{kind:32} {hits} of {len(planted[kind])} {total:9} {already:7}")
        written = files(root) != untouched or sorted(path.name for path in Path(folder).iterdir()) != ["pairs"]
        record(f"\nwritten by the check: {'SOMETHING' if written else 'nothing'}; {seconds:.0f} s\n")
        record("python tools/doctor.py main.py --root PAIRS " + " ".join(ARGUMENTS) + "  (names left out)")
        for section in sections:
            record(f"[{section.verdict}] {section.title}")
            for verdict, text in section.lines:
                text = text if verdict == "ok" else f"{verdict}: {text.partition(': ')[0]}"
                text = text.replace(str(root), "PAIRS").replace(folder, "TMP").replace(f"{common.REPOSITORY}/", "")
                record(f"    {text}")
        record(page.summary(sections))
        if args.html:
            Path(args.html).write_text(page.as_html("tools/doctor.py", sections, found, settled))
    if not args.no_record:
        record.save()
    return int(written or any(hits < len(planted[kind]) for kind, (hits, _) in results.items()))


if __name__ == "__main__":
    sys.exit(main())
