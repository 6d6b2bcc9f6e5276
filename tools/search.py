"""The images of a set that are nearest to a text or to an image: a table, and a page with the pictures.

python tools/search.py embeddings.parquet "spiculated mass in the left breast"
python tools/search.py embeddings.parquet --image query.png --top 50 --out search.html --csv search.csv

EMBEDDINGS is a file of tools/embed.py. The query is encoded by the model that made it, and compared with every image by
the cosine of the angle between the embeddings. Several texts, and --image several times, are several queries.
"""

import argparse
import csv
import io
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch

import distributed
import options  # before torch: it sets what OpenMP reads
import utils
from data import images, locations
from evaluation.encoder import open_encoder
from evaluation.exports import EXPORT
from evaluation.features import weights_crc
from evaluation.fitted import IMAGE_PARTS
from evaluation.neighbours import SEARCHES, Embeddings, nearest
from tools.pages import data_uri, environment
from utils import InputError

IN_WORDS = {"faiss": "FAISS, exact", "exact": "numpy, exact"}
CAPTION = 60  # characters of it that the terminal shows


@dataclass
class Found:
    """An image that was found: `image` is its location (data/locations.py), `row` counts from 1."""

    rank: int
    similarity: float
    row: int
    id: str
    image: str
    caption: str
    itself: bool  # it is the file that was asked for

    @property
    def file(self) -> str:
        return locations.show(self.image)


def main(args) -> None:
    if not args.texts and not args.image:
        raise InputError('give a text to search for, as in: search.py embeddings.parquet "a mass", or --image FILE')
    for flag, file, suffix in (("--out", args.out, ".html"), ("--csv", args.csv, ".csv")):
        if file and Path(file).suffix != suffix:  # so that neither replaces the embeddings, or a query
            raise InputError(f"{flag} {file}: give a file that is called {suffix}")
    method = search_method(args.index)
    embeddings = Embeddings(args.embeddings)
    found = nearest(embeddings, encode(args, embeddings), args.top, SEARCHES[method])
    texts, files = ([(text, None) for text in args.texts], [(file, file) for file in args.image])
    results = [
        {"query": query, "image": file, "found": told(embeddings, *one, file)}
        for (query, file), one in zip(texts + files, found, strict=True)
    ]
    about = f"{len(embeddings):,} images ({IN_WORDS[method]})"
    for result in results:
        print(f"{result['query']}: the nearest of {about}\n{as_table(result['found'])}\n")
    write(args, embeddings, about, results)


def search_method(asked: str) -> str:
    """ "faiss" or "exact". Raises InputError if FAISS is asked for and is not there."""
    there = find_spec("faiss") is not None
    if asked == "faiss" and not there:
        raise InputError("--index faiss: FAISS is not installed: pip install faiss-cpu, or leave --index out")
    return ("faiss" if there else "exact") if asked == "auto" else asked


def encode(args, embeddings: Embeddings) -> np.ndarray:
    """The queries' embeddings (Q, D) float32: the texts, then the images. Raises InputError."""
    made = embeddings.made
    if args.texts and made["features"] != "projected":
        raise InputError(
            f"{args.embeddings}: its embeddings are {made['features']} features, which no text is compared with: "
            "search with --image, or embed again with --features projected"
        )
    for file in args.image:
        if not os.path.isfile(file):
            raise InputError(f"--image {file}: no such file")
    if blank := [text for text in args.texts if not text.strip()]:
        raise InputError(f"'{blank[0]}': an empty text finds nothing: describe what the images show")
    encoder = open_encoder(args.run or where(embeddings), text=bool(args.texts))
    if weights_crc(encoder.model, IMAGE_PARTS) != made["weights"]:
        raise InputError(f"{encoder.path}: not the weights that made {args.embeddings}: give --run, or embed again")
    projected = made["features"] == "projected"
    parts = []
    if args.texts:
        parts.append(encoder.encode_text(args.texts))
    if args.image:
        encoder.fit, encoder.window = made["fit"], made["window"]
        parts.append(encoder.encode_image([os.path.abspath(file) for file in args.image], projected))
    queries = torch.cat(parts).numpy()
    if queries.shape[1] != embeddings.width:
        raise InputError(
            f"{args.embeddings}: embeddings of {embeddings.width} numbers, and the model's have {queries.shape[1]}: "
            "embed again"
        )
    return queries


