"""What users give, checked where it comes in: keys, names, times."""

from __future__ import annotations

from typing import Final

from dibs.errors import SettingsError

KEY_SIZE_MAX: Final = 4096
"""Bytes in UTF-8; a record holds up to two keys, a value, what it is made of and an error, within its own limit."""


def checked_key(key: object) -> str:
    """The key as text: a string as it is, anything else by its digest.  Raises SettingsError or Undigestible."""
    if isinstance(key, str):
        return checked_name(key, "key")
    from dibs.memoize import key_digest

    return key_digest(key)


def checked_name(name: object, what: str) -> str:
    """The name of a lock or of a key."""
    if not isinstance(name, str):
        raise SettingsError(f"the name of a {what} is a string, not {type(name).__name__}: {name!r:.80}")
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise SettingsError(f"the {what} {name!a:.80} has lone surrogates, which no store takes: escape it") from None
    if size_bytes > KEY_SIZE_MAX:
        raise SettingsError(
            f"the {what} {name[:40]!r}… has {size_bytes} bytes, but at most {KEY_SIZE_MAX} fit: digest it, or give "
            "what it is made of instead, as a tuple"
        )
    return name


def checked_expiry(expires_s: float | None) -> float | None:
    """Seconds until a value expires."""
    if expires_s is not None and not expires_s >= 0:
        raise SettingsError(f"expires_s = {expires_s!r}: expected a number of seconds that is not negative, or None")
    return expires_s


def checked_wait(wait_s: float | None) -> float | None:
    """Seconds to wait for other workers."""
    if wait_s is not None and not wait_s >= 0:
        raise SettingsError(f"wait_s = {wait_s!r}: expected a number of seconds that is not negative, or None")
    return wait_s
