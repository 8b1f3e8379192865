"""`dibs unlock NAME`: break a lock, saying what it costs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from dibs import cell as table
from dibs.cell import Cell
from dibs.cells import Seen
from dibs.cli.opening import Place, existing
from dibs.cli.printing import Out, say, shown, time_words
from dibs.errors import SettingsError
from dibs.liveness import BEATS_PER_TTL
from dibs.names import LOCKS, record_name
from dibs.report import LockInfo, info

if TYPE_CHECKING:
    from dibs.cli.parser import Commands


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "unlock",
        parents=[shared],
        help="break a lock, saying what it costs",
        description="Take a lock away from whoever holds it.  A dead holder's lock needs no unlocking.",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    with existing(options, writes=True) as place:
        seen = place.cells.look(record_name(LOCKS, options.name), options.name)
        if seen.cell.hold is None:
            if out.json:
                out.data({"name": options.name, "broken": False})
            else:
                say(f"nobody holds the lock {options.name!r}")
            return 1
        held = info(place.cells, LOCKS, seen)
        if not _confirmed(held, options.yes):
            return 1
        broken = _broken(place, options.name, held.claim)
    if out.json:
        out.data({**held._asdict(), "broken": broken})
    elif broken:
        out.line(f"{shown(options.name)}: broken; {_cost(held)}")
    else:
        say(f"the holder of {options.name!r} has changed meanwhile: look again with `dibs locks`")
    return 0 if broken else 1


def _cost(held: LockInfo) -> str:
    who = f"held by {held.owner} pid {held.pid} for {time_words(held.age_s)}"
    if held.state == "dead":
        return f"it was {who}, and that process is gone: the next worker would have taken it over by itself"
    return (
        f"it was {who}; that worker learns of the loss at its next beat (usually within "
        f"{time_words(held.ttl_s / BEATS_PER_TTL)}), and two workers may run in the block until then"
    )


def _confirmed(held: LockInfo, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise SettingsError(f"say --yes to break the lock {held.name!r}, or do it on a terminal. {_cost(held)}")
    say(f"{shown(held.name)}: {_cost(held).replace('it was held', 'it is held')}")
    print("break it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _broken(place: Place, name: str, claim: str) -> bool:
    """Break this very hold, which was looked at and agreed to, and no other that came after it."""
    broken = False

    def event(seen: Seen) -> Cell | None:
        nonlocal broken
        broken = table.holds(seen.cell, claim)
        return table.unlock(seen.cell, claim) if broken else None

    place.cells.change(record_name(LOCKS, name), name, claim, event, place.cache.settings.ttl_s)
    return broken
