"""What a run tells while it lives: steps.txt, warnings.txt, and the loggers that were asked for; on rank 0 alone.

No step waits here for the device, a disk or a server: a step's numbers are those that Verdicts has read, and all that
is written is written by threads (Relay).
"""

import contextlib
import itertools
import logging
import math
import os
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import distributed
import utils
from data.augment import make_views
from training import loggers, relay
from training.logs import Log, read_lines
from training.relay import Relay
from training.verdicts import Found
from utils import EXIT_INTERRUPTED, Interrupted, logger

SHOWN = 8  # samples whose views are shown
OPENING = 20.0  # seconds that a run waits for each logger to be made
DRAIN = 5.0  # seconds that a save waits for the lines of the steps before it
CLOSING, LEAVING = 60.0, 10.0  # seconds that loggers have to send what waits, at a run's end and at any other exit
STAMP = "%Y-%m-%dT%H:%M:%S%z"


class Warnings(logging.Handler):
    """Hands what Python's loggers warn of to `say(level, text)`; not in a loader's worker, which inherits it."""

    def __init__(self, say):
        super().__init__(logging.WARNING)
        self.say, self.process = say, os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            if os.getpid() == self.process:
                self.say(record.levelname, record.getMessage())


class Record:
    """A context manager. From its start it keeps warnings; after `begin` it writes.

    Call `take` for the batches of each step, `mark` after it, and `epoch` with each record of log.txt.
    """

    def __init__(self, args, out: Path):
        self.args, self.out, self.active = args, out, distributed.rank() == 0 and not args.evaluate
        self.warnings = Relay("warnings.txt", lambda: out / "warnings.txt")
        self.steps, self.loggers = Relay("steps.txt", lambda: Log(out / "steps.txt")), []
        self.handler = Warnings(self.say)
        self.done, self.views_wanted = 0, False
        self.waited, self.marks = 0.0, deque()  # seconds waited for batches; (time, `waited`) of steps not yet read

    def __enter__(self):
        if not self.args.evaluate:
            distributed.on_rank0(loggers.import_asked, self.args)
        if self.active:
            logging.getLogger().addHandler(self.handler)
        return self

    def __exit__(self, kind, error, trace):
        logging.getLogger().removeHandler(self.handler)
        if kind is not None:
            self.say("INTERRUPTED" if kind is Interrupted else "FAILED", str(error) or kind.__name__)
        self.close(0 if kind is None else EXIT_INTERRUPTED if kind is Interrupted else 1)
        relay.close([self.warnings], lambda _: None, DRAIN)

    def begin(self, update, global_batch: int, done: int) -> None:
        """Start to write, after `done` steps of the run; the loggers are sent what the files have of these."""
        self.device, self.global_batch, self.done = update.device, global_batch, done
        update.verdicts.tell = self.step
        if not self.active:
            return
        self.warnings.start()
        self.steps.start()
        for name, make in loggers.LOGGERS.items():
            if getattr(self.args, name):
                self.loggers.append(Relay(f"--{name}", lambda make=make: make(self.out, self.args, done > 0)))
                self.loggers[-1].start()
        # W&B starts processes, and a loader's worker that is forked at that moment inherits the pipe by which it learns
        # that one has started: it would wait until the worker ends. So the workers are forked afterwards.
        for one in self.loggers:
            one.drain(OPENING)
        picture = self.out / "views.png"
        if self.loggers and done:
            self.send_again(picture)
        self.views_wanted = bool(self.loggers) and not (done and picture.exists())

    def send_again(self, picture: Path) -> None:
        """Send the loggers what the files have."""
        lines = read_lines(self.out / "steps.txt") + read_lines(self.out / "log.txt")
        lines = sorted((line for line in lines if isinstance(line.get("step"), int)), key=lambda line: line["step"])

        def send(one) -> None:
            if picture.exists():
                one.images(0, "views", np.asarray(Image.open(picture)))
            for line in lines:
                one.scalars(*scalars_of(line))

        self.send(send)

    # Called by the training

    def begin_epoch(self) -> None:
        """What was done since the last step is not a part of any step."""
        self.since, self.counted = (time.monotonic(), self.waited), 0

    def take(self, micro_batches) -> list[dict]:
        """The batches of the next step, from an iterator."""
        start = time.monotonic()
        batches = list(itertools.islice(micro_batches, self.args.update_freq))
        self.waited += time.monotonic() - start
        if self.views_wanted:
            self.show_views(batches[0])
        return batches

    def mark(self) -> None:
        """A step was queued."""
        self.marks.append((time.monotonic(), self.waited))

    def step(self, found: Found) -> None:
        """Write down what was found of a step, every --log-every steps."""
        mark, number = self.marks.popleft(), found.step + 1
        self.counted += 1
        if not self.active or number % self.args.log_every:
            return
        seconds, waited = max(mark[0] - self.since[0], 1e-9), mark[1] - self.since[1]
        line = {"epoch": found.epoch, "step": number, "lr": found.lr}
        line |= {name.replace(" ", "_"): value for name, value in found.numbers.items()}
        line |= {"samples_per_s": self.counted * self.global_batch / seconds, "data_wait": waited / seconds}
        if self.device.type == "cuda":
            line["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30  # of the allocator's books
        line = {name: value if math.isfinite(value) else None for name, value in line.items()}
        line["time"] = round(time.time(), 3)
        self.since, self.counted = mark, 0
        self.steps.send(lambda file: file.write(line))
        self.send(lambda one: one.scalars(*scalars_of(line)))

    def epoch(self, record: dict) -> None:
        self.send(lambda one: one.scalars(*scalars_of(record)))

    def drain(self) -> None:
        """Before a save: the steps that it counts as done have their lines."""
        self.steps.drain(DRAIN)

    def close(self, code: int) -> None:
        """End the loggers and steps.txt."""
        relay.close(self.loggers, lambda one: one.close(code), LEAVING if code else CLOSING)
        if any(one.left_out for one in self.loggers):
            distributed.skip_exit_hooks()  # its library may still wait for its server there
        relay.close([self.steps], lambda file: file.flush(), DRAIN)
        self.loggers, self.active = [], False

    # To the threads

    def send(self, call) -> None:
        for one in self.loggers:
            one.send(call)

    def show_views(self, batch: dict) -> None:
        """Draw the views of a batch's first samples as the loss sees them: views.png, a row a sample."""
        self.views_wanted = False
        try:
            pixels = views_picture(batch)
            with utils.atomic_file(self.out / "views.png") as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG")
        except Exception as error:  # a picture is no reason to end a run
            logger.warning(f"{self.out / 'views.png'}: left out ({utils.one_line(error)})")
            return
        self.send(lambda one: one.images(self.done, "views", pixels))

    def say(self, level: str, text: str) -> None:
        """Add a line to warnings.txt: the time, the level, the text."""
        line = f"{time.strftime(STAMP)} {level} {' '.join(text.split())}\n"

        def add(path: Path) -> None:
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
                file.write(line)

        self.warnings.send(add)


def scalars_of(line: dict) -> tuple[int, dict[str, float], float]:
    """A line of steps.txt or log.txt as a logger's `scalars` takes it: the former's names are put under "step/"."""
    of_step = "time" in line
    prefix, left_out = ("step/", ("step", "time", "epoch")) if of_step else ("", ("step",))
    values = {
        prefix + name: float(value)
        for name, value in line.items()
        if name not in left_out and isinstance(value, int | float)
    }
    return line["step"], values, line["time"] if of_step else time.time()


def views_picture(batch: dict) -> np.ndarray:
    """The views of a batch's first SHOWN samples (data/views.pack), (rows * S, V * S, 3) uint8; made on the CPU, before
    they are normalised."""
    rows = batch["order"][:SHOWN]  # places in torch.cat([gray, colour])
    gray = len(batch["gray"])
    first = {
        "gray": batch["gray"][rows[rows < gray]],
        "colour": batch["colour"][rows[rows >= gray] - gray],
        "order": torch.cat([(rows < gray).nonzero()[:, 0], (rows >= gray).nonzero()[:, 0]]).argsort(),
        "params": batch["params"][:SHOWN],
    }
    made = torch.stack(make_views(first, (0.0,) * 3, (1.0,) * 3, torch.device("cpu")), dim=1)  # (n, V, 3, S, S)
    pixels = (made.clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy())
