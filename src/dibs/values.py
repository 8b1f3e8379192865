"""Values of cells: inline or in a blob, checked against their digest before anything is decoded.

A large value is never in memory twice: its pieces are streamed to the blob and digested on the way, and on the way
back it is decoded over the pages that it was mapped or downloaded to.  A blob in a folder is read through once per
host and state of the file (device, inode, size, times of change), then mapped without: nobody but this user can
change it, and whoever does changes its times.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from dibs import cell as table
from dibs.cell import Cell, Value
from dibs.cells import Cells, Seen
from dibs.codec import Codec, Encoded, Hasher, Piece, digest
from dibs.errors import CodecError, CorruptValue, DibsError, StoreUnavailable
from dibs.events import log
from dibs.names import KEYS, blob_name, record_name
from dibs.runtime import memory
from dibs.store import INLINE_SIZE_MAX, Backend

if TYPE_CHECKING:  # hashlib takes 10 ms to load
    from dibs.signing import Entry, Signer

_LOOKS_MAX: Final = 5
_GATHERED_SIZE_MIN: Final = 64 * 1024


class Values:
    """Reads, writes and mends the values of one store's cells."""

    def __init__(self, cells: Cells, backend: Backend, codec: Codec, signer: Signer | None = None) -> None:
        """With a `signer`, what is stored is signed, and what is loaded is checked before anything else."""
        self._cells = cells
        self._signer = signer
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
        if value is None or value.expires_s is None:
            return value
        self._check_signed(record_name(KEYS, seen.cell.key), seen.cell.key, value)  # before its expiry is believed
        return None if self.age_s(seen) >= value.expires_s else value

    def encode(self, result: Any, codec: str | None = None) -> Encoded:
        return self._codec.encode(result, codec) if codec is not None else self._codec.encode(result)

    def decode(self, codec: str, payload: bytes) -> Any:
        return self._codec.decode(codec, payload)

    def store(
        self,
        name: str,
        encoded: Encoded,
        epoch: int,
        claim: str,
        cost_s: float,
        expires_s: float | None,
        ingredients: bytes = b"",
    ) -> Value:
        """Make the value that the cell is to carry; a large one is complete in its blob before this returns."""
        who = self._runtime.holder(self._cells.beacon_dir)
        value = Value(
            epoch,
            claim,
            encoded.codec,
            encoded.size_bytes,
            "",
            cost_s=round(cost_s, 6),
            by=f"{who.host} pid {who.pid}",
            at=round(self._runtime.wall(), 3),
            expires_s=None if expires_s is None else float(expires_s),
            ingredients=ingredients or None,
        )
        if encoded.size_bytes <= INLINE_SIZE_MAX:
            inline = encoded.joined()
            return self._signed(name, value._replace(inline=inline, digest=digest(inline)))
        source = _Streamed(encoded.pieces)
        blob = blob_name(name, epoch, claim)
        self._blobs.upload(blob, source)
        value = value._replace(blob=blob, digest=source.hexdigest())
        self._vouch(value)
        return self._signed(name, value)

    def _signed(self, name: str, value: Value) -> Value:
        return value if self._signer is None else value._replace(signature=self._signer.sign(self._entry(name, value)))

    def _check_signed(self, name: str, key: str, value: Value) -> None:
        """Raise CodecError when the value is not what the fleet has stored under this name; nothing is read then."""
        if self._signer is None:
            return
        refusal = self._signer.refusal(self._entry(name, value), value.signature)
        # Anybody can make a record whose own check is right; a blob's bytes are compared when they are read.
        if refusal is None and value.blob is None and not _is_whole(value.inline or b"", value):
            refusal = "its bytes are not those that were signed. Find out who else can write there"
        if refusal is not None:
            from shlex import quote

            raise CodecError(
                f"the stored value of {key!r} in {self._cells.store.url} is refused: {refusal}. "
                f"To have it computed anew: dibs forget {quote(key)}"
            )

    def _entry(self, name: str, value: Value) -> Entry:
        from dibs.signing import Entry

        return Entry(
            self._cells.card.store_id,
            name,
            value.epoch,
            value.claim,
            value.codec,
            value.blob,
            value.size_bytes,
            value.digest,
            value.expires_s,
            None if value.ingredients is None else digest(value.ingredients),
        )

    def _vouch(self, value: Value) -> None:
        """Whoever has just streamed a file knows what is in it, and need not read it through again."""
        if value.size_bytes >= memory.PAGES_SIZE_MIN and self._mappable() and value.blob is not None:
            with suppress(FileNotFoundError, DibsError), self._blobs.download(value.blob) as source:
                file: object = source
                if isinstance(file, io.FileIO):
                    self._runtime.mark_verified(_state_of(os.fstat(file.fileno()), value))

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
            self._check_signed(name, seen.cell.key, value)
            if value.blob is None and value.inline is not None:
                return (self._codec.decode(value.codec, value.inline),)  # checked along with the record
            try:
                return (self._codec.decode(value.codec, self._content(value)),)
            except (FileNotFoundError, CorruptValue) as error:
                seen = self._cells.look(name, seen.cell.key)
                again = wanted(seen)
                if again == value:
                    self._heal(name, seen, value, str(error))
                    return None
                value = again
        return None

    def _content(self, value: Value) -> bytes | memoryview:
        """The checked bytes of the blob: pages of our own that may be written, or just bytes when they are few."""
        assert value.blob is not None
        with self._blobs.download(value.blob) as source:
            kind: object = source
            if isinstance(kind, io.FileIO):
                return self._content_of_file(kind.fileno(), value)
            # A large download comes as pages that belong to nobody else.
            content = memoryview(kind) if isinstance(kind, mmap.mmap) else source.read()
        _check(content, value)
        return content

    def _content_of_file(self, fd: int, value: Value) -> bytes | memoryview:
        status = os.fstat(fd)
        if status.st_size != value.size_bytes:
            raise CorruptValue(f"{value.blob}: {status.st_size} bytes, but {value.size_bytes} bytes were written")
        if value.size_bytes < memory.PAGES_SIZE_MIN:
            content = os.read(fd, value.size_bytes)
            _check(content, value)
            return content
        try:
            if not self._mappable():
                return _copied(fd, value)
            pages = memoryview(memory.mapped(fd, value.size_bytes))
        except OSError as error:
            raise StoreUnavailable(f"{value.blob}: its {value.size_bytes} bytes can't be mapped: {error}") from error
        state = _state_of(status, value)
        if not self._runtime.is_verified(state):
            _check(pages, value)
            self._runtime.mark_verified(state)
        return pages

    def _mappable(self) -> bool:
        """True where nobody else can change a file between the moment when it is checked and that when it is used."""
        return getattr(self._blobs, "private", False)

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


