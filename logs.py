"""What a run says of itself: log.txt (one JSON object an epoch), TensorBoard, Weights & Biases."""

import contextlib
import json
from pathlib import Path

import utils
from options import plain
from utils import InputError, logger


class Log:
    """Takes an epoch's record; on rank 0 only. A line that the disk refuses is kept and tried again."""

    def __init__(self, out: Path, args):
        self.path, self.waiting = out / "log.txt", []
        self.writers = open_writers(args, out) if utils.rank() == 0 else []

    def write(self, record: dict) -> None:
        if utils.rank() != 0:
            return
        self.waiting.append(json.dumps(record) + "\n")
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(self.waiting)
            self.waiting = []
        except OSError as error:
            logger.warning(f"{self.path}: cannot be written: {error.strerror}; its lines wait for the next epoch")
        for write in self.writers:
            write(record)


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
