"""Make room: evict what is expired or unused, and remove blobs that nothing names and nothing ever will.

Why no value that anybody could read is lost: blobs are named by key, epoch and claim, and only that key's cell ever
names them.  A commit needs a cell at the blob's own epoch that has no value of that epoch yet, and a put the epoch
just before it; epochs only grow.  So once the cell is at a later epoch, or has settled this one, without naming the
blob, no write that was or will be sent can name it any more, however late it lands; that, read from the record, is
the only reason for which a blob is removed.  Age is asked too, so that whoever is reading a replaced blob can finish;
it is never enough.

Where a dead worker left a blob in an epoch that is still open, the sweep ends that epoch first.  A worker that only
seemed dead then keeps its result to itself, as after a forget.

Records stay, for they keep the numbers from starting anew.  So do the code versions of functions: they are small,
forgetting them would free nothing, and `explain` and `retag` want them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any, Final, NamedTuple

from dibs import cell as table
from dibs.cell import Cell, Value
from dibs.cells import Cells, Seen
from dibs.errors import StoreUnavailable
from dibs.events import log
from dibs.liveness import judge
from dibs.names import KEYS, blob_name, key_of, record_name
from dibs.record import Damaged, decode
from dibs.store import Backend, Listed, Record
from dibs.uses import read_uses

GRACE_S: Final = 3600.0
"""A replaced blob stays for so long, for those who are reading it."""
USES_KEPT_S: Final = 90 * 86400.0
"""Records of uses are kept for so long, or for as long as a value may stay unused if that is longer."""

_PATIENCE_S: Final = 30.0
_PARALLEL: Final = 16
_BATCH: Final = 1024
_UNPUBLISHED: Final = ("taken over", "released", "failed", "dropped")
_BLOB: Final = re.compile(r"values/(?P<name>.+)/(?P<epoch>[0-9]{1,18})-(?P<claim>[0-9a-f]+)\Z")

Progress = Callable[[str, int], object]
"""Called now and then with what is being done, and how many of it so far."""


class Swept(NamedTuple):
    """What a sweep did, or with `dry_run` would do."""

    expired: int = 0
    """Values that were evicted because their time was over."""
    unused: int = 0
    """Values that were evicted because nobody had used them for long."""
    for_room: int = 0
    """Values that were evicted, the least recently used first, because all together were too large."""
    values_bytes: int = 0
    """Of all evicted values."""
    blobs: int = 0
    """Blobs that nothing named: of replaced and forgotten values, and of workers that died before their commit."""
    blobs_bytes: int = 0
    leftovers: int = 0
    """Unfinished uploads of dead workers."""
    leftovers_bytes: int = 0
    uses: int = 0
    """Old records of uses."""
    waiting: int = 0
    """Blobs that nothing names now, and that a worker may still publish or somebody may be reading."""
    waiting_bytes: int = 0
    left: int = 0
    """Values that are still there."""
    left_bytes: int = 0
    damaged: int = 0
    """Records that could not be read; a worker that asks for such a key mends it."""

    @property
    def evicted(self) -> int:
        return self.expired + self.unused + self.for_room

    @property
    def freed_bytes(self) -> int:
        return self.values_bytes + self.blobs_bytes + self.leftovers_bytes

    def plus(self, **numbers: int) -> Swept:
        return self._replace(**{name: getattr(self, name) + number for name, number in numbers.items()})


# -- the rule: pure ------------------------------------------------------------------------------------------------


def is_over(cell: Cell, epoch: int, claim: str, blob: str) -> bool:
    """True when no cell names this blob, nor ever will: the one reason for which a blob may be removed."""
    if cell.value is not None and (cell.value.blob == blob or (cell.value.epoch, cell.value.claim) == (epoch, claim)):
        return False
    return cell.epoch > epoch or (cell.epoch == epoch and table.current(cell) is not None)


def may_be_read(cell: Cell, claim: str) -> bool:
    """False when the cell's trail says that this claim's hold ended without a commit of its own.

    (One that was taken over may still have published; then its last readers find the blob gone, and look again.)
    """
    return table.how_ended(cell, claim) not in _UNPUBLISHED


def closed(cell: Cell, epoch: int, claim: str) -> Cell:
    """End the open epoch, up to and with `epoch`, because whoever worked in it is gone.

    An old value stays, and so does the count of failures: this is nobody's forget.
    """
    assert table.current(cell) is None, cell
    before = cell if cell.hold is None else table.bury(cell)
    after = table.forget(before, claim)
    return after._replace(epoch=max(cell.epoch, epoch) + 1, value=cell.value, failures=before.failures)


def without_value(cell: Cell, value: Value, claim: str) -> Cell | None:
    """Evict `value`; None when the cell is held, or has another value by now."""
    now = cell.value
    if cell.hold is not None or now is None or (now.epoch, now.claim) != (value.epoch, value.claim):
        return None
    return table.forget(cell, claim) if table.current(cell) is not None else table.drop_old(cell)


# -- sweeping ------------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A value, as short as can be: there may be millions."""

    name: str
    idle_s: float
    size_bytes: int
    has_blob: bool
    held: bool


