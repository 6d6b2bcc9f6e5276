"""The cells of a multi-label table (CheXpert's, MIMIC-CXR's) as labels: 1, 0, or nan where a finding is unknown."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils import InputError

PRESENT, ABSENT, UNCERTAIN, BLANK = range(4)
CELLS = {"1": PRESENT, "1.0": PRESENT, "true": PRESENT, "0": ABSENT, "0.0": ABSENT, "false": ABSENT}
CELLS |= {"-1": UNCERTAIN, "-1.0": UNCERTAIN, "": BLANK}
# What -1 counts as, by the names of Irvin et al. (AAAI 2019): U-Ignore, U-Zeros, U-Ones.
UNCERTAIN_AS = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
BLANK_AS = {"zeros": 0.0, "ignore": np.nan}  # a report that does not mention a finding leaves its cell blank


def to_labels(
    cells: Sequence, where: str, uncertain: str = "ignore", blank: str = "zeros", rows: Sequence[int] | None = None
) -> np.ndarray:
    """One finding's column -> (N,) float32 of 0, 1 and nan (unknown: neither trained on nor scored).

    `cells` are texts, numbers or booleans: 1, 0, -1 (uncertain) or blank (also None and nan). `uncertain` is a name of
    UNCERTAIN_AS, `blank` one of BLANK_AS. Errors begin with `where`, the file and the column, and name the row: that of
    `rows`, or counted from 2, as in a file with a header.

    Raises InputError for any other cell, and for a policy that is none.
    """
    for what, name, known in (("uncertain", uncertain, UNCERTAIN_AS), ("blank", blank, BLANK_AS)):
        if name not in known:
            raise InputError(f"{where}: {what}: '{name}' is not one of {', '.join(known)}")
    numbers, values = pd.factorize(np.asarray(cells, object))  # blank ones that are no text have the number -1
    kinds = [CELLS.get(str(value).strip().lower()) for value in values]
    if None in kinds:
        row = int(np.flatnonzero(numbers == kinds.index(None))[0])
        shown = repr(values[kinds.index(None)])[:40]
        row = row + 2 if rows is None else rows[row]
        raise InputError(f"{where}, row {row}: {shown} is not 1, 0, -1 or blank: correct it, or name another column")
    labels = np.array([1.0, 0.0, UNCERTAIN_AS[uncertain], BLANK_AS[blank]], np.float32)
    return labels[np.array([*kinds, BLANK])[numbers]]
