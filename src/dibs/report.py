"""Looking at a store from outside: who holds what and waits for what, what is done and what has failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dibs import cell as table
from dibs.cell import Cell
from dibs.cells import Cells, Seen
from dibs.liveness import judge
from dibs.names import KEYS, LOCKS, family_prefix, key_of, last_of
from dibs.record import Damaged, decode
from dibs.store import Record


class LockInfo(NamedTuple):
    """One lock, or one key, as its record says; ages are by the clocks that wrote them."""

    name: str
    state: str
    """free, held, dead (the holder is gone, the next worker takes over), done or failed."""
    owner: str
    """Host of the holder, for people."""
    pid: int
    generation: int
    age_s: float
    """Seconds held, as of the last beat plus the record's age; 0 when nobody holds."""
    waits_for: str | None
    progress: float | None
    ttl_s: float
    space: str = LOCKS
    claim: str = ""


class Status(NamedTuple):
    """How many keys are in which state, and the holds."""

    done: int
    free: int
    failed: int
    damaged: int
    holds: list[LockInfo]
    """Of keys and of locks."""
    failures: list[tuple[str, int, int, str]]
    """Key, failures, deaths and the last line of the last error."""
    stored_bytes: int
    cost_s: float
    """What computing the stored values took."""


def seen_in(cells: Cells, space: str) -> Iterator[Seen | None]:
    """Every cell of a space as its record says; None for a damaged one.  Changes nothing."""
    for listed in cells.store.scan(f"{space}/"):
        record = cells.store.read(listed.name)
        if not isinstance(record, Record):
            continue
        try:
            cell, attempt = decode(record.data)
        except Damaged:
            yield None
            continue
        yield Seen(cell, record.version, attempt, record.age_s)


def info(cells: Cells, space: str, seen: Seen) -> LockInfo:
    cell, hold = seen.cell, seen.cell.hold
    if hold is None:
        return LockInfo(cell.key, table.state(cell), "", 0, cell.generation, 0.0, None, None, 0.0, space)
    verdict = judge(hold, cells.runtime.evidence(hold.who), None, None)
    return LockInfo(
        cell.key,
        "dead" if verdict.over else "held",
        hold.who.host,
        hold.who.pid,
        cell.generation,
        hold.held_s + (seen.age_s or 0.0),
        hold.waits_for,
        hold.progress,
        hold.ttl_s,
        space,
        hold.claim,
    )


def holds(cells: Cells, spaces: tuple[str, ...] = (KEYS, LOCKS)) -> Iterator[LockInfo]:
    """What is held now; each line is decided when it is read."""
    for space in spaces:
        for seen in seen_in(cells, space):
            if seen is not None and seen.cell.hold is not None:
                yield info(cells, space, seen)


def status(cells: Cells) -> Status:
    """Read every record once; for many keys on a bucket that takes a while."""
    counts = {"done": 0, "free": 0, "failed": 0, "held": 0}
    damaged, stored_bytes, cost_s = 0, 0, 0.0
    found: list[LockInfo] = []
    failures: list[tuple[str, int, int, str]] = []
    for seen in seen_in(cells, KEYS):
        if seen is None:
            damaged += 1
            continue
        cell = seen.cell
        counts[table.state(cell)] += 1
        if cell.hold is not None:
            found.append(info(cells, KEYS, seen))
        if cell.failures is not None:
            failures.append((cell.key, cell.failures.failures, cell.failures.deaths, _last_line(cell)))
        if cell.value is not None:
            stored_bytes += cell.value.size_bytes
            cost_s += cell.value.cost_s
    found.extend(holds(cells, (LOCKS,)))
    return Status(
        counts["done"], counts["free"], counts["failed"], damaged, found, failures, stored_bytes, cost_s
    )


def key_names(cells: Cells) -> Iterator[tuple[str, str, int, float | None]]:
    """(key, record name, size of the record in bytes, age in seconds) of every key, from the listing.

    Only long keys, whose record name ends in a digest, cost a read.
    """
    for listed in cells.store.scan(f"{KEYS}/"):
        key = key_of(listed.name)
        if key is None:
            record = cells.store.read(listed.name)
            if not isinstance(record, Record):
                continue
            try:
                key = decode(record.data).cell.key
            except Damaged:
                key = listed.name
        yield key, listed.name, listed.size_bytes, listed.age_s


def family(cells: Cells, name: str) -> Iterator[str]:
    """Every key that has a record and begins with "<name>/"; long ones cost a read."""
    for listed in cells.store.scan(family_prefix(KEYS, name)):
        last = last_of(listed.name)
        if last is not None:
            yield f"{name}/{last}"
            continue
        record = cells.store.read(listed.name)
        if isinstance(record, Record):
            try:
                yield decode(record.data).cell.key
            except Damaged:
                continue  # whoever asks for it heals it


def _last_line(cell: Cell) -> str:
    lines = cell.failures.error.strip().splitlines() if cell.failures is not None else []
    return lines[-1] if lines else ""
