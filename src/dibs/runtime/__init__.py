"""One door to uncertainty: clocks, sleep, threads, chance, identity and proof of death come from a `Runtime`.

Everything above takes a `Runtime` as an argument, so that the very same code runs on the machine
(`runtime.system`) and in the simulator (`testing.simulator`), where time is virtual and chance comes from a seed.
A lint rule bans the modules behind it everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol


class Holder(NamedTuple):
    """Who holds: the evidence by which another worker on the same host can prove that this process is dead.

    It stands in every held record.  `host` is for people only; hosts are told apart by `boot`.
    """

    host: str
    boot: str
    """Boot id: one boot of one kernel.  Empty where unknown; then nothing can be proved."""
    pid_namespace: int
    """Inode of the PID namespace, 0 where unknown."""
    pid: int
    start_ticks: int
    """Start of the process in clock ticks since boot (/proc/<pid>/stat field 22), 0 where unknown."""
    beacon: str
    """Path of the process's beacon file, empty where it has none."""
    beacon_inode: str
    """`<device>:<inode>` of that very file."""
    process: str
    """Random id of the process, new after a fork."""


class Evidence(NamedTuple):
    """What this host can prove about a holder: `dead` says how death was proved, or is None.

    `local` is True when the holder runs (or ran) on this host, so that its death could be noticed here.
    """

    dead: str | None
    local: bool


class Event(Protocol):
    """As threading.Event."""

    def set(self) -> None: ...
    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Watch(Protocol):
    """Wakes when one of some files changes, or one of some beacons is let go."""

    def arm(self, files: Sequence[str], beacons: Sequence[str]) -> None:
        """Watch exactly these from now on.  Cheap when they are the same as before.

        A file that was replaced since is watched anew, so call it before each look at the record.
        """

    def wait(self, timeout_s: float) -> bool:
        """Return True when something may have changed since `arm`, False after `timeout_s`."""

    def notify(self, callback: Callable[[], None]) -> bool:
        """Call back, from any thread, perhaps more than once, when `wait` would return True; until the next `arm`.

        Returns False where nobody can tell; then ask `wait(0)` now and then.
        """

    def close(self) -> None: ...


class Runtime(Protocol):
    """The door.  Times are in seconds."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; it may stand still while the machine is suspended."""

    def boot_time(self) -> float:
        """Seconds on a clock that never goes back, nor stands still while the machine is suspended, where there is one.

        For ages: what expires does so in a closed laptop too.
        """

    def elapsed_marks(self) -> tuple[float, float, float]:
        """(monotonic, boot time, wall): three views of now, for deadlines that must err on the early side."""

    def wall(self) -> float:
        """Seconds since 1970, for people only; never compared between machines."""

    def sleep(self, seconds: float) -> None: ...

    def start(self, target: Callable[[], None], name: str) -> None:
        """Run `target` in a daemon thread."""

    def lock(self) -> AbstractContextManager[Any]:
        """A new mutual-exclusion lock, as threading.Lock."""

    def event(self) -> Event: ...

    def token(self) -> str:
        """16 hexadecimal digits that nobody else draws."""

    def jitter(self) -> float:
        """A random number in [0, 1)."""

    def process(self) -> str:
        """Random id of this process, new after a fork: whoever keeps state compares it."""

    def thread(self) -> int:
        """Identity of the running thread or task, unique among the living of this process."""

    def holder(self, beacon_dir: str | None) -> Holder:
        """This process as a holder, with its beacon in `beacon_dir` (None: the host's runtime directory).

        Opens and locks the beacon on first use; without a beacon when the directory can't be written.
        """

    def evidence(self, holder: Holder) -> Evidence:
        """What can be proved about `holder` from here."""

    def watch(self) -> Watch: ...

    def first_seen(self, store_id: str, name: str, version: str) -> float:
        """When (`monotonic`) this host first saw this record at this version; now, if it is new.

        Remembered across calls and shared by all processes of this user on this host, so that pollers and
        restarted workers don't start from zero.  Call it *after* the read has returned.
        """

    def is_verified(self, what: str) -> bool:
        """Whether a process of this user on this host has marked `what`, and it was not forgotten since."""

    def mark_verified(self, what: str) -> None:
        """Let all processes of this user on this host know that `what`, a file at one state, is what it should be."""

    def at_exit(self, callback: Callable[[], None]) -> None:
        """Call back once when this process ends in an orderly way: interpreter exit, end of a worker, SIGTERM.

        `callback` is held weakly if a method; a forked child starts without any.
        """

    def keeps(self, keeper: int, something: bool) -> None:
        """`keeper` holds something from now on, or nothing any more: SIGTERM matters only while somebody does."""

    def after_fork(self, callback: Callable[[], None]) -> None:
        """Call back in each forked child, before it runs anything else.  `callback` is held weakly if a method."""
