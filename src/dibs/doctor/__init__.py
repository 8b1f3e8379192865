"""Judge one store: does it keep its word, also in races; how fast is it; which ttl fits it.

First come the few requests that find a liar: the probe, then races.  The first lie ends the examination.
Only an honest store is put to the whole conformance suite.  Everything happens in a scratch place below the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

from dibs.card import read_card
from dibs.doctor.races import race
from dibs.doctor.scratch import Scratch, Scratched, scratch_below
from dibs.errors import DibsError, StoreUnavailable, StoreUnsuitable
from dibs.probe import probe
from dibs.runtime import Runtime
from dibs.stores import open_store

SAMPLES: Final = {True: 20, False: 200}
"""For the latency: across a network, and on this machine."""
TTL_MIN_S: Final = 10.0
SWAPS_PER_TTL: Final = 100
_TTLS_S: Final = (10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)


class Check(NamedTuple):
    name: str
    verdict: Literal["passed", "failed", "warning"]
    detail: str = ""


class Latency(NamedTuple):
    p50_s: float
    p95_s: float


class Report(NamedTuple):
    url: str
    server: str
    checks: list[Check]
    refused: str
    """Why no worker can rely on this store; empty when one can."""
    read: Latency | None = None
    swap: Latency | None = None
    clock_ahead_s: float | None = None
    """By how much this machine's clock is ahead of the server's."""
    ttl_s: float | None = None
    why_ttl: str = ""

    @property
    def status(self) -> int:
        """The exit status: 0 healthy, 1 a check failed, 3 unsuitable or unavailable."""
        if self.refused:
            return 3
        return 1 if any(check.verdict == "failed" for check in self.checks) else 0


def examine(url: str, runtime: Runtime, listener: Callable[[Check], None] | None = None) -> Report:
    """Examine the store at `url`; `listener` hears of each check as it is done.

    Never raises for what is wrong with the store: that stands in the report.  Raises SettingsError for a URL
    that can't be one.
    """
    checks: list[Check] = []

    def tell(check: Check) -> None:
        checks.append(check)
        if listener is not None:
            listener(check)

    examination = _Examination(url, runtime, tell)
    refused = ""
    try:
        with scratch_below(url, runtime) as scratch:
            examination.run(scratch)
    except (StoreUnsuitable, StoreUnavailable) as error:
        refused = str(error)
        what = "can be reached" if isinstance(error, StoreUnavailable) else "can be relied on"
        tell(Check(f"the store {what}", "failed", refused))
    return examination.report(checks, refused)


class _Examination:
    """One examination, and what is known so far."""

    def __init__(self, url: str, runtime: Runtime, tell: Callable[[Check], None]) -> None:
        self._url, self._server = url, ""
        self._runtime = runtime
        self._tell = tell
        self._read: Latency | None = None
        self._swap: Latency | None = None
        self._clock_ahead_s: float | None = None

    def report(self, checks: list[Check], refused: str) -> Report:
        ttl_s, why_ttl = (None, "") if self._swap is None or refused else suggested_ttl(self._swap.p95_s)
        return Report(
            self._url, self._server, checks, refused, self._read, self._swap, self._clock_ahead_s, ttl_s, why_ttl
        )

    def run(self, scratch: Scratch) -> None:
        store = scratch.open()
        try:
            self._server = store.server
            scratch.dialect = probe(store, self._runtime)
            self._tell(Check("conditional writes are honoured, one after the other", "passed"))
            race(store, self._runtime)
            self._tell(Check("of racing writes one wins", "passed"))
            self._look_at_card(scratch)
            self._look_at_place(store, scratch)
            self._measure(store)
            distance = getattr(store.inner, "server_date_distance_s", None)
            self._clock_ahead_s = distance() if distance is not None else None
        finally:
            store.close()
        self._conform(scratch)

    def _look_at_card(self, scratch: Scratch) -> None:
        """Raise StoreUnsuitable when the store's card is damaged, or of a newer format."""
        if scratch.directory is not None and not os.path.isdir(scratch.root):
            return
        store = open_store(self._url, self._runtime)
        try:
            card = read_card(store)
        finally:
            store.close()
        detail = "none yet: nobody has opened a cache here" if card is None else f"store id {card.store_id}"
        self._tell(Check("the store's card is in order", "passed", detail))

    def _look_at_place(self, store: Scratched, scratch: Scratch) -> None:
        self._permission("records can be listed", lambda: list(store.scan("doctor/")), "ls, status and locks need it")
        if scratch.directory is not None:
            for check in local_checks(scratch.root, scratch.directory):
                self._tell(check)
        elif store.remote:
            self._permission("blobs can be removed", lambda: store.remove("doctor/nothing"), "else they pile up")
        else:
            self._tell(Check("shared between processes", "warning", "memory: lives and dies with one process"))

    def _permission(self, name: str, use: Callable[[], object], why: str) -> None:
        try:
            use()
        except (StoreUnsuitable, StoreUnavailable) as error:
            self._tell(Check(name, "failed", f"{error} ({why})"))
        else:
            self._tell(Check(name, "passed"))

    def _measure(self, store: Scratched) -> None:
        reads, swaps = [], []
        name = f"doctor/latency-{self._runtime.token()}"
        version = store.swap(name, None, b"0 " + b"x" * 300)
        for number in range(1, SAMPLES[store.remote] + 1):
            began = self._runtime.monotonic()
            version = store.swap(name, version, b"%d " % number + b"x" * 300)
            between = self._runtime.monotonic()
            store.read(name)
            swaps.append(between - began)
            reads.append(self._runtime.monotonic() - between)
        self._read, self._swap = _latency(reads), _latency(swaps)

    def _conform(self, scratch: Scratch) -> None:
        from dibs.testing.conformance import CHECKS

        for name, check in CHECKS:
            try:
                check(scratch.open)
            except AssertionError as error:
                self._tell(Check(name.replace("_", " "), "failed", str(error)))
            except DibsError as error:
                self._tell(Check(name.replace("_", " "), "failed", f"{type(error).__name__}: {error}"))
            else:
                self._tell(Check(name.replace("_", " "), "passed"))


