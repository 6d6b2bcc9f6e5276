"""tools/doctor.py: planted faults are found, each part has its verdict, and nothing is written."""

import json
import os
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from conftest import make_roco, run_cli
from PIL import Image

import models
from tools import doctor
from tools.checks import captions, duplicates, pictures, step
from tools.checks.section import FAULT, NOTE, OK, Section
from tools.checks.subject import Subject, sort_rows
from tools.phantoms import make_phantoms

SMALL = "--arch test_vit --text-model tiny --pretrained none --image-size 64 --batch-size 4 --workers 1 --ssl-mlp-dim 32"


def check(capsys, *words) -> tuple[int, str]:
    code, printed, errors = run_cli(capsys, doctor.main, lambda: None, *words)
    assert not errors
    return code, printed


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the check as its command line would -> exit code and the page."""
    import options

    def start(*words) -> tuple[int, str]:
        monkeypatch.setattr(options, "parse", lambda parser, given: given)
        args = doctor_parse([str(word) for word in words])
        code, printed, errors = run_cli(capsys, lambda _: doctor.main(args), lambda: None)
        assert not errors
        return code, printed

    doctor_parse = doctor.parse
    return start
