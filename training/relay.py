"""Calls that must neither hold up nor end a run: made in order, in a thread of their own."""

import queue
import threading
import time
from collections.abc import Callable

from utils import logger, one_line

WAITING = 10_000  # calls that may wait before their object is taken to hang


class Relay:
    """Makes an object by `make()`, and calls what is sent with it, all in one thread.

    An object that raises anything, or that has let WAITING calls wait, is left out from then on, with one warning. What
    is sent before `start` waits for it.
    """

    def __init__(self, name: str, make: Callable):
        self.name, self.make = name, make
        self.calls, self.left_out = queue.Queue(WAITING), False
        # A daemon: what hangs must not keep the process from ending.
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def run(self) -> None:
        try:
            made = self.make()
            while (call := self.calls.get()) is not None and not self.left_out:
                call(made)
        except BaseException as error:  # each library has its own kinds, and some exit
            self.leave_out(f"{type(error).__name__}: {one_line(error)}")

    def leave_out(self, why: str, then: str = "it is left out from now on, and training goes on") -> None:
        if not self.left_out:
            self.left_out = True
            logger.warning(f"{self.name}: {why}; {then}")

    def send(self, call: Callable | None) -> None:
        """Queue `call(object)`; None ends the thread."""
        if self.left_out:
            return
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            self.leave_out(f"it has not answered for {WAITING} calls")

    def drain(self, seconds: float) -> None:
        """Wait until all that was sent is done, or fails, no longer than so many seconds."""
        done, deadline = threading.Event(), time.monotonic() + seconds
        if self.thread.is_alive():
            self.send(lambda _: done.set())
        while self.thread.is_alive() and not self.left_out and time.monotonic() < deadline:
            if done.wait(0.1):
                break


def close(relays: list[Relay], call: Callable, seconds: float) -> None:
    """Send a last call to each of the relays that was started, and wait for their ends, no longer than so many seconds.

    One that is not done by then is left out.
    """
    started, deadline = [relay for relay in relays if relay.thread.ident is not None], time.monotonic() + seconds
    for relay in started:
        relay.send(call)
        relay.send(None)
    for relay in started:
        if not relay.left_out:
            relay.thread.join(max(0.0, deadline - time.monotonic()))
            if relay.thread.is_alive():
                relay.leave_out(f"it was not done within {seconds:.0f} s", "its record may lack the end")
