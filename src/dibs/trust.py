"""Whom a cache believes: whether pickles may be loaded from its store, and with what entries are signed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dibs.codec import Codec, check_known
from dibs.settings import Settings
from dibs.store import Backend

if TYPE_CHECKING:
    from dibs.signing import Signer


def codec_for(store: Backend, settings: Settings) -> Codec:
    """The codec by which values of this store are written and read."""
    check_known(settings.codec, f"codec = {settings.codec!r}")
    return Codec(_why_no_pickle(store, settings), prefer=settings.codec)


def signer_for(settings: Settings) -> Signer | None:
    """What signs and checks entries; None without a secret."""
    if settings.secret is None:
        return None
    from dibs.signing import Signer

    return Signer(settings.secret.values)


def _why_no_pickle(store: Backend, settings: Settings) -> str | None:
    """Why pickles may not be stored or loaded here, or None when they may."""
    trusted = getattr(store, "private", False) or settings.secret is not None
    if settings.allow_pickle is True or (settings.allow_pickle is None and trusted):
        return None
    if settings.allow_pickle is False:
        return "allow_pickle is False"
    return (
        f"others can write to {store.url}: whoever loads a pickle runs what it says. Open the cache with a secret, "
        "or with allow_pickle=True if you trust everybody who can write there, or return bytes, str, plain values, "
        "arrays or tables"
    )
