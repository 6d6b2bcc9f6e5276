"""Ends a run between two steps when a signal asks for it, on all ranks at the same step."""

import os
import signal
import threading
import time

import torch
import torch.distributed as dist

from distributed import world_size
from utils import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE = 5.0  # seconds within which further signals are taken for copies of the first


class StopRequest:
    """Catches the signals while it is open (a context manager), and tells all ranks of them at the same call.

    A signal from `PATIENCE` seconds after the first on ends the process at once, with code 128 + its number.
    """

    def __init__(self):
        self.received, self.first, self.before = set(), None, {}
        # On the host, whatever the backend: the device is not asked. It is used between this call and the next.
        self.group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self.flags, self.work, self.signals = None, None, []

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            self.before = {one: signal.signal(one, self.handle) for one in SIGNALS}
        return self

    def __exit__(self, kind, error, trace):
        for one, handler in self.before.items():
            # While an interrupted run leaves, copies of the signal must not change its exit code.
            signal.signal(one, signal.SIG_IGN if kind is Interrupted else handler)
        if kind in (None, Interrupted) and self.work is not None:  # else the others may never answer
            self.work.wait()
        self.work = self.flags = self.group = None

    def handle(self, number, frame) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            os.write(2, f"{signal.Signals(number).name}: stopping after this step\n".encode())
        elif now - self.first >= PATIENCE:
            os._exit(128 + number)
        self.received.add(number)

    def check(self) -> list[signal.Signals]:
        """Call between two steps, on every rank -> the signals that any rank had got by the previous call.

        One call late, so that no rank waits; with one process, by this call.
        """
        flags = torch.tensor([one in self.received for one in SIGNALS], dtype=torch.int32)
        if self.group is not None:
            flags, self.flags = self.flags, flags
            if self.work is not None:
                self.work.wait()
            self.work = dist.all_reduce(self.flags, dist.ReduceOp.MAX, self.group, async_op=True)
            if flags is None:
                return []
        self.signals = [one for one, flag in zip(SIGNALS, flags.tolist(), strict=True) if flag]
        return self.signals
