"""The launchers on this machine: submitit's local cluster runs the same job that Slurm would run."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import timm
import torch
from scripts import until
from test_main import SMALL


@pytest.fixture
def run(scripts, tmp_path):
    """Run a launcher to its end -> exit code, stdout, stderr."""
    return lambda script, *words: scripts.run(script, "--cluster", "local", *words, cwd=tmp_path)


def test_slips_own_linear_command(run, folders, tmp_path):
    """The command of SLIP's README, with a checkpoint as SLIP saves it (a small arch here) and a two-class folder."""
    torch.manual_seed(0)
    tower = timm.create_model("test_vit", num_classes=0, img_size=224)
    state = {f"module.visual.{key}": value for key, value in tower.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 25}, tmp_path / "checkpoint.pt")
    words = ("--arch", "test_vit", "--dataset", "imagenet", "--pretrained", tmp_path / "checkpoint.pt")
    code, printed, errors = run("run_with_submitit_linear.py", *words, "--catalog", folders, "--workers", "1")
    assert code == 0, errors + printed
    (results,) = tmp_path.glob("jobs/*/results.json")
    assert results.parent.name.isdigit() and json.loads(results.read_text())["n_test"] == 12
    assert "| test_vit (checkpoint.pt) |" in printed


def tasks(folder) -> list[int]:
    """The processes of a local job, by their command line."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = one.read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and str(folder).encode() in words:
                found.append(int(one.parent.name))
    return found


def test_two_tasks_train_together_and_come_back_after_a_signal_to_one(scripts, roco, tmp_path):
    words = ("--cluster", "local", "--ngpus", "2", "--root", roco, *SMALL, "--batch-size", "4", "--epochs", "3")

    def attempt(number):
        """-> whether the signal came before the end, what the launcher printed, the job's folder."""
        job = tmp_path / f"job{number}"
        launcher = scripts.start("run_with_submitit.py", *words, "--print-freq", 1, "--job_dir", job, cwd=tmp_path)

        def output():
            return "".join(path.read_text() for path in job.glob("*log*"))

        until(lambda: "epoch 0 1/3" in output(), launcher)  # after a step both tasks wait for signals
        running = tasks(job)
        if len(running) == 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running[-1], signal.SIGUSR2)
        code = launcher.wait()
        # submitit draws the port of a local job by its number; a port that another process has is no fault of ours.
        assert code == 0 or "EADDRINUSE" in output(), launcher.output() + output()
        return code == 0 and "SIGUSR2: stopping" in output(), launcher.output(), job

    _, printed, job = next(one for one in map(attempt, range(20)) if one[0])
    assert "a step takes 8 pairs (4 a device x 2 devices x 1)" in printed
    assert "going on with" in printed
    assert torch.load(job / "checkpoint.pt", weights_only=True)["epoch"] == 3


def test_a_failed_job_is_one_line(run, tmp_path):
    code, _, errors = run("run_with_submitit.py", "--root", tmp_path / "nowhere", *SMALL)
    assert code == 2 and len(errors.strip().splitlines()) == 1
    assert "nowhere: no such folder" in errors


def test_debug_runs_in_the_launchers_own_process(scripts, roco, tmp_path):
    words = ("--cluster", "debug", "--ngpus", "1", "--root", roco, *SMALL, "--epochs", "1")
    code, printed, errors = scripts.run("run_with_submitit.py", *words, cwd=tmp_path)
    assert code == 0, printed + errors
    (checkpoint,) = tmp_path.glob("jobs/DEBUG_*/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1


def test_a_failed_debug_job_is_one_line(scripts, tmp_path):
    words = ("--cluster", "debug", "--root", tmp_path / "nowhere", *SMALL)
    code, _, errors = scripts.run("run_with_submitit.py", *words, cwd=tmp_path)
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert code == 2 and len(lines) == 1 and "nowhere: no such folder" in lines[0], errors


def test_no_slurm_is_said(scripts, tmp_path):
    """The PATH is an empty folder, so that no sbatch is found even where Slurm is installed."""
    code, _, errors = scripts.run("run_with_submitit.py", "--root", "x", cwd=tmp_path, PATH=tmp_path)
    assert code == 2 and "--cluster slurm" in errors and "Traceback" not in errors
