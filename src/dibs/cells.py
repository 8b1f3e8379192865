"""Cells in a store: read them, heal damaged ones, and write them so that *unknown* always gets resolved.

A write has three outcomes: done, refused, unknown.  After *unknown* (no answer, or a refusal of something that was
sent before) the record is read: our attempt id says that it landed; the old version says that it did not, yet, and
the identical request is sent again, of which at most one copy can land; anything else is a refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import count
from typing import Any, Final, Literal, NamedTuple, cast

from dibs.card import Card, raise_floor
from dibs.cell import TRAIL_LENGTH_MAX, Cell, how_ended
from dibs.errors import Conflict, StoreUnavailable
from dibs.events import Events
from dibs.record import Damaged, decode, encode
from dibs.runtime import Runtime
from dibs.store import UNCHANGED, Record, Store, Unchanged, Version, asked_within

_HEALS_MAX: Final = 20
_ABANDONED_MAX: Final = 1000
_LEFT_MAX: Final = 256
_SETTLED_MAX: Final = 2048
_SMALL_SIZE: Final = 2048
"""Bytes; so what is kept of settled records takes some megabytes at most."""
_BACKOFF_S: Final = (0.01, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Changed(Conflict):
    """Somebody else has changed the record; `record` is what stands there now.

    Ours may have stood there in between: a write without an answer, or whose request was sent twice.
    """

    def __init__(self, name: str, record: Record | None) -> None:
        super().__init__(f"{name} was changed by somebody else")
        self.record = record


class Seen(NamedTuple):
    """A cell as it was read or written; `version` is None when there is no record yet."""

    cell: Cell
    version: Version | None
    attempt: str = ""
    age_s: float | None = None


class Cells:
    """The cells of one store."""

    def __init__(self, store: Store, runtime: Runtime, card: Card, events: Events, read_only: bool = False) -> None:
        self.store = store
        self.runtime = runtime
        self.card = card
        self.events = events
        self.read_only = read_only
        self.beacon_dir: str | None = getattr(store, "beacon_dir", None)
        self._abandoned: dict[str, None] = {}
        self._left: dict[str, Seen] = {}
        self._settled: dict[str, tuple[Seen, float]] = {}

    def within(self, seconds: float) -> Cells:
        """The same cells, asked for with requests that take at most so long."""
        cells = copy(self)
        cells.store = cast(Store, _Hurried(self.store, seconds))
        return cells

    def abandon(self, claim: str) -> None:
        """Remember that nobody stands behind this claim, should its request land late."""
        while len(self._abandoned) >= _ABANDONED_MAX:
            self._abandoned.pop(next(iter(self._abandoned)), None)
        self._abandoned[claim] = None

    def is_abandoned(self, claim: str) -> bool:
        return claim in self._abandoned

    def remember(self, name: str, seen: Seen) -> None:
        """Keep how this process left a record, for `recall`."""
        if len(self._left) >= _LEFT_MAX:
            self._left.clear()
        self._left[name] = seen

    def recall(self, name: str) -> Seen | None:
        """How this process left the record, if it did: a swap from there saves a read when nobody came between."""
        return self._left.pop(name, None)

    def look(self, name: str, key: str) -> Seen:
        """Read the cell of `key`, healing it if its record is damaged.

        A small settled record that this process has read before is read again, but not decoded again when it is
        still at the same version.
        """
        known = self._settled.get(name)
        if known is None:
            seen = self.look_again(name, key, None)
            assert seen is not UNCHANGED
        else:
            found = self.look_again(name, key, known[0].version)
            if found is UNCHANGED:
                return self._aged(*known)
            seen = found
            self._settled.pop(name, None)
        value = seen.cell.value
        if value is not None and seen.cell.hold is None and (value.inline is None or len(value.inline) <= _SMALL_SIZE):
            if len(self._settled) >= _SETTLED_MAX:
                self._settled.clear()
            self._settled[name] = seen, self.runtime.boot_time()
        return seen

    def _aged(self, seen: Seen, seen_at: float) -> Seen:
        """A record as it was read at `seen_at`, older by now."""
        if seen.age_s is None:
            return seen
        return seen._replace(age_s=seen.age_s + self.runtime.boot_time() - seen_at)

    def look_again(self, name: str, key: str, unless: Version | None) -> Seen | Literal[Unchanged.UNCHANGED]:
        """As look; UNCHANGED when the record is still at version `unless`."""
        for _ in range(_HEALS_MAX):
            record = self.store.read(name, unless)
            if record is UNCHANGED:
                return UNCHANGED
            seen = self._seen_in(record, name, key)
            if seen is not None:
                return seen
        raise StoreUnavailable(f"the record of {key!r} in {self.store.url} gets damaged again and again")

    def look_after(self, conflict: Conflict, name: str, key: str) -> Seen:
        """As look, after a refused write, which may have read the record already."""
        seen = self._seen_in(conflict.record, name, key) if isinstance(conflict, Changed) else None
        return self.look(name, key) if seen is None else seen

    def _seen_in(self, record: Record | None, name: str, key: str) -> Seen | None:
        """The cell that `record` says; None after a damaged one was healed, for another look."""
        if record is None:
            return Seen(Cell(key), None)
        try:
            cell, attempt = decode(record.data)
            if cell.key == key:
                return Seen(cell, record.version, attempt, record.age_s)
            problem = f"it is the record of {cell.key!r}"
        except Damaged:
            problem = f"its {len(record.data)} bytes are no record"
        if self.read_only:
            self.events.emit("healed", key, detail=f"damaged, left as it is (read only): {problem}")
            return Seen(Cell(key), record.version)
        self._heal(name, key, record.version, problem)
        return None

    def _heal(self, name: str, key: str, version: Version, problem: str) -> None:
        # The floor first: numbers that the lost record may have given out must stay below.
        floor = raise_floor(self.store, self.runtime)
        try:
            self.write(name, Seen(Cell(key), version), Cell(key, floor, floor), patience_s=5.0)
        except Conflict:
            return
        self.events.emit("healed", key, floor, floor, detail=problem)

    def write(self, name: str, seen: Seen, cell: Cell, patience_s: float) -> Seen:
        """Replace what was `seen` by `cell`, and return how it was written.

        Raises Conflict when somebody else changed the record first, and StoreUnavailable when that could not be
        found out within `patience_s`; then the write may still land later.
        """
        attempt = self.runtime.token()
        data = encode(cell, attempt)
        try:
            return Seen(cell, self.store.swap(name, seen.version, data), attempt)
        except StoreUnavailable as error:
            if error.certain and not error.passing:
                raise
            return self._settle(name, seen, cell, attempt, data, patience_s, error)
        except Conflict:
            if not self.store.remote:
                raise
        # Something on the way may have delivered the request twice, and what came back is the second answer.
        return self._landed_or_refused(name, seen, cell, attempt)

    def _landed_or_refused(self, name: str, seen: Seen, cell: Cell, attempt: str) -> Seen:
        try:
            record = self.store.read(name)
        except StoreUnavailable:
            raise Conflict(f"{name} was changed, by somebody else or by our own request sent twice") from None
        assert not isinstance(record, Unchanged)
        if record is not None and _attempt_of(record) == attempt:
            return Seen(cell, record.version, attempt)
        raise Changed(name, record)

    def _settle(
        self, name: str, seen: Seen, cell: Cell, attempt: str, data: bytes, patience_s: float, error: StoreUnavailable
    ) -> Seen:
        """Find out what became of a write that got no answer, and bring it to an end."""
        give_up_at = self.runtime.monotonic() + patience_s
        certain = error.certain  # that none of the requests so far was done
        for round_ in count():  # ends when patience does
            pause_s = _BACKOFF_S[min(round_, len(_BACKOFF_S) - 1)] * (0.5 + self.runtime.jitter())
            if self.runtime.monotonic() + pause_s >= give_up_at:
                break
            self.runtime.sleep(pause_s)
            try:
                record = self.store.read(name)
                assert not isinstance(record, Unchanged)
                if (None if record is None else record.version) == seen.version:
                    try:
                        return Seen(cell, self.store.swap(name, seen.version, data), attempt)
                    except StoreUnavailable as again:
                        certain = certain and again.certain
                        raise
            except StoreUnavailable as again:
                error = again
                continue
            except Conflict:
                # A refusal of what was sent before may be the echo of our own success: look again.
                continue
            if record is not None and _attempt_of(record) == attempt:
                return Seen(cell, record.version, attempt)
            raise Changed(name, record)
        outcome = "nothing was written" if certain else "it may have happened"
        raise StoreUnavailable(f"{error} (given up after {patience_s:.1f} s; {outcome})", certain) from error

    def change(
        self, name: str, key: str, claim: str, event: Callable[[Seen], Cell | None], patience_s: float
    ) -> Seen:
        """Apply `event`, once, to whatever the cell is when nobody else comes first; None leaves it.

        The event leaves `claim` in the trail: a write whose answer was lost is not done again on top of what
        others wrote since.
        """
        seen = self.look(name, key)
        for round_ in range(200):
            cell = event(seen)
            if cell is None:
                return seen
            before = seen.cell
            try:
                return self.write(name, seen, cell, patience_s)
            except Conflict as conflict:
                seen = self.look_after(conflict, name, key)
                if how_ended(seen.cell, claim) is not None:
                    return seen
                if isinstance(conflict, Changed) and not _reaches_back(seen.cell, before):
                    raise StoreUnavailable(
                        f"{key!r} in {self.store.url} was changed so often meanwhile that it can't be told whether "
                        "this change was one of them; look, and ask again if need be"
                    ) from conflict
                self.runtime.sleep(0.001 * min(round_, 50) * self.runtime.jitter())
        raise StoreUnavailable(f"{key!r} in {self.store.url} was changed by others 200 times in a row")


class _Hurried:
    """A store whose reads and swaps take at most `seconds`."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        with asked_within(self._seconds):
            return self._store.read(name, unless)

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        with asked_within(self._seconds):
            return self._store.swap(name, old, new)


def _reaches_back(now: Cell, before: Cell) -> bool:
    """True when the trail of `now` holds everything that happened since `before`."""
    if len(now.trail) < TRAIL_LENGTH_MAX:
        return True
    return bool(before.trail) and before.trail[0] in now.trail


def _attempt_of(record: Record) -> str | None:
    try:
        return decode(record.data).attempt
    except Damaged:
        return None
