"""Signed entries: whoever has the secret can tell an entry of the fleet from one that somebody else wrote.

A signature is HMAC-SHA256 over everything that decides what a reader would load, and where: so an entry that is
moved to another key, epoch or store, or whose bytes, codec or expiry were changed, is refused before it is decoded.
The encoding of the fields is unambiguous (each is written with its kind and its length, so that no two entries
are ever signed as the same bytes) and begins with its purpose, so that no other use of the secret makes a signature.

What signing can't see: that the whole record of one key was put back to what it once was, for every signature of
that time was right.  `docs/security.md` has the whole of it.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final, NamedTuple, NoReturn

from dibs.errors import SettingsError

SECRET_SIZE_MIN: Final = 16
"""Bytes; shorter ones could be found by trying, from any signature."""

_VERSION: Final = "1"
_PURPOSE: Final = b"dibs entry 1\0"
_KEY_PURPOSE: Final = b"dibs signing key 1\0"
_ID_PURPOSE: Final = b"dibs key id 1\0"
_ID_LENGTH: Final = 8
_MAC_LENGTH: Final = 64


class Entry(NamedTuple):
    """What is signed: all that a reader goes by when it loads a value."""

    store_id: str
    name: str
    """Of the record; it stands for the key."""
    epoch: int
    claim: str
    codec: str
    blob: str | None
    """None for a value that stands in the record."""
    size_bytes: int
    digest: str
    expires_s: float | None
    ingredients: str | None
    """Digest of the ingredients."""


class _Key(NamedTuple):
    id: str
    """8 hex digits that tell this secret from others, and nothing about it."""
    key: bytes


class Signer:
    """Signs with the newest secret and accepts any of them.

    `secrets`: newest first, each of at least `SECRET_SIZE_MIN` bytes; to change the secret, put the new one in front
    everywhere, and take the old one away when its entries are gone.
    Raises SettingsError when there is none, or one is too short.
    """

    __slots__ = ("_keys",)

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        if not secrets:
            raise SettingsError("secret: there is none; give at least one, or leave the setting out")
        for number, secret in enumerate(secrets, 1):
            if len(secret) < SECRET_SIZE_MIN:
                raise SettingsError(
                    f"secret: number {number} has {len(secret)} bytes, and at least {SECRET_SIZE_MIN} are needed; "
                    'make one by: python -c "import secrets; print(secrets.token_hex(32))"'
                )
        self._keys = tuple(
            _Key(_mac(secret, _ID_PURPOSE).hex()[:_ID_LENGTH], _mac(secret, _KEY_PURPOSE)) for secret in secrets
        )

    @property
    def ids(self) -> tuple[str, ...]:
        """A name for each secret, newest first, that says nothing about it."""
        return tuple(key.id for key in self._keys)

    def sign(self, entry: Entry) -> str:
        """The signature of `entry` by the newest secret: version, id of the secret and code, in 75 characters."""
        newest, message = self._keys[0], encoded(entry)
        assert message is not None, entry
        return f"{_VERSION}:{newest.id}:{_code(newest.key, message)}"

    def check(self, entry: Entry, signature: str | None) -> bool:
        """True when `signature` is that of this very entry by one of the secrets."""
        return self.refusal(entry, signature) is None

    def refusal(self, entry: Entry, signature: str | None) -> str | None:
        """Why `entry` may not be read, and what to do about it; None when it may."""
        if signature is None:
            return "it is not signed: whoever wrote it had no secret. Give that worker the secret too"
        version, id_, code = _parsed(signature)
        if version != _VERSION:
            return f"its signature is of a kind that this version of dibs doesn't know ({version[:8]!a}): upgrade dibs"
        if len(id_) != _ID_LENGTH or len(code) != _MAC_LENGTH:
            return "its signature is cut or malformed. Somebody else than the fleet has written there"
        known = [key for key in self._keys if key.id == id_]
        if not known:
            return (
                f"it is signed with another secret (id {id_!a}) than those that are known here "
                f"(id {', '.join(self.ids)}). If that one is the fleet's too, old or new, give it here as well"
            )
        message = encoded(entry)
        if message is not None and any(_same(_code(key.key, message), code) for key in known):
            return None
        return (
            "its signature is not that of this entry: its bytes, codec, expiry or place were changed. "
            "Find out who else can write there"
        )

    def __repr__(self) -> str:
        return f"<Signer with {len(self._keys)} secret(s), newest of id {self._keys[0].id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Signer holds secrets and can't be pickled or copied: give the secret to each process")


def _parsed(signature: str) -> tuple[str, str, str]:
    """Version, id and code; empty texts for what isn't there."""
    parts = signature.split(":") if isinstance(signature, str) else []
    if len(parts) != 3 or not all(part.isascii() for part in parts):
        return (parts[0] if parts and parts[0] == _VERSION else _VERSION), "", ""
    return parts[0], parts[1], parts[2]


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _code(key: bytes, message: bytes) -> str:
    return _mac(key, message).hex()


def _same(code: str, other: str) -> bool:
    # Constant in time, so that nobody can feel his way to a right code.
    return hmac.compare_digest(code.encode(), other.encode())


def encoded(entry: Entry) -> bytes | None:
    """The bytes that are signed: the purpose, then each field with its kind, its length and its content.

    None for what no worker writes: a record of somebody else's may hold anything in the place of a field.
    """
    parts = [_PURPOSE]
    for field in entry:
        kind: object = type(field)
        if field is None:
            mark, content = b"n", b""
        elif kind is str:
            mark, content = b"s", str(field).encode("utf-8", "surrogatepass")
        elif kind is float:
            mark, content = b"f", struct.pack(">d", field)
        elif kind is int:
            mark, content = b"i", str(field).encode()
        else:
            return None
        parts += (mark, len(content).to_bytes(8, "big"), content)
    return b"".join(parts)
