"""What a command came to, as a value: its exit status, what it printed, its outputs; and that as bytes and back.

The bytes are a line that says what they are, the length of an index, the index (JSON), then the transcript and the
contents of all files in the order of the index.  They depend on nothing but the result.  Both ways only a piece at a
time is in memory; nothing in here is ever executed, and a name that would lead out of its directory is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from dibs.command.restore import Output
from dibs.command.transcript import Transcript
from dibs.command.tree import PERMISSIONS, Content, Entry, Stored
from dibs.errors import CodecError
from dibs.once import SHARED_SIZE_MAX

CODEC: Final = "outputs"
_MAGIC: Final = b"dibs outputs 1\n"
_LENGTH: Final = struct.Struct("<Q")
_LETTERS: Final = {"file": "f", "directory": "d", "link": "l"}


class Said(Protocol):
    """The frames of a transcript."""

    @property
    def size_bytes(self) -> int: ...
    def chunks(self) -> Iterator[bytes | memoryview]: ...


class Result:
    """The end of one run: `status` as a shell gives it, what was printed, and the declared outputs."""

    def __init__(self, status: int, said: Said | Transcript, outputs: Sequence[Output]) -> None:
        self.status, self.said, self.outputs = status, said, outputs

    @property
    def size_bytes(self) -> int:
        """Bytes of all outputs."""
        return sum(content.size_bytes for content in _contents(self.outputs))


class Pieces:
    """The bytes of a result.  Few of them are read at once; else files are read whenever they are walked.

    Once a result is published, those who waited for it touch the outputs: so what is small enough to be given to
    other threads as it stands must not be read again.
    """

    def __init__(self, result: Result) -> None:
        index = json.dumps(_index(result), separators=(",", ":"), sort_keys=True).encode()
        self._head = _MAGIC + _LENGTH.pack(len(index)) + index
        self._result = result
        self.size_bytes = len(self._head) + result.said.size_bytes + result.size_bytes
        self._whole = b"".join(self._walk()) if self.size_bytes <= SHARED_SIZE_MAX else None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return iter((self._whole,)) if self._whole is not None else self._walk()

    def _walk(self) -> Iterator[bytes | memoryview]:
        yield self._head
        yield from self._result.said.chunks()
        for content in _contents(self._result.outputs):
            yield from content.chunks()


def _contents(outputs: Sequence[Output]) -> Iterator[Content]:
    return (entry.content for output in outputs for entry in output.entries if entry.content is not None)


def _index(result: Result) -> dict[str, Any]:
    return {
        "status": result.status,
        "said": result.said.size_bytes,
        "outputs": [[output.path, [_line(entry) for entry in output.entries]] for output in result.outputs],
    }


def _line(entry: Entry) -> list[Any]:
    head = [_LETTERS[entry.kind], "/".join(entry.path)]
    if entry.kind == "link":
        return [*head, entry.target]
    return [*head, entry.mode, entry.content.size_bytes] if entry.content is not None else [*head, entry.mode]


def decode(data: memoryview) -> Result:
    """The inverse of walking `Pieces`; contents stay where they are.  Raises CodecError for anything amiss."""
    try:
        return _decoded(data)
    except (ValueError, TypeError, KeyError, IndexError, struct.error) as error:
        raise CodecError(f"the stored outputs are damaged: {error}") from error


def _decoded(data: memoryview) -> Result:
    at = len(_MAGIC) + _LENGTH.size
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise ValueError("they are of another format than this version of dibs knows")
    (length,) = _LENGTH.unpack(data[len(_MAGIC) : at])
    index = json.loads(bytes(data[at : at + length]))
    rest = _Rest(data, at + length)
    said = rest.take(index["said"])
    outputs = [Output(_text(path), _entries(lines, rest)) for path, lines in index["outputs"]]
    if rest.at != len(data):
        raise ValueError(f"{len(data) - rest.at} bytes too many")
    return Result(_number(index["status"], 255), said, outputs)


class _Rest:
    """The bytes behind the index, taken from the front."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self.at = data, at

    def take(self, size_bytes: object) -> Stored:
        begin, self.at = self.at, self.at + _number(size_bytes, len(self._data) - self.at)
        return Stored(self._data[begin : self.at])


def _entries(lines: list[Any], rest: _Rest) -> list[Entry]:
    """The entries of one output, in which every path is new and lies in a directory that was named before."""
    entries: list[Entry] = []
    kinds: dict[tuple[str, ...], str] = {}
    for letter, joined, *others in lines:
        path = tuple(joined.split("/")) if joined else ()
        if path in kinds or (path and kinds.get(path[:-1]) != "d") or (not path and letter == "l"):
            raise ValueError(f"{joined!r} has no place in the tree")
        if any(name in ("", ".", "..") or "\0" in name for name in path):
            raise ValueError(f"{joined!r} would lead out of the tree")
        kinds[path] = letter
        match letter, others:
            case "f", [mode, size_bytes]:
                entries.append(Entry("file", path, _number(mode, PERMISSIONS), rest.take(size_bytes)))
            case "d", [mode]:
                entries.append(Entry("directory", path, _number(mode, PERMISSIONS)))
            case "l", [target]:
                entries.append(Entry("link", path, target=_text(target)))
            case _:
                raise ValueError(f"{joined!r} is of an unknown kind {letter!r}")
    return entries


def _number(value: object, greatest: int) -> int:
    if type(value) is not int or not 0 <= value <= greatest:
        raise ValueError(f"{value!r} is not a number from 0 to {greatest}")
    return value


def _text(value: object) -> str:
    if type(value) is not str or "\0" in value:
        raise ValueError(f"{value!r} is no text")
    return value
