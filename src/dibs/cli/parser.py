"""What may be typed: the commands, each added by the file that carries it out."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from dibs.cli import demo, doctor, explain, keys, lock, looking, run, show, simulate, sweep, unlock

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_EPILOG = """\
exit status: 0 done; 1 a check failed, or not found; 2 wrong usage; 3 store unavailable or unsuitable; 4 timed out
waiting; `run` and `lock` hand on that of their command, and use 124 for a timed-out wait and 125 for a failure of
dibs itself
"""


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The options of one call; `run` among them is what to do.  Exits (status 2) on wrong usage."""
    words = list(argv)
    command: list[str] = []
    if _name_of_command(words) in ("run", "lock") and "--" in words:
        # Everything behind the dashes belongs to the command that is run.
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    options = _parser().parse_args(words)
    options.command_line = command
    return options


def _name_of_command(words: list[str]) -> str | None:
    remaining = iter(words)
    for word in remaining:
        if word == "--store":
            next(remaining, None)
        elif not word.startswith("-"):
            return word
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dibs",
        description="The first worker to call dibs on a key computes it; everybody else gets the result.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_shared(parser, store=None, json=False)
    # Said again behind the command, but without defaults, which would undo what was said before it.
    shared = argparse.ArgumentParser(add_help=False)
    _add_shared(shared, store=argparse.SUPPRESS, json=argparse.SUPPRESS)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for part in (demo, run, lock, keys, show, explain, looking, unlock, sweep, doctor, simulate):
        part.add(commands, shared)
    return parser


def _add_shared(parser: argparse.ArgumentParser, store: Any, json: Any) -> None:
    parser.add_argument(
        "--store", metavar="URL", default=store, help="the cache: a directory or a URL (else $DIBS_URL, else ./.dibs)"
    )
    parser.add_argument("--json", action="store_true", default=json, help="print JSON")


def seconds(text: str) -> float:
    """A duration, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value
