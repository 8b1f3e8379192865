"""Counters of one process, and of all processes that have closed a cache, kept in a few records of the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dibs.errors import Conflict, StoreUnavailable
from dibs.record import Damaged, sealed, unsealed
from dibs.runtime import Runtime
from dibs.store import Record, Store, Unchanged

SHARDS: Final = 8
WATTS_PER_CORE: Final = 12.0
GRAMS_PER_KWH: Final = 475.0
"""One busy core of a server, and the world's average electricity; printed beside each result.

Both are the defaults of Green Algorithms (Lannelongue et al., Advanced Science, 2021); memory and cooling are left out.
"""

_ATTEMPTS_MAX: Final = 20


class Stats(NamedTuple):
    """What was done and saved; counts of keys or locks, times in seconds."""

    hits: int = 0
    misses: int = 0
    computed: int = 0
    committed: int = 0
    adopted: int = 0
    refused: int = 0
    waits: int = 0
    takeovers: int = 0
    failures: int = 0
    healed: int = 0
    lost: int = 0
    unpublished: int = 0
    requests: int = 0
    computed_s: float = 0.0
    """Spent computing."""
    saved_s: float = 0.0
    """What the hits took to compute when they were computed."""
    waited_s: float = 0.0

    @classmethod
    def of(cls, counts: Mapping[str, int], seconds: Mapping[str, float], requests: Mapping[str, int]) -> Stats:
        """Make the numbers out of an event counter."""
        numbers: dict[str, Any] = {field: counts.get(kind, 0) for field, kind in _COUNTED.items()}
        return cls(
            **numbers,
            requests=sum(requests.values()),
            computed_s=seconds.get("computed", 0.0),
            saved_s=seconds.get("hit", 0.0),
            waited_s=seconds.get("waited", 0.0),
        )

    def plus(self, other: Stats) -> Stats:
        mine, theirs = self._asdict(), other._asdict()
        return Stats(**{name: mine[name] + theirs[name] for name in self._fields})


_COUNTED: Final = {
    "hits": "hit", "misses": "miss", "computed": "computed", "committed": "committed", "adopted": "adopted",
    "refused": "refused", "waits": "waited", "takeovers": "taken over", "failures": "failed", "healed": "healed",
    "lost": "lost", "unpublished": "unpublished",
}  # fmt: skip


def grams_of_co2(busy_s: float, watts: float = WATTS_PER_CORE, grams_per_kwh: float = GRAMS_PER_KWH) -> float:
    """Grams of CO2 for so many seconds of one busy core."""
    return busy_s * watts / 3.6e6 * grams_per_kwh


def add_to_totals(store: Store, runtime: Runtime, stats: Stats) -> None:
    """Add `stats` to one of the store's records of totals; given up silently when too many do so at once."""
    for attempt in range(_ATTEMPTS_MAX):
        name = f"stats/{int(runtime.jitter() * SHARDS)}"
        record = store.read(name)
        assert not isinstance(record, Unchanged)
        total = _decode(record).plus(stats)
        body = {"attempt": runtime.token(), **total._asdict()}
        try:
            store.swap(
                name, None if record is None else record.version, sealed(json.dumps(body)[1:].encode() + b"\n")
            )
            return
        except Conflict:
            runtime.sleep(0.01 * attempt * runtime.jitter())
    raise StoreUnavailable("the records of totals kept changing")


def read_totals(store: Store) -> Stats:
    """The sum of what all processes have added; a damaged record counts as nothing."""
    total = Stats()
    for shard in range(SHARDS):
        record = store.read(f"stats/{shard}")
        assert not isinstance(record, Unchanged)
        total = total.plus(_decode(record))
    return total


def _decode(record: Record | None) -> Stats:
    if record is None:
        return Stats()
    try:
        fields = json.loads(b"{" + unsealed(record.data))
    except (Damaged, ValueError):
        return Stats()
    return Stats(**{name: fields[name] for name in Stats._fields if name in fields})
