"""`dibs simulate`: run the real code in simulated worlds, and judge what happened."""

from __future__ import annotations

import argparse
import io
from typing import TYPE_CHECKING, Any

from dibs.cli.printing import Out
from dibs.errors import SettingsError

if TYPE_CHECKING:
    from dibs.cli.parser import Commands

_SEEDS = 100


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "simulate",
        parents=[shared],
        help="replay and search seeds",
        description="Run workers, clocks and faults from a seed, in virtual time; same seed, same history.",
    )
    parser.add_argument(
        "--seeds", type=_number, metavar="N", help=f"how many worlds (default: {_SEEDS}, from seed 0 on)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="replay this world; with --seeds: the first of them")
    parser.add_argument("--history", action="store_true", help="print what happened, as lines of JSON")
    parser.add_argument("--workload", metavar="NAME", help="what the workers do (default: drawn from the seed)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    try:
        from dibs.testing.simulator.search import simulate
        from dibs.testing.simulator.settings import WORKLOADS
    except ModuleNotFoundError as error:
        raise SettingsError(f"the simulator needs {error.name}: pip install 'dibs[simulate]'") from error
    fixed: dict[str, Any] = {}
    if options.workload is not None:
        if options.workload not in WORKLOADS:
            raise SettingsError(f"there is no workload {options.workload!r}; known are {', '.join(WORKLOADS)}")
        fixed["workload"] = options.workload
    first = options.seed or 0
    number = options.seeds or (1 if options.seed is not None else _SEEDS)
    seeds = range(first, first + number)
    if not out.json or options.history:  # a history is JSON already
        return 1 if simulate(seeds, history=options.history, **fixed) else 0
    report = io.StringIO()
    failed = simulate(seeds, out=report, **fixed)
    out.data({"seed": first, "seeds": number, "failed": failed, "report": report.getvalue().splitlines()})
    return 1 if failed else 0


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)
