"""How processes of several end: their exit codes, and what they say of an error that one of them met."""


def test_every_process_ends_as_it_should(scripts):
    code, printed, errors = scripts.run("tests/programs/ends.py", "--short")
    assert code == 0 and "every process ended as it should" in printed, printed + errors
