"""Properties of every reader, on inputs made by hypothesis: accepted or refused in one line, and nothing else."""

import os
import random

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # pytest has set aside the filter that images.py sets

EDITS = st.lists(
    st.tuples(
        st.integers(0, 8),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.sampled_from(fuzz.HOSTILE), st.binary(max_size=40), st.text(max_size=20).map(str.encode)),
    ),
    max_size=4,
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    root = (tmp_path_factory.mktemp("hostile") / "data").resolve()
    root.mkdir()
    watch = fuzz.Watch(root)
    return fuzz.Kinds(root, watch.start), watch


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_accepted_or_refused_in_one_line(readers, kind):
    kinds, watch = readers

    @settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32), EDITS)
    def holds(seed, edits):
        found = fuzz.outcome(kinds, watch, kind, random.Random(seed), edits)
        kinds.restore()
        assert found in ("accepted", "clear error")

    holds()
    left = fuzz.listing(kinds.root.parent)
    assert not any("canary" in path or "escaped" in path for path in left) and not os.path.exists("canary")


def test_a_pipe_among_the_images_is_refused(tmp_path):
    os.mkfifo(tmp_path / "image.jpg")
    with pytest.raises(fuzz.InputError, match="not a file"):
        fuzz.images.read_image(str(tmp_path / "image.jpg"))
    assert fuzz.images.unreadable([str(tmp_path / "image.jpg")])
