"""What the record of one key says, and the pure table of what may happen to it.

A cell is a product: numbers that only grow, and up to one each of hold, value and failures.  `free`, `held`,
`done` and `failed` are names for combinations.  Every event below is a function from cell to cell, without
clock, I/O or chance; whoever calls one has looked at the cell first, so a broken precondition is our own bug
(an assertion).  The swap of the record that the cell was read from is what makes the event atomic.

Why nothing is ever lost: generation grows with every new hold and epoch with every put, forget and recompute,
through release, take-over and failure, because these rewrite the record and never delete it.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from dibs.runtime import Holder

TRAIL_LENGTH_MAX: Final = 4
"""Ended holds that a cell remembers, so that a worker whose answer was lost can learn how its hold ended."""

Ending = Literal["released", "committed", "failed", "taken over", "dropped", "put", "forgotten"]


class Hold(NamedTuple):
    """The right to compute, and the evidence by which others judge whether its holder lives."""

    claim: str
    """Random id of this hold, in every record that its holder writes."""
    who: Holder
    ttl_s: float
    beat: int = 0
    held_s: float = 0.0
    """How long it has been held, by the holder's clock when it wrote this."""
    expected_s: float | None = None
    """How long the holder expects to hold it altogether."""
    progress: float | None = None
    waits_for: str | None = None
    """Address (`names.address`) of what the holder waits for, so that circles can be found."""
    since: float = 0.0
    """Wall clock of the holder at the claim, for people only."""


class Value(NamedTuple):
    """A published result: its bytes stand in the record itself or in the blob that it names."""

    epoch: int
    claim: str
    codec: str
    size_bytes: int
    digest: str
    inline: bytes | None = None
    blob: str | None = None
    cost_s: float = 0.0
    by: str = ""
    at: float = 0.0
    """Wall clock of the writer, for people only."""
    expires_s: float | None = None
    age_s: float = 0.0
    """Age, by the store's clock, when this record was written; the record's own age comes on top."""
    ingredients: bytes | None = None
    """What the key was made of, as JSON, for explaining misses; carried along and not looked into."""
    signature: str | None = None


class Failures(NamedTuple):
    """What went wrong since the last success or forget."""

    failures: int = 0
    deaths: int = 0
    error: str = ""
    by: str = ""


class Ended(NamedTuple):
    """One line of the trail: how an earlier hold ended, or that somebody put or forgot the value."""

    generation: int
    claim: str
    how: Ending


class Cell(NamedTuple):
    key: str
    generation: int = 0
    epoch: int = 0
    hold: Hold | None = None
    value: Value | None = None
    failures: Failures | None = None
    trail: tuple[Ended, ...] = ()


State = Literal["free", "held", "done", "failed"]


def state(cell: Cell) -> State:
    """The name of the combination; a recomputation counts as held although the old value is still there."""
    if cell.hold is not None:
        return "held"
    if current(cell) is not None:
        return "done"
    return "failed" if cell.failures is not None else "free"


def current(cell: Cell) -> Value | None:
    """The value of the cell's own epoch: the one that is asked for."""
    return cell.value if cell.value is not None and cell.value.epoch == cell.epoch else None


def holds(cell: Cell, claim: str) -> bool:
    return cell.hold is not None and cell.hold.claim == claim


def may_commit(cell: Cell, epoch: int) -> bool:
    """A finished value may be published on any cell of its own epoch that has no value of that epoch yet."""
    return cell.epoch == epoch and current(cell) is None


def how_ended(cell: Cell, claim: str) -> Ending | None:
    """How the hold with this claim ended; None if the trail no longer reaches back to it."""
    return next((ended.how for ended in cell.trail if ended.claim == claim), None)


def claim(cell: Cell, hold: Hold) -> Cell:
    """A worker becomes the holder of a cell that nobody holds."""
    assert cell.hold is None and current(cell) is None, cell
    return cell._replace(generation=cell.generation + 1, hold=hold)


def recompute(cell: Cell, hold: Hold) -> Cell:
    """As claim, for a new epoch: the value, if any, becomes an old one, and stays until the commit."""
    assert cell.hold is None, cell
    return cell._replace(generation=cell.generation + 1, epoch=cell.epoch + 1, hold=hold, failures=None)


