"""Why a call is a hit or a miss: which ingredient of its key changed since the nearest earlier entry.

Nearest means: the fewest ingredients differ, and among those the newest; the newest entries of the function are
looked at.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from math import isclose
from typing import Final, NamedTuple

from dibs import cell as table
from dibs.cell import Cell, Value
from dibs.cells import Cells
from dibs.identity import Code
from dibs.memoize.recipe import CUT, Ingredients, unpacked
from dibs.memoize.versions import Version, Versions
from dibs.names import KEYS, family_prefix, record_name
from dibs.record import Damaged, decode
from dibs.store import Record

LOOKED_AT_MAX: Final = 200
LISTED_MAX: Final = 100_000
_NOISE: Final = 1e-6
_NUMBER: Final = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
_MARKS: Final = str.maketrans("", "", "'\"()[]{},")
_PREVIEW_SIZE: Final = 60


class Change(NamedTuple):
    """One ingredient that differs between the nearest earlier entry and this key."""

    ingredient: str
    before: str
    """A preview; empty for an ingredient that is new."""
    now: str
    hint: str = ""
    """Set when the difference looks like a mistake: only the type, or only float noise."""


class Explanation(NamedTuple):
    """What `explain` found; print it."""

    key: str
    state: str
    """hit, miss, held (somebody computes it), failed, or expired."""
    detail: str
    """When and by whom it was computed, or is being computed; the last error."""
    ingredients: Ingredients
    """Label -> (digest, preview)."""
    nearest: str | None
    """The key of the nearest other entry of this function."""
    nearest_detail: str
    changes: tuple[Change, ...]
    looked_at: int
    """How many entries of this function were compared."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.key}: {self.state}" + (f", {self.detail}" if self.detail else "")]
        if self.ingredients:
            width = max(map(len, self.ingredients))
            lines.append("made of")
            lines += [f"  {label:<{width}}  {digest[:12]}  {_short(label, text)}" for label, (digest, text) in
                      self.ingredients.items()]
        if self.nearest is not None:
            lines.append(f"nearest other entry: {self.nearest} ({self.nearest_detail})")
            if self.changes:
                width = max(len(change.ingredient) for change in self.changes)
                lines += [line for change in self.changes for line in _change_lines(change, width)]
            else:
                lines.append("  no kept ingredient differs")
        elif self.state != "hit":
            lines.append(
                f"no other entry of this function was found ({self.looked_at} looked at): nothing to compare with"
            )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(map(_printable, lines))


def _change_lines(change: Change, width: int) -> list[str]:
    if not change.before:
        text = f"is new: {change.now}"
    elif not change.now:
        text = f"is gone: {change.before}"
    elif change.before == change.now:
        text = f"changed ({change.now})"
    else:
        text = f"{change.before}  ->  {change.now}"
    lines = [f"  {change.ingredient:<{width}}  {text}"]
    if change.hint:
        lines.append(f"  {'':<{width}}  hint: {change.hint}")
    return lines


def _printable(line: str) -> str:
    """Names, previews and errors come from a store: on a terminal they must not act."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def _short(label: str, text: str) -> str:
    return "" if label == "code" else text[:_PREVIEW_SIZE]


class _Entry(NamedTuple):
    key: str
    value: Value
    ingredients: Ingredients


def explain(versions: Versions, key: str, ingredients: Ingredients | None, code: Code | None = None) -> Explanation:
    """Explain `key`; `ingredients` None: as they are kept with its value (for a key that was typed in)."""
    cells = versions.cells
    cell = cells.look(record_name(KEYS, key), key).cell
    state, detail, value = _state(versions, key, cell)
    if ingredients is None:
        ingredients = unpacked(value.ingredients) if value is not None else {}
    entries, looked_at = _entries(cells, key)
    nearest: _Entry | None = None
    changes: tuple[Change, ...] = ()
    if ingredients and entries:
        nearest = min(entries, key=lambda entry: len(_differing(entry.ingredients, ingredients)))
        changes = _changes(versions, key, nearest.ingredients, ingredients, code)
    notes = list(code.notes) if code is not None else []
    if not ingredients:
        notes.append(
            "nothing is kept about what this key is made of: it has no value"
            if value is None
            else "nothing is kept about what this key is made of: it was not computed by a memoized function"
        )
    return Explanation(
        key,
        state,
        detail,
        ingredients,
        nearest.key if nearest else None,
        _made(nearest.value) if nearest else "",
        changes,
        looked_at,
        tuple(notes),
    )


def _state(versions: Versions, key: str, cell: Cell) -> tuple[str, str, Value | None]:
    value = table.current(cell)
    if value is not None:
        seen = versions.cells.look(record_name(KEYS, key), key)
        state = "hit" if versions.values.fresh(seen) is not None else "expired"
        return state, _made(value), value
    if cell.hold is not None:
        who = cell.hold.who
        return "held", f"{who.host} pid {who.pid} computes it", cell.value
    if cell.failures is not None:
        last = cell.failures.error.strip().rpartition("\n")[2]
        return "failed", f"{cell.failures.failures} times, by {cell.failures.by}: {last}", cell.value
    return "miss", "forgotten before" if cell.epoch else "never computed", None


def _made(value: Value) -> str:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(value.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"computed {at} by {value.by} in {value.cost_s:.3g} s"


def _entries(cells: Cells, key: str) -> tuple[list[_Entry], int]:
    """The newest other entries of the key's family that have ingredients, the newest first."""
    family, slash, _ = key.rpartition("/")
    if not slash:
        return [], 0
    mine = record_name(KEYS, key)
    listing = cells.store.scan(family_prefix(KEYS, family))
    listed = (entry for _, entry in zip(range(LISTED_MAX), listing, strict=False) if entry.name != mine)
    newest = heapq.nsmallest(
        LOOKED_AT_MAX, listed, key=lambda entry: float("inf") if entry.age_s is None else entry.age_s
    )
    found: list[_Entry] = []
    for entry in newest:
        record = cells.store.read(entry.name)
        if not isinstance(record, Record):
            continue
        try:
            cell, _ = decode(record.data)
        except Damaged:
            continue
        if cell.value is not None and cell.value.ingredients is not None:
            found.append(_Entry(cell.key, cell.value, unpacked(cell.value.ingredients)))
    return sorted(found, key=lambda entry: entry.value.at, reverse=True), len(found)


