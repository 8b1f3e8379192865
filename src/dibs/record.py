"""Cells to bytes and back: one line of JSON, then the raw bytes of a small value and of its ingredients.

The line begins `{"dibs":1,"check":"<32 hex>",` in every format to come; the check is blake3 over the format
number and everything behind the check, so any flipped, missing or foreign byte shows, and a record of a newer
format can be told from a damaged one.
"""

from __future__ import annotations

import json
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from math import isfinite
from typing import Any, Final, NamedTuple

from blake3 import blake3

from dibs.cell import Cell, Ended, Failures, Hold, Value
from dibs.errors import StoreUnsuitable
from dibs.runtime import Holder

FORMAT: Final = 1
_HEAD: Final = b'{"dibs":1,"check":"'
_CHECK_AT: Final = len(_HEAD)
_BODY_AT: Final = _CHECK_AT + 32 + 2


# json.loads would look for the encoding of what is known to be ASCII.
_parse: Final = json.JSONDecoder().decode


class Damaged(Exception):
    """These bytes are no record: torn, flipped, empty or foreign.  Never seen above `cells`."""


class Decoded(NamedTuple):
    cell: Cell
    attempt: str
    """Random id of the write that made this record; all its resends carry the same."""


def sealed(body: bytes) -> bytes:
    """Put the head before `body`, which is the rest of the JSON line and what follows it."""
    return b"".join((_HEAD, blake3(b"1" + body).hexdigest(16).encode(), b'",', body))


def unsealed(data: bytes) -> bytes:
    """Return the body, or raise Damaged, or StoreUnsuitable for a sound record of a newer format."""
    if data.startswith(_HEAD) and data[_BODY_AT - 2 : _BODY_AT] == b'",':
        body = data[_BODY_AT:]
        if blake3(b"1" + body).hexdigest(16).encode() == data[_CHECK_AT : _CHECK_AT + 32]:
            return body
    raise_if_newer(data)
    raise Damaged


def raise_if_newer(data: bytes) -> None:
    """Raise StoreUnsuitable when `data` is a sound record of another format than ours."""
    head, colon, _ = data[:64].partition(b',"check":"')
    number = head.removeprefix(b'{"dibs":')
    if not colon or not number.isdigit() or number == b"%d" % FORMAT:
        return
    at = len(head) + len(colon)
    if blake3(number + data[at + 34 :]).hexdigest(16).encode() == data[at : at + 32]:
        raise StoreUnsuitable(
            f"a record of format {number.decode()} was found, and this version of dibs reads format {FORMAT}: "
            "upgrade dibs here, or use another store"
        )


def encode(cell: Cell, attempt: str) -> bytes:
    """The bytes of the record; no two attempts give the same bytes, so versions never repeat."""
    parts = [
        f'"attempt":"{attempt}","key":{quoted(cell.key)},"generation":{cell.generation},"epoch":{cell.epoch}'
    ]
    if cell.hold is not None:
        parts.append(_hold_json(cell.hold))
    behind = b""
    if cell.value is not None:
        fields, behind = _split(cell.value)
        parts.append(f'"value":{_json(fields)}')
    if cell.failures is not None:
        parts.append(f'"failures":{_json(cell.failures._asdict())}')
    if cell.trail:
        ended = ",".join(f'[{e.generation},"{e.claim}","{e.how}"]' for e in cell.trail)
        parts.append(f'"trail":[{ended}]')
    return sealed(",".join(parts).encode() + b"}\n" + behind)


def decode(data: bytes) -> Decoded:
    """The inverse of `encode`; raises Damaged, or StoreUnsuitable for a record of a newer format."""
    body = unsealed(data)
    line, _, behind = body.partition(b"\n")
    try:
        fields = _parse("{" + line.decode("ascii"))
        hold, value, failures = fields.get("hold"), fields.get("value"), fields.get("failures")
        trail = fields.get("trail")
        cell = Cell(
            fields["key"],
            fields["generation"],
            fields["epoch"],
            None if hold is None else Hold(hold[0], Holder(*hold[1]), *hold[2:]),
            None if value is None else _value(value, behind),
            None if failures is None else Failures(**failures),
            tuple(Ended(*ended) for ended in trail) if trail else (),
        )
        return Decoded(cell, fields["attempt"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Damaged from error


def _split(value: Value) -> tuple[dict[str, Any], bytes]:
    """The fields for the JSON line, with sizes in the place of what stands behind it, and that."""
    fields = value._asdict()
    inline, ingredients = value.inline, value.ingredients
    if inline is not None:
        fields["inline"] = len(inline)
    if ingredients is not None:
        fields["ingredients"] = len(ingredients)
    return fields, (inline or b"") + (ingredients or b"")


def _value(fields: dict[str, Any], behind: bytes) -> Value:
    size_bytes = fields["inline"]
    if size_bytes is not None:
        fields["inline"] = behind[:size_bytes]
    if fields.get("ingredients") is not None:
        fields["ingredients"] = behind[size_bytes or 0 :]
    return Value(**fields)


def _hold_json(hold: Hold) -> str:
    # Assembled by hand: it is rewritten with every claim and beat, and four times as fast as json.dumps.
    waits_for = "null" if hold.waits_for is None else quoted(hold.waits_for)
    return (
        f'"hold":["{hold.claim}",{_holder_json(hold.who)},{_number(hold.ttl_s)},{hold.beat},{_number(hold.held_s)},'
        f"{_number(hold.expected_s)},{_number(hold.progress)},{waits_for},{_number(hold.since)}]"
    )


def _number(number: float | None) -> str:
    # What arrives as a float may be numpy's, whose repr is no JSON; and JSON has no nan.
    return "null" if number is None or not isfinite(number) else repr(float(number))


@lru_cache(maxsize=16)
def _holder_json(who: Holder) -> str:
    return _json(list(who))


def _json(thing: object) -> str:
    return json.dumps(thing, separators=(",", ":"))
