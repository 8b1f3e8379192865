"""The code versions of memoized functions, as the store knows them; and which of them stand for each other.

One small record per function and version, in a space of its own: what the code was made of, so that a miss can be
explained, and, after a retag, the older version whose entries count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from dibs import cell as table
from dibs.cell import Cell, Value
from dibs.cells import Cells, Seen
from dibs.errors import CodecError, Conflict, DibsError
from dibs.events import log
from dibs.identity import Code
from dibs.memoize.recipe import Ingredients
from dibs.names import FUNCTIONS, family_prefix, key_of, record_name
from dibs.values import Values

_DETAILS_SIZE_MAX: Final = 12 * 1024
_PATIENCE_S: Final = 10.0
_CHAIN_MAX: Final = 1000


class Version(NamedTuple):
    """One version of the code of one function."""

    function: str
    digest: str
    ingredients: Ingredients
    notes: tuple[str, ...]
    stands_for: str | None
    """The digest of the older version whose entries count for this one."""
    at: float
    """Wall clock when it was first seen, for people."""


class Versions:
    """Reads and writes the code versions in one store."""

    def __init__(self, cells: Cells, values: Values) -> None:
        self.cells = cells
        self.values = values
        self._roots: dict[tuple[str, str], str] = {}
        self._absent: dict[tuple[str, str], Seen] = {}

    def root(self, function: str, digest: str) -> str:
        """The version whose entries count for this one: itself, unless it was retagged.

        One read per function, version and process; a retag elsewhere shows at the next start.
        """
        found = self._roots.get((function, digest))
        if found is None:
            key = f"{function}/{digest}"
            seen = self.cells.look(record_name(FUNCTIONS, key), key)
            version = self._version(seen)
            if version is None:
                self._absent[function, digest] = seen
            found = (version.stands_for if version is not None else None) or digest
            self._roots[function, digest] = found
        return found

    def get(self, function: str, digest: str) -> Version | None:
        key = f"{function}/{digest}"
        return self._version(self.cells.look(record_name(FUNCTIONS, key), key))

    def all(self, function: str) -> list[Version]:
        """Every version that was ever computed with, the newest first."""
        found: list[Version] = []
        for listed in self.cells.store.scan(family_prefix(FUNCTIONS, function)):
            key = key_of(listed.name) or f"{function}/{listed.name.rpartition('/')[2]}"
            version = self._version(self.cells.look(listed.name, key))
            if version is not None:
                found.append(version)
        return sorted(found, key=lambda version: version.at, reverse=True)

    def register(self, code: Code) -> None:
        """Note that something is computed with this code; once per version, for it was looked up before."""
        seen = self._absent.pop((code.name, code.digest), None)
        if seen is None or self.cells.read_only:
            return
        name, claim = record_name(FUNCTIONS, seen.cell.key), self.cells.runtime.token()
        try:
            put = table.put(seen.cell, self._value(name, _content(code, None), seen, claim))
            self.cells.write(name, seen, put, _PATIENCE_S)
        except Conflict:
            pass  # another worker was faster
        except DibsError as error:  # only explanations suffer
            log.info("the code version of %s was not noted: %s", code.name, error)

    def retag(self, code: Code, old: Version) -> None:
        """Let the entries of `old` count for `code`; its own again, when they are the same version."""
        root = code.digest if old.digest == code.digest else old.stands_for or old.digest
        stands_for = None if root == code.digest else root
        self._write(code, lambda before: {**(before or _content(code, None)), "stands_for": stands_for})
        self._roots[code.name, code.digest] = root
        self._absent.pop((code.name, code.digest), None)

    def _write(self, code: Code, content: Any) -> None:
        key = f"{code.name}/{code.digest}"
        name = record_name(FUNCTIONS, key)
        claim = self.cells.runtime.token()

        def event(seen: Seen) -> Cell | None:
            before = self._content(seen)
            after = content(before)
            if after == before:
                return None
            return table.put(seen.cell, self._value(name, after, seen, claim))

        self.cells.change(name, key, claim, event, _PATIENCE_S)

    def _value(self, name: str, content: dict[str, Any], seen: Seen, claim: str) -> Value:
        return self.values.store(name, self.values.encode(content, "auto"), seen.cell.epoch + 1, claim, 0.0, None)

    def _content(self, seen: Seen) -> dict[str, Any] | None:
        """What the record says; nothing when it isn't signed as it should be, for it is only an explanation."""
        name = record_name(FUNCTIONS, seen.cell.key)
        try:
            found = self.values.load(name, seen, lambda now: table.current(now.cell))
        except CodecError as error:
            log.info("what is noted about the code version %s is not believed: %s", seen.cell.key, error)
            return None
        return found[0] if found is not None and isinstance(found[0], dict) else None

    def _version(self, seen: Seen) -> Version | None:
        content, value = self._content(seen), table.current(seen.cell)
        if content is None or value is None:
            return None
        function, _, digest = seen.cell.key.rpartition("/")
        try:
            ingredients = {label: (one, text) for label, (one, text) in content["ingredients"].items()}
            return Version(function, digest, ingredients, tuple(content["notes"]), content["stands_for"], value.at)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.info("what is noted about the code version %s can't be read: %r", seen.cell.key, error)
            return None


def _content(code: Code, stands_for: str | None) -> dict[str, Any]:
    from dibs.memoize.recipe import packed, unpacked

    details: Mapping[str, tuple[str, str]] = unpacked(packed(code.ingredients, _DETAILS_SIZE_MAX))
    return {
        "ingredients": {label: list(pair) for label, pair in details.items()},
        "notes": [note[:200] for note in code.notes[:10]],
        "stands_for": stands_for,
    }


def versions_of_all(cells: Cells) -> Iterator[str]:
    """The names of the functions that have versions in this store."""
    seen: set[str] = set()
    for listed in cells.store.scan(f"{FUNCTIONS}/"):
        function = (key_of(listed.name) or "").rpartition("/")[0]
        if function and function not in seen:
            seen.add(function)
            yield function