def _differing(before: Ingredients, now: Ingredients) -> list[str]:
    labels = [*now, *(label for label in before if label not in now)]
    if CUT in before or CUT in now:  # one that isn't there may just not have been kept
        labels = [label for label in labels if label in before and label in now and label != CUT]
    return [label for label in labels if before.get(label, ("",))[0] != now.get(label, ("",))[0]]


def _changes(
    versions: Versions, key: str, before: Ingredients, now: Ingredients, code: Code | None
) -> tuple[Change, ...]:
    found: list[Change] = []
    for label in _differing(before, now):
        if label == "code" and label in before and label in now:
            found.extend(_code_changes(versions, key.rpartition("/")[0], before[label], now[label], code))
        else:
            old, new = _shown(before, label), _shown(now, label)
            found.append(Change(label, old, new, _hint(old, new)))
    return tuple(found)


def _shown(ingredients: Mapping[str, tuple[str, str]], label: str) -> str:
    """The preview; the digest where there was no room for one; empty for an ingredient that isn't there."""
    digest, text = ingredients.get(label, ("", ""))
    return text or digest[:12]


def _code_changes(
    versions: Versions, function: str, before: tuple[str, str], now: tuple[str, str], code: Code | None
) -> list[Change]:
    """Which parts of the code differ; `before` and `now` carry the digests of the versions in their previews."""
    old = versions.get(function, before[1])
    new: Version | None = None
    details: Mapping[str, tuple[str, str]] = code.ingredients if code is not None else {}
    if code is None:
        new = versions.get(function, now[1])
        details = new.ingredients if new is not None else {}
    if old is None or not details:
        return [Change("code", before[1][:12], now[1][:12])]
    differing = _differing(old.ingredients, dict(details))
    changes = [
        Change(f"code: {label}", _shown(old.ingredients, label), _shown(details, label))
        for label in differing
    ]
    return changes or [Change("code", before[1][:12], now[1][:12])]


def _hint(before: str, now: str) -> str:
    """Says so when two previews differ in a way that is seldom meant."""
    if before and now and before != now:
        if _bare(before) == _bare(now) or _same_numbers(before, now, 0.0):
            return "only the type differs: is that meant?"
        if _same_numbers(before, now, _NOISE):
            return "only float noise differs: round it before the call, or give memoize a key="
    return ""


def _bare(text: str) -> str:
    """Without what shows the type of a value: quotes and brackets."""
    return text.removeprefix("b").translate(_MARKS)


def _same_numbers(before: str, now: str, tolerance: float) -> bool:
    """True when the texts are alike but for numbers that are nearly the same."""
    if _NUMBER.sub("#", before) != _NUMBER.sub("#", now):
        return False
    pairs = zip(_NUMBER.findall(before), _NUMBER.findall(now), strict=True)
    some = False
    for old, new in pairs:
        some = True
        if not isclose(float(old), float(new), rel_tol=tolerance, abs_tol=0.0):
            return False
        if tolerance and old != new and not ({"." , "e", "E"} & set(old + new)):
            return False  # whole numbers have no noise
    return some
