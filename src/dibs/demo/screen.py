"""The live picture: a table of the workers that redraws on a terminal, and plain lines of what happened elsewhere."""

from __future__ import annotations

import os
import shutil
from typing import Final, TextIO

from dibs.demo.crew import Strike
from dibs.demo.journal import Entry
from dibs.demo.plan import TASKS
from dibs.runtime.system import system

REDRAW_EVERY_S: Final = 0.1
_WAITS_AFTER_S: Final = 0.05

_BOLD, _DIM, _RED, _GREEN, _YELLOW = "1", "2", "31", "32", "33"


class Screen:
    """Follows entries and strikes; says what matters on `out`, or nothing when that is None."""

    def __init__(self, out: TextIO | None, workers: int) -> None:
        self._out = out
        self._workers = workers
        self._live = out is not None and out.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and "NO_COLOR" not in os.environ
        self._drawn = 0
        self._drawn_at = 0.0
        self._strikes: dict[str, Strike] = {}
        self.begin("")

    # -- what the crew tells -------------------------------------------------------------------------------------

    def begin(self, title: str) -> None:
        """A new run through the keys."""
        self._title = title
        self._began_at = system().monotonic()
        self._done: set[str] = set()
        self._began = self._ended = self._waits = 0
        self._stack: dict[int, list[Entry]] = {number: [] for number in range(1, self._workers + 1)}
        self._fate: dict[int, str] = {}

    def tell(self, news: Entry | Strike) -> None:
        if isinstance(news, Strike):
            self._strike(news)
        else:
            self._follow(news)

    def _strike(self, strike: Strike) -> None:
        before = self._strikes.get(strike.key)
        self._strikes[strike.key] = strike
        key = strike.key
        if before is not None:
            self._fate.pop(strike.worker, None)
            self.say(f"worker {strike.worker} woken: it goes on computing {key}", _YELLOW)
        else:
            self._fate[strike.worker] = strike.what
            name = {"killed": "SIGKILL", "stopped": "SIGSTOP"}[strike.what]
            self.say(f"worker {strike.worker} {strike.what} ({name}) in the middle of computing {key}", _RED)

    def _follow(self, entry: Entry) -> None:
        stack = self._stack.setdefault(entry.worker, [])
        key, who = entry.key, f"worker {entry.worker}"
        kind = entry.kind
        if kind == "asks":
            stack.append(entry)
        elif kind == "begins":
            self._began += 1
            if stack and stack[-1].key == entry.key:
                stack.pop()
            stack.append(entry)
            if not TASKS[entry.key].family and entry.run == "first":
                self.say(f"{who} computes {key}", _DIM)
        elif kind == "ends":
            self._ended += 1
            total = len(TASKS) * self._workers
            if entry.run == "without" and self._ended % (total // 4) == 0:
                self.say(f"{self._ended} of {total} computations", _DIM)
        elif kind.startswith("got: "):
            self._done.add(entry.key)
            self._waits += kind == "got: waited"
            while stack and stack.pop().key != entry.key:
                pass
        elif kind == "taken over":
            strike = self._strikes.get(entry.key)
            since = f" {_delay(entry.at - strike.at)} after worker {strike.worker} was {strike.what}" if strike else ""
            self.say(f"{who} takes over {key}{since}", _GREEN)
        elif kind == "adopted":
            self.say(f"{who} is too late with {key}: it adopts the value that is there", _GREEN)
        elif kind == "refused":
            self.say(f"{who} is too late with {key}: refused ({entry.detail})", _GREEN)
        elif kind == "lost":
            self.say(f"{who} learns that it has lost {key}", _YELLOW)
        elif kind in ("healed", "unpublished", "beat failed"):
            self.say(f"{who}: {kind}: {key} {entry.detail}", _YELLOW)

    # -- drawing -------------------------------------------------------------------------------------------------

    def say(self, text: str, colour: str = "") -> None:
        """A line that stays."""
        if self._out is None:
            return
        self._erase()
        stamp = f"{system().monotonic() - self._began_at:6.2f} s  "
        self._out.write(self._paint(stamp, _DIM) + self._paint(text, colour) + "\n")
        self._draw()
        self._out.flush()

    def write(self, text: str = "", colour: str = "") -> None:
        """A line without a time."""
        if self._out is not None:
            self._erase()
            self._out.write(self._paint(text, colour) + "\n")
            self._out.flush()

    def heading(self, text: str) -> None:
        self.write(text, _BOLD)

    def tick(self) -> None:
        if self._live and self._out is not None and system().monotonic() - self._drawn_at >= REDRAW_EVERY_S:
            self._erase()
            self._draw()
            self._out.flush()

    def end(self) -> None:
        """The run is over: say so, and take the table away."""
        self.say(f"all workers have all {len(TASKS)} keys: {self._began} computations, {self._waits} waits")
        self.close()

    def close(self) -> None:
        """Take the table away."""
        self._erase()
        self._title = ""
        if self._out is not None:
            self._out.flush()

    def _erase(self) -> None:
        if self._drawn and self._out is not None:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
        self._drawn = 0

    def _draw(self) -> None:
        if not self._live or self._out is None or not self._title:
            return
        size = shutil.get_terminal_size()
        now = system().monotonic()
        lines = [self._summary(now), *(self._line(number, now) for number in self._stack)]
        for text, colour in lines[: max(size.lines - 2, 1)]:
            self._out.write(self._paint(text[: size.columns - 1], colour) + "\n")
        self._drawn = min(len(lines), max(size.lines - 2, 1))
        self._drawn_at = now

    def _summary(self, now: float) -> tuple[str, str]:
        bar_length = 20
        done = len(self._done) if self._title != "without" else self._ended // self._workers
        bar = "█" * (bar_length * done // len(TASKS))
        counts = f"{done}/{len(TASKS)} keys   {self._began} computations   {self._waits} waits"
        return f"{now - self._began_at:6.2f} s  {bar:░<{bar_length}}  {counts}", _BOLD

    def _line(self, number: int, now: float) -> tuple[str, str]:
        stack = self._stack[number]
        if number in self._fate:
            where = f" while it computed {stack[0].key}" if stack else ""
            return f"   worker {number}  {self._fate[number]}{where}", _RED
        if not stack:
            return f"   worker {number}", _DIM
        top = stack[-1]
        if top.kind == "begins":
            return f"   worker {number}  computes   {top.key}", ""
        waited_s = now - top.at
        if waited_s < _WAITS_AFTER_S:
            return f"   worker {number}  asks for   {top.key}", _DIM
        return f"   worker {number}  waits for  {top.key}   {waited_s:.1f} s", _DIM

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour else text


def _delay(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
