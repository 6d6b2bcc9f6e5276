"""Files as tools/embed.py writes them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MADE = {"run": "runs/vit/checkpoint.pt", "weights": "0badcafe", "features": "projected", "fit": "center", "window": ""}


def write_embeddings(path, vectors, made=MADE, **columns):
    """A file as tools/embed.py writes it, of ids "0", "1", ... and images "/0.png", ... if no others are given."""
    vectors, numbers = np.asarray(vectors, np.float32), range(len(vectors))
    columns = {"id": [str(n) for n in numbers], "image": [f"/{n}.png" for n in numbers], **columns}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    table = pa.table(columns).replace_schema_metadata({"medslip": json.dumps(made)})
    pq.write_table(table, path, row_group_size=max(3, len(vectors) // 3))
    return path
