"""Names that were looked up and what they meant, so that whether anything changed is asked in a moment."""

from __future__ import annotations

import enum
import functools
import operator
import pathlib
import types
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any, Final

from dibs.digest import digest_of
from dibs.errors import Undigestible

MISSING: Final[Any] = object()
_PLAIN: Final = (int, float, str, bytes, bool, complex, type(None), type(...), range)
_FROZEN: Final = frozenset(
    f"datetime.{name}" for name in ("date", "time", "datetime", "timedelta", "timezone")
) | {"decimal.Decimal", "fractions.Fraction", "uuid.UUID", "re.Pattern"}
_MEMBERS_MAX: Final = 256


class Watch:
    """Everything that a digest of code depends on."""

    def __init__(self) -> None:
        self._find: list[Callable[[str, Any], Any]] = []
        self._names: list[str] = []
        self._meant: list[Any] = []
        self._changeable: dict[str, tuple[Any, str]] = {}

    def name(self, find: Callable[[str, Any], Any], name: str, meant: Any) -> None:
        """`find(name, default)` returned `meant`; kept alive here, so that no other object gets its address."""
        self._find.append(find)
        self._names.append(name)
        self._meant.append(meant)

    def attribute(self, thing: Any, name: str) -> None:
        find = functools.partial(getattr, thing)
        self.name(find, name, find(name, MISSING))

    def cell(self, cell: types.CellType) -> Any:
        """The value of a variable of an enclosing function; MISSING while it has none."""
        try:
            value = cell.cell_contents
        except ValueError:
            self.name(_find_in_empty(cell), "", MISSING)
            return MISSING
        self.name(functools.partial(getattr, cell), "cell_contents", value)
        return value

    def size(self, members: Mapping[str, Any]) -> None:
        """Members may be added."""

        def find(name: str, default: Any) -> int:
            return min(len(members), _MEMBERS_MAX)  # small integers are always the same object

        self.name(find, "", find("", None))

    def content(self, label: str, value: Any) -> None:
        """A constant that may change in place."""
        if not is_frozen(value):
            self._changeable[label] = value, _short_digest(label, value)

    def forget_content(self, label: str) -> None:
        self._changeable.pop(label, None)

    def unchanged(self) -> bool:
        """True while every name means what it meant, and no constant has changed."""
        try:
            # All of it in C: this is asked at every call of a memoized function.
            found = map(operator.call, self._find, self._names, repeat(MISSING))
            if not all(map(operator.is_, found, self._meant)):
                return False
        except ValueError:  # a cell that was emptied
            return False
        return all(_short_digest(label, value) == digest for label, (value, digest) in self._changeable.items())


def _find_in_empty(cell: types.CellType) -> Callable[[str, Any], Any]:
    def find(name: str, default: Any) -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return default

    return find


def _short_digest(label: str, value: Any) -> str:
    try:
        return digest_of(value, label, code_of=_address)
    except Undigestible:
        return ""


def _address(thing: Any) -> str:
    """For comparisons within this process."""
    return str(id(thing))


def is_frozen(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN or isinstance(value, enum.Enum | pathlib.PurePath):
        return True
    if f"{kind.__module__}.{kind.__qualname__}" in _FROZEN:
        return True
    return kind in (tuple, frozenset) and all(map(is_frozen, value))
