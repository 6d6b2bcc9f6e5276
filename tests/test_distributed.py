"""How processes of several end: their exit codes, and what they say of an error that one of them met."""

from test_survival import script


def test_every_process_ends_as_it_should():
    assert "every process ended as it should" in script("ends.py", "--short")
