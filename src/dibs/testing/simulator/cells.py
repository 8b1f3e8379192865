"""What a record says, in the flat words of a history."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dibs.record import Damaged, decode

if TYPE_CHECKING:
    from dibs.testing.simulator.store import Bucket

_MARK = re.compile(rb"<<([0-9a-f]{16})>>")


def described(data: bytes, bucket: Bucket, names: Mapping[str, str]) -> dict[str, Any]:
    """The cell in `data`, or nothing if it is none (the card, a toy's record).

    `mark` is the one that the workload put into the value, wherever its bytes are; `names` tells which worker
    a process id belongs to.
    """
    try:
        cell, attempt = decode(data)
    except Damaged:
        return {}
    fields: dict[str, Any] = {
        "key": cell.key, "generation": cell.generation, "epoch": cell.epoch, "attempt": attempt,
    }  # fmt: skip
    if cell.hold is not None:
        hold = cell.hold
        fields |= {"claim": hold.claim, "holder": names.get(hold.who.process, "?"), "beat": hold.beat}
        fields["ttl_s"] = hold.ttl_s
    if cell.value is not None:
        value = cell.value
        kept = value.inline if value.inline is not None else bucket.uploaded.get(value.blob or "")
        mark = _MARK.search(kept) if kept is not None else None
        fields |= {"value_epoch": value.epoch, "value_claim": value.claim}
        if value.expires_s is not None:
            fields["expires_s"] = value.expires_s
        fields["mark"] = mark[1].decode() if mark else "missing" if kept is None else "unmarked"
    if cell.failures is not None:
        fields |= {"failures": cell.failures.failures, "deaths": cell.failures.deaths}
    if cell.trail:
        fields["last_ended"] = [cell.trail[0].claim, cell.trail[0].how]
    return fields


def described_cells(bucket: Bucket, names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """All cells of a store, by name."""
    for name in sorted(bucket.records):
        fields = described(bucket.records[name].data, bucket, names)
        if fields:
            yield {"name": name, **fields}
