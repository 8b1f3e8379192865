"""Wakes when a file changes or a beacon is let go: by inotify, or by polling where there is none.

One inotify instance serves a process (a user may have 128 of them).  Whoever waits while nobody else does
leads: it reads the events for all and tells the others; when it leaves it wakes another one to lead.  For those
who are called back instead of waiting (`notify`) one thread waits as long as there are any.

A record changes by a write into its file, or its file is replaced; both are events on the inode that was
watched, so the file itself is enough and the busy directory around it needs no watch.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from dibs.runtime import beacon, linux

logger = logging.getLogger(__name__)

FILE_EVENTS: Final = linux.IN_MODIFY | linux.IN_ATTRIB | linux.IN_MOVE_SELF | linux.IN_DELETE_SELF
BEACON_EVENTS: Final = linux.IN_CLOSE_WRITE
SETTLE_LIMIT_S: Final = 0.020
POLL_S_MIN: Final = 0.001
POLL_S_MAX: Final = 0.020
LISTEN_S: Final = 1.0
SAMPLE_SIZE: Final = 4096

_EVENT: Final = struct.Struct("iIII")


class Inotify:
    """The inotify instance of this process.  Raises OSError where there is none to be had."""

    def __init__(self) -> None:
        self.fd = linux.inotify_init()
        self._file = beacon.identity(os.fstat(self.fd))
        self.lock = threading.Lock()
        self.leading = threading.Lock()
        self._watches: dict[int, set[SystemWatch]] = {}
        self._followers: set[SystemWatch] = set()
        self._called_back: set[SystemWatch] = set()
        self._listening = False

    def abandon(self) -> None:
        """Close our descriptor; in a forked child this takes nothing from the parent."""
        fd, self.fd = self.fd, -1
        if fd >= 0 and self._is_open(fd):
            os.close(fd)

    def _is_open(self, fd: int) -> bool:
        # Some programs close all descriptors they find; the number may be another file's by now.
        try:
            return beacon.identity(os.fstat(fd)) == self._file
        except OSError:
            return False

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.abandon()

    def add(self, watch: SystemWatch, path: str, events: int) -> int:
        """Call with `lock` held: then no other watch of the same file is given up meanwhile."""
        number = linux.inotify_add_watch(self.fd, path, events)
        self._watches.setdefault(number, set()).add(watch)
        return number

    def drop(self, watch: SystemWatch, number: int) -> None:
        """Call with `lock` held."""
        watches = self._watches.get(number)
        if watches is None:
            return
        watches.discard(watch)
        if not watches:
            del self._watches[number]
            try:
                linux.inotify_rm_watch(self.fd, number)
            except OSError:
                pass  # the kernel gave it up with the file

    def wait(self, watch: SystemWatch, deadline: float) -> None:
        """Return when `watch` was woken, or at the deadline."""
        self._followers.add(watch)
        try:
            while not watch.woken:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.dispatch()  # what is there already counts
                    return
                watch.kick.clear()
                if self.leading.acquire(blocking=False):
                    try:
                        if not watch.woken:
                            self._poll(left)
                            self.dispatch()
                    finally:
                        self.leading.release()
                elif not watch.woken:
                    watch.kick.wait(left)
        finally:
            self._followers.discard(watch)
            self._promote()

    def _promote(self) -> None:
        for follower in tuple(self._followers):
            follower.kick.set()
            return

    def _poll(self, left: float) -> None:
        whole_ms = int(left * 1000)
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(whole_ms) and whole_ms == 0:
            time.sleep(left)  # less than poll can count

    def listen_for(self, watch: SystemWatch) -> None:
        """Read the events in a thread until `stop_listening_for`."""
        with self.lock:
            self._called_back.add(watch)
            start, self._listening = not self._listening, True
        if start:
            try:
                threading.Thread(target=self._listen, name="dibs-watch", daemon=True).start()
            except BaseException:
                self._listening = False
                raise

    def stop_listening_for(self, watch: SystemWatch) -> None:
        self._called_back.discard(watch)

    def _listen(self) -> None:
        nobody = SystemWatch(lambda: self)  # wakes for nothing: it only leads
        while True:  # ends soon after the last one that was listened for
            with self.lock:
                if not self._called_back:
                    self._listening = False
                    return
            self.wait(nobody, time.monotonic() + LISTEN_S)

    def dispatch(self) -> None:
        with self.lock:
            try:
                events = os.read(self.fd, 65536)
            except (BlockingIOError, InterruptedError):
                return
            offset = 0
            while offset < len(events):
                number, mask, _, length = _EVENT.unpack_from(events, offset)
                offset += _EVENT.size + length
                if mask & linux.IN_Q_OVERFLOW:
                    for lost_number, watches in self._watches.items():
                        for watch in watches:
                            watch.wake(lost_number)
                    continue
                for watch in self._watches.get(number, ()):
                    watch.wake(number)
                if mask & linux.IN_IGNORED:
                    self._watches.pop(number, None)


class Sample(NamedTuple):
    """Enough of a file to see that it changed, also twice within one tick of the file system's clock."""

    inode: int
    modified_ns: int
    size_bytes: int
    start: bytes


