"""The runtime of a real machine: its clocks, threads and chance, and its kernel's word on who is alive."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import random
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Final

from dibs.runtime import Event, Evidence, Holder, process
from dibs.runtime import beacon as beacons
from dibs.runtime.leaving import leaving
from dibs.runtime.sightings import Sightings
from dibs.runtime.verified import Verified
from dibs.runtime.watch import Inotify, SystemWatch

logger = logging.getLogger(__name__)

BEACON_CHECK_S: Final = 10.0
_CLOCK_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_ALIVE: Final = Evidence(None, local=True)
_ELSEWHERE: Final = Evidence(None, local=False)


class SystemRuntime:
    """See `runtime.Runtime`.

    `boot`, `host` and `runtime_dir` are for tests that play another host on this one.
    """

    monotonic = staticmethod(time.monotonic)
    boot_time = staticmethod(functools.partial(time.clock_gettime, _CLOCK_BOOTTIME))
    wall = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    def __init__(self, *, boot: str | None = None, runtime_dir: str | None = None, host: str | None = None) -> None:
        self._boot = process.boot_id() if boot is None else boot
        self._host = os.uname().nodename if host is None else host
        self._runtime_dir = _private_directory(runtime_dir or _default_runtime_dir())
        # Times of a shifted clock mean nothing to others, and theirs nothing to us.
        self._shifted = process.clocks_are_shifted()
        shared_dir = None if self._shifted else self._runtime_dir
        self._sightings = Sightings(shared_dir and os.path.join(shared_dir, "seen"), self._boot)
        self._verified = Verified(self._runtime_dir, self._boot)
        self._numbers = itertools.count()
        self._after_fork: dict[int, Callable[[], Callable[[], None] | None]] = {}
        self._beacons: dict[str, beacons.Beacon | None] = {}
        self._lit: list[beacons.Beacon] = []  # also those whose file was removed since
        self._inotify: Inotify | None = None
        self._begin_process()
        _watch_for_forks(self)

    def _begin_process(self) -> None:
        """What differs in each process: called first by the constructor, then in each forked child."""
        self._random = random.Random(os.urandom(32))
        self._process = self.token()
        self._lock = threading.Lock()
        self._holders: dict[str | None, tuple[float, Holder]] = {}
        self._pid = os.getpid()
        self._pid_namespace = process.pid_namespace()
        self._start_ticks = 0 if self._shifted else process.start_ticks(self._pid)

    def _forked(self) -> None:
        inherited, self._lit, self._beacons = self._lit, [], {}
        for beacon in inherited:
            beacon.close()  # only closed: unlocking would unlock the parent
        if self._inotify:
            self._inotify.abandon()
            self._inotify = None
        self._sightings.forked()
        self._begin_process()
        for get_callback in list(self._after_fork.values()):
            if callback := get_callback():
                try:
                    callback()
                except Exception:
                    logger.exception("%r failed after a fork", callback)

    # --- clocks, threads, chance ---

    def elapsed_marks(self) -> tuple[float, float, float]:
        return time.monotonic(), self.boot_time(), time.time()

    def start(self, target: Callable[[], None], name: str) -> None:
        threading.Thread(target=target, name=name, daemon=True).start()

    def lock(self) -> AbstractContextManager[Any]:
        return threading.Lock()

    def event(self) -> Event:
        return threading.Event()

    def token(self) -> str:
        return f"{self._random.getrandbits(64):016x}"

    def jitter(self) -> float:
        return self._random.random()

    # --- identity and proof of death ---

    def thread(self) -> int:
        asyncio = sys.modules.get("asyncio")  # where nobody has imported it, no task runs
        task = asyncio.current_task() if asyncio is not None and asyncio._get_running_loop() is not None else None
        return threading.get_ident() if task is None else id(task)

    def process(self) -> str:
        return self._process

    def holder(self, beacon_dir: str | None) -> Holder:
        known = self._holders.get(beacon_dir)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        with self._lock:
            directory = beacon_dir
            if directory is None and self._runtime_dir:
                directory = os.path.join(self._runtime_dir, "beacons")
            beacon = self._beacon_in(os.path.abspath(directory)) if directory else None
            holder = Holder(
                host=self._host,
                boot=self._boot,
                pid_namespace=self._pid_namespace,
                pid=self._pid,
                start_ticks=self._start_ticks,
                beacon=beacon.path if beacon else "",
                beacon_inode=beacon.inode if beacon else "",
                process=self._process,
            )
            # Looked at again now and then, because a cleaner of old files may have removed the beacon.
            self._holders[beacon_dir] = (time.monotonic() + BEACON_CHECK_S, holder)
            return holder

    def _beacon_in(self, directory: str) -> beacons.Beacon | None:
        """Our beacon in `directory`; a new one when it was removed.

        The old one stays locked, for older records.
        """
        beacon = self._beacons.get(directory)
        if beacon is None or not beacon.stands():
            first_time = directory not in self._beacons
            try:
                beacon = beacons.light(directory, self._process)
            except OSError as error:
                beacon = None
                if first_time:
                    logger.warning("no beacon (%s): the death of this process will be noticed later", error)
            self._beacons[directory] = beacon
            if beacon:
                if not self._lit:
                    leaving.add_last(self._put_out)
                self._lit.append(beacon)
        return beacon

    def _put_out(self, clean: bool) -> None:
        if not clean:  # something may still be held: let the free beacon tell
            return
        for beacon in self._lit:
            beacon.put_out()

    def evidence(self, holder: Holder) -> Evidence:
        if not holder.boot or holder.boot != self._boot:
            return _ELSEWHERE
        if holder.process == self._process:
            return _ALIVE
        state = self._beacon_state(holder)
        if state == "held":
            return _ALIVE
        fate = process.UNKNOWN
        if holder.pid_namespace and holder.pid_namespace == self._pid_namespace:
            fate = process.fate(holder.pid, holder.start_ticks if self._start_ticks else 0)
        # A free beacon of a process that certainly lives: something in it closed descriptors not its own.
        if state == "free" and not fate.alive:
            return Evidence("beacon free", local=True)
        return Evidence(fate.dead, local=True) if fate.dead else _ALIVE

    def _beacon_state(self, holder: Holder) -> beacons.State:
        if not holder.beacon:
            return "unknown"
        state = beacons.state(holder.beacon, holder.beacon_inode)
        if state == "unknown":
            # The same directory may be mounted elsewhere in the holder's container; the inode tells.
            for directory in tuple(self._beacons):
                path = os.path.join(directory, os.path.basename(holder.beacon))
                if path != holder.beacon and (state := beacons.state(path, holder.beacon_inode)) != "unknown":
                    break
        return state

    # --- noticing ---

    def watch(self) -> SystemWatch:
        return SystemWatch(self._shared_inotify)

    def _shared_inotify(self) -> Inotify | None:
        if self._inotify is None:
            with self._lock:
                if self._inotify is None:
                    try:
                        self._inotify = Inotify()
                    except OSError as error:
                        logger.debug("no inotify (%s): polling", error)
        return self._inotify

    def first_seen(self, store_id: str, name: str, version: str) -> float:
        return self._sightings.first_seen(store_id, name, version, time.monotonic(), self.token())

    def is_verified(self, what: str) -> bool:
        return self._verified.knows(what)

    def mark_verified(self, what: str) -> None:
        self._verified.mark(what)

    # --- ends and forks ---

    def at_exit(self, callback: Callable[[], None]) -> None:
        leaving.add(callback)

    def after_fork(self, callback: Callable[[], None]) -> None:
        # By single steps of dicts, which threads may take at once.
        for number, get_callback in list(self._after_fork.items()):
            if get_callback() is None:
                self._after_fork.pop(number, None)
        get_callback = weakref.WeakMethod(callback) if isinstance(callback, MethodType) else lambda: callback
        self._after_fork[next(self._numbers)] = get_callback

    def keeps(self, keeper: int, something: bool) -> None:
        leaving.keeps(keeper, something)


@functools.cache
def system() -> SystemRuntime:
    """The runtime that this process uses unless it is given another."""
    return SystemRuntime()


_runtimes: list[weakref.ref[SystemRuntime]] = []


def _watch_for_forks(runtime: SystemRuntime) -> None:
    if not _runtimes:
        os.register_at_fork(after_in_child=_forked)
    _runtimes[:] = [known for known in _runtimes if known()] + [weakref.ref(runtime)]


def _forked() -> None:
    leaving.forked()
    for known in _runtimes:
        if runtime := known():
            runtime._forked()


def _default_runtime_dir() -> str:
    if chosen := os.environ.get("DIBS_RUNTIME_DIR"):
        return chosen
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(session, "dibs")
    import tempfile

    return os.path.join(tempfile.gettempdir(), f"dibs-{os.getuid()}")


def _private_directory(path: str) -> str | None:
    """The directory, made if missing; None if it isn't ours alone: others could plant files in it."""
    path = os.path.abspath(path)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(f"{path} must be a directory of uid {os.getuid()}, not writable by others")
    except OSError as error:
        logger.warning("without a runtime directory: %s; set DIBS_RUNTIME_DIR to a private one", error)
        return None
    return path
