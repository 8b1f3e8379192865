"""What happened in a world: one small flat record per event, in the order of virtual time.

Nothing in it differs from run to run of the same seed: no addresses, no real times, no hash order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

Entry = dict[str, Any]
"""`t` (virtual seconds), `who` (worker and life, or "world"), `what`, and what belongs to it."""


class History:
    """The events of one world, how it ended, and what was found wrong with it."""

    def __init__(self, seed: int, facts: Entry) -> None:
        self.seed = seed
        self.facts = facts
        """The settings of the world, and whatever a verdict must know about it."""
        self.entries: list[Entry] = []
        self.ended = "running"
        """ "finished", or why not: "hang" (nothing could ever happen again), "time", "livelock"."""

    def add(self, t: float, who: str, what: str, **fields: Any) -> None:
        self.entries.append({"t": round(t, 6), "who": who, "what": what, **fields})

    def of(self, *whats: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry["what"] in whats)

    def counts(self) -> dict[str, int]:
        """How often each thing happened; faults by their kind."""
        counted: Counter[str] = Counter()
        for entry in self.entries:
            counted[entry["what"]] += 1
            if "fault" in entry:
                counted[f"{entry['what']}: {entry['fault']}"] += 1
        return dict(sorted(counted.items()))

    def lines(self) -> Iterator[str]:
        """JSON lines; the first one describes the world, the last one its end."""
        yield json.dumps({"what": "world", "seed": self.seed, **self.facts})
        yield from map(json.dumps, self.entries)
        yield json.dumps({"what": "end", "ended": self.ended})


def one_line(error: BaseException) -> str:
    """The error as one short line."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}".rstrip(": ")
