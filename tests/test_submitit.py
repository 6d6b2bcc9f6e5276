"""The launchers on this machine: submitit's local cluster runs the same job as Slurm would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from conftest import REPOSITORY
from test_main import SMALL


def run(folder, script, *words):
    command = [sys.executable, str(REPOSITORY / script), "--cluster", "local", *(str(word) for word in words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def test_slips_own_linear_command(folders, tmp_path):
    """The command of SLIP's README, with a checkpoint as SLIP saves it (a small arch here) and a two-class folder."""
    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    state = {f"module.visual.{key}": value for key, value in tower.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 25}, tmp_path / "checkpoint.pt")
    words = ("--arch", "vit_tiny_patch16_224", "--dataset", "imagenet", "--pretrained", tmp_path / "checkpoint.pt")
    done = run(tmp_path, "run_with_submitit_linear.py", *words, "--catalog", folders, "--workers", "1")
    assert done.returncode == 0, done.stderr + done.stdout
    (results,) = tmp_path.glob("jobs/*/results.json")
    assert results.parent.name.isdigit() and json.loads(results.read_text())["n_test"] == 12
    assert "| vit_tiny_patch16_224 (checkpoint.pt) |" in done.stdout


def tasks(folder) -> list[int]:
    """The processes of a local job, by their command line."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = one.read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and str(folder).encode() in words:
                found.append(int(one.parent.name))
    return found


def test_two_tasks_train_together_and_come_back_after_a_signal_to_one(roco, tmp_path):
    job = tmp_path / "job"
    words = ("--root", roco, *SMALL, "--batch-size", "4", "--epochs", "6", "--ngpus", "2", "--job_dir", job)
    command = [sys.executable, str(REPOSITORY / "run_with_submitit.py"), "--cluster", "local", *map(str, words)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as launcher:
        while not (job / "log.txt").exists() and launcher.poll() is None:
            time.sleep(0.05)
        running = tasks(job)
        assert len(running) == 2
        os.kill(running[-1], signal.SIGUSR2)
        printed = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 0, printed
    assert "a step takes 8 pairs (4 a device x 2 devices x 1)" in printed
    assert "SIGUSR2: stopping" in "".join(path.read_text() for path in job.glob("*log*")) and "going on with" in printed
    assert torch.load(job / "checkpoint.pt", weights_only=True)["epoch"] == 6


def test_a_failed_job_is_one_line(tmp_path):
    done = run(tmp_path, "run_with_submitit.py", "--root", tmp_path / "nowhere", *SMALL)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "nowhere: no such folder" in done.stderr


def test_no_slurm_is_said(tmp_path):
    command = [sys.executable, str(REPOSITORY / "run_with_submitit.py"), "--root", "x"]
    alone = {**os.environ, "PATH": str(tmp_path)}  # no sbatch on it, whatever this machine has
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=alone)
    assert done.returncode == 2 and "--cluster slurm" in done.stderr and "Traceback" not in done.stderr
