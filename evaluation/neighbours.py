"""The nearest rows of a file of embeddings, exactly. The file is read in blocks: it may be larger than the memory."""

import json
import os
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from data.parquet import FAILURES, reason, stream
from utils import InputError

BLOCK = 2_048  # rows: 4 MB of 512 dimensions
MADE = "run weights features fit window".split()  # what the metadata must say
COLUMNS = ("id", "image", "caption")  # what is told of a neighbour; captions need not be there


class Embeddings:
    """A file that tools/embed.py wrote: `len` rows of `width` numbers, and `made`, how they were made, its metadata.

    Raises InputError if it is no such file, and says what it lacks.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file: give one that tools/embed.py wrote")
        try:
            self.file = stream(path)
        except FAILURES as error:
            raise self.refusal(f"no parquet file, {reason(error)}") from None
        schema = self.file.schema_arrow
        for name in ("id", "image", "embedding"):
            if schema.get_field_index(name) < 0:
                raise self.refusal(f"it has no column '{name}'")
        kind = schema.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise self.refusal(f"its column 'embedding' is of {kind}, not of fixed_size_list<float>")
        try:
            self.made = json.loads((schema.metadata or {})[b"medslip"])
            if not all(isinstance(self.made[key], str) for key in MADE):
                raise TypeError
        except (KeyError, ValueError, TypeError):
            raise self.refusal("its metadata do not say which model made it") from None
        self.width = kind.list_size
        self.columns = [name for name in COLUMNS if schema.get_field_index(name) >= 0]

    def refusal(self, why: str) -> InputError:
        return InputError(f"{self.path}: not a file of tools/embed.py ({why}): make it again")

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def blocks(self) -> Iterator[np.ndarray]:
        """The embeddings in order, (BLOCK or fewer, D) float32. Raises InputError if one is missing."""
        done = 0
        for batch in self.batches(["embedding"]):
            vectors = batch.column(0)
            values = vectors.flatten()
            if vectors.null_count or values.null_count:
                raise InputError(f"{self.path}, after row {done}: an embedding is missing: make the file again")
            done += len(batch)
            yield values.to_numpy().reshape(-1, self.width)

    def rows(self, numbers: list[int]) -> list[dict[str, str]]:
        """`id`, `image` and `caption` of rows, counted from 0; "" for what is not there. Raises InputError."""
        wanted, found, start = np.unique(np.asarray(numbers, np.int64)), {}, 0
        for batch in self.batches(self.columns):
            here = wanted[(wanted >= start) & (wanted < start + len(batch))]
            for number, row in zip(here.tolist(), batch.take(pa.array(here - start)).to_pylist(), strict=True):
                found[number] = {name: row.get(name) or "" for name in COLUMNS}
            start += len(batch)
        return [found[number] for number in numbers]

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self.file.iter_batches(BLOCK, columns=columns, use_threads=False)
        except FAILURES as error:
            raise InputError(f"{self.path}: cannot be read ({reason(error)}): make it again") from None


def nearest(embeddings: Embeddings, queries: np.ndarray, k: int, candidates: Callable) -> list[tuple]:
    """The `k` rows of the greatest cosine similarity to each of the `queries` (Q, D): (similarities, rows) a query.

    `candidates` is one of `SEARCHES`: it finds the rows of a block that may be among them, in float32. Those are
    compared again in float64, where every row is summed alone and in the same order. So all ways of searching give the
    same rows in the same order; those that are as near come by their row. Raises InputError.
    """
    units, _ = normalised(queries.astype(np.float64))
    best, start = [(np.zeros(0), np.zeros(0, np.int64)) for _ in units], 0
    for block in embeddings.blocks():
        shortened, lengths = normalised(block)
        if not np.isfinite(lengths).all():
            row = start + int(np.flatnonzero(~np.isfinite(lengths))[0])
            raise InputError(f"{embeddings.path}, row {row + 1}: the embedding is not finite: make the file again")
        near = candidates(shortened, units.astype(np.float32), min(k, len(block)))
        for number, rows in enumerate(near):
            values = (normalised(block[rows].astype(np.float64))[0] * units[number]).sum(axis=1)
            values, rows = (np.concatenate(pair) for pair in zip(best[number], (values, rows + start), strict=True))
            order = np.lexsort((rows, -values))[:k]
            best[number] = values[order], rows[order]
        start += len(block)
    return best


def normalised(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) -> each divided by its length, zeros left as they are; and the lengths (N,)."""
    lengths = np.sqrt((vectors * vectors).sum(axis=1))
    return vectors / np.where(lengths == 0, 1, lengths)[:, None], lengths


def margin(vectors: np.ndarray) -> float:
    """How much nearer than the last of the k nearest another row may seem: twice the most that a float32 sum of D
    products is wrong by (Higham, Accuracy and Stability of Numerical Algorithms, SIAM 2002, section 3.1)."""
    return (vectors.shape[1] + 8) * float(np.finfo(np.float32).eps)


def exact_candidates(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[np.ndarray]:
    """Rows of `vectors` (N, D), a (n,) of each query, that hold its k nearest; both are normalised, and k <= N."""
    scores = queries @ vectors.T
    last = np.partition(scores, len(vectors) - k, axis=1)[:, len(vectors) - k]
    return [np.flatnonzero(row >= least - margin(vectors)) for row, least in zip(scores, last, strict=True)]


def faiss_candidates(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[np.ndarray]:
    """`exact_candidates` by FAISS's comparison with every row (Douze et al., arXiv:2401.08281), that of its IndexFlatIP
    without the index's copy of the rows."""
    import faiss

    count = k
    while True:
        count = min(2 * count, len(vectors))
        scores, rows = faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        least = scores[:, k - 1 : k] - margin(vectors)
        if count == len(vectors) or (scores[:, -1:] < least).all():
            return [some[near] for some, near in zip(rows, scores >= least, strict=True)]


SEARCHES = {"faiss": faiss_candidates, "exact": exact_candidates}
