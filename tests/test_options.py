"""The command line: either spelling, SLIP's names, quick answers, and no torch for them."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY
from scripts import HANG

import options


def test_underscores_and_slips_names():
    args = options.parse(options.add_slurm(options.train_parser()), ["--job_dir", "a_b", "--batch_size=8"])
    assert args.job_dir == "a_b" and args.batch_size == 8
    args = options.parse(options.train_parser(), ["--model", "SIMCLR_VITB16", "--lr", "3.2e-3", "--wd", "0.1"])
    assert (args.objective, args.arch) == ("simclr", "vit_base_patch16_224")
    assert options.parse(options.train_parser(), ["--disable-amp"]).amp == "off"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "--epochs: 0 is not 1 or more"),
        (["--epochs", "many"], "argument --epochs: invalid whole number value: 'many'"),
        (["--lr", "nan"], "--lr: nan is not a finite number"),
        (["--bach-size", "3"], "unrecognized arguments: --bach-size 3"),
        (["--model", "SLIP_VITX"], "--model SLIP_VITX: not one of SLIP_VITS16"),
        (["--model", "SLIP_VITB16", "--arch", "resnet18"], "give one or the other"),
        (["--batch-size", "1"], "--batch-size 1: the SimCLR loss"),
        (["--objective", "clip", "--betas", "0.9", "1"], "--betas: both must be less than 1"),
    ],
)
def test_wrong_arguments_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        options.parse(options.train_parser(), words)
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and message in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--probe", "logistic", "--lr", "0.1", "--wd", "0"], "--lr, --wd: for --probe sgd, not for logistic"),
        (["--text-model", "tiny"], "--text-model: for --probe zeroshot, not for logistic or sgd"),
        (["--probe", "zeroshot", "--features", "pooled"], "--features pooled: zeroshot compares projected features"),
    ],
)
def test_options_of_a_probe_that_it_would_ignore(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        options.parse(options.linear_parser(), words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_options_that_a_probe_takes():
    assert options.parse(options.linear_parser(), ["--lr", "0.1"]).lr == 0.1  # the probe may turn out to be sgd
    assert options.parse(options.linear_parser(), ["--probe", "zeroshot", "--text-model", "tiny"]).text_model == "tiny"


@pytest.mark.parametrize("script", ["main.py", "main_linear.py", "run_with_submitit.py", "run_with_submitit_linear.py"])
def test_help_and_errors_import_no_torch(script):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], sys.argv[2]]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    for flag, status in (("--help", 0), ("--no-such-flag", 2)):
        done = subprocess.run(
            [sys.executable, "-c", code, script, flag], cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG
        )
        assert done.returncode == status and done.stderr.splitlines()[-1] == "False"
