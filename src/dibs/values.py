"""Values of cells: inline or in a blob, checked against their digest before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

from dibs import cell as table
from dibs.cell import Cell, Value
from dibs.cells import Cells, Seen
from dibs.codec import Codec, Encoded, digest
from dibs.errors import CorruptValue, DibsError
from dibs.events import log
from dibs.names import KEYS, blob_name, record_name
from dibs.store import INLINE_SIZE_MAX, Backend

_LOOKS_MAX: Final = 5


class Values:
    """Reads, writes and mends the values of one store's cells."""

    def __init__(self, cells: Cells, backend: Backend, codec: Codec) -> None:
        self._cells = cells
        self._blobs = backend
        self._codec = codec
        self._runtime = cells.runtime

    def age_s(self, seen: Seen) -> float:
        """Age of the cell's value by the store's own clock.

        Where that can't tell: in a folder by the wall clock of this machine, which wrote it (it was booted since);
        else by how long this host has seen the record.
        """
        value = seen.cell.value
        assert value is not None
        if seen.age_s is not None:
            return value.age_s + seen.age_s
        if not self._cells.store.remote:
            return max(self._runtime.wall() - value.at, 0.0)
        name = record_name(KEYS, seen.cell.key)
        first_s = self._runtime.first_seen(self._cells.card.store_id, name, seen.version or "")
        return value.age_s + self._runtime.monotonic() - first_s

    def fresh(self, seen: Seen) -> Value | None:
        """The value that a reader may have: of the cell's own epoch and not expired."""
        value = table.current(seen.cell)
        if value is None or (value.expires_s is not None and self.age_s(seen) >= value.expires_s):
            return None
        return value

    def encode(self, result: Any) -> Encoded:
        return self._codec.encode(result)

    def decode(self, codec: str, payload: bytes) -> Any:
        return self._codec.decode(codec, payload)

    def store(
        self, name: str, encoded: Encoded, epoch: int, claim: str, cost_s: float, expires_s: float | None
    ) -> Value:
        """Make the value that the cell is to carry; a large one is complete in its blob before this returns."""
        who = self._runtime.holder(self._cells.beacon_dir)
        payload = encoded.joined()
        blob = None
        if len(payload) > INLINE_SIZE_MAX:
            blob = blob_name(name, epoch, claim)
            self._blobs.upload(blob, io.BytesIO(payload))
        return Value(
            epoch,
            claim,
            encoded.codec,
            len(payload),
            digest(payload),
            payload if blob is None else None,
            blob,
            round(cost_s, 6),
            f"{who.host} pid {who.pid}",
            round(self._runtime.wall(), 3),
            expires_s,
        )

    def discard(self, value: Value) -> None:
        """Remove the blob of a value that no cell names, nor can any more; it is only room that may stay taken."""
        if value.blob is not None:
            try:
                self._blobs.remove(value.blob)
            except DibsError as error:
                log.info("the blob %s, which nothing needs any more, was not removed: %s", value.blob, error)

    def load(self, name: str, seen: Seen, wanted: Callable[[Seen], Value | None]) -> tuple[Any] | None:
        """Return the value that `wanted` finds in the cell, in a tuple, or None when there is none any more.

        A reader that misses a blob reads the cell again before it calls that damage; a damaged value is reported
        and forgotten, so that it is computed anew.
        """
        value = wanted(seen)
        for _ in range(_LOOKS_MAX):
            if value is None:
                return None
            if value.inline is not None:
                return (self._codec.decode(value.codec, value.inline),)  # checked along with the record
            try:
                return (self._codec.decode(value.codec, self._download(value)),)
            except (FileNotFoundError, CorruptValue) as error:
                seen = self._cells.look(name, seen.cell.key)
                again = wanted(seen)
                if again == value:
                    self._heal(name, seen, value, str(error))
                    return None
                value = again
        return None

    def _download(self, value: Value) -> bytes:
        assert value.blob is not None
        with self._blobs.download(value.blob) as source:
            payload = source.read()
        if len(payload) != value.size_bytes or digest(payload) != value.digest:
            raise CorruptValue(
                f"{value.blob}: {len(payload)} bytes with digest {digest(payload)}, but {value.size_bytes} bytes with "
                f"digest {value.digest} were written"
            )
        return payload

    def _heal(self, name: str, seen: Seen, value: Value, problem: str) -> None:
        claim = self._runtime.token()

        def event(now: Seen) -> Cell | None:
            if now.cell.value != value:
                return None
            return table.forget(now.cell, claim) if table.current(now.cell) else table.drop_old(now.cell)

        key = seen.cell.key
        self._cells.events.emit("healed", key, seen.cell.generation, seen.cell.epoch, detail=problem)
        if not self._cells.read_only:
            self._cells.change(name, key, claim, event, patience_s=10.0)