def take_over(cell: Cell, hold: Hold, death: bool = True) -> Cell:
    """A worker becomes the holder in place of one that is dead or silent; `death` counts it against the key."""
    assert cell.hold is not None, cell
    failures = cell.failures or Failures()
    if death:
        failures = failures._replace(deaths=failures.deaths + 1, by=_by(cell.hold.who))
    return cell._replace(
        generation=cell.generation + 1,
        hold=hold,
        failures=failures if failures != Failures() else None,
        trail=_ended(cell, "taken over"),
    )


def bury(cell: Cell) -> Cell:
    """A dead holder's hold ends without a successor: the key has killed too many already."""
    assert cell.hold is not None, cell
    failures = cell.failures or Failures()
    failures = failures._replace(deaths=failures.deaths + 1, by=_by(cell.hold.who))
    return cell._replace(hold=None, failures=failures, trail=_ended(cell, "taken over"))


def beat(cell: Cell, hold: Hold) -> Cell:
    """The holder proves that it lives; `hold` carries its news."""
    assert cell.hold is not None and cell.hold.claim == hold.claim, cell
    return cell._replace(hold=hold._replace(beat=cell.hold.beat + 1))


def commit(cell: Cell, value: Value) -> Cell:
    """Publish a finished value and end the hold, whoever has it: there is nothing left to compute."""
    assert may_commit(cell, value.epoch), cell
    how: Ending = "committed" if holds(cell, value.claim) else "dropped"
    return cell._replace(hold=None, value=value, failures=None, trail=_ended(cell, how))


def fail(cell: Cell, claim: str, error: str, by: str) -> Cell:
    """The holder's computation raised.  An older value stays."""
    assert holds(cell, claim), cell
    failures = cell.failures or Failures()
    failures = failures._replace(failures=failures.failures + 1, error=error, by=by)
    return cell._replace(hold=None, failures=failures, trail=_ended(cell, "failed"))


def release(cell: Cell, claim: str) -> Cell:
    """The holder gives up politely.  The record stays, so that the next holder's generation is larger still."""
    assert holds(cell, claim), cell
    return cell._replace(hold=None, trail=_ended(cell, "released"))


def put(cell: Cell, value: Value) -> Cell:
    """Somebody states the value: a new epoch, over any hold."""
    trail = _told(cell, _ended(cell, "dropped"), value.claim, "put")
    value = value._replace(epoch=cell.epoch + 1)
    return cell._replace(epoch=cell.epoch + 1, hold=None, value=value, failures=None, trail=trail)


def forget(cell: Cell, claim: str) -> Cell:
    """Nothing is known any more: a new epoch without value, over any hold.  `claim` tells this forget from others."""
    trail = _told(cell, _ended(cell, "dropped"), claim, "forgotten")
    return cell._replace(epoch=cell.epoch + 1, hold=None, value=None, failures=None, trail=trail)


def drop_old(cell: Cell) -> Cell:
    """The value of an earlier epoch turned out to be unreadable; whoever computes the new one isn't disturbed."""
    assert cell.value is not None and current(cell) is None, cell
    return cell._replace(value=None)


def unlock(cell: Cell, claim: str) -> Cell:
    """An operator breaks the hold of that claim; its holder finds out at its next beat or check."""
    assert holds(cell, claim), cell
    return cell._replace(hold=None, trail=_ended(cell, "dropped"))


def _ended(cell: Cell, how: Ending) -> tuple[Ended, ...]:
    if cell.hold is None:
        return cell.trail
    return (Ended(cell.generation, cell.hold.claim, how), *cell.trail[: TRAIL_LENGTH_MAX - 1])


def _told(cell: Cell, trail: tuple[Ended, ...], claim: str, how: Ending) -> tuple[Ended, ...]:
    return (Ended(cell.generation, claim, how), *trail[: TRAIL_LENGTH_MAX - 1])


def _by(who: Holder) -> str:
    return f"{who.host} pid {who.pid}"
