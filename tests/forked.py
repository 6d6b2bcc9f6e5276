"""Runs of main.py as processes of their own, forked from one that has imported torch: that saves each its start.

A forked run has its own arguments, environment, session and log file, and can be killed as any process can. Import
this before anything has made torch start threads.
"""

import gc
import os
import sys
import tempfile
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import options  # isort: skip  (before torch: it sets what OpenMP reads)
import numpy as np
import torch
from conftest import make_roco

import distributed
import main
import towers.text
import towers.timm_encoders  # noqa: F401  (a run imports them when it comes to need them)

TINY = (
    "--pretrained none --device cpu --image-size 32 --ssl-mlp-dim 32 --ssl-emb-dim 16 --workers 0 --amp off"
).split()


def start(words, log: Path, setup=None, **environment) -> int:
    """Fork a run of main.py with these command-line words -> its process id. `setup()` is called in it first."""
    gc.freeze()  # no collection shall touch, and so copy, what the two share
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update({name: str(value) for name, value in environment.items()})
        torch.set_num_threads(1)
        if setup is not None:
            setup()
        distributed.run_script(main.main, options.parse(options.train_parser(), [str(word) for word in words]))
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_ranks(world: int, words, log: Path, setup=None) -> list[int]:
    """The same as `world` ranks on gloo -> their process ids. They meet through a file: a port could be taken."""
    if world == 1:
        return [start(words, log, setup)]
    store = Path(tempfile.mkdtemp(dir=log.parent), "store")
    words = [*words, "--dist-url", f"file://{store}"]
    return [start(words, log, setup, WORLD_SIZE=world, RANK=rank, LOCAL_RANK=rank) for rank in range(world)]


def wait(children: list[int]) -> list[int]:
    """Exit codes in order; minus the signal's number for one that was killed."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def make_data(folder: Path, train: int, validation: int) -> Path:
    return make_roco(folder / f"roco_{train}", train=train, validation=validation, absent=0)


def make_text_model(folder: Path) -> Path:
    """A small BERT without dropout and its vocabulary, as a Hugging Face folder."""
    from transformers import BertConfig

    folder = folder / "bert"
    folder.mkdir()
    letters = [chr(code) for code in range(97, 123)] + list("0123456789.-")
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    config = BertConfig(
        vocab_size=len(entries), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same_weights(one: Path, two: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    first, second = read(one)["model"], read(two)["model"]
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def relative(found: dict, reference: dict) -> float:
    """Norm of the difference over the norm, all tensors together."""
    names = reference.keys()
    distance = np.sqrt(sum(((found[n].double() - reference[n].double()) ** 2).sum().item() for n in names))
    return distance / np.sqrt(sum((reference[n].double() ** 2).sum().item() for n in names))
