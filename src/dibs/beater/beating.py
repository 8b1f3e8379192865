"""What the helper does: look at the board, and beat for every hold whose own process is late with it.

A holder that can, beats for itself; the helper steps in half an interval after a beat was due.  It rewrites a record
only while that carries the claim, and changes nothing in it but the beat: the evidence by which others judge stays
the holder's own.
"""

from __future__ import annotations

import os
import select
import socket
from typing import Any, Final, NoReturn

from dibs import cell as table
from dibs.beater.board import LATE_PER_BEAT, Answer, Board, Notice
from dibs.beater.holder import HolderProcess
from dibs.card import Card
from dibs.cell import Cell
from dibs.cells import Cells, Changed, Seen
from dibs.errors import Conflict, DibsError
from dibs.events import Events
from dibs.record import Damaged, decode
from dibs.runtime import process
from dibs.runtime.system import system
from dibs.store import Record, Unchanged, asked_within
from dibs.stores import open_store

THREADS_MAX: Final = 32
_RETRY_PER_BEAT: Final = 0.25
_LOOKS_PER_BEAT: Final = 2
_CONFLICTS_MAX: Final = 5
_PAUSE_MIN_S: Final = 0.001


class Watched:
    """One hold, as the helper knows it."""

    def __init__(self, notice: Notice) -> None:
        self.claim = notice.claim
        self.base = notice.version
        self.beaten_at = 0.0
        self.again_at = 0.0
        self.beating = False
        self.lost = False
        # The record as it was last seen, and whether only the hold in it differs from what the holder knows.
        self.seen: Seen | None = None
        self.clean = False

    def due_at(self, notice: Notice) -> float:
        own = self.beaten_at + notice.beat_s if self.beaten_at else 0.0
        return max(notice.marks[0] + LATE_PER_BEAT * notice.beat_s, own, self.again_at)


