"""The same pairs in every layout give the same first batch; tests/programs/layouts.py trains on them too."""

import json

import layouts
import pytest

from conftest import make_roco
from data.roco import roco_table

WORDS = (*layouts.SMALL.split(), "--batch-size", "8", "--workers", "0", "--cache", "none")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """ROCO's tables of 24 and 8 pairs, and their first batch."""
    root = make_roco(tmp_path_factory.mktemp("roco"))
    tables = {split: roco_table(root, split) for split in layouts.SPLITS}
    return tables, layouts.first_batch(["--root", str(root), *WORDS])


@pytest.mark.parametrize("layout", layouts.WRITERS)
def test_the_same_first_batch(pairs, tmp_path, layout):
    tables, expected = pairs
    entry = layouts.WRITERS[layout](tables, tmp_path)
    (tmp_path / "catalog.json").write_text(json.dumps({"pairs": entry}))
    words = ["--catalog", str(tmp_path / "catalog.json"), "--dataset", "pairs", *WORDS]
    assert layouts.first_batch(words) == expected
