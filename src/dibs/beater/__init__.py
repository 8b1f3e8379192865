"""Beats by a helper process, for native code that keeps the interpreter lock: no thread of this process can run then.

A `Beater` is the stand-in (`heartbeat.StandIn`) that a process has for one store.  It starts the helper with the
first hold, because later may be too late, tells it by shared memory what is held (`board`), and lets it end when
nothing has been held for a while.  The helper (`helper`, `beating`) is an interpreter of its own, which opens the store
by its URL.  When it dies, this process notices, says so, beats by its own thread as always, and starts another one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any, Final
from weakref import WeakValueDictionary

from dibs.beater.board import LATE_PER_BEAT, Board, Marks, Notice
from dibs.errors import SettingsError
from dibs.events import log
from dibs.heartbeat import Report
from dibs.runtime import Runtime, process
from dibs.store import Store

START_S: Final = 5.0
"""How long a start may take on a busy machine: who could need the helper sooner waits for it."""
LOOK_S: Final = 1.0
"""How often a process that asks for many short holds looks whether its helper is still there."""
STEADY_S: Final = 60.0
"""A helper that has lived so long was started well; others are replaced more and more slowly."""

_BOOT: Final = """\
# dibs: keeps the holds of process {pid} alive
import json, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
orders = json.loads(connection.makefile("rb").readline())
sys.path[:] = orders["path"]
from dibs.beater.helper import main
main(connection, int(sys.argv[2]), orders)
"""

_known: WeakValueDictionary[tuple[str, str, str], Beater] = WeakValueDictionary()


def stand_in_for(store: Store, runtime: Runtime, beat_s: float) -> Beater:
    """The stand-in of this process for `store`; raises SettingsError where there can be none."""
    if store.url.startswith("memory:"):
        raise SettingsError("heartbeat = 'process': a helper process can't reach a memory: store; use a folder")
    if getattr(sys, "frozen", False) or not sys.executable:
        raise SettingsError(
            "heartbeat = 'process': this program has no Python interpreter to start a helper process with (is it "
            "frozen into one file, or embedded?); use heartbeat = 'thread'"
        )
    key = runtime.process(), store.url, store.dialect
    beater = _known.get(key)
    if beater is None:
        beater = _known[key] = Beater(runtime, store.url, store.dialect, beat_s)
    return beater


class Beater:
    """See `heartbeat.StandIn`."""

    def __init__(self, runtime: Runtime, url: str, dialect: str, beat_s: float) -> None:
        self.url = url
        self._runtime, self._dialect, self._shortest_s = runtime, dialect, beat_s
        self._connection: socket.socket | None = None
        self._begin()
        runtime.after_fork(self._begin)

    def _begin(self) -> None:
        """Again in a forked child, which has no helper: it closes its copy of the connection and tells nobody."""
        if self._connection is not None:
            self._connection.close()
        self._lock = self._runtime.lock()
        self._connection = None
        self._board: Board | None = None
        self._users: set[int] = set()
        self._started = 0
        self._started_at = 0.0
        self._failures = 0
        self._not_before = self._look_at = 0.0
        self._complaint = ""
        self._starter: subprocess.Popen[bytes] | None = None
        self._full_said = False

    def start(self, who: int, beat_s: float) -> None:
        """See that there is a helper; wait for it only if it could come too late for a hold with such a beat."""
        self._users.add(who)
        if self._connection is None or self._runtime.monotonic() >= self._look_at:
            self.look_after()
        if LATE_PER_BEAT * beat_s < START_S:
            give_up_at = self._runtime.monotonic() + START_S
            while self._starting() and self._runtime.monotonic() < give_up_at:
                self._runtime.sleep(0.002)
                self.look_after()

    def _starting(self) -> bool:
        return self._connection is not None and self._board is not None and self._board.ready != self._started

    def seat(
        self, claim: str, name: str, version: str, marks: Marks, beat_s: float, over_at: float
    ) -> _Seat | None:
        """Beat for this hold whenever its holder is late; None where there is no room."""
        board = self._board
        number = board.take() if board is not None else None
        if board is None or number is None:
            self._no_room("there are too many holds")
            return None
        seat = _Seat(board, number, Notice(claim, name, version, marks, marks[0], beat_s, over_at))
        if not seat.write():
            seat.leave()
            self._no_room(f"the record name {name!r} is too long")
            return None
        if beat_s < self._shortest_s:
            self._shortest_s = beat_s
            with suppress(OSError):
                if self._connection is not None:
                    self._connection.send(b"!")  # it would look too late
        return seat

    def _no_room(self, reason: str) -> None:
        if not self._full_said:
            self._full_said = True
            log.warning("%s: no helper process for some holds: %s; a thread beats for them", self.url, reason)

    def look_after(self) -> None:
        """Notice when the helper has ended, say so, and start another one."""
        connection, self._look_at = self._connection, self._runtime.monotonic() + LOOK_S
        if connection is None:
            self._replace(None)
            return
        try:
            while text := connection.recv(4096):
                self._complaint = text.decode("utf-8", "replace")
        except BlockingIOError:
            if self._starter is not None and self._starter.poll() is not None:
                self._starter = None
            return
        except OSError:
            pass
        self._replace(connection)

    def _replace(self, ended: socket.socket | None) -> None:
        with self._lock:
            if self._connection is not ended:
                return  # another thread was faster
            now = self._runtime.monotonic()
            if ended is not None:
                self._bury(ended, now)
            if self._users and now >= self._not_before:
                try:
                    self._spawn(now)
                except OSError as error:
                    self._complaint = f"it can't be started: {error}"
                    self._bury(None, now)

    def _bury(self, connection: socket.socket | None, now: float) -> None:
        if connection is not None:
            connection.close()
        self._connection = None
        self._failures = 1 if now - self._started_at >= STEADY_S else self._failures + 1
        pause_s = min(2.0 ** (self._failures - 1) - 1, STEADY_S)
        self._not_before = now + pause_s
        log.warning(
            "the helper process that keeps the holds in %s alive has ended (%s): threads of this process beat for "
            "them, which native code can keep from running; the next helper starts %s",
            self.url,
            self._complaint or "without a word, as when it is killed or out of memory",
            f"in {pause_s:.0f} s" if pause_s else "now",
        )
        self._complaint = ""

    def _spawn(self, now: float) -> None:
        self._reap()
        if self._board is None or not self._board.stands():
            self._board = Board()
        pid, start_ticks = process.this()
        self._started += 1
        self._started_at = now
        mine, theirs = socket.socketpair()
        with theirs:
            try:
                self._starter = subprocess.Popen(
                    _command(pid, theirs.fileno(), self._board.fd),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), self._board.fd),
                    start_new_session=True,  # Ctrl-C and the end of the terminal mean the holder
                )
            except BaseException:
                mine.close()
                raise
        mine.sendall(self._orders(pid, start_ticks))
        mine.setblocking(False)
        self._connection = mine

    def _orders(self, pid: int, start_ticks: int) -> bytes:
        orders: dict[str, Any] = {
            "path": [os.path.abspath(entry) for entry in map(str, sys.path)],
            "url": self.url,
            "dialect": self._dialect,
            "beat_s": self._shortest_s,
            "pid": pid,
            "start_ticks": start_ticks,
            "number": self._started,
        }
        return json.dumps(orders).encode() + b"\n"

    def _reap(self) -> None:
        """Where this process is the one that orphans go to, as the first in a container is, the helper is its child."""
        if self._board is not None:
            process.reap(*self._board.helper)

    def rest(self, who: int) -> None:
        """`who` holds nothing any more; without anybody who does, the helper may end."""
        with self._lock:
            self._users.discard(who)
            connection = self._connection
            if not self._users and connection is not None:
                self._connection = None
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # also when a forked child has a copy of it
                connection.close()


class _Seat:
    """See `heartbeat.Seat`."""

    def __init__(self, board: Board, number: int, notice: Notice) -> None:
        self._board, self._notice = board, notice
        self._numbers = [number]  # popped once, by whoever leaves first

    def write(self) -> bool:
        numbers = self._numbers[:]
        if not numbers:
            return True
        fits = self._board.notify(numbers[0], self._notice)
        if not self._numbers:  # left meanwhile: nobody else's beat may come of it
            self._board.clear(numbers[0])
        return fits

    def tell(self, version: str, marks: Marks) -> None:
        self._notice = self._notice._replace(version=version, marks=marks)
        self.write()

    def report(self) -> Report | None:
        numbers = self._numbers[:]
        answer = self._board.answer(numbers[0]) if numbers else None
        if answer is None or answer.claim != self._notice.claim or answer.base != self._notice.version:
            return None
        return Report(answer.marks, answer.version, answer.beat, answer.lost)

    def leave(self) -> None:
        with suppress(IndexError):
            self._board.give_back(self._numbers.pop())


def _command(pid: int, socket_fd: int, board_fd: int) -> list[str]:
    """As multiprocessing does it: with this interpreter and the options that it was started with."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-W", "ignore", "-c", _BOOT.format(pid=pid), str(socket_fd), str(board_fd)]
