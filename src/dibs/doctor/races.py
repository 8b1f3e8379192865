"""Races that only an atomic store wins: of several writes that start at one moment, one may succeed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from dibs.errors import Conflict, StoreUnavailable, StoreUnsuitable
from dibs.runtime import Event, Runtime
from dibs.store import Backend, Record, Version

T = TypeVar("T")

RACERS: Final = 6
ROUNDS: Final = 3
"""With the probe and the removals, all that finds a liar is fewer than 60 requests."""
_PATIENCE_S: Final = 60.0


def race(store: Backend, runtime: Runtime) -> None:
    """Raise StoreUnsuitable when several of racing writes win."""
    # Connections first: a race that is decided by who connects faster proves nothing.
    _together(runtime, [lambda: store.read("doctor/race") for _ in range(RACERS)])
    for _ in range(ROUNDS):
        name = f"doctor/race-{runtime.token()}"
        version = _winner(store, runtime, name, None, "creates")
        _winner(store, runtime, name, version, "swaps from one version")


def _winner(store: Backend, runtime: Runtime, name: str, old: Version | None, what: str) -> Version:
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

        def run(task: Callable[[], T] = task, finished: Event = finished) -> None:
            go.wait(_PATIENCE_S)
            try:
                results.append(task())
            except BaseException as error:
                errors.append(error)
            finally:
                finished.set()

        runtime.start(run, "dibs-doctor-race")
    go.set()
    for finished in done:
        if not finished.wait(_PATIENCE_S):
            raise StoreUnavailable(f"a request got no answer in {_PATIENCE_S:g} s")
    if errors:
        raise errors[0]
    return results
