"""Parquet files: their columns in blocks, and images that are cells of a column, read by row group.

Hugging Face's `datasets` stores an image as a struct {bytes, path}; a plain binary column is read too. A cell cannot be
read without its row group, often a hundred images. So each thread keeps the group it read last, and threads at the same
group share it: images that are read in order, by however many threads, cost one reading of each group.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from utils import InputError

FAILURES = (pa.ArrowException, OSError, ValueError, MemoryError)  # what pyarrow raises for a damaged file
BUFFER = 1 << 20  # bytes that are read of a column at a time

groups = weakref.WeakValueDictionary()  # {(path, stamp, column, row group): its cells}, as long as a thread keeps them
recent = deque(maxlen=2)  # so that a group is not lost while its threads go on to the next one
kept = threading.local()
LOCKS = [threading.Lock() for _ in range(64)]  # a group is read by one thread, and others wait for it


def reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def stream(path: str | os.PathLike) -> pq.ParquetFile:
    """A file whose columns are read piece by piece: by default pyarrow holds all that `iter_batches` is to read. Raises
    FAILURES."""
    return pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)


def open_file(path: str) -> pq.ParquetFile:
    """Raises InputError if there is no such file or it is no parquet file."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file: correct its name in the catalog")
    try:
        return stream(path)
    except FAILURES as error:
        raise InputError(f"{path}: not a parquet file ({reason(error)}): download it again") from None


def names(path: str) -> list[str]:
    """The names of the columns. Raises InputError as `open_file`."""
    with open_file(path) as file:
        return file.schema_arrow.names


def is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def image_field(kind: pa.DataType) -> str | None:
    """The field of a struct that holds an image's bytes; "" for a column of bytes, None for one of another type."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "bytes"
    return "" if is_binary(kind) else None


def stored(path: str, column: str) -> np.ndarray | None:
    """(N,) bool, which rows hold an image's bytes in `column`; None if it is no column of images. Raises InputError."""
    with open_file(path) as file:
        kind = file.schema_arrow.field(column).type
        if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and image_field(kind.value_type) is not None:
            raise InputError(f"{path}: the column '{column}' holds lists of stored images: write a row for each image")
        field = image_field(kind)
        if field is None:
            return None
        leaf, found = f"{column}.{field}".rstrip("."), []
        try:
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                parts = (group.column(i) for i in range(group.num_columns))
                facts = next((part.statistics for part in parts if part.path_in_schema == leaf), None)
                if facts is not None and facts.has_null_count and facts.null_count == 0:
                    found.append(np.ones(group.num_rows, bool))
                else:
                    cells = read_cells(file, number, column)
                    found.append(np.asarray(pc.is_valid(cells).combine_chunks()).astype(bool))
        except FAILURES as error:
            raise InputError(f"{path}: the column '{column}' cannot be read ({reason(error)})") from None
        return np.concatenate([np.zeros(0, bool), *found])


def blocks(path: str, columns: list[str], size: int, images: str | None = None) -> Iterator[list[list]]:
    """The cells of `columns` in blocks of at most `size` rows; where the column `images` stores images, the names that
    are stored with them, or None. Raises InputError."""
    with open_file(path) as file:
        named, leaves = False, list(columns)
        kind = file.schema_arrow.field(images).type if images in columns else pa.null()
        if image_field(kind) is None:
            images = None
        else:
            named = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
            place = leaves.index(images)
            leaves[place : place + 1] = [f"{images}.path"] if named else []
        total, done = file.metadata.num_rows, 0
        try:
            if not leaves:
                yield from ([[None] * min(size, total - start)] for start in range(0, total, size))
                return
            for batch in file.iter_batches(size, columns=leaves, use_threads=False):
                found = []
                for name in columns:
                    if name != images:
                        found.append(batch.column(name).to_pylist())
                    else:
                        found.append(batch.column(name).field("path").to_pylist() if named else [None] * len(batch))
                done += len(batch)
                yield found
        except (*FAILURES, KeyError, OverflowError) as error:
            raise InputError(f"{path}, after row {done}: cannot be read ({reason(error)}): download it again") from None


# Images


@lru_cache(256)
def starts(path: str, stamp: tuple[int, int]) -> np.ndarray:
    """The first row of each row group, and the number of rows."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return np.cumsum([0, *sizes])


def read_cells(file: pq.ParquetFile, number: int, column: str) -> pa.ChunkedArray:
    """The bytes of the images of a row group."""
    field = image_field(file.schema_arrow.field(column).type)
    if field is None:
        raise ValueError(f"the column '{column}' holds no images")
    name = f"{column}.{field}".rstrip(".")
    cells = file.read_row_group(number, columns=[name], use_threads=False).column(0)
    return pc.struct_field(cells, field) if field else cells


def read(path: str, column: str, row: int) -> bytes:
    """The bytes of the image in a row, counted from 0 over the whole file. Raises OSError."""
    status = os.stat(path)
    stamp = (status.st_size, status.st_mtime_ns)
    try:
        edges = starts(path, stamp)
        number = int(np.searchsorted(edges, row, "right")) - 1
        if not 0 <= row < edges[-1]:
            raise ValueError(f"the file has {edges[-1]} rows")
        key = (path, stamp, column, number)
        with LOCKS[hash(key) % len(LOCKS)]:
            cells = groups.get(key)
            if cells is None:
                with pq.ParquetFile(path) as file:  # opened for each group: nothing is held that a fork would share
                    cells = groups[key] = read_cells(file, number, column)
                recent.append(cells)
        kept.cells = cells
        contents = cells[row - int(edges[number])].as_py()
    except FileNotFoundError:
        raise
    except (*FAILURES, KeyError) as error:
        raise OSError(reason(error)) from None
    if contents is None:
        raise OSError("the cell is empty")
    return contents
