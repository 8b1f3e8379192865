"""Judge one store: does it keep its word, also in races; how fast is it; which ttl fits it.

First come the few requests that find a liar: the probe, then races.  The first lie ends the examination.
Only an honest store is put to the whole conformance suite.  Everything happens in a scratch place below the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import BinaryIO, Final, Literal, NamedTuple, TypeVar

from dibs.card import read_card
from dibs.errors import Conflict, DibsError, StoreUnavailable, StoreUnsuitable
from dibs.probe import probe
from dibs.runtime import Runtime
from dibs.store import Backend, Listed, Record, Unchanged, Version
from dibs.stores import open_store

T = TypeVar("T")

RACERS: Final = 6
RACE_ROUNDS: Final = 3
"""With the probe and the removals, all that finds a liar is fewer than 60 requests."""
SAMPLES: Final = {True: 20, False: 200}
"""For the latency: across a network, and on this machine."""
TTL_MIN_S: Final = 10.0
SWAPS_PER_TTL: Final = 100
_TTLS_S: Final = (10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)
_PATIENCE_S: Final = 60.0


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


def directory_of(url: str) -> str | None:
    """The directory that `url` names, or None when it names a store of another kind."""
    from urllib.parse import unquote

    if url.startswith("file://"):
        return unquote(url.removeprefix("file://").removeprefix("localhost"))
    return None if "://" in url or url.startswith("memory:") else os.path.expanduser(url)


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
        with _scratch(url, runtime) as scratch:
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
            self._look_at_card(scratch)
            scratch.dialect = probe(store, self._runtime)
            self._tell(Check("conditional writes are honoured, one after the other", "passed"))
            _race(store, self._runtime)
            self._tell(Check("of racing writes one wins", "passed"))
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
        f"at least {TTL_MIN_S:g} s and {SWAPS_PER_TTL} swaps of {swap_p95_s * 1000:.3g} ms; a dead worker of another "
        "host is noticed after 1.1 of it, a slower store or a longer pause costs a hold"
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


# --- races ----------------------------------------------------------------------------------------------


def _race(store: Scratched, runtime: Runtime) -> None:
    """Raise StoreUnsuitable when several of racing writes win."""
    # Connections first: a race that is decided by who connects faster proves nothing.
    _together(runtime, [lambda: store.read("doctor/race") for _ in range(RACERS)])
    for _ in range(RACE_ROUNDS):
        name = f"doctor/race-{runtime.token()}"
        version = _winner(store, runtime, name, None, "creates")
        _winner(store, runtime, name, version, "swaps from one version")


def _winner(store: Scratched, runtime: Runtime, name: str, old: Version | None, what: str) -> Version:
    def swap(body: bytes) -> Version | None:
        try:
            return store.swap(name, old, body)
        except (Conflict, StoreUnavailable):  # refused, or unknown, as Ceph answers to losers
            return None

    bodies = [f"{runtime.token()} {old}".encode() for _ in range(RACERS)]
    outcomes = _together(runtime, [lambda body=body: swap(body) for body in bodies])  # type: ignore[misc]
    won = [version for version in outcomes if version is not None]
    if len(won) > 1:
        raise StoreUnsuitable(
            f"{store.url} (server {store.server or 'local'}) can't coordinate workers: it is not atomic, {len(won)} of "
            f"{RACERS} racing {what} succeeded. Use a server with atomic conditional writes (AWS S3, Cloudflare R2, "
            "Ceph, MinIO), or a local directory"
        )
    if won:
        return won[0]
    record = store.read(name)
    if not isinstance(record, Record):
        raise StoreUnavailable(f"{store.url}: none of {RACERS} racing {what} got through")
    return record.version


def _together(runtime: Runtime, tasks: list[Callable[[], T]]) -> list[T]:
    """Run the tasks in threads, started at one moment; return what they returned, or raise what one raised."""
    go = runtime.event()
    results: list[T] = []
    errors: list[BaseException] = []
    done = []

    for task in tasks:
        finished = runtime.event()
        done.append(finished)

        def run(task: Callable[[], T] = task, finished: object = finished) -> None:
            go.wait(_PATIENCE_S)
            try:
                results.append(task())
            except BaseException as error:
                errors.append(error)
            finally:
                finished.set()  # type: ignore[attr-defined]

        runtime.start(run, "dibs-doctor-race")
    go.set()
    for finished in done:
        if not finished.wait(_PATIENCE_S):
            raise StoreUnavailable(f"a request got no answer in {_PATIENCE_S:g} s")
    if errors:
        raise errors[0]
    return results


def _latency(seconds: list[float]) -> Latency:
    ordered = sorted(seconds)
    return Latency(ordered[len(ordered) // 2], ordered[min(len(ordered) * 95 // 100, len(ordered) - 1)])


# --- the scratch place ----------------------------------------------------------------------------------


class Scratch:
    """A place below a store where nobody else looks."""

    def __init__(
        self, opener: Callable[[], Backend], prefix: str, root: str = "", directory: str | None = None
    ) -> None:
        self._opener = opener
        self.prefix = prefix
        self.root, self.directory = root, directory
        self.dialect = ""
        self.written: dict[str, None] = {}

    def open(self) -> Scratched:
        """Another client of the place."""
        inner = self._opener()
        inner.dialect = self.dialect or inner.dialect
        return Scratched(inner, self.prefix, self.written)

    def clean(self, scan: bool) -> None:
        """Remove what was written, as far as the store can."""
        store = self._opener()
        names = self.written
        if scan:
            names |= {listed.name: None for listed in store.scan(self.prefix)}
        for name in names:
            store.remove(name)
        store.close()


class Scratched:
    """A store, seen below a prefix; it remembers what was written."""

    def __init__(self, inner: Backend, prefix: str, written: dict[str, None]) -> None:
        self.inner = inner
        self._prefix, self._written = prefix, written
        self.url, self.remote, self.server, self.dialects = inner.url, inner.remote, inner.server, inner.dialects

    @property
    def dialect(self) -> str:
        return self.inner.dialect

    @dialect.setter
    def dialect(self, dialect: str) -> None:
        self.inner.dialect = dialect

    @property
    def request_timeout_s(self) -> float:
        return self.inner.request_timeout_s

    def limit_requests(self, seconds: float) -> None:
        self.inner.limit_requests(seconds)

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        return self.inner.read(self._prefix + name, unless)

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        if old is None:
            self._written[self._prefix + name] = None
        return self.inner.swap(self._prefix + name, old, new)

    def scan(self, prefix: str) -> Iterator[Listed]:
        for listed in self.inner.scan(self._prefix + prefix):
            yield listed._replace(name=listed.name.removeprefix(self._prefix))

    def files_of(self, name: str) -> tuple[str, ...]:
        return self.inner.files_of(self._prefix + name)

    def close(self) -> None:
        self.inner.close()

    def upload(self, name: str, source: BinaryIO) -> None:
        self._written[self._prefix + name] = None
        self.inner.upload(self._prefix + name, source)

    def download(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self.inner.download(self._prefix + name)

    def remove(self, name: str) -> None:
        self.inner.remove(self._prefix + name)
        self._written.pop(self._prefix + name, None)


@contextmanager
def _scratch(url: str, runtime: Runtime) -> Iterator[Scratch]:
    directory = directory_of(url)
    token = f"doctor-{runtime.token()}"
    if directory is not None:
        yield from _scratch_directory(directory, token, runtime)
        return
    store = open_store(url, runtime)
    # A store in memory is all its own clients.
    opener = (lambda: open_store(url, runtime)) if store.remote else (lambda: store)
    scratch = Scratch(opener, f"{token}/")
    honest = False
    try:
        yield scratch
        honest = True
    finally:
        with suppress(DibsError):
            scratch.clean(scan=honest)


def _scratch_directory(root: str, token: str, runtime: Runtime) -> Iterator[Scratch]:
    """A store of its own below the store's directory, which leaves no trace, not even of the directory itself."""
    import shutil

    root = os.path.realpath(root)
    missing = []
    parent = root
    while not os.path.exists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    directory = os.path.join(root, token)
    try:
        yield Scratch(lambda: open_store(directory, runtime), "", root, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for made in missing:
            with suppress(OSError):
                os.rmdir(made)
