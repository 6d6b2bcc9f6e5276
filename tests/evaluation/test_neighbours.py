"""evaluation/neighbours.py: neighbours worked out by hand, in whichever way and in however small blocks."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings_file import write_embeddings
from evaluation import neighbours
from utils import InputError

VECTORS = [[0, 1], [2, 2], [-1, 0], [5, 0], [0, 0], [1, 1], [0, 3], [3, 4]]


@pytest.mark.parametrize("search", neighbours.SEARCHES)
@pytest.mark.parametrize("block", [1, 3, 100])
def test_neighbours_by_hand(tmp_path, monkeypatch, search, block):
    """Angles count and lengths do not; rows as near as each other come in their order, and zeros have no angle."""
    monkeypatch.setattr(neighbours, "BLOCK", block)
    found = neighbours.Embeddings(write_embeddings(tmp_path / "e.parquet", VECTORS))
    queries = np.array([[3, 0], [0, 0.1]], np.float32)
    right, up = neighbours.nearest(found, queries, 5, neighbours.SEARCHES[search])
    assert right[1].tolist() == [3, 1, 5, 7, 0] and right[0] == pytest.approx([1, 0.5**0.5, 0.5**0.5, 0.6, 0])
    assert up[1].tolist() == [0, 6, 7, 1, 5] and up[0] == pytest.approx([1, 1, 0.8, 0.5**0.5, 0.5**0.5])
    everything = neighbours.nearest(found, queries[:1], 100, neighbours.SEARCHES[search])[0]
    assert everything[1].tolist() == [3, 1, 5, 7, 0, 4, 6, 2]
    assert [one["id"] for one in found.rows([6, 0, 6])] == ["6", "0", "6"]
    assert found.rows([7]) == [{"id": "7", "image": "/7.png", "caption": ""}]


def test_every_way_finds_the_same(tmp_path):
    """Among rows that float32 cannot tell apart, and many that are the same."""
    rng = np.random.default_rng(0)
    near = rng.standard_normal(96) + 1e-7 * rng.standard_normal((300, 96))
    vectors = np.concatenate([rng.standard_normal((200, 96)), near, np.repeat(near[:4], 150, axis=0)])
    vectors = rng.permutation(vectors) * rng.uniform(0.1, 9, (len(vectors), 1))
    found = neighbours.Embeddings(write_embeddings(tmp_path / "e.parquet", vectors))
    queries = np.stack([near[0], vectors[5], rng.standard_normal(96)]).astype(np.float32)
    stored = vectors.astype(np.float32).astype(np.float64)
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)[:, None] * np.linalg.norm(stored, axis=1)
    cosines = queries.astype(np.float64) @ stored.T / lengths
    first = neighbours.nearest(found, queries, 250, neighbours.exact_candidates)
    second = neighbours.nearest(found, queries, 250, neighbours.faiss_candidates)
    for (similarities, rows), (others, other_rows), all_of_them in zip(first, second, cosines, strict=True):
        assert np.array_equal(rows, other_rows) and np.array_equal(similarities, others)
        assert similarities == pytest.approx(np.sort(all_of_them)[::-1][:250], abs=1e-12)
        assert similarities == pytest.approx(all_of_them[rows], abs=1e-12)
        assert all(
            a > b or (a == b and i < j)
            for a, b, i, j in zip(similarities, similarities[1:], rows, rows[1:], strict=False)
        )


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        neighbours.nearest(neighbours.Embeddings(path), np.ones((1, 2), np.float32), 1, neighbours.exact_candidates)
    return str(caught.value)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "e.parquet"
    assert "no such file" in refusal(path)
    path.write_text("id,embedding\n")
    assert "not a file of tools/embed.py (no parquet file" in refusal(path)
    whole = pq.read_table(write_embeddings(path, VECTORS))
    for name in ("id", "image", "embedding"):
        pq.write_table(whole.drop_columns([name]), path)
        assert f"(it has no column '{name}'): make it again" in refusal(path)
    pq.write_table(whole.replace_schema_metadata(None), path)
    assert "its metadata do not say which model made it" in refusal(path)
    write_embeddings(path, VECTORS, made={"run": "runs/vit"})
    assert "its metadata do not say" in refusal(path)
    lists = pa.array([[1.0, 0.0]] * len(VECTORS))
    pq.write_table(whole.set_column(whole.schema.get_field_index("embedding"), "embedding", lists), path)
    assert "its column 'embedding' is of list<" in refusal(path)
    missing = pa.array([[1, 0], [None, 1], *VECTORS[2:]], pa.list_(pa.float32(), 2))
    pq.write_table(whole.set_column(whole.schema.get_field_index("embedding"), "embedding", missing), path)
    assert "an embedding is missing" in refusal(path)
    write_embeddings(path, [[1, 0], [np.nan, 1]])
    assert f"{path}, row 2: the embedding is not finite" in refusal(path)
    contents = bytearray(write_embeddings(path, np.random.default_rng(0).standard_normal((500, 2))).read_bytes())
    contents[200 : len(contents) // 2] = bytes(len(contents) // 2 - 200)
    path.write_bytes(contents)
    assert "cannot be read" in refusal(path) and "\n" not in refusal(path)
