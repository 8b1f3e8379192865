"""A simulated store: one shared bucket or folder, and for each process a client whose requests meet faults.

A request to a bucket takes effect at one virtual instant between its sending and its answer, whatever becomes
of the process that sent it.  The client never sends again by itself, as the real ones don't; a duplicate is the
network's.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any, BinaryIO, Final, Literal, Protocol, TypeVar

from dibs.errors import Conflict, DibsError, StoreUnavailable
from dibs.store import UNCHANGED, Listed, Record, Source, Unchanged, Version, checked_name, limited_s
from dibs.testing.simulator.hosts import Host, Process
from dibs.testing.simulator.scheduler import Scheduler, Task
from dibs.testing.simulator.settings import Settings

Answer = TypeVar("Answer")

LISTING_LAG_S: Final = 2.0
"""What was written this recently may be missing from a listing: it is a hint."""


class Observer(Protocol):
    """The world, as the store sees it."""

    settings: Settings
    scheduler: Scheduler

    def fate(self, process: Process, what: str, name: str) -> str:
        """What becomes of this request: "" or one of the faults."""

    def strike(self, process: Process, within_s: float) -> None:
        """Perhaps kill or pause the process around a request that takes so long."""

    def wrote(self, who: str, name: str, old: Version | None, new: Version, data: bytes) -> None: ...

    def refused(self, who: str, name: str, old: Version | None, there: Version | None) -> None: ...


class Kept:
    """One record as it lies in the store."""

    __slots__ = ("data", "version", "written")

    def __init__(self, data: bytes, version: Version, written: float) -> None:
        self.data, self.version, self.written = data, version, written


class Bucket:
    """What is in the store, and its clock."""

    def __init__(self, observer: Observer, hosts: list[Host]) -> None:
        self.observer = observer
        self.hosts = hosts
        self.records: dict[str, Kept] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploaded: dict[str, bytes] = {}
        """The blobs as they were before anything damaged them."""
        self.uploaded_at: dict[str, float] = {}
        self._writes = 0

    def read(self, name: str, unless: Version | None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        kept = self.records.get(name)
        if kept is None:
            return None
        if kept.version == unless:
            return UNCHANGED
        return Record(kept.data, kept.version, self.age_s(kept))

    def age_s(self, kept: Kept) -> float | None:
        settings, now = self.observer.settings, self.observer.scheduler.now
        if not settings.ages:
            return None
        # Two stamps in whole seconds, as in the headers Date and Last-Modified.
        return float(int(now) - int(kept.written)) if settings.remote else now - kept.written

    def swap(self, who: str, name: str, old: Version | None, new: bytes) -> Version:
        kept = self.records.get(name)
        there = kept.version if kept else None
        if there != old:
            self.observer.refused(who, name, old, there)
            raise Conflict(f"{name} is at {there}, not at {old}")
        self._writes += 1
        by_content = self.observer.settings.versions == "content"
        version = blake2b(new, digest_size=8).hexdigest() if by_content else f"v{self._writes}"
        self.records[name] = Kept(new, version, self.observer.scheduler.now)
        self.observer.wrote(who, name, old, version, new)
        if not self.observer.settings.remote:
            for host in self.hosts:
                host.notify(f"sim:{name}")
        return version

    def upload(self, name: str, data: bytes) -> None:
        self.blobs[name] = self.uploaded[name] = data
        self.uploaded_at[name] = self.observer.scheduler.now

    def remove(self, name: str) -> None:
        self.blobs.pop(name, None)
        self.uploaded.pop(name, None)

    def scan(self, prefix: str) -> list[Listed]:
        now, chance = self.observer.scheduler.now, self.observer.scheduler.chance
        listing = []
        for name in sorted(self.records):
            kept = self.records[name]
            if name.startswith(prefix) and (now - kept.written > LISTING_LAG_S or chance.random() < 0.9):
                listing.append(Listed(name, len(kept.data), self.age_s(kept)))
        return listing

    def scan_blobs(self, prefix: str) -> list[Listed]:
        now, chance = self.observer.scheduler.now, self.observer.scheduler.chance
        listing = []
        for name in sorted(self.blobs):
            age_s = now - self.uploaded_at[name]
            if name.startswith(prefix) and (age_s > LISTING_LAG_S or chance.random() < 0.9):
                listing.append(Listed(name, len(self.blobs[name]), age_s if self.observer.settings.ages else None))
        return listing


class Request:
    """One request on its way: applied at an instant of its own, answered to a process that may have gone."""

    def __init__(self, store: SimStore, task: Task, apply: Callable[[], Any]) -> None:
        self._store = store
        self._task, self._parked = task, task.parked
        self._apply = apply
        self._answered = False

    def arrive(self, answer_after_s: float | None) -> None:
        gate = self._task.gate
        if not self._store.remote:
            # System calls are made by the process itself: not when it is dead or went another way, nor stopped.
            if gate.dead or self._task.parked != self._parked:
                return
            if gate.shut:
                gate.kept.append(partial(self.arrive, answer_after_s))
                return
        try:
            result, error = self._apply(), None
        except (DibsError, OSError) as raised:
            result, error = None, raised
        if answer_after_s is not None:
            self.answer(result, error, answer_after_s)

    def answer(self, result: Any, error: Exception | None, after_s: float) -> None:
        if not self._answered:
            self._answered = True
            self._store.scheduler.wake(self._task, self._parked, (result, error), after_s)

    def give_up(self, why: str) -> None:
        self.answer(None, StoreUnavailable(why), 0.0)


class SimStore:
    """The client of one process: a `Backend`."""

    def __init__(self, bucket: Bucket, process: Process) -> None:
        self._bucket = bucket
        self._process = process
        self._observer = bucket.observer
        self.scheduler = bucket.observer.scheduler
        settings = bucket.observer.settings
        self.url = "sim:bucket" if settings.remote else "sim:folder"
        self.remote = settings.remote
        self.request_timeout_s = settings.request_timeout_s
        self.server = "sim-server" if settings.remote else ""
        self.dialect = self.dialects[0]

    @property
    def dialects(self) -> tuple[str, ...]:
        return ("plain",)

    def limit_requests(self, seconds: float) -> None:
        self.request_timeout_s = min(self.request_timeout_s, seconds)

    # --- one request ---

    def _request(self, what: str, name: str, writes: bool, apply: Callable[[], Answer]) -> Answer:
        scheduler, chance = self.scheduler, self.scheduler.chance
        task = scheduler.running()
        request = Request(self, task, apply)
        timeout_s = limited_s(self.request_timeout_s) / self._process.host.rate
        there_s, back_s = self._latency_s(), self._latency_s()
        fate = self._observer.fate(self._process, what, name)
        self._observer.strike(self._process, there_s + back_s)
        answer_after_s: float | None = back_s
        if fate == "slow":
            there_s = chance.random() * timeout_s
            answer_after_s = timeout_s * (0.9 + 0.2 * chance.random()) - there_s
        elif fate in ("answer lost", "ghost"):
            answer_after_s = None
        if answer_after_s is not None and there_s + answer_after_s >= timeout_s:
            answer_after_s = None  # it comes too late
        if fate == "refused":
            scheduler.after(there_s + back_s, partial(request.give_up, f"{what} {name}: 503 slow down"))
        elif fate == "ghost":
            if writes:
                ttls = chance.choice((0.2, 1.0, 3.0)) * chance.expovariate(1.0)
                scheduler.after(timeout_s + ttls * self._observer.settings.ttl_s, partial(request.arrive, None))
        elif fate != "lost":
            # Whoever repeats a request on the way may hand on either answer; the second refuses our own success.
            second = fate == "second answer" and writes
            twice = second or (fate == "duplicate" and writes)
            scheduler.after(there_s, partial(request.arrive, None if second else answer_after_s))
            if twice:
                again_s = min(there_s + self._latency_s() * 3, timeout_s - back_s)
                scheduler.after(max(again_s, there_s), partial(request.arrive, back_s if second else None))
        # A reset connection says so at once; otherwise silence lasts until the time-out.
        gives_up_s = timeout_s
        if fate in ("lost", "answer lost", "ghost") and chance.random() < 0.3:
            gives_up_s = min(there_s + back_s, timeout_s)
        if answer_after_s is None or fate == "lost":
            scheduler.after(gives_up_s, partial(request.give_up, f"{what} {name}: no answer"))
        result, error = scheduler.park(f"the answer to {what} {name}")
        if error is not None:
            raise error
        answer: Answer = result
        return answer

    def _latency_s(self) -> float:
        chance, usual_s = self.scheduler.chance, self._observer.settings.latency_s / 2
        latency_s = usual_s * (0.5 + chance.random()) if chance.random() < 0.95 else usual_s * 8 * chance.random()
        # Requests that time out are a fault, not the usual.
        return min(latency_s, 0.4 * limited_s(self.request_timeout_s))

    # --- records ---

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        checked_name(name)
        return self._request("read", name, False, lambda: self._bucket.read(name, unless))

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        checked_name(name)
        who = self._process.who
        return self._request("swap", name, True, lambda: self._bucket.swap(who, name, old, new))

    def scan(self, prefix: str) -> Iterator[Listed]:
        yield from self._request("scan", prefix, False, lambda: self._bucket.scan(prefix))

    def files_of(self, name: str) -> tuple[str, ...]:
        return () if self.remote else (f"sim:{name}",)

    # --- blobs ---

    def upload(self, name: str, source: Source) -> None:
        checked_name(name)
        copy = io.BytesIO()
        while piece := source.read(1 << 20):
            copy.write(piece)
        self._request("upload", name, True, lambda: self._bucket.upload(name, copy.getvalue()))

    @contextmanager
    def download(self, name: str) -> Iterator[BinaryIO]:
        checked_name(name)

        def found() -> bytes:
            if name not in self._bucket.blobs:
                raise FileNotFoundError(name)
            return self._bucket.blobs[name]

        with io.BytesIO(self._request("download", name, False, found)) as opened:
            yield opened

    def remove(self, name: str) -> None:
        checked_name(name)
        self._request("remove", name, True, lambda: self._bucket.remove(name))

    def scan_blobs(self, prefix: str) -> Iterator[Listed]:
        yield from self._request("scan", prefix, False, lambda: self._bucket.scan_blobs(prefix))

    def clear_leftovers(self, gone: Callable[[str], bool], dry_run: bool = False) -> Iterator[Listed]:
        return iter(())  # an upload takes effect at one instant, or not at all

    def erase(self, name: str) -> None:
        checked_name(name)
        self._request("erase", name, True, lambda: self._bucket.records.pop(name, None))

    def close(self) -> None:
        """There is nothing to give up."""
