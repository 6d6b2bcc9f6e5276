"""Write a data set of any type into tar shards, which type "webdataset" and the webdataset library read.

python tools/pack.py --dataset roco --root /data/roco --out /data/roco_shards

A sample is the image's bytes as they are, its caption as .txt or its class as .cls, and its id, article, patient and
label as .json. The same data give the same bytes. A packing that was killed goes on with the same command.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tqdm import tqdm

import datasets
import distributed
import options
import utils
from data import locations, lock
from data.batches import start_worker
from data.shard_index import IMAGES
from utils import InputError

ABOUT = "pack.json"  # in the output folder: what is being packed there
SPLITS = ("train", "validation", "test")
MARKS = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif",
}  # fmt: skip


class Samples:
    """The samples of a split: Pairs, or a Labelled set."""

    def __init__(self, data, labelled: bool):
        self.data, self.labelled = data, labelled

    def __len__(self) -> int:
        return len(self.data)

    def text(self, i: int) -> tuple[dict[str, str], dict[str, str]]:
        """-> {suffix: text}, and the record that becomes .json."""
        data, record = self.data, {"id": self.data.ids[i]}
        if not self.labelled:
            article = data.articles.get(i) if data.articles else None
            return {"txt": data.captions[i]}, record | ({"article": article} if article else {})
        number = int(data.labels[i])
        patient = {"patient": data.patients[i]} if data.patients else {}
        return {"cls": str(number)}, record | {"label": data.classes[number]} | patient

    def image(self, i: int) -> str | None:
        """The location of an image; None if it has none."""
        if not self.labelled:
            return self.data.path(i)
        return self.data.images[i] if isinstance(self.data.images[i], str) else None

    def size(self, i: int) -> int:
        """The bytes of an image. Raises InputError."""
        location = self.image(i)
        if location is None or locations.split(location).row or not locations.is_file(location):
            return len(self.encoded(i)[1])
        return locations.stretch(location)[2]

    def encoded(self, i: int) -> tuple[str, bytes]:
        """-> suffix and bytes of an image. Raises InputError if it cannot be read, or is of no known kind."""
        location = self.image(i)
        if location is None:  # torchvision's sets hold pixels
            contents = io.BytesIO()
            self.data.images[i][0].save(contents, "png")
            return "png", contents.getvalue()
        where = locations.show(location)
        try:
            if not locations.is_file(location):
                raise FileNotFoundError(2, "no such file")
            contents = locations.read(location)
        except (OSError, EOFError) as error:
            raise InputError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        suffix = next((kind for mark, kind in MARKS.items() if contents.startswith(mark)), None)
        if contents[128:132] == b"DICM":
            suffix = "dcm"
        elif contents[:4] == b"RIFF" and contents[8:12] == b"WEBP":
            suffix = "webp"
        suffix = suffix or locations.suffix(location)[1:]
        if suffix not in IMAGES:
            raise InputError(f"{where}: neither its bytes nor its name are those of an image: correct or remove it")
        return suffix, contents


def main(args) -> None:
    out = Path(args.out).expanduser().absolute()
    entry = datasets.find_entry(args.catalog, args.dataset, args.root)
    splits = read_splits(args, entry)
    shards = [
        (split, number, rows)
        for split, samples in splits.items()
        for number, rows in enumerate(cut(samples, args.samples_per_shard, args.shard_mb))
    ]
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made: {error.strerror}") from None
    with lock.Lock(out, "--out"):
        claim(out, splits, shards)
        missing = [shard for shard in shards if not shard_file(out, *shard[:2]).exists()]
        write_all(out, splits, missing, args.workers or len(os.sched_getaffinity(0)))
    count = sum(map(len, splits.values()))
    print(f"{out}: {count:,} samples in {len(shards):,} shards" + ("" if made else f", {len(missing):,} of them new"))
    print(
        "for the catalog:\n" + json.dumps({f"{args.dataset}_shards": new_entry(out, entry, splits, shards)}, indent=4)
    )


def read_splits(args, entry: dict) -> dict[str, Samples]:
    """The splits that are asked for, or all. Raises InputError for one that is not there."""
    known = datasets.TYPES[entry["type"]]
    labelled = args.labelled or known.pairs is None
    if labelled and (args.metadata or args.subset != "all"):
        raise InputError("--metadata and --subset choose among captions: leave them out for a labelled set")
    if labelled and "validation" in (args.split or ()):
        raise InputError("--split validation: a labelled set has the splits train and test")
    found = {}
    for split in args.split or (("train", "test") if labelled else ("train", "validation")):
        if labelled:
            data = datasets.labelled_set(entry, split)
            if data.multi:
                raise InputError(
                    f"--dataset {entry['name']}: several findings an image: a shard's sample has one label"
                )
        else:
            optional = not args.split and split != "train"
            data = datasets.paired_set(entry, split, args.metadata if split == "train" else None, args.subset, optional)
        if data is not None:
            found[split] = Samples(data, labelled)
    return found


def cut(samples: Samples, most: int, megabytes: float | None) -> list[range]:
    """The samples of each shard: `most`, or as many as it takes to have images of so many MB (10^6 bytes)."""
    if megabytes is None:
        return [range(start, min(start + most, len(samples))) for start in range(0, len(samples), most)]
    found, start, size = [], 0, 0
    for i in range(len(samples)):
        size += samples.size(i)
        if size >= 1e6 * megabytes or i + 1 == len(samples):
            found.append(range(start, i + 1))
            start, size = i + 1, 0
    return found


def shard_file(out: Path, split: str, number: int) -> Path:
    return out / split / f"shard-{number:06d}.tar"


def claim(out: Path, splits: dict[str, Samples], shards: list) -> None:
    """Note in `out` what is packed there. Raises InputError if it holds something else."""
    digest = hashlib.sha256(repr(shards).encode())
    for split, samples in splits.items():
        for i in range(len(samples)):
            digest.update(json.dumps([split, samples.text(i), samples.image(i)]).encode())
    about = {"made_by": "tools/pack.py", "samples": {split: len(one) for split, one in splits.items()}}
    about["digest"] = digest.hexdigest()
    others = [one.name for one in out.iterdir() if one.name not in (ABOUT, lock.NAME) and not one.name.endswith(".tmp")]
    if not (out / ABOUT).exists():
        if others:
            raise InputError(f"--out {out}: holds {sorted(others)[0]} and is no packing: give a new folder")
        utils.write_json(out / ABOUT, about)
    elif utils.read_text(out / ABOUT) != json.dumps(about, indent=2) + "\n":
        raise InputError(f"--out {out}: holds shards of other data or of another size: give a new folder")
    for split in splits:
        (out / split).mkdir(exist_ok=True)
        utils.remove_temporaries(out / split)


def write_all(out: Path, splits: dict[str, Samples], missing: list, workers: int) -> None:
    """Write the shards `missing`, each by one of several processes."""
    with tqdm(total=len(missing), desc="packing", unit=" shards", disable=None, dynamic_ncols=True) as bar:
        if min(workers, len(missing)) <= 1:
            for split, number, rows in missing:
                write_shard(shard_file(out, split, number), splits[split], rows)
                bar.update(1)
            return
        # A forked process has the samples already.
        with ProcessPoolExecutor(min(workers, len(missing)), get_context("fork"), begin, (splits,)) as pool:
            jobs = [pool.submit(write_of, shard_file(out, *shard[:2]), *shard[::2]) for shard in missing]
            try:
                for job in jobs:
                    job.result()
                    bar.update(1)
            except BrokenProcessPool:
                raise InputError(f"--out {out}: a process was killed: the same command again goes on") from None
            finally:
                pool.shutdown(cancel_futures=True)


def begin(splits: dict[str, Samples]) -> None:
    global inherited
    inherited = splits
    start_worker(0)


def write_of(path: Path, split: str, rows: range) -> None:
    write_shard(path, inherited[split], rows)


def write_shard(path: Path, samples: Samples, rows: range) -> None:
    """Write a shard, whole or not at all. Raises InputError: an image cannot be read, or the disk is full."""
    key = None
    try:
        with utils.atomic_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            for i in rows:
                texts, record = samples.text(i)
                suffix, contents = samples.encoded(i)
                key, before = key_of(record["id"]), key
                if key == before:
                    raise InputError(f"sample {i} has the id of the one before it: '{record['id'][:80]}': remove one")
                members = {suffix: contents} | {name: text.encode() for name, text in texts.items()}
                members["json"] = json.dumps(record, ensure_ascii=False).encode()
                for name in sorted(members):
                    member = tarfile.TarInfo(f"{key}.{name}")  # of user 0 and time 0
                    member.size = len(members[name])
                    archive.addfile(member, io.BytesIO(members[name]))
    except UnicodeEncodeError:
        raise InputError(f"sample {i}: the id or the text is not in UTF-8: {record['id'][:80]!a}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}): make room, then try again") from None


def key_of(name: str) -> str:
    """The key of a sample in the shard: its id, with dots, slashes and all but A-Z, a-z, 0-9, - _ ~ as %2E.

    A key ends at the first dot for the webdataset library, and what comes before a slash is a folder. The id itself
    is in the .json.
    """
    return quote(name, safe="").replace(".", "%2E")


def new_entry(out: Path, entry: dict, splits: dict[str, Samples], shards: list) -> dict[str, str]:
    """The catalog's entry of what was packed."""
    found = {"path": str(out), "type": "webdataset"}
    for split, samples in splits.items():
        last = max(number for name, number, _ in shards if name == split)
        found[split] = f"{split}/shard-{{000000..{last:06d}}}.tar"
        if samples.labelled and samples.data.fit != "center256":
            found["fit"] = samples.data.fit
    return found | ({"window": entry["window"]} if entry["window"] else {})


if __name__ == "__main__":
    parser = options.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--dataset", required=True, help="a name in the catalog")
    parser.add_argument("--catalog", default=str(Path(__file__).parents[1] / "dataset_catalog.json"), metavar="FILE")
    parser.add_argument("--root", metavar="FOLDER", help="where the data lies, instead of the catalog's path")
    parser.add_argument("--split", action="append", choices=SPLITS, help="may be given again (default: all there are)")
    parser.add_argument("--subset", default="all", help="of the captions, as main.py's")
    parser.add_argument("--metadata", metavar="FILE", help="a captions file instead of the data's, as main.py's")
    parser.add_argument(
        "--labelled", action="store_true", help="pack classes where a type has both captions and classes"
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="a new folder, or that of a packing to go on with"
    )
    parser.add_argument("--samples-per-shard", type=options.positive, default=10_000, help="default: %(default)s")
    parser.add_argument(
        "--shard-mb", type=options.number, metavar="MB", help="of images in a shard, instead of a number of samples"
    )
    parser.add_argument("--workers", type=options.positive, help="processes (default: one a core)")
    distributed.run_script(main, parser.parse_args())