def _sample(path: str) -> Sample | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            return Sample(status.st_ino, status.st_mtime_ns, status.st_size, os.read(fd, SAMPLE_SIZE))
        finally:
            os.close(fd)
    except OSError:
        return None


class SystemWatch:
    """See `runtime.Watch`.  `inotify` gives the instance of this process, or None: then this one polls."""

    def __init__(self, inotify: Callable[[], Inotify | None]) -> None:
        self._current = inotify
        self._inotify: Inotify | None = None
        self._numbers: dict[int, str] = {}  # watch number -> path of a beacon, or "" for a file
        self._beacons: tuple[str, ...] = ()
        self._samples: dict[str, Sample | None] | None = None  # not None: poll
        self._held: list[str] = []
        self.woken = False
        self._beacon_woken: set[str] = set()
        self.kick = threading.Event()
        self._callback: Callable[[], None] | None = None

    def wake(self, number: int) -> None:
        """Called by whoever reads the events, with the instance's lock held."""
        path = self._numbers.get(number)
        if path is None:
            return
        if path:
            self._beacon_woken.add(path)
        self.woken = True
        self.kick.set()
        callback = self._callback
        if callback is not None:
            callback()

    def notify(self, callback: Callable[[], None]) -> bool:
        if self._samples is not None or self._inotify is None or self._inotify.fd < 0:
            return False
        self._callback = callback
        self._inotify.listen_for(self)
        if self.woken:  # before there was a callback
            callback()
        return True

    def _silence(self) -> None:
        if self._callback is not None:
            self._callback = None
            if self._inotify is not None:
                self._inotify.stop_listening_for(self)

    def arm(self, files: Sequence[str], beacons: Sequence[str]) -> None:
        self._silence()
        inotify = self._current()
        if inotify is not self._inotify:  # the first time, or in a forked child: the old one is not ours
            self._inotify, self._numbers, self.kick = inotify, {}, threading.Event()
        self.woken = False
        self._beacon_woken.clear()
        fresh = [path for path in beacons if path not in self._beacons]
        self._beacons = tuple(beacons)
        watched = inotify is not None and self._arm(inotify, files, beacons)
        self._samples = None if watched else {path: _sample(path) for path in files}
        self._held = [] if watched else [path for path in beacons if beacon.state(path) == "held"]
        if any(beacon.state(path) == "free" for path in fresh):
            self.woken = True  # it was let go before we listened

    def _arm(self, inotify: Inotify, files: Sequence[str], beacons: Sequence[str]) -> bool:
        """Watch these; False if a file can't be watched."""
        numbers: dict[int, str] = {}
        watched = True
        with inotify.lock:
            for path in files:
                try:
                    numbers[inotify.add(self, path, FILE_EVENTS)] = ""
                except OSError:
                    watched = False  # not there (yet), or the user has too many watches
            for path in beacons:
                try:
                    numbers[inotify.add(self, path, BEACON_EVENTS)] = path
                except FileNotFoundError:
                    pass  # its owner left in an orderly way: nothing will happen to it any more
                except OSError:
                    watched = False
            for number in self._numbers:
                if number not in numbers:
                    inotify.drop(self, number)
            self._numbers = numbers
        return watched

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        if self._samples is not None:
            return self._wait_by_polling(self._samples, deadline)
        if self._inotify is not None and not self.woken:
            if self._inotify.fd < 0:  # forked since `arm`
                return True
            self._inotify.wait(self, deadline)
        if not self.woken:
            return False
        for path in tuple(self._beacon_woken):
            _settle(path)
        return True

    def _wait_by_polling(self, samples: dict[str, Sample | None], deadline: float) -> bool:
        pause = POLL_S_MIN
        while not self.woken:
            if any(_sample(path) != sample for path, sample in samples.items()):
                return True
            if any(beacon.state(path) != "held" for path in self._held):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, POLL_S_MAX)
        return True

    def close(self) -> None:
        self._silence()
        if self._inotify is not None and self._inotify.fd >= 0:
            with self._inotify.lock:
                for number in self._numbers:
                    self._inotify.drop(self, number)
        self._inotify, self._numbers, self._samples = None, {}, None
        self._beacons = ()


def _settle(path: str) -> None:
    """The kernel tells of the last close just before it lets go of the lock: wait for that, but not long."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while beacon.state(path) == "held" and time.monotonic() < deadline:
        time.sleep(0.0002)
