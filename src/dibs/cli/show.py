"""`dibs show KEY`: everything that the record of one key says."""

from __future__ import annotations

import argparse
import base64
import sys
from typing import TYPE_CHECKING, Any

from dibs import cell as table
from dibs.cell import Hold
from dibs.cells import Seen
from dibs.cli.opening import Place, existing
from dibs.cli.printing import Out, moment, say, shown, shown_lines, size_words, time_words
from dibs.codec import Codec
from dibs.errors import CodecError
from dibs.liveness import Verdict, judge
from dibs.names import KEYS, record_name
from dibs.trust import signer_for
from dibs.values import Values

if TYPE_CHECKING:
    from dibs.cli.parser import Commands

_PRINTABLE = ("bytes", "str", "json", "tagged-json")
_NO_PICKLES = "the command line loads no pickles: they would run code"


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "show",
        parents=[shared],
        help="everything about one key",
        description="Show what the record of a key says: its state, who computes it, its value, its failures.",
    )
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("--value", action="store_true", help="print the value itself, if it is bytes, text or JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    with existing(options) as place:
        name = record_name(KEYS, options.key)
        seen = place.cells.look(name, options.key)
        if seen.version is None:
            say(f"there is no key {options.key!r} in {place.store.url}")
            return 1
        if options.value:
            return _print_value(place, name, seen, out)
        told = _told(place, name, seen)
        if out.json:
            out.data(told)
        else:
            _print(told, out)
    return 0


def _print_value(place: Place, name: str, seen: Seen, out: Out) -> int:
    value = table.current(seen.cell)
    if value is None:
        say(f"{seen.cell.key!r} has no value: it is {_state(seen)}")
        return 1
    if value.codec.removesuffix("+zstd") not in _PRINTABLE:
        raise CodecError(f"the value of {seen.cell.key!r} is stored as {value.codec}: load it in Python with cache.get")
    values = Values(place.cells, place.store, Codec(_NO_PICKLES), signer_for(place.cache.settings))
    found = values.load(name, seen, lambda now: table.current(now.cell))
    if found is None:
        say(f"the value of {seen.cell.key!r} is damaged or gone: the next worker that asks computes it anew")
        return 1
    (decoded,) = found
    if out.json:
        if isinstance(decoded, bytes):
            out.data({"key": seen.cell.key, "value_base64": base64.b64encode(decoded).decode()})
        elif value.codec.startswith("tagged-json"):
            out.data({"key": seen.cell.key, "value_repr": repr(decoded)})
        else:
            out.data({"key": seen.cell.key, "value": decoded})
    elif isinstance(decoded, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(decoded)
    elif isinstance(decoded, str):
        sys.stdout.write(decoded if decoded.endswith("\n") or not out.terminal else f"{decoded}\n")
    elif value.codec.startswith("tagged-json"):
        out.line(repr(decoded))  # JSON can't say it
    else:
        out.data(decoded)
    return 0


def _state(seen: Seen) -> str:
    # Opened read-only, a damaged record is seen as an empty cell that nobody wrote.
    return "damaged" if not seen.attempt else table.state(seen.cell)


def _told(place: Place, name: str, seen: Seen) -> dict[str, Any]:
    """All of it as plain data, which is what `--json` prints."""
    cell = seen.cell
    told: dict[str, Any] = {
        "key": cell.key,
        "state": _state(seen),
        "generation": cell.generation,
        "epoch": cell.epoch,
        "record": name,
        "age_s": seen.age_s,
        "hold": None,
        "value": None,
        "failures": None,
        "trail": [ended._asdict() for ended in cell.trail],
    }
    if cell.hold is not None:
        verdict = _verdict(place, name, seen, cell.hold)
        told["hold"] = {
            **cell.hold._asdict(),
            "who": cell.hold.who._asdict(),
            "last_beat_s": seen.age_s,
            "verdict": verdict.state,
            "reason": verdict.reason,
        }
    if cell.value is not None:
        value = cell.value._asdict()
        del value["inline"]
        expires_s = cell.value.expires_s
        age_s = cell.value.age_s + (seen.age_s if seen.age_s is not None else 0.0)
        told["value"] = {
            **value,
            "inline": cell.value.inline is not None,
            "current": table.current(cell) is not None,
            "expires_in_s": None if expires_s is None else round(expires_s - age_s, 3),
        }
    if cell.failures is not None:
        told["failures"] = cell.failures._asdict()
    return told


def _verdict(place: Place, name: str, seen: Seen, hold: Hold) -> Verdict:
    """What the next worker on this host would say of the holder now."""
    runtime = place.runtime
    unchanged_s = runtime.monotonic() - runtime.first_seen(place.cells.card.store_id, name, seen.version or "")
    age_s = seen.age_s if place.store.remote else None
    return judge(hold, runtime.evidence(hold.who), unchanged_s, age_s)


def _print(told: dict[str, Any], out: Out) -> None:
    def field(label: str, text: str) -> None:
        out.line(f"{out.paint('dim', label.ljust(11))} {text}")

    field("key", out.paint("bold", shown(told["key"])))
    field("state", out.state(told["state"]))
    field("generation", f"{told['generation']}, epoch {told['epoch']}")
    age = "" if told["age_s"] is None else f", written {time_words(told['age_s'])} ago"
    field("record", f"{told['record']}{age}")
    if hold := told["hold"]:
        for label, text in _hold_lines(hold):
            field(label, text)
    if value := told["value"]:
        for label, text in _value_lines(value):
            field(label, text)
    if failures := told["failures"]:
        by = f"; the last by {shown(failures['by'])}" if failures["by"] else ""
        field("failures", f"{failures['failures']}, deaths of its worker {failures['deaths']}{by}")
        for line in shown_lines(failures["error"], "    "):
            out.line(line)
    for ended in told["trail"]:
        field("before", f"generation {ended['generation']} (claim {ended['claim']}): {ended['how']}")


def _hold_lines(hold: dict[str, Any]) -> list[tuple[str, str]]:
    who = hold["who"]
    lines = [
        ("held by", f"{shown(who['host'])} pid {who['pid']}, since {moment(hold['since'])} by its clock"),
        ("claim", f"{hold['claim']}, ttl {hold['ttl_s']:g} s"),
    ]
    ago = "" if hold["last_beat_s"] is None else f", {time_words(hold['last_beat_s'])} ago"
    lines.append(("last beat", f"number {hold['beat']}{ago}; held for {time_words(hold['held_s'])} by then"))
    if hold["progress"] is not None:
        lines.append(("progress", f"{hold['progress']:.0%}"))
    if hold["expected_s"] is not None:
        lines.append(("expected", f"{time_words(hold['expected_s'])} altogether"))
    if hold["waits_for"] is not None:
        lines.append(("waits for", shown(hold["waits_for"])))
    lines.append(("its holder", f"{hold['verdict']}: {shown(hold['reason'])}"))
    return lines


def _value_lines(value: dict[str, Any]) -> list[tuple[str, str]]:
    old = "" if value["current"] else " (an old one: a new one is being computed, or was asked for)"
    where = "in the record" if value["inline"] else f"in the blob {value['blob']}"
    lines = [
        ("value", f"{value['codec']}, {size_words(value['size_bytes'])}, {where}{old}"),
        ("digest", value["digest"]),
        ("cost", time_words(value["cost_s"])),
        ("computed by", f"{shown(value['by'])}, {moment(value['at'])} by its clock"),
    ]
    left_s = value["expires_in_s"]
    if left_s is not None:
        lines.append(("expires", f"in {time_words(left_s)}" if left_s > 0 else "it has expired"))
    return lines
