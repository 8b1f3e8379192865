"""Digests of values: equal values have equal digests, in every process and on every machine, and others have others.

The encoding is specified in docs/digest.md, version 1: blake3 over type tags and payloads of known length.  Content
decides, never `repr`, an address, the hash seed, the order of a dict or set, or who shares what with whom.  What has
no stable content is refused with `Undigestible`, which names the argument, the path inside it and the remedies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blake3 import blake3

from dibs.digest.files import File
from dibs.digest.hashing import number, text
from dibs.digest.kinds import register_digest
from dibs.digest.naming import module_name
from dibs.digest.preview import preview
from dibs.digest.refusal import Refused, undigestible
from dibs.digest.walk import SCALARS, CodeOf, Walk

__all__ = [
    "DIGEST_VERSION",
    "CodeOf",
    "File",
    "digest_of",
    "digest_of_call",
    "module_name",
    "preview",
    "register_digest",
]

DIGEST_VERSION: Final = 1

_VALUE: Final = b"dibs digest 1 value\0"
_CALL: Final = b"dibs digest 1 call\0"
_SIZE: Final = 20
_NAMES_MAX: Final = 4096
_names: Final[dict[str, bytes]] = {}


def digest_of(value: object, where: str = "value", *, code_of: CodeOf | None = None) -> str:
    """Return the digest of `value`: 40 hexadecimal digits, 160 bits of blake3 over its canonical encoding.

    `where` names the value in the error.  `code_of` returns the digest of the code of a function or class, or None if
    its code doesn't count; without it functions and classes of one's own are refused.
    Raises Undigestible for what has no stable content.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    >>> digest_of(1) == digest_of(1.0)
    False
    """
    return blake3(_VALUE + _encoded(value, where, Walk(code_of))).hexdigest(_SIZE)


def digest_of_call(
    prefix: bytes,
    values: Sequence[tuple[str, object]],
    *,
    code_of: CodeOf | None = None,
    met: dict[type, None] | None = None,
) -> str:
    """Return the digest of named values, in the order given, under `prefix`: 40 hexadecimal digits.

    `met` collects the classes of one's own whose instances are among the values: their code is for the caller to add.
    Raises Undigestible, which names the value.
    """
    pieces = [_CALL, number(len(prefix)), prefix, number(len(values))]
    append = pieces.append
    walk = None
    for name, value in values:
        append(_names.get(name) or _name(name))
        scalar = SCALARS.get(type(value))
        if scalar is not None:
            append(scalar(value))
        else:
            if walk is None:
                walk = Walk(code_of, met)
            append(_encoded(value, name, walk))
    return blake3(b"".join(pieces)).hexdigest(_SIZE)


def _name(name: str) -> bytes:
    encoded = text(name)
    if len(_names) < _NAMES_MAX:
        _names[name] = encoded
    return encoded


def _encoded(value: object, where: str, walk: Walk) -> bytes:
    try:
        return walk.encode(value)
    except Refused as refused:
        raise undigestible(where, refused) from refused.__cause__
    except RecursionError:
        too_deep = Refused(
            value,
            "it is nested too deep for Python's recursion limit",
            "pass it flat, or raise the limit with sys.setrecursionlimit",
        )
    raise undigestible(where, too_deep)
