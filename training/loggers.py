"""The loggers that a run can be followed with: TensorBoard, Weights & Biases, MLflow; imported when they are asked for.

Each has the same methods:

    scalars(step, values, at)   # {name: float} of a step, in order of the steps; `at` is in seconds since 1970
    images(step, name, pixels)  # (H, W, 3) uint8
    close(code)                 # the run's exit code: 0, utils.EXIT_INTERRUPTED, or 1 for an error

A run that goes on sends all of steps.txt and log.txt again, since nobody knows what a killed process left unwritten. A
logger drops what its record has already, so that the record has each step once. Any method may raise anything, and may
take its time: they are called by a Relay.
"""

import importlib
import logging
import os
import secrets
from pathlib import Path

import utils
from options import plain
from utils import EXIT_INTERRUPTED, InputError


class TensorBoard:
    """Event files in the run's folder. `resumed` makes no difference: each process writes the whole record anew."""

    def __init__(self, out: Path, args, resumed: bool):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out), purge_step=0, flush_secs=30)  # hides all events that are there

    def scalars(self, step: int, values: dict[str, float], at: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, walltime=at)

    def images(self, step: int, name: str, pixels) -> None:
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, code: int) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, whose id is kept in wandb_run.txt. WANDB_* in the environment counts as ever.

    Online, the server says which step comes next. Offline, each process writes a folder under wandb/ that holds the
    whole record: the newest is the one to `wandb sync`.
    """

    def __init__(self, out: Path, args, resumed: bool):
        import wandb

        number = kept_id(out / "wandb_run.txt", resumed) or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        utils.write_text(out / "wandb_run.txt", number + "\n")
        offline = wandb.setup().settings._offline
        self.wandb, self.run = wandb, wandb.init(
            project=os.environ.get("WANDB_PROJECT", "medslip"), name=os.environ.get("WANDB_NAME", out.name),
            dir=str(out), id=number, resume=None if offline else "allow",
            settings=wandb.Settings(console="off"),  # capturing the output would put its code between run and terminal
        )  # fmt: skip
        self.run.config.update(plain(args), allow_val_change=True)
        self.next_step = self.run.step

    def scalars(self, step: int, values: dict[str, float], at: float) -> None:
        if step >= self.next_step:
            self.run.log({**values, "_timestamp": at}, step=step)

    def images(self, step: int, name: str, pixels) -> None:
        if step >= self.next_step:
            self.run.log({name: self.wandb.Image(pixels)}, step=step)

    def close(self, code: int) -> None:
        self.run.finish(exit_code=code)


class MLflow:
    """A run of MLflow, whose id is kept in mlflow_run.txt.

    It is stored where MLFLOW_TRACKING_URI says, or else in mlflow.db and mlruns/ in the run's folder.
    """

    def __init__(self, out: Path, args, resumed: bool):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # it tells of every table that it makes
        logging.getLogger("alembic").setLevel(logging.WARNING)
        given = os.environ.get("MLFLOW_TRACKING_URI")
        self.Metric, self.client = Metric, MlflowClient(given or f"sqlite:///{out / 'mlflow.db'}")
        self.id, self.last = kept_id(out / "mlflow_run.txt", resumed), {}  # the last step that is stored, by name
        if self.id:
            for name in self.client.get_run(self.id).data.metrics:
                self.last[name] = max(one.step for one in self.client.get_metric_history(self.id, name))
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "medslip")
        found = self.client.get_experiment_by_name(name)
        place = None if given else (out / "mlruns").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(name, artifact_location=place)
        self.id = self.client.create_run(experiment, run_name=out.name).info.run_id
        utils.write_text(out / "mlflow_run.txt", self.id + "\n")
        self.client.log_batch(self.id, params=[Param(name, str(value)) for name, value in plain(args).items()])

    def scalars(self, step: int, values: dict[str, float], at: float) -> None:
        new = {name: value for name, value in values.items() if step > self.last.get(name, -1)}
        if new:
            metrics = [self.Metric(name, value, round(at * 1000), step) for name, value in new.items()]
            self.client.log_batch(self.id, metrics)

    def images(self, step: int, name: str, pixels) -> None:
        self.client.log_image(self.id, pixels, artifact_file=f"{name}.png")

    def close(self, code: int) -> None:
        self.client.set_terminated(self.id, {0: "FINISHED", EXIT_INTERRUPTED: "KILLED"}.get(code, "FAILED"))


LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}  # --flag, which is the package's name too


def import_asked(args) -> None:
    """Import the packages of the loggers that were asked for. Raises InputError if one is missing."""
    # Reports of their own use and errors are not what a run was asked to send.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    for name in LOGGERS:
        if getattr(args, name):
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise InputError(f"--{name}: {utils.one_line(error)}: pip install {name}") from None


def kept_id(path: Path, resumed: bool) -> str | None:
    """The id that an earlier process of the run wrote down."""
    return utils.read_text(path).strip() or None if resumed and path.exists() else None
