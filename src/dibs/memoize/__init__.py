"""Functions whose calls are computed once: keys from code and arguments, and why a call missed."""

from dibs.identity import Deps
from dibs.memoize.explanation import Change, Explanation, explain
from dibs.memoize.memoized import AsyncMemoized, Decorator, Keeper, Memoized, Options, memoized
from dibs.memoize.recipe import key_digest
from dibs.memoize.shelved import Shelved
from dibs.memoize.versions import Version, Versions

__all__ = [
    "AsyncMemoized",
    "Change",
    "Decorator",
    "Deps",
    "Explanation",
    "Keeper",
    "Memoized",
    "Options",
    "Shelved",
    "Version",
    "Versions",
    "explain",
    "key_digest",
    "memoized",
]
