"""What a run says of itself: log.txt (one JSON object an epoch), TensorBoard, Weights & Biases."""

import contextlib
import json
import os
from pathlib import Path

import distributed
import utils
from options import plain
from utils import InputError, logger


class Log:
    """Takes an epoch's record; on rank 0 only. Lines that the disk refuses are kept and tried again; a
    half-written one is removed."""

    def __init__(self, out: Path, args):
        self.path, self.waiting = out / "log.txt", []
        self.end = self.path.stat().st_size if self.path.exists() else 0  # of its whole lines, in bytes
        self.failure = None
        self.writers = open_writers(args, out) if distributed.rank() == 0 else []

    def write(self, record: dict) -> None:
        if distributed.rank() != 0:
            return
        self.waiting.append(json.dumps(record) + "\n")
        self.flush()
        for write in self.writers:
            write(record)

    def flush(self) -> None:
        """Append the lines that wait, all or none of them."""
        if not self.waiting:
            return
        lines = "".join(self.waiting)
        try:
            with open(self.path, "ab") as file:
                self.end = min(self.end, file.tell())
                file.truncate(self.end)  # where the truncation below failed, too
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
            self.end, self.waiting = self.end + len(lines.encode()), []
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self.end)
            self.failure = f"{self.path}: cannot be written ({error.strerror})"
            logger.warning(f"{self.failure}; its lines wait for the next try")

    def close(self) -> None:
        """Try once more. Raises InputError if lines remain that the disk refuses, after printing them."""
        self.flush()
        if self.waiting:
            logger.info("".join(self.waiting).rstrip())
            raise InputError(
                f"{self.failure}: {len(self.waiting)} lines are missing at its end: make room, and copy them there "
                "from the lines printed above"
            )


def drop_lines(path: Path, epoch: int) -> None:
    """Drop the lines of epochs that a resumed run will do again, and lines that were cut short."""
    if path.exists():
        lines = []
        for line in utils.read_text(path).splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["epoch"] < epoch:
                    lines.append(line)
        utils.write_text(path, "".join(line + "\n" for line in lines))


def open_writers(args, out: Path) -> list:
    """Functions that take an epoch's record: TensorBoard and Weights & Biases, imported only when asked for."""
    writers = []
    try:
        if args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(str(out))
            writers.append(lambda record: [board.add_scalar(k, v, record["step"]) for k, v in record.items()])
        if args.wandb:
            import wandb

            run = wandb.init(project="medslip", dir=str(out), config=plain(args), resume="allow")
            writers.append(lambda record: run.log(record, step=record["step"]))
    except ImportError as error:
        raise InputError(f"{error}: pip install {'wandb' if 'wandb' in str(error) else 'tensorboard'}") from None
    return writers
