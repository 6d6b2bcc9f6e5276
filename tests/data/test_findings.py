"""The cells of CheXpert's columns as labels, by each policy."""

import io

import numpy as np
import pandas as pd
import pytest

from data import findings
from utils import InputError

CELLS = ["1.0", "0", "-1.0", "", " 1 ", "-1", "True", "false"]


@pytest.mark.parametrize(
    ("uncertain", "blank", "expected"),
    [
        ("ignore", "zeros", [1, 0, np.nan, 0, 1, np.nan, 1, 0]),
        ("zeros", "zeros", [1, 0, 0, 0, 1, 0, 1, 0]),
        ("ones", "zeros", [1, 0, 1, 0, 1, 1, 1, 0]),
        ("ones", "ignore", [1, 0, 1, np.nan, 1, 1, 1, 0]),
        ("ignore", "ignore", [1, 0, np.nan, np.nan, 1, np.nan, 1, 0]),
    ],
)
def test_each_policy(uncertain, blank, expected):
    labels = findings.to_labels(CELLS, "x.csv, column Edema", uncertain, blank)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, np.array(expected, np.float32))


def test_columns_as_pandas_reads_them():
    """CheXpert's file gives texts, or numbers with nan; parquet and JSON lines give integers, booleans and None."""
    text = "Edema\n1.0\n\n-1.0\n0.0\n"
    texts = pd.read_csv(io.StringIO(text), dtype=str, skip_blank_lines=False)["Edema"]
    columns = (texts, texts.fillna(""), texts.astype(float), pd.array([1, None, -1, 0], "Int64"), [True, None, -1, 0.0])
    for column in columns:
        np.testing.assert_array_equal(findings.to_labels(column, ""), np.array([1, 0, np.nan, 0], np.float32))
    np.testing.assert_array_equal(findings.to_labels(np.array([True, False]), ""), [1, 0])
    assert findings.to_labels([], "").shape == (0,)


@pytest.mark.parametrize("cell", ["2", "yes", "0.5", "-", float("inf"), "1,0", -2])
def test_another_cell_is_refused_with_its_row(cell):
    with pytest.raises(InputError, match=r"^x\.csv, column Edema, row 4: .* is not 1, 0, -1 or blank"):
        findings.to_labels(["1", "", cell, cell], "x.csv, column Edema")
    with pytest.raises(InputError, match="row 70: "):
        findings.to_labels(["1", cell], "x", rows=[3, 70])


def test_a_policy_that_is_none():
    with pytest.raises(InputError, match="uncertain: 'maybe' is not one of ignore, zeros, ones"):
        findings.to_labels([], "catalog.json, entry 'x'", "maybe")
    with pytest.raises(InputError, match="blank: 'ones' is not one of zeros, ignore"):
        findings.to_labels([], "catalog.json, entry 'x'", blank="ones")