class _Streamed:
    """The pieces of an encoded value as a stream of views, which digests what goes by."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self._hasher = Hasher()

    def read(self, size: int, /) -> bytes | memoryview:
        chunk: bytes | memoryview = self._next(size)
        wanted = min(size, _GATHERED_SIZE_MIN)
        if 0 < len(chunk) < wanted:  # many small pieces would be many small writes
            gathered = bytearray(chunk)
            while len(gathered) < wanted and (more := self._next(wanted - len(gathered))):
                gathered += more
            chunk = memoryview(gathered)
        self._hasher.update(chunk)
        return chunk

    def _next(self, size: int) -> memoryview:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest = memoryview(piece)
        chunk, self._rest = self._rest[:size], self._rest[size:]
        return chunk

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def _state_of(status: os.stat_result, value: Value) -> str:
    """Names a file as it is now, and what should be in it."""
    file = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{file} {value.digest}"


def _is_whole(content: bytes, value: Value) -> bool:
    return len(content) == value.size_bytes and digest(content) == value.digest


def _check(content: bytes | memoryview, value: Value) -> None:
    found = digest(content)
    if len(content) != value.size_bytes or found != value.digest:
        raise CorruptValue(
            f"{value.blob}: {len(content)} bytes with digest {found}, but {value.size_bytes} bytes with digest "
            f"{value.digest} were written"
        )


def _copied(fd: int, value: Value) -> memoryview:
    pages = memoryview(memory.anonymous(value.size_bytes))
    at = 0
    while at < len(pages) and (count := os.readv(fd, [pages[at:]])):
        at += count
    _check(pages, value)
    return pages
