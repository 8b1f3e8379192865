"""A history, put in order for judging: who did what with which cell, in true time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

Entry = dict[str, Any]

SILENT_FAULTS: Final = ("lost", "answer lost", "ghost", "refused", "slow")
"""After these the one who asked does not know what happened."""


AGE_ERROR_S: Final = 2.5


def current(said: Entry) -> bool:
    """Whether a record has a value of its own epoch."""
    return "value_epoch" in said and bool(said["value_epoch"] == said["epoch"])


class Told(Protocol):
    """What a verdict reads of a history."""

    entries: list[Entry]
    ended: str
    facts: Entry


class Change(NamedTuple):
    """One applied swap of a cell, with the cell before it."""

    t: float
    who: str
    name: str
    now: Entry
    before: Entry

    @property
    def committed(self) -> bool:
        return "value_claim" in self.now and any(
            self.now[part] != self.before.get(part) for part in ("value_claim", "value_epoch")
        )

    @property
    def claimed(self) -> bool:
        return "claim" in self.now and self.now["claim"] != self.before.get("claim")

    def ended_as(self, how: str) -> bool:
        """Whether this change ended the hold that was there, and in this way."""
        return "claim" in self.before and self.now.get("last_ended") == [self.before["claim"], how]


class Case:
    """A history, put in order for judging."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self.of: dict[str, list[Entry]] = defaultdict(list)
        self.gone: dict[str, tuple[float, str]] = {}
        """Worker life -> when and how it ended."""
        self.cells: dict[str, list[Change]] = defaultdict(list)
        self.faulty: set[tuple[str, str]] = set()
        latest: dict[str, Entry] = {}
        for entry in told.entries:
            what, who = entry["what"], entry["who"]
            self.of[what].append(entry)
            if what == "swap" and "generation" in entry:
                name = entry["name"]
                self.cells[name].append(Change(entry["t"], who, name, entry, latest.get(name, {})))
                latest[name] = entry
            elif what in ("killed", "ended"):
                self.gone[who] = (entry["t"], what)
            elif what == "fault" and entry["fault"] in SILENT_FAULTS:
                self.faulty.add((who, entry["name"]))
        self.keys = {key: name for name, key in self._keys()}
        self.faultless = not any("fault" in entry for entry in told.entries)

    def _keys(self) -> Iterator[tuple[str, str]]:
        for name, changes in self.cells.items():
            if not name.startswith("locks/"):
                yield name, changes[0].now["key"]

    def changes(self, key: str) -> list[Change]:
        return self.cells.get(self.keys.get(key, ""), [])

    def state(self, key: str, t: float) -> Entry:
        """What the record of `key` said at time `t`."""
        changes = self.changes(key)
        at = bisect_right(changes, t, key=lambda change: change.t)
        return changes[at - 1].now if at else {}

    def answers(self) -> dict[tuple[str, int], float]:
        """When each call that was answered at all was answered."""
        whats = ("returned", "raised", "lost")
        return {(entry["who"], entry["call"]): entry["t"] for what in whats for entry in self.of[what]}

    def during(self, key: str, begin: float, end: float) -> list[Change]:
        """The changes of a record that made what it said between these times."""
        changes = self.changes(key)
        first = bisect_right(changes, begin, key=lambda change: change.t)
        return [change for change in changes[max(first - 1, 0) :] if change.t <= end]

    def age_s(self, key: str, claim: str, t: float) -> float:
        """How long ago the value of this claim was published, at time `t`."""
        return t - next((c.t for c in self.changes(key) if c.committed and c.now["value_claim"] == claim), t)

    def had(self, key: str, t: float) -> Entry | None:
        """What the record of `key` said at time `t`, if it had a value of its epoch that had not expired."""
        said = self.state(key, t)
        return said if current(said) and not self.may_be_expired(said, t) else None

    def may_be_expired(self, said: Entry, t: float) -> bool:
        """Whether a value may count as expired; a store's stamps are in whole seconds."""
        expires_s = said.get("expires_s")
        if expires_s is None:
            return False
        return bool(self.age_s(said["key"], said["value_claim"], t) >= expires_s - AGE_ERROR_S)

    def dead(self, who: str, t: float) -> bool:
        return who in self.gone and self.gone[who][0] <= t
