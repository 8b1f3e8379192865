"""`dibs sweep`: make room in a cache that workers are using."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING, Final

from dibs.cli.opening import existing
from dibs.cli.printing import Out, say, size_words
from dibs.sweep import Progress, Swept, sweep

if TYPE_CHECKING:
    from dibs.cli.parser import Commands

_SIZE_UNITS: Final = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip
_TIME_UNITS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_NUMBER: Final = r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*"
_PROGRESS_EVERY: Final = 100


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "sweep",
        parents=[shared],
        help="make room; safe while workers run",
        description="Remove what nothing needs any more: expired values, blobs of replaced and forgotten values (an "
        "hour after they were), and what killed workers left of their uploads.  With --unused-for and --max-size, "
        "forget values too: an evicted key is computed anew when somebody asks for it.  Ends with 1 when --max-size "
        "could not be reached.",
    )
    parser.add_argument(
        "--max-size",
        type=size,
        metavar="SIZE",
        help="evict the least recently used values until all together take no more: 500M, 10G, 1.5TiB",
    )
    parser.add_argument(
        "--unused-for",
        type=duration,
        metavar="TIME",
        help="evict values that nobody has used for so long: 30d, 12h, 90m, 45s",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    with existing(options, writes=not options.dry_run) as place:
        swept = sweep(
            place.cells,
            place.store,
            max_size_bytes=options.max_size,
            unused_for_s=options.unused_for,
            dry_run=options.dry_run,
            progress=_progress(out),
        )
    if sys.stderr.isatty():
        print("\033[K", end="", file=sys.stderr, flush=True)
    taken_bytes = swept.left_bytes + swept.waiting_bytes
    fits = options.max_size is None or taken_bytes <= options.max_size
    if out.json:
        told = {**swept._asdict(), "freed_bytes": swept.freed_bytes, "fits": fits, "dry_run": options.dry_run}
        out.data(told)
    else:
        _print(swept, options.dry_run, out)
    if not fits:
        say(
            f"{size_words(taken_bytes)} are still taken, more than --max-size: the rest is being computed anew, or "
            "waits until nobody can be reading it"
        )
    return 0 if fits else 1


def _print(swept: Swept, dry_run: bool, out: Out) -> None:
    would = "would be " if dry_run else ""
    out.line(
        f"values  {swept.evicted} {would}evicted ({swept.expired} expired, {swept.unused} unused, {swept.for_room} for "
        f"room): {size_words(swept.values_bytes)}"
    )
    out.line(f"blobs   {swept.blobs} {would}removed that nothing names: {size_words(swept.blobs_bytes)}")
    out.line(f"uploads {swept.leftovers} unfinished {would}removed: {size_words(swept.leftovers_bytes)}")
    out.line(f"freed   {size_words(swept.freed_bytes)}")
    out.line(f"left    {swept.left} values: {size_words(swept.left_bytes)}")
    if swept.waiting:
        out.line(
            f"waiting {swept.waiting} blobs that somebody may be writing or reading: {size_words(swept.waiting_bytes)}"
        )
    if swept.damaged:
        out.line(f"damaged {swept.damaged} records, mended when somebody asks for their keys")


def _progress(out: Out) -> Progress:
    """A line on the terminal that tells how far it is; nothing elsewhere."""
    if out.json or not sys.stderr.isatty():
        return lambda what, count: None

    def progress(what: str, count: int) -> None:
        if count % _PROGRESS_EVERY == 0:
            print(f"\r\033[K{count} {what} …\r", end="", file=sys.stderr, flush=True)

    return progress


def size(text: str) -> int:
    """A size in bytes, for argparse: G is a thousand million, GiB is 2**30."""
    match = re.fullmatch(_NUMBER + r"(?P<unit>[kmgt]?i?)b?\s*", text, re.IGNORECASE)
    factor = _SIZE_UNITS.get(match["unit"].lower()) if match is not None else None
    if match is None or factor is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 500M, 10G or 1.5TiB")
    return int(float(match["number"]) * factor)


def duration(text: str) -> float:
    """A duration in seconds, for argparse."""
    match = re.fullmatch(_NUMBER + r"(?P<unit>s|m|min|h|d|w)\s*", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it as 30d, 12h, 90m or 45s")
    return float(match["number"]) * _TIME_UNITS[match["unit"].lower()]
