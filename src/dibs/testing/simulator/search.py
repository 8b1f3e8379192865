"""Run many seeds, judge each history, and say how to replay those that fail."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from time import perf_counter
from typing import Any, TextIO

from dibs.testing.simulator.history import History
from dibs.testing.simulator.settings import drawn
from dibs.testing.simulator.world import World
from dibs.testing.verdicts import violations


def simulate(seeds: Iterable[int], history: bool = False, out: TextIO | None = None, **fixed: Any) -> int:
    """Run the worlds of `seeds` and return how many of them broke a promise.

    `history` prints every history as JSON lines; `fixed` are settings that are not to be drawn from the seed.
    A failure prints what is wrong and the command that replays it.
    """
    out = out or sys.stdout
    complaints = sys.stderr if history else out
    failed = run = 0
    began = perf_counter()
    totals: dict[str, int] = {}
    for seed in seeds:
        told = World(seed, drawn(seed, **fixed)).run()
        run += 1
        if history:
            out.writelines(f"{line}\n" for line in told.lines())
        found = violations(told)
        failed += bool(found)
        _report(told, found, complaints, fixed)
        for what, number in told.counts().items():
            totals[what] = totals.get(what, 0) + number
    seconds = perf_counter() - began
    if not history:
        faults = sum(number for what, number in totals.items() if ": " in what and not what.startswith("event"))
        out.write(
            f"{run} worlds, {failed} broke a promise; {totals.get('swap', 0)} swaps, "
            f"{totals.get('computing', 0)} computations, {totals.get('locked', 0)} locks, {faults} faults; "
            f"{run / max(seconds, 1e-9):.1f} worlds/s\n"
        )
    return failed


def _report(told: History, found: list[str], out: TextIO, fixed: dict[str, Any]) -> None:
    if not found:
        return
    out.write(f"seed {told.seed} ({told.facts['workload']}) broke a promise:\n")
    out.writelines(f"  {line}\n" for line in found[:10])
    if len(found) > 10:
        out.write(f"  and {len(found) - 10} more\n")
    rest = {name: value for name, value in fixed.items() if name != "workload"}
    workload = f" --workload {fixed['workload']}" if "workload" in fixed else ""
    also = f"  (with {', '.join(f'{name}={value!r}' for name, value in rest.items())})" if rest else ""
    out.write(f"  replay: dibs simulate --seed {told.seed}{workload} --history{also}\n")