def sweep(
    cells: Cells,
    backend: Backend,
    *,
    max_size_bytes: int | None = None,
    unused_for_s: float | None = None,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    progress: Progress = lambda what, count: None,
) -> Swept:
    """Remove what nothing needs, and evict values that are expired, unused for `unused_for_s` seconds, or too many.

    `max_size_bytes`: how much room all values together may take; the least recently used go first, and those that
    stand in their records only when the others are not enough.  `dry_run` changes nothing.
    Safe while workers run.  Raises StoreUnavailable; whatever was done until then stays done, and can be done again.
    """
    return _Sweep(cells, backend, grace_s, dry_run, progress).run(max_size_bytes, unused_for_s)


class _Sweep:
    def __init__(self, cells: Cells, backend: Backend, grace_s: float, dry_run: bool, progress: Progress) -> None:
        self._cells, self._backend, self._runtime = cells, backend, cells.runtime
        self._grace_s, self._dry_run, self._progress = grace_s, dry_run, progress
        self._found: list[_Found] = []
        self._named: set[str] = set()
        self._swept = Swept()

    def run(self, max_size_bytes: int | None, unused_for_s: float | None) -> Swept:
        kept_s = max(USES_KEPT_S, unused_for_s or 0.0)
        used = read_uses(self._backend, self._runtime, kept_s)
        for seen, name in self._survey():
            value = seen.cell.value
            assert value is not None
            age_s = self._age_s(seen, value)
            idle_s = used.since_s(name, age_s)
            why = None
            if value.expires_s is not None and age_s >= value.expires_s:
                why = "expired"
            elif unused_for_s is not None and idle_s >= unused_for_s:
                why = "unused"
            if seen.cell.hold is None and why is not None and self._evict(name, seen, why):
                continue
            self._keep(name, idle_s, seen)
        self._remove_blobs()
        self._clear_leftovers()
        if max_size_bytes is not None:
            self._make_room(max_size_bytes)
        for listed in used.old:
            if not self._dry_run:
                self._backend.erase(listed.name)
            self._swept = self._swept.plus(uses=1)
        return self._swept

    def _keep(self, name: str, idle_s: float, seen: Seen) -> None:
        value = seen.cell.value
        assert value is not None
        if value.blob is not None:
            self._named.add(value.blob)
        size_bytes, has_blob = _room(value), value.blob is not None
        self._found.append(_Found(name, idle_s, size_bytes, has_blob, seen.cell.hold is not None))
        self._swept = self._swept.plus(left=1, left_bytes=size_bytes)

    # -- looking -------------------------------------------------------------------------------------------------

    def _survey(self) -> Iterator[tuple[Seen, str]]:
        """Every cell of a key that has a value, with the name of its record."""
        names = (listed.name for listed in self._backend.scan(f"{KEYS}/"))
        for count, (name, seen) in enumerate(self._looked(names), 1):
            self._progress("records", count)
            if seen is None:
                self._swept = self._swept.plus(damaged=1)
            elif seen.cell.value is not None:
                yield seen, name

    def _looked(self, names: Iterable[str]) -> Iterator[tuple[str, Seen | None]]:
        """Each name with its cell as it is now; None for a damaged record, which is left as it is."""
        if not self._backend.remote:
            for name in names:
                yield name, self._look(name)
            return
        from concurrent.futures import ThreadPoolExecutor

        names = iter(names)
        with ThreadPoolExecutor(_PARALLEL) as pool:  # a read of a bucket is waiting, and nothing else
            while batch := list(islice(names, _BATCH)):
                yield from zip(batch, pool.map(self._look, batch), strict=True)

    def _look(self, name: str) -> Seen | None:
        """The cell as its record says, without healing; without version when there is none."""
        record = self._backend.read(name)
        if not isinstance(record, Record):
            return Seen(Cell(key_of(name) or ""), None)
        try:
            cell, attempt = decode(record.data)
        except Damaged:
            return None
        return Seen(cell, record.version, attempt, record.age_s)

    def _age_s(self, seen: Seen, value: Value) -> float:
        """As `values.Values.age_s`, but without looking up how long this host has seen each record."""
        if seen.age_s is not None:
            return value.age_s + seen.age_s
        return value.age_s if self._backend.remote else max(self._runtime.wall() - value.at, 0.0)

    # -- evicting ------------------------------------------------------------------------------------------------

    def _evict(self, name: str, seen: Seen, why: str) -> bool:
        """Forget the value and remove its blob; False when somebody has it, or put another in its place."""
        value, key = seen.cell.value, seen.cell.key
        assert value is not None
        size_bytes = _room(value)
        if not self._dry_run:
            claim = self._runtime.token()
            done = False

            def event(now: Seen) -> Cell | None:
                nonlocal done
                after = without_value(now.cell, value, claim)
                done = after is not None
                return after

            try:
                after = self._cells.change(name, key, claim, event, _PATIENCE_S)
            except StoreUnavailable as error:
                # It may have happened; then the next sweep finds the blob.
                log.warning("%r was not evicted: %s", key, error)
                return False
            if not done:
                return False
            self._cells.events.emit("forgotten", key, after.cell.generation, after.cell.epoch, detail=f"swept: {why}")
            blob = blob_name(name, value.epoch, value.claim)  # and not what a forged record may say
            if value.blob is not None and is_over(after.cell, value.epoch, value.claim, blob):
                self._backend.remove(blob)
        elif value.blob is not None:
            self._named.add(value.blob)
        self._swept = self._swept.plus(**{why: 1, "values_bytes": size_bytes})
        self._progress("values evicted", self._swept.evicted)
        return True

    def _make_room(self, max_size_bytes: int) -> None:
        """Evict the least recently used values; small ones last, for they take little and their records stay."""
        self._found.sort(key=lambda found: (not found.has_blob, -found.idle_s))
        for found in self._found:
            if self._swept.left_bytes + self._swept.waiting_bytes <= max_size_bytes:
                return
            if found.held:
                continue
            seen = self._look(found.name)
            if seen is None or seen.cell.hold is not None or seen.cell.value is None:
                continue
            if _room(seen.cell.value) == found.size_bytes and self._evict(found.name, seen, "for_room"):
                self._swept = self._swept.plus(left=-1, left_bytes=-found.size_bytes)

    # -- blobs that nothing names --------------------------------------------------------------------------------

    def _remove_blobs(self) -> None:
        named = self._named
        unnamed = (blob for blob in self._counted(self._backend.scan_blobs("values/")) if blob.name not in named)
        for name, group in groupby(unnamed, key=_record_of):
            if name is None:
                continue  # a stranger's
            siblings = list(group)
            for blob in siblings:
                # Read now, after the blob was listed: what this look says stays true.
                if self._is_garbage(name, blob, _replaced_s(blob, siblings)):
                    if not self._dry_run:
                        self._backend.remove(blob.name)
                    self._swept = self._swept.plus(blobs=1, blobs_bytes=blob.size_bytes)
                else:
                    self._swept = self._swept.plus(waiting=1, waiting_bytes=blob.size_bytes)

    def _counted(self, blobs: Iterator[Listed]) -> Iterator[Listed]:
        for count, blob in enumerate(blobs, 1):
            self._progress("blobs", count)
            yield blob

    def _clear_leftovers(self) -> None:
        for listed in self._backend.clear_leftovers(self._is_gone, self._dry_run):
            self._swept = self._swept.plus(leftovers=1, leftovers_bytes=listed.size_bytes)
            self._progress("unfinished uploads", self._swept.leftovers)

    def _is_gone(self, blob: str) -> bool:
        """Whether nothing can come any more of an upload that was begun under this name."""
        name = _record_of(Listed(blob, 0, None))
        return name is not None and self._is_garbage(name, Listed(blob, 0, None), 0.0)

    def _is_garbage(self, name: str, blob: Listed, replaced_s: float) -> bool:
        match = _BLOB.match(blob.name)
        assert match is not None
        epoch, claim = int(match["epoch"]), match["claim"]
        seen = self._look(name)
        if seen is None:
            return False  # damaged: what it named can't be told
        if not is_over(seen.cell, epoch, claim, blob.name):
            return self._close(name, seen, epoch, claim, blob)
        if not may_be_read(seen.cell, claim):
            return True
        if seen.age_s is None and not self._backend.remote:
            return True  # this machine was booted since: nobody is reading it
        if seen.cell.value is not None and seen.cell.value.epoch >= epoch:
            replaced_s = max(replaced_s, self._age_s(seen, seen.cell.value))
        return max(replaced_s, seen.age_s or 0.0) >= self._grace_s

    def _close(self, name: str, seen: Seen, epoch: int, claim: str, blob: Listed) -> bool:
        """End the epoch of a blob that was left in an open one; False when somebody may still publish it."""
        cell = seen.cell
        named = cell.value is not None and cell.value.blob == blob.name
        if named or table.current(cell) is not None or record_name(name.split("/")[0], cell.key) != name:
            return False
        known = table.how_ended(cell, claim) is not None or table.holds(cell, claim)
        ages = (blob.age_s, seen.age_s if known else None)
        old = any(age_s is not None and age_s >= self._grace_s for age_s in ages)
        if cell.hold is not None:
            first_s = self._runtime.first_seen(self._cells.card.store_id, name, seen.version or "")
            unchanged_s = self._runtime.monotonic() - first_s
            age_s = seen.age_s if self._backend.remote else None
            verdict = judge(cell.hold, self._runtime.evidence(cell.hold.who), unchanged_s, age_s)
            proved = verdict.state == "dead" and cell.hold.claim == claim
            if not verdict.over or not (old or proved):
                return False
        elif not old:
            return False
        if self._dry_run:
            return True
        token = self._runtime.token()

        def event(now: Seen) -> Cell | None:
            return closed(now.cell, epoch, token) if now.version == seen.version else None

        try:
            after = self._cells.change(name, cell.key, token, event, _PATIENCE_S)
        except StoreUnavailable as error:
            log.warning("%r could not be swept: %s", cell.key, error)
            return False
        return is_over(after.cell, epoch, claim, blob.name)


def _room(value: Value) -> int:
    """Bytes that the value takes in the store."""
    stored: Any = getattr(value, "stored_bytes", None)
    return value.size_bytes if stored is None else int(stored)


def _record_of(blob: Listed) -> str | None:
    """The name of the record whose blob this is; None for one that dibs didn't name."""
    match = _BLOB.match(blob.name)
    return match["name"] if match is not None else None


def _replaced_s(blob: Listed, siblings: list[Listed]) -> float:
    """For how long, at least, a later one of the same key has been there."""

    def epoch_of(listed: Listed) -> int:
        match = _BLOB.match(listed.name)
        return int(match["epoch"]) if match is not None else -1

    return max((other.age_s or 0.0 for other in siblings if epoch_of(other) > epoch_of(blob)), default=0.0)
