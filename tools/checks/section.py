"""What a check found: lines with a verdict, the full lists of names behind them, and examples to look at."""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from utils import InputError, logger

OK, NOTE, FAULT = "ok", "note", "FAULT"
SHOWN, EXAMPLES = 3, 12  # names in a line of the text; examples of a kind in the page


@dataclass
class Example:
    """Something to look at in the page: a text, and images as (split, number of the sample)."""

    text: str
    images: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Section:
    """`lines` are (verdict, text); `named` {what: all names}, `examples` {what: some of them}."""

    title: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    named: dict[str, list[str]] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """FAULT if a run would fail, else "note" or "ok"."""
        found = {verdict for verdict, _ in self.lines}
        return next((one for one in (FAULT, NOTE) if one in found), OK)

    def say(self, text: str) -> None:
        self.lines.append((OK, text))

    def note(self, text: str) -> None:
        self.lines.append((NOTE, text))

    def fault(self, text: str) -> None:
        self.lines.append((FAULT, text))

    def find(self, what: str, names: Iterable[str], more: str = "", fault=False, examples: Iterable[Example] = ()):
        """A line with the number of names and the first of them, if there are any; all of them are kept. Without
        `examples` the names are those."""
        names = list(names)
        if not names:
            return
        shown = "; ".join(names[:SHOWN]) + ("; ..." if len(names) > SHOWN else "")
        self.lines.append((FAULT if fault else NOTE, f"{len(names):,} {what}{more}: {shown}"))
        self.named[what] = names
        found = list(itertools.islice(examples, EXAMPLES))
        self.examples[what] = found or [Example(name) for name in names[:EXAMPLES]]


class Kept(logging.Handler):
    """Keeps the log's messages."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record) -> None:
        self.records.append(record)


@contextlib.contextmanager
def logged(section: Section, excuse: str = "") -> Iterator[None]:
    """What the code says in the log within the block becomes lines of the section; so does an InputError, which ends
    the block, as a fault, or with an `excuse` as a note."""
    kept, level, propagate = Kept(), logger.level, logger.propagate
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    except InputError as error:
        section.lines.append((NOTE, f"{error} ({excuse})") if excuse else (FAULT, str(error)))
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
        logger.propagate = propagate
        for record in kept.records:
            line = NOTE if record.levelno >= logging.WARNING else OK, record.getMessage()
            if line not in section.lines:
                section.lines.append(line)
