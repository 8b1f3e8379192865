"""`dibs ls` and `dibs forget`: the keys of a cache."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dibs import cell as table
from dibs import report
from dibs.cell import Cell
from dibs.cells import Cells, Seen
from dibs.cli.opening import Place, existing
from dibs.cli.printing import Out, shown, size_words, time_words
from dibs.errors import SettingsError
from dibs.names import KEYS, record_name
from dibs.record import Damaged, decode
from dibs.store import Record

if TYPE_CHECKING:
    from dibs.cli.parser import Commands


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "ls",
        parents=[shared],
        help="the keys of the cache",
        description="List the keys that have a record.  A forgotten key keeps its (small) record: -l shows the states.",
    )
    parser.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="only keys that begin so")
    parser.add_argument("-l", "--long", action="store_true", help="read each record: state, cost, codec and size")
    parser.set_defaults(run=run_ls)
    parser = commands.add_parser(
        "forget",
        parents=[shared],
        help="forget values and failures of keys",
        description="Forget the value and the failures of each key: the next worker that asks computes it anew.",
    )
    parser.add_argument("keys", nargs="*", metavar="KEY")
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        metavar="NAME",
        help="every key NAME/…: all calls of the memoized function of that name; may be repeated",
    )
    parser.set_defaults(run=run_forget)


def run_ls(options: argparse.Namespace, out: Out) -> int:
    with existing(options) as place:
        listed = sorted(line for line in report.key_names(place.cells) if line[0].startswith(options.prefix))
        if options.long:
            _print_long(place, listed, out)
        elif out.json:
            out.data([{"key": key, "size_bytes": size, "age_s": age_s} for key, _, size, age_s in listed])
        elif out.terminal:
            rows = [(size_words(size), time_words(age_s), shown(key)) for key, _, size, age_s in listed]
            out.table(("RECORD", "AGE", "KEY"), rows)
        else:
            for key, *_ in listed:
                out.line(shown(key))
    return 0


def _print_long(place: Place, listed: list[tuple[str, str, int, float | None]], out: Out) -> None:
    lines: list[dict[str, Any]] = []
    for key, name, _, _ in listed:
        record = place.store.read(name)
        if not isinstance(record, Record):
            continue
        try:
            cell, state = decode(record.data).cell, ""
        except Damaged:
            cell, state = Cell(key), "damaged"
        value = cell.value
        lines.append(
            {
                "key": key,
                "state": state or table.state(cell),
                "codec": value.codec if value else None,
                "size_bytes": value.size_bytes if value else None,
                "cost_s": value.cost_s if value else None,
                "age_s": record.age_s,
            }
        )
    if out.json:
        out.data(lines)
        return
    rows = [
        (
            line["state"],
            line["codec"] or "-",
            size_words(line["size_bytes"]) if line["size_bytes"] is not None else "-",
            time_words(line["cost_s"]),
            time_words(line["age_s"]),
            shown(line["key"]),
        )
        for line in lines
    ]
    out.table(("STATE", "CODEC", "SIZE", "COST", "AGE", "KEY"), rows)


def run_forget(options: argparse.Namespace, out: Out) -> int:
    lines: list[dict[str, Any]] = []
    if not options.keys and not options.family:
        raise SettingsError("forget what? Name a KEY, or a function with --family")
    with existing(options, writes=True) as place:
        for family in dict.fromkeys(options.family):
            count = place.cache._forget_family(family)
            lines.append({"family": family, "forgotten": count})
            if not out.json:
                what = f"{count} key{'' if count == 1 else 's'} forgotten" if count else "no such keys"
                out.line(f"{shown(family)}/…: {what}")
        for key in dict.fromkeys(options.keys):
            cell = _look(place.cells, key)
            known = cell is not None and table.state(cell) != "free"
            if known:
                place.cache.forget(key)
            hold = cell.hold if cell is not None else None
            by = f"{hold.who.host} pid {hold.who.pid}" if hold is not None else None
            lines.append({"key": key, "forgotten": known, "was_computed_by": by})
            if out.json:
                continue
            if not known:
                out.line(f"{shown(key)}: unknown key, nothing to forget")
            elif by is not None:
                out.line(f"{shown(key)}: forgotten; {by} was computing it, and keeps its result to itself")
            else:
                out.line(f"{shown(key)}: forgotten")
    if out.json:
        out.data(lines)
    return 0 if all(line["forgotten"] for line in lines) else 1


def _look(cells: Cells, key: str) -> Cell | None:
    seen: Seen = cells.look(record_name(KEYS, key), key)
    return None if seen.version is None else seen.cell