class Beats:
    """Beats for the holds on one board, in one store, until the holder's process ends or has no more use for it."""

    def __init__(self, orders: dict[str, Any], holder: HolderProcess, board: Board, connection: socket.socket) -> None:
        self._holder, self._board, self._connection = holder, board, connection
        self._runtime = system()
        self._store = open_store(orders["url"], self._runtime)
        self._store.dialect = orders["dialect"]
        self._shortest_s = float(orders["beat_s"])
        self._cells = Cells(self._store, self._runtime, Card(""), Events(self._runtime))
        self._watched: dict[int, Watched] = {}
        board.say_ready(orders["number"], *process.this())

    def run(self) -> NoReturn:
        """Never returns: whatever is on its way then must not keep the process alive."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if self._holder.pidfd >= 0:
            poll.register(self._holder.pidfd, select.POLLIN)
        while True:  # ends with the holder
            rest_s = min(self._start_what_is_due(), self._holder.look_s)
            woken = [fd for fd, _ in poll.poll(rest_s * 1000)]
            if self._holder.pidfd in woken or self._dismissed(woken) or self._holder.gone():
                os._exit(0)

    def _dismissed(self, woken: list[int]) -> bool:
        """True when the holder has closed its end; anything that it says means: look again."""
        if self._connection.fileno() not in woken:
            return False
        try:
            return not self._connection.recv(4096)
        except OSError:
            return True

    def _start_what_is_due(self) -> float:
        """Begin the beats that are due; seconds until there may be more to do."""
        now = self._runtime.monotonic()
        rest_s = self._shortest_s / _LOOKS_PER_BEAT
        there = dict(self._board.notices())
        for seat in [seat for seat, watched in self._watched.items() if seat not in there and not watched.beating]:
            del self._watched[seat]
        running = sum(watched.beating for watched in self._watched.values())
        for seat, notice in there.items():
            watched = self._known(seat, notice)
            if watched.beating or now >= notice.over_at or (watched.lost and watched.base == notice.version):
                continue
            wait_s = watched.due_at(notice) - now
            if wait_s > 0 or running >= THREADS_MAX:
                rest_s = min(rest_s, max(wait_s, _PAUSE_MIN_S))
                continue
            running += 1
            watched.beating = True
            self._start_beat(seat, watched)
        return rest_s

    def _start_beat(self, seat: int, watched: Watched) -> None:
        try:
            self._runtime.start(lambda: self._beat(seat, watched), "dibs-beat")
        except RuntimeError:  # no more threads to be had: one after the other
            self._beat(seat, watched)

    def _known(self, seat: int, notice: Notice) -> Watched:
        watched = self._watched.get(seat)
        if watched is None or (watched.claim != notice.claim and not watched.beating):
            watched = self._watched[seat] = Watched(notice)
            if notice.beat_s < self._shortest_s:
                self._shortest_s = notice.beat_s
        return watched

    # -- one beat ------------------------------------------------------------------------------------------------

    def _beat(self, seat: int, watched: Watched) -> None:
        began, beat_s = self._runtime.monotonic(), self._shortest_s
        done = False
        try:
            notice = self._still_late(seat, watched)
            if notice is not None:
                beat_s = notice.beat_s
                with asked_within(beat_s):
                    done = self._rewrite(seat, watched, notice)
        except DibsError:
            watched.seen = None  # tried again soon; nobody else can be told while the holder can't listen
        finally:
            if not done:
                watched.again_at = began + beat_s * _RETRY_PER_BEAT
            watched.beating = False

    def _still_late(self, seat: int, watched: Watched) -> Notice | None:
        """The notice, if the holder lives and may hold on, and has not come back meanwhile."""
        if self._holder.gone():
            os._exit(0)
        notice, now = self._board.notice(seat), self._runtime.monotonic()
        if notice is None or notice.claim != watched.claim or now >= notice.over_at or self._holder.paused():
            return None
        return notice if now >= notice.marks[0] + LATE_PER_BEAT * notice.beat_s else None

    def _rewrite(self, seat: int, watched: Watched, notice: Notice) -> bool:
        if watched.base != notice.version:  # the holder has written since
            watched.base, watched.seen, watched.lost = notice.version, None, False
        for _ in range(_CONFLICTS_MAX):
            marks = self._runtime.elapsed_marks()
            seen = watched.seen or self._look(watched, notice, None)
            if seen is None or not table.holds(seen.cell, watched.claim):
                watched.lost = True
                self._board.reply(seat, Answer(watched.claim, watched.base, None, "", 0, True))
                return False
            try:
                beaten = _beaten(seen.cell, marks[0] - notice.began)
                watched.seen = self._cells.write(notice.name, seen, beaten, notice.beat_s)
            except Conflict as conflict:
                if self._still_late(seat, watched) is None:
                    return False
                watched.seen = self._look(watched, notice, conflict)
                if watched.seen is None:
                    watched.lost = True
                continue
            watched.beaten_at = marks[0]
            self._answer(seat, watched, marks)
            return True
        return False

    def _answer(self, seat: int, watched: Watched, marks: tuple[float, float, float]) -> None:
        seen = watched.seen
        assert seen is not None and seen.cell.hold is not None
        version = seen.version or "" if watched.clean else ""
        self._board.reply(seat, Answer(watched.claim, watched.base, marks, version, seen.cell.hold.beat, False))

    def _look(self, watched: Watched, notice: Notice, conflict: Conflict | None) -> Seen | None:
        """Read the record; None when nothing, or nothing readable, is there: that is for its holder to mend."""
        before = watched.seen
        record: Record | Unchanged | None
        record = conflict.record if isinstance(conflict, Changed) else self._store.read(notice.name)
        assert not isinstance(record, Unchanged)
        if record is None:
            return None
        try:
            cell, attempt = decode(record.data)
        except Damaged:
            return None
        if record.version == notice.version:
            watched.clean = True
        else:
            watched.clean = watched.clean and before is not None and _but_hold(cell) == _but_hold(before.cell)
        return Seen(cell, record.version, attempt)


def _beaten(cell: Cell, held_s: float) -> Cell:
    assert cell.hold is not None
    return table.beat(cell, cell.hold._replace(held_s=round(held_s, 3)))


def _but_hold(cell: Cell) -> Cell:
    return cell._replace(hold=None)