def where(embeddings: Embeddings) -> Path:
    """The model that made the embeddings: a checkpoint, or the folder of an export. Raises InputError if it is gone."""
    weights = Path(embeddings.made["run"])
    if not weights.exists():
        raise InputError(f"{weights}: the model of {embeddings.path} is not there any more: say where it is (--run)")
    return weights.parent if (weights.parent / EXPORT).is_file() else weights


def told(embeddings: Embeddings, similarities: np.ndarray, rows: np.ndarray, query: str | None) -> list[Found]:
    """What the file tells of rows that were found; `query` is the image that was asked for, if it was one."""
    found = []
    for similarity, row, one in zip(similarities.tolist(), rows.tolist(), embeddings.rows(rows.tolist()), strict=True):
        within = "\0" in one["image"]  # a member of a shard or a row of a table is no file that could be given
        itself = query is not None and not within and os.path.realpath(query) == os.path.realpath(one["image"])
        found.append(Found(len(found) + 1, similarity, row + 1, **one, itself=itself))
    return found


def as_table(found: list[Found]) -> str:
    """Lines of rank, similarity, id, the start of the caption if there are captions, and file, for a terminal."""
    rows = [["rank", "similarity", "id", "caption", "file"]]
    for one in found:
        caption = printable(one.caption)
        short = caption if len(caption) <= CAPTION else caption[: CAPTION - 1] + "…"
        name = printable(one.id) + (" (the query itself)" if one.itself else "")
        rows.append([str(one.rank), f"{one.similarity:.4f}", name, short, printable(one.file)])
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    padded = [
        [cell.rjust(width) if number < 2 else cell.ljust(width) for cell in column]
        for number, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def printable(text: str) -> str:
    """A text on one line, without what a terminal takes as a command."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))


def write(args, embeddings: Embeddings, about: str, results: list[dict]) -> None:
    """The page, and the table as CSV. Raises InputError if they cannot be written."""
    missing = {}

    def picture(location: str) -> str | None:
        """An image as a data URI; None where it cannot be shown."""
        try:
            image = images.read_image(locations.make(location, window=embeddings.made["window"]))
        except InputError as error:
            missing[location] = str(error)
            return None
        return data_uri(image)

    templates = environment(Path(__file__).parent)
    templates.filters["picture"] = picture
    contents = {"file": args.embeddings, "made": embeddings.made, "about": about, "results": results}
    page = templates.get_template("search.html.j2").render(contents)
    out = Path(args.out)
    utils.make_folder(out.parent, "--out")
    utils.write_text(out, page)
    written = [f"{out} ({len(page.encode()) / 1e6:.1f} MB)"]
    if args.csv:
        utils.make_folder(Path(args.csv).parent, "--csv")
        utils.write_text(Path(args.csv), as_csv(results))
        written.append(args.csv)
    for why in missing.values():
        utils.logger.warning(f"not on the page: {why}")
    print(f"written: {', '.join(written)}")


def as_csv(results: list[dict]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["query", "rank", "similarity", "row", "id", "file", "caption"])
    for result in results:
        for one in result["found"]:
            table.writerow([result["query"], one.rank, f"{one.similarity:.6f}", one.row, one.id, one.file, one.caption])
    return text.getvalue()


def search_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", metavar="EMBEDDINGS", help="a file of tools/embed.py")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what the images should show")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image to find the like of")
    parser.add_argument(
        "--top", type=options.positive, default=20, metavar="K", help="images a query (default: %(default)s)"
    )
    parser.add_argument("--out", default="search.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument("--csv", metavar="FILE", help="write the table to a file, too")
    parser.add_argument("--run", help="the model that made the file, where it lies now (default: where it lay then)")
    both = "both find the same (default: faiss where it is installed)"
    parser.add_argument("--index", choices=("auto", *SEARCHES), default="auto", help=f"how to search; {both}")
    return parser


if __name__ == "__main__":
    distributed.run_script(main, search_parser().parse_intermixed_args())
