"""The Hugging Face hub, on machines that may have no network."""

import contextlib
import functools
import os
import threading

from huggingface_hub import constants
from huggingface_hub.utils import get_session

SECONDS = 3.0  # in which the hub must answer; its library tries for minutes
OFFLINE = constants.HF_HUB_OFFLINE  # as the user's environment has it


@functools.cache
def reach() -> bool:
    """Whether the hub answers within SECONDS, to a request as its library makes them.

    If not, the library is told that it is offline: it then takes what its cache has, and asks for nothing else.
    """
    if OFFLINE:
        return False
    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            answers.append(True)

    # Not waited for any longer: looking up a host's name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    constants.HF_HUB_OFFLINE = not answers
    return bool(answers)


def load(function, name: str, **arguments):
    """`function(name, **arguments)`, a from_pretrained of transformers, with what the hub's cache has if it is silent.

    Raises OSError if that is not enough, and whatever `function` raises.
    """
    if os.path.exists(name) or reach():
        return function(name, **arguments)
    try:
        return function(name, local_files_only=True, **arguments)
    except OSError:
        why = "HF_HUB_OFFLINE is set" if OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise OSError(f"{why}, and the hub's cache lacks it") from None
