"""A run in its output folder: begun or gone on with, saved, left when a signal asks for it, ended."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import distributed
import utils
from data import lock
from options import plain
from training import logs, resume
from training.record import Record
from training.saver import Saver, best_score
from training.signals import StopRequest
from utils import EXIT_INTERRUPTED, InputError, Interrupted, logger


def folder_of(args) -> Path:
    """The output folder of the run that `args` asks for."""
    return utils.output_folder(args.output_dir, args.arch or "medclip_vit", args.objective)


@contextlib.contextmanager
def open_run(args) -> Iterator["Run"]:
    """The run that `args` asks for, its output folder kept from other processes; everything is closed at the end."""
    out = folder_of(args)
    # --evaluate reads a checkpoint, also that of a run under way, and writes one file of its own, whole.
    folder = contextlib.nullcontext() if args.evaluate else lock.output_folder(out)
    with folder as held, contextlib.ExitStack() as stack:
        yield Run(args, out, held, stack)


class Run:
    """A run's state over its epochs. After opening, `checkpoint` and `path` are what it goes on with, or None.

    `begin` takes what trains; then `epochs`, with `take` before every step, `between_steps` after it, and `end_epoch`;
    `finish` at last.
    """

    def __init__(self, args, out: Path, held, stack: contextlib.ExitStack):
        self.args, self.out, self.held, self.stack = args, out, held, stack
        self.record = stack.enter_context(Record(args, out))
        self.checkpoint, self.path = resume.open_checkpoint(out, args.resume)
        self.epoch = self.first_step = 0  # epochs done, and steps of the next
        if self.checkpoint is not None:
            resume.check_same_run(args, self.checkpoint, self.path)
            self.epoch, self.first_step = self.checkpoint["epoch"], self.checkpoint["progress"]["step_in_epoch"]

    def done(self) -> bool:
        """Whether all epochs are done; if so, logs it."""
        if self.epoch < self.args.epochs or self.args.evaluate:
            return False
        logger.info(f"{self.path}: all {self.args.epochs} epochs are done; raise --epochs to go on")
        return True

    def check_data(self, pairs) -> None:
        """Refuse to go on within an epoch whose pairs are no longer those that it began with."""
        self.data = resume.fingerprint(pairs)
        if self.checkpoint is not None and not self.args.evaluate:
            resume.check_data(self.checkpoint, self.data, self.path)

    def begin(self, update, batches, pairs: dict, notes: dict, tokenizer: str | None) -> None:
        """Restore what the checkpoint has of `update`, and open the folder.

        From here on a signal stops the run between two steps: what takes long before the first step comes earlier.
        `pairs` {split: sets.Pairs} and `notes` are written down; `tokenizer` is the serialised one, if a run trained
        it.
        """
        self.update, self.batches, self.tokenizer = update, batches, tokenizer
        best = None
        if self.checkpoint is not None:
            resume.restore(self.checkpoint, update.optimizer, update.scaler, self.args, self.path)
            update.load_state_dict(self.checkpoint["progress"])
            best = distributed.on_rank0(best_score, self.out)
        self.checkpoint = None  # the weights and moments are not held twice
        distributed.on_rank0(self.open_folder, pairs, notes)
        done = self.epoch * batches.steps + self.first_step
        self.log = logs.Log(self.out / "log.txt")
        self.saver = Saver(self.out, self.args.save_every, done, best)
        update.before_update = self.saver.wait_for_copy
        self.stack.callback(self.saver.wait)  # a thread that writes must not meet the interpreter's end
        self.stop = self.stack.enter_context(StopRequest())
        self.record.begin(update, batches.global_batch, done)

    def open_folder(self, pairs: dict, notes: dict) -> None:
        """Clear the folder of what was left half done, and write what is known before the first step."""
        utils.remove_temporaries(self.out)
        known = utils.provenance(vars(self.args), self.update.device, distributed.world_size())
        known |= {"steps_per_epoch": self.batches.steps, "global_batch": self.batches.global_batch}
        utils.write_json(self.out / "config.json", {**known, "data": {**notes, "crc32": self.data}})
        for split, some in pairs.items():
            for what in ("missing", "unreadable") if some is not None else ():
                names = getattr(some, what)
                if names:
                    path = self.out / f"{what}_images_{split}.txt"
                    utils.write_text(path, "\n".join(names) + "\n")
                    logger.info(f"{split}: {len(names)} {what} images are named in {path}")
        done = self.epoch * self.batches.steps + self.first_step
        logs.drop_lines(self.out / "log.txt", lambda line: line["epoch"] < self.epoch)
        logs.drop_lines(self.out / "steps.txt", lambda line: line["step"] <= done)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left; the first may have begun before."""
        while self.epoch < self.args.epochs:
            self.batches.epoch, self.batches.first_step = self.epoch, self.first_step
            self.record.begin_epoch()
            yield self.epoch

    def evaluates(self) -> bool:
        """Whether the epoch ends with an evaluation."""
        return (self.epoch + 1) % self.args.eval_freq == 0 or self.epoch + 1 == self.args.epochs

    def take(self, micro_batches) -> list[dict]:
        """The next step's batches, from the iterator of an epoch."""
        return self.record.take(micro_batches)

    def between_steps(self, step_in_epoch: int) -> None:
        """Save if it is time, or save and leave if a signal asked for it. Raises Interrupted."""
        self.record.mark()
        self.held.check()
        if self.stop.check():
            self.leave(step_in_epoch)
        last = step_in_epoch == self.batches.steps  # saved with its evaluation
        due = not last and self.saver.due(self.epoch * self.batches.steps + step_in_epoch)
        if due and self.update.verdicts.clean():
            self.update.verdicts.settle()  # all are clean: no other rank need take part
            self.record.drain()
            self.saver.save(self.state(step_in_epoch))

    def end_epoch(self, record: dict, results: dict | None) -> None:
        """Write an epoch down and save it. `results` are its evaluation's: {} without one, None if interrupted."""
        if results is None:
            self.leave(self.batches.steps)  # evaluated when the run goes on
        record = {"epoch": self.epoch, "step": (self.epoch + 1) * self.batches.steps, **record}
        record |= {f"val_{name}": value for name, value in results.items()}
        score = results.get("score")
        if distributed.rank() == 0:
            self.log.write(record)
            self.record.epoch(record)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "step")
        logger.info(shown + ("  (best)" if self.saver.is_best(score) else ""))
        self.update.reset()
        self.epoch, self.first_step = self.epoch + 1, 0
        self.held.check()
        self.record.drain()
        self.saver.save(self.state(0), score)

    def state(self, step_in_epoch: int) -> dict:
        """What the run goes on from: `epoch` epochs are done, and so many steps of the next."""
        done, update = self.epoch * self.batches.steps + step_in_epoch, self.update
        return {
            "epoch": self.epoch, "step": done, "model": update.model.state_dict(),
            "optimizer": update.optimizer.state_dict(), "scaler": update.scaler.state_dict(), "args": plain(self.args),
            # Every draw is seeded by (seed, epoch, sample) or (seed, step, micro-batch, rank).
            "rng": {"seed": self.args.seed, "step": done},
            "progress": {
                "step_in_epoch": step_in_epoch, "global_batch": self.batches.global_batch, "data": self.data,
                **update.state_dict(),
            },
            **({"tokenizer": self.tokenizer} if self.tokenizer else {}),
        }  # fmt: skip

    def leave(self, step_in_epoch: int) -> None:
        """Save, and raise Interrupted (exit code utils.EXIT_INTERRUPTED)."""
        self.update.verdicts.settle()
        self.record.drain()
        self.saver.save(self.state(step_in_epoch))
        with contextlib.suppress(InputError):  # after printing its lines: the run is saved, and will go on
            self.log.close()
        distributed.on_rank0(self.close_saved)  # the others wait: a launcher ends all ranks when one has left
        raise Interrupted(self.stop.signals)

    def close_saved(self) -> None:
        self.saver.close()
        self.record.close(EXIT_INTERRUPTED)

    def finish(self) -> None:
        """Wait until all is on the disk. Raises InputError for what it refused."""
        distributed.on_rank0(self.close)

    def close(self) -> None:
        try:
            self.saver.close()
        except InputError:
            with contextlib.suppress(InputError):
                self.log.close()
            raise
        self.log.close()
        self.record.close(0)
