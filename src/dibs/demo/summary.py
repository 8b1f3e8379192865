"""The table at the end, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dibs.demo.plan import TASKS
from dibs.demo.tally import Run, Tally
from dibs.stats import GRAMS_PER_KWH, WATTS_PER_CORE, grams_of_co2

BUSY_BELOW: Final = 0.85
"""With a smaller share of the cores than this, wall times say more about the neighbours than about the work."""


def summary(numbers: Tally, workers: int, cores: int, where: str) -> Iterator[str]:
    """The lines of the table."""
    first, again, without = numbers.first, numbers.again, numbers.without
    if first is None:
        yield from _rows([("keys", f"{len(TASKS)}, all computed by an earlier run"), *_again(again, workers)])
    else:
        yield from _rows(
            [
                ("keys", f"{len(TASKS)}, each asked for by {workers} workers"),
                ("computations", _computations(numbers)),
                ("waits", f"{first.waits}, {first.waited_s:.1f} s in sum; {first.hits} answers were there already"),
                *_takeovers(numbers),
                *_late(numbers),
                *_again(again, workers),
            ]
        )
    yield ""
    yield from _rows([(family, f"{best:.1%}  {key}") for family, (best, key) in numbers.best.items()], "best ")
    if first is not None and without is not None:
        yield ""
        yield f"{'':16}{'with dibs':>14}{'without':>14}{'saved':>14}"
        yield _versus("wall time", first.wall_s, without.wall_s)
        yield _versus("CPU time", first.cpu_s, without.cpu_s)
        yield f"{'computations':16}{first.computations:>14}{without.computations:>14}"
        saved_s = numbers.saved_cpu_s
        yield (
            f"{'':16}saved: {saved_s / 3600:.4f} CPU hours, {grams_of_co2(saved_s):.3f} g of CO2 "
            f"(at {WATTS_PER_CORE:g} W per busy core and {GRAMS_PER_KWH:g} g/kWh)"
        )
        yield f"{'':16}both measured just now on {cores} core{'s' if cores > 1 else ''}, libraries loaded before;"
        yield f"{'':16}with dibs, one worker was killed and one stopped;"
        yield f"{'':16}without, nobody was, and each worker kept its features in memory"
        had = without.cpu_s / without.wall_s
        if had < BUSY_BELOW * min(cores, workers):
            yield f"{'':16}(others were busy here: the run without got {had:.1f} cores, so go by the CPU time)"
    yield ""
    for sentence, kept in numbers.checks.items():
        yield f"{'ok  ' if kept else 'FAIL'}  {sentence}"
    yield ""
    yield f"The cache lies in {where}"


def _rows(rows: list[tuple[str, str]], before: str = "") -> Iterator[str]:
    for name, text in rows:
        yield f"{before + name:16}{text}"


def _computations(numbers: Tally) -> str:
    assert numbers.first is not None
    extra = sum(numbers.per_key.values()) - len(numbers.per_key)
    detail = f"{len(numbers.per_key)} keys once"
    if extra:
        whose = " and ".join(f"the {strike.what} worker's" for strike in numbers.strikes)
        detail += f", and {extra} more: {whose}"
    return f"{numbers.first.computations} = {detail}"


def _takeovers(numbers: Tally) -> Iterator[tuple[str, str]]:
    for found in numbers.takeovers:
        delay = f"{found.delay_s * 1000:.1f} ms" if found.delay_s < 1 else f"{found.delay_s:.2f} s"
        if found.victim:
            text = f"{found.key}: by worker {found.by}, {delay} after worker {found.victim} was {found.what}"
        else:
            text = f"{found.key}: by worker {found.by}, unprovoked ({found.what})"
        yield "take-over", text


def _late(numbers: Tally) -> Iterator[tuple[str, str]]:
    for late in numbers.late_commits:
        result = {"adopted": "it changed nothing, and the worker adopted the value that was there"}
        yield "late commit", f"{late.key}: by worker {late.worker}; {result.get(late.how, 'it was refused')}"


def _again(again: Run, workers: int) -> Iterator[tuple[str, str]]:
    yield (
        "second run",
        f"from the cache in {again.wall_s:.2f} s: {workers} × {len(TASKS)} answers, {again.computations} computations",
    )


def _versus(name: str, ours_s: float, theirs_s: float) -> str:
    factor = theirs_s / ours_s if ours_s else 0.0
    return f"{name:16}{ours_s:>12.1f} s{theirs_s:>12.1f} s{theirs_s - ours_s:>12.1f} s   {factor:.1f} ×"
