"""Keys are any text; record names are plain.  Short keys stay readable, long ones end in a digest."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from blake3 import blake3

KEYS: Final = "keys"
LOCKS: Final = "locks"
FUNCTIONS: Final = "functions"
"""The code versions of memoized functions."""
_LENGTH_MAX: Final = 150
_READABLE: Final = 60


@lru_cache(maxsize=4096)
def record_name(space: str, key: str) -> str:
    """The name of the record of `key` in that space; different keys have different names.

    A key is split at its last slash, so that all keys of one family ("family/...") can be listed.
    """
    family, slash, last = key.rpartition("/")
    return f"{space}/{_segment(family)}/{_segment(last)}" if slash else f"{space}/{_segment(last)}"


def family_prefix(space: str, family: str) -> str:
    """What the names of all records of that family begin with."""
    return f"{space}/{_segment(family)}/"


def _segment(text: str) -> str:
    from urllib.parse import quote  # 3 ms that not every import of dibs should pay

    # quote() leaves "~" alone; escaped, it can mark the digest without ambiguity.
    escaped = quote(text, safe="=,+@", errors="surrogatepass").replace("~", "%7E") or "%"
    if escaped in (".", ".."):
        escaped = escaped.replace(".", "%2E")
    if len(escaped) > _LENGTH_MAX:
        digest = blake3(text.encode("utf-8", "surrogatepass")).hexdigest(16)
        escaped = f"{escaped[:_READABLE]}~{digest}"
    return escaped


def key_of(name: str) -> str | None:
    """The key whose record has this name; None when only the record itself can tell (a long key)."""
    segments = name.split("/")[1:]
    if any("~" in segment for segment in segments):
        return None
    from urllib.parse import unquote

    return "/".join("" if part == "%" else unquote(part, errors="surrogatepass") for part in segments)


def last_of(name: str) -> str | None:
    """What follows the last slash of the key of this record; None when only the record itself can tell."""
    return key_of(f"/{name.rpartition('/')[2]}")


def blob_name(name: str, epoch: int, claim: str) -> str:
    """The name of the blob that holds what `claim` computed for `epoch`; never used twice."""
    return f"values/{name}/{epoch}-{claim}"


def address(space: str, key: str) -> str:
    """What a waiting holder writes in its record to say what it waits for."""
    return f"{space}/{key}"


def from_address(address: str) -> tuple[str, str]:
    """The space and the key that `address` was made of."""
    space, _, key = address.partition("/")
    return space, key
