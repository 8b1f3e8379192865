"""For people on a terminal, plainly into a pipe, or as JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_STATES: Final = {
    "held": "yellow", "done": "green", "failed": "red", "dead": "red", "damaged": "red", "silent": "red",
    "free": "dim", "passed": "green", "warning": "yellow", "alive": "green",
}  # fmt: skip


class Out:
    """Where one command prints."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.terminal = sys.stdout.isatty()
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self._coloured = self.terminal and not plain

    def data(self, thing: Any) -> None:
        """Print `thing` as JSON."""
        print(json.dumps(thing, indent=2))

    def line(self, text: str = "") -> None:
        print(text)

    def paint(self, colour: str, text: str) -> str:
        return f"\033[{_CODES[colour]}m{text}\033[0m" if self._coloured else text

    def state(self, word: str, width: int = 0) -> str:
        """A state in its colour."""
        colour = _STATES.get(word)
        return self.paint(colour, word.ljust(width)) if colour else word.ljust(width)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns under a head on a terminal; into a pipe, fields between tabs and no head."""
        if not self.terminal:
            for row in rows:
                print("\t".join(row))
            return
        widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
        columns = [text.ljust(width) for text, width in zip(head, widths, strict=True)]
        print(self.paint("dim", "  ".join(columns).rstrip()))
        for row in rows:
            first, *others = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            print("  ".join([self.state(row[0], len(first)), *others]).rstrip())


def say(text: str) -> None:
    """Something about the run itself, on stderr."""
    print(f"dibs: {text}", file=sys.stderr)


def shown(text: str) -> str:
    """A name as it may be shown: what could steer a terminal, or break a line, is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown_lines(text: str, indent: str) -> list[str]:
    return [indent + shown(line) for line in text.rstrip().splitlines()]


def time_words(seconds: float | None) -> str:
    """12 ms, 3.4 s, 5 min, 2.5 h, 3 d; a dash when not known."""
    if seconds is None:
        return "-"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if seconds >= size * (1 if size <= 1 else 2):
            return f"{_short(seconds / size)} {unit}"
    return f"{seconds * 1e6:.0f} µs" if seconds > 0 else "0 s"


def size_words(size_bytes: float) -> str:
    """512 B, 3.4 kB, 120 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{_short(size_bytes)} {unit}"
        size_bytes /= 1000
    return f"{_short(size_bytes)} TB"


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 10 else f"{number:.0f}"


def moment(wall_s: float) -> str:
    """A wall clock's time in the local zone, to the second."""
    return datetime.fromtimestamp(wall_s, UTC).astimezone().isoformat(" ", "seconds")


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Let what dibs logs appear as the other lines that it says."""
    log = logging.getLogger("dibs")
    speaker = logging.StreamHandler()
    speaker.setFormatter(logging.Formatter("dibs: %(message)s"))
    log.addHandler(speaker)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(speaker)
        log.propagate = before
