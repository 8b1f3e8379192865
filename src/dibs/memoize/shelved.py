"""A small reference to a value that stays in its store until somebody needs it."""

from __future__ import annotations

from typing import Any, Final, Generic, Protocol, TypeVar

T = TypeVar("T")

_MISSING: Final[Any] = object()


class Gets(Protocol):
    """What a reference asks of its cache."""

    def get(self, key: str, default: Any = None) -> Any: ...


class Shelved(Generic[T]):
    """The value of a key, not loaded yet; can be pickled and sent to other workers of the same store."""

    __slots__ = ("_cache", "_carried", "key")

    def __init__(self, cache: Gets, key: str, carried: tuple[T] | tuple[()] = ()) -> None:
        """`carried`: the value itself, when the store has not kept it: switched off, read only, or away."""
        self._cache = cache
        self.key = key
        self._carried = carried

    def get(self) -> T:
        """Load the value, as it is now.  Raises LookupError when it was forgotten or has expired since."""
        if self._carried:
            return self._carried[0]
        value = self._cache.get(self.key, _MISSING)
        if value is _MISSING:
            raise LookupError(f"the shelved value of {self.key} is gone (forgotten, swept, expired): compute it again")
        return value  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shelved) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __dibs_key__(self) -> str:
        return self.key  # as an argument it stands for its value, without loading it

    def __getstate__(self) -> tuple[Gets, str, tuple[T] | tuple[()]]:
        return self._cache, self.key, self._carried

    def __setstate__(self, state: tuple[Gets, str, tuple[T] | tuple[()]]) -> None:
        self._cache, self.key, self._carried = state

    def __repr__(self) -> str:
        return f"<shelved {self.key}>"
