"""How processes of several end: their exit codes, and what they say of an error that one of them met."""

import torch.distributed as dist

import distributed
from scripts import HANG


def test_every_process_ends_as_it_should(scripts):
    code, printed, errors = scripts.run("tests/programs/ends.py", "--short")
    assert code == 0 and "every process ended as it should" in printed, printed + errors


def test_a_rank_that_has_left_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", HANG)
    heralds = [distributed.Herald(dist.FileStore(str(tmp_path / "store"), 2), rank, 2) for rank in range(2)]
    heralds[1].start()
    heralds[1].stop()
    heralds[0].tell(2, "a full disk")
