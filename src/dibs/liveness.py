"""Is the holder alive?  Pure: evidence and observations in, a verdict with its reason out.

Why two holders never both trust their hold (for clock rates that differ by less than `RATE_MARGIN`):
a holder counts its time from *before* it first sends a beat and stops trusting it after 2/3 of the ttl;
an observer counts 1.1 ttl from *after* it first read that beat, on its own clock; so the holder gives up first.
No time of another machine is ever compared with ours.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from dibs.cell import Hold
from dibs.runtime import Evidence

BEATS_PER_TTL: Final = 6
TRUST_PER_TTL: Final = 2 / 3
SILENCE_PER_TTL: Final = 1.1
RATE_MARGIN: Final = SILENCE_PER_TTL / TRUST_PER_TTL
"""Clock rates of two machines may differ by up to this factor (1.65)."""

TTL_MIN_S: Final = 0.05
TTL_MAX_S: Final = 7 * 24 * 3600.0

# A holder must be able to miss a beat or two before it stops trusting itself, and stop long before others act.
assert 3 / BEATS_PER_TTL < TRUST_PER_TTL < 1 < SILENCE_PER_TTL


class Verdict(NamedTuple):
    state: Literal["alive", "dead", "silent"]
    reason: str

    @property
    def over(self) -> bool:
        """True when the hold may be taken over."""
        return self.state != "alive"


def trusted_for_s(ttl_s: float) -> float:
    """How long after a confirmed beat a holder may believe in its hold."""
    return ttl_s * TRUST_PER_TTL


def silent_after_s(ttl_s: float) -> float:
    """How long an observer must have seen the same version before it calls the holder silent.

    The ttl is the one in the record; absurd ones are brought back into range.
    """
    return min(max(ttl_s, TTL_MIN_S), TTL_MAX_S) * SILENCE_PER_TTL


def judge(hold: Hold, evidence: Evidence, unchanged_s: float | None, age_s: float | None) -> Verdict:
    """Judge one look at a held cell.

    `unchanged_s`: how long this host has seen this very version, None when not asked.
    `age_s`: age of the record by the clock of a remote store, None where that can't be told.
    """
    if evidence.dead is not None:
        return Verdict("dead", evidence.dead)
    limit_s = silent_after_s(hold.ttl_s)
    if unchanged_s is not None and unchanged_s >= limit_s:
        return Verdict("silent", f"silent for {unchanged_s:.1f} s (ttl {hold.ttl_s:g} s)")
    # Both stamps are the server's own; whole seconds and a sloppy gateway are why the margin is so wide.
    if age_s is not None and age_s >= 2 * limit_s + 5.0:
        return Verdict("silent", f"unchanged for {age_s:.0f} s by the store's clock (ttl {hold.ttl_s:g} s)")
    return Verdict("alive", f"last heard of less than {limit_s:g} s ago")
