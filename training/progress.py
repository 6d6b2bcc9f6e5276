"""How far an epoch is, on a terminal or in a log."""

import sys
import time
from datetime import timedelta

from distributed import rank
from utils import logger


class Progress:
    """A bar on a terminal, plain lines in a log: step, losses, samples/s, and the time left.

    Call `step(samples, values)`; `values` is a function, called only when something is shown, so that no number is
    read back from the device in between.
    """

    def __init__(self, total: int, every: int, title: str, done: int = 0):
        self.total, self.every, self.title, self.count = total, every, title, done
        self.first, self.samples, self.start = done, 0, time.monotonic()
        self.bar = None
        if rank() == 0 and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=title, leave=False, dynamic_ncols=True)

    @property
    def rate(self) -> float:
        return self.samples / max(1e-9, time.monotonic() - self.start)

    def step(self, samples: int, values) -> None:
        self.count += 1
        self.samples += samples
        shown = self.count % self.every == 0 or self.count == self.total
        if self.bar is not None:
            self.bar.update(1)
        if not shown:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values().items())
        if self.bar is not None:
            self.bar.set_postfix_str(f"{text}  {self.rate:.0f} samples/s")
        else:
            left = (time.monotonic() - self.start) / max(1, self.count - self.first) * (self.total - self.count)
            eta = str(timedelta(seconds=round(left)))
            logger.info(f"{self.title} {self.count}/{self.total}  {text}  {self.rate:.1f} samples/s  left {eta}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