def suggested_ttl(swap_p95_s: float) -> tuple[float, str]:
    """A ttl that leaves room for slow beats, and why."""
    needed_s = max(TTL_MIN_S, SWAPS_PER_TTL * swap_p95_s)
    ttl_s = float(next((ttl for ttl in _TTLS_S if ttl >= needed_s), _TTLS_S[-1]))
    return ttl_s, (
        f"room for {SWAPS_PER_TTL} swaps of {swap_p95_s * 1000:.3g} ms, and no less than {TTL_MIN_S:g} s; a worker "
        "that dies on another host is noticed after 1.1 times that"
    )


def local_checks(root: str, directory: str) -> Iterator[Check]:
    """What matters about a directory: its file system, who else can write there, and how waiters are woken.

    `root` is the store's, `directory` one that was made below it.
    """
    from dibs.runtime.watch import Inotify
    from dibs.stores.local_disk import type_of

    kind = type_of(os.path.realpath(directory))
    detail = kind or "the system doesn't say which: it must be a local disk"
    yield Check("the file system is a local one", "passed" if kind else "warning", detail)
    status = os.stat(root if os.path.isdir(root) else directory)
    if status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022:
        yield Check("the directory is private", "passed", f"mode {stat.S_IMODE(status.st_mode):04o}")
    else:
        others = f"owned by uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        yield Check("the directory is private", "warning", f"{others}: no pickles are loaded unless allow_pickle=True")
    try:
        Inotify()
    except OSError as error:
        yield Check("waiters are woken by inotify", "warning", f"{error}: they look every tenth of a second instead")
    else:
        yield Check("waiters are woken by inotify", "passed")


def _latency(seconds: list[float]) -> Latency:
    ordered = sorted(seconds)
    return Latency(ordered[len(ordered) // 2], ordered[min(len(ordered) * 95 // 100, len(ordered) - 1)])
