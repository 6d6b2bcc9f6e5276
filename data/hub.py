"""The Hugging Face hub, on machines that may have no network."""

import contextlib
import functools
import os
import threading
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import get_session

SECONDS = 3.0  # that the hub has to answer; its library would try for minutes
OFFLINE = constants.HF_HUB_OFFLINE  # whether the user's environment sets it


@functools.cache
def reach() -> bool:
    """Whether the hub answers a request of its own library's kind within SECONDS.

    If not, the library is set to offline: it then uses what its cache holds and sends no request.
    """
    if OFFLINE:
        return False
    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            answers.append(True)

    # In a thread that is given up after SECONDS: looking up the host's name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    constants.HF_HUB_OFFLINE = not answers
    return bool(answers)


def load(function, name: str, **arguments):
    """`function(name, **arguments)` for a from_pretrained of transformers; from the cache if the hub does not answer.

    Raises OSError if the cache lacks it then, and whatever `function` raises.
    """
    if os.path.exists(name) or reach():
        return function(name, **arguments)
    try:
        return function(name, local_files_only=True, **arguments)
    except OSError:
        raise OSError(f"{why_not()}, and the hub's cache lacks it") from None


def why_not() -> str:
    """Why `reach` is false."""
    return "HF_HUB_OFFLINE is set" if OFFLINE else f"{constants.ENDPOINT} does not answer"


def file(name: str, filename: str, revision: str | None = None) -> Path:
    """A file of ORG/NAME on the hub, as it lies in the cache; from there if the hub does not answer.

    Raises OSError, or ValueError for a name that is none.
    """
    return Path(load(hf_hub_download, name, filename=filename, revision=revision))
