"""`dibs locks`, `dibs status` and `dibs stats`: who holds what, what failed, what was spent and saved."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dibs.cli.opening import existing
from dibs.cli.printing import Out, shown, size_words, time_words
from dibs.report import LockInfo
from dibs.stats import GRAMS_PER_KWH, WATTS_PER_CORE, Stats, grams_of_co2

if TYPE_CHECKING:
    from dibs.cli.parser import Commands

_HEAD = ("STATE", "HELD BY", "FOR", "GENERATION", "WAITS FOR", "NAME")


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("locks", parents=[shared], help="every lock that was ever taken, and who holds it")
    parser.set_defaults(run=run_locks)
    parser = commands.add_parser(
        "status",
        parents=[shared],
        help="who holds what and waits for what, and what failed",
        description="Read every record once: holds, waits, failures.  For many keys on a bucket that takes a while.",
    )
    parser.set_defaults(run=run_status)
    parser = commands.add_parser(
        "stats",
        parents=[shared],
        help="hits, misses, waits, take-overs, requests; time and CO2 spent and saved",
        description="The sum of what all processes did that have closed this cache; killed ones are not in it.",
    )
    parser.add_argument("--watts", type=float, default=WATTS_PER_CORE, metavar="W", help="of a busy core (default: 12)")
    parser.add_argument(
        "--grams-per-kwh", type=float, default=GRAMS_PER_KWH, metavar="G", help="of CO2 (default: 475)"
    )
    parser.set_defaults(run=run_stats)


def _rows(infos: Iterable[LockInfo], with_space: bool = False) -> list[tuple[str, ...]]:
    return [
        (
            info.state,
            f"{shown(info.owner)} pid {info.pid}" if info.pid else "-",
            time_words(info.age_s) if info.pid else "-",
            str(info.generation),
            shown(info.waits_for) if info.waits_for else "-",
            (f"{info.space}/" if with_space else "") + shown(info.name),
        )
        for info in infos
    ]


def run_locks(options: argparse.Namespace, out: Out) -> int:
    with existing(options) as place:
        infos = sorted(place.cache.locks())
    if out.json:
        out.data([info._asdict() for info in infos])
    elif infos or not out.terminal:
        out.table(_HEAD, _rows(infos))
    else:
        out.line("no lock was ever taken here")
    return 0


def run_status(options: argparse.Namespace, out: Out) -> int:
    with existing(options) as place:
        url, status = place.store.url, place.cache.status()
    if out.json:
        failed = [dict(zip(("key", "failures", "deaths", "error"), line, strict=True)) for line in status.failures]
        holds = [info._asdict() for info in status.holds]
        out.data({**status._asdict(), "url": url, "holds": holds, "failures": failed})
        return 0
    computed = time_words(status.cost_s)
    out.line(f"{out.paint('bold', shown(url))}")
    out.line(
        f"keys: {status.done} done, {status.free} free, {status.failed} failed, {status.damaged} damaged; "
        f"{size_words(status.stored_bytes)} of values that took {computed} to compute"
    )
    out.line(f"held: {len(status.holds)}")
    if status.holds:
        out.table(_HEAD, _rows(sorted(status.holds), with_space=True))
    for key, failures, deaths, error in sorted(status.failures):
        counts = f"{failures} failures, {deaths} deaths of its worker"
        out.line(f"{out.paint('red', 'failed')}: {shown(key)}: {counts}{': ' if error else ''}{shown(error)}")
    return 0


def run_stats(options: argparse.Namespace, out: Out) -> int:
    with existing(options) as place:
        stats = place.cache.total_stats()
    rates = {"watts": options.watts, "grams_per_kwh": options.grams_per_kwh}
    spent_g, saved_g = (grams_of_co2(seconds, **rates) for seconds in (stats.computed_s, stats.saved_s))
    if out.json:
        out.data({**stats._asdict(), **rates, "co2_spent_g": spent_g, "co2_saved_g": saved_g})
        return 0
    _print_stats(stats, out)
    out.line(f"spent         {time_words(stats.computed_s)} computing, {_mass(spent_g)} of CO2")
    out.line(f"saved         {time_words(stats.saved_s)} by hits, {_mass(saved_g)} of CO2")
    out.line(f"waited        {time_words(stats.waited_s)}, all workers together")
    out.line(
        f"(at {options.watts:g} W for each busy worker and {options.grams_per_kwh:g} g of CO2 per kWh; --watts and "
        "--grams-per-kwh state yours)"
    )
    return 0


def _print_stats(stats: Stats, out: Out) -> None:
    asked = stats.hits + stats.misses
    share = f" ({stats.hits / asked:.0%} of {asked})" if asked else ""
    out.line(f"hits          {stats.hits}{share}")
    out.line(f"misses        {stats.misses}")
    out.line(f"computations  {stats.computed}, of which {stats.committed} published here, {stats.refused} refused")
    out.line(f"waits         {stats.waits}")
    out.line(f"take-overs    {stats.takeovers}, holds lost {stats.lost}")
    out.line(f"failures      {stats.failures}, healed {stats.healed}, not published {stats.unpublished}")
    out.line(f"requests      {stats.requests}")


def _mass(grams: float) -> str:
    return f"{grams / 1000:.1f} kg" if grams >= 1000 else f"{grams:.3g} g"
