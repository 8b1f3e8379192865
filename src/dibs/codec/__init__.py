"""Values to bytes and back, by type; the name of the codec stands in the entry.

`bytes`, `str`, `json` and `tagged-json` (standard values), `npy` (numpy arrays), `arrow` (tables of pandas, Polars and
Arrow), `safetensors` (tensors and state dicts of PyTorch), codecs of one's own, and `pickle` for everything else.
Only pickles (and codecs registered as unsafe) execute code when they are read, so they are taken only from places that
are trusted. A name without a number is the first version of a layout; a second one would be called `npy.2`.

A value comes back equal and of exactly the same type, or storing it is an error: each codec takes only what it is known
to give back, and leaves the rest to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dibs.codec import compression, registry
from dibs.codec.encoded import Encoded, Hasher, Piece, digest, module_root
from dibs.codec.plain import (
    decode_json,
    decode_str,
    encode_bytearray,
    encode_bytes,
    encode_json,
    encode_str,
)
from dibs.codec.registry import register_codec
from dibs.errors import CodecError, SettingsError

__all__ = ["Codec", "Encoded", "Hasher", "Piece", "check_known", "digest", "register_codec"]

_TAGS_MAX: Final = 10_000
"""So many tags, and a pickle is clearly faster; where pickles are refused, tags it is."""

_SUFFIX: Final = compression.SUFFIX


class Codec:
    """Encodes and decodes the values of one cache.

    Args:
        pickle_refused: why pickles may not be used here, or None.
        zstd: compress what gains by it.
        prefer: "auto", or the name of the one codec to use; with "+zstd" behind it, compressed where that gains.
    """

    def __init__(self, pickle_refused: str | None, zstd: bool = False, prefer: str = "auto") -> None:
        self._pickle_refused = pickle_refused
        self._prefer = prefer.removesuffix(_SUFFIX)
        self._zstd = zstd or prefer.endswith(_SUFFIX)
        if self._zstd:
            compression.zstd()  # where it is missing, say so before anything is computed

    def encode(self, value: Any, codec: str | None = None) -> Encoded:
        """Return the value as bytes; raises CodecError, which carries the value, when that can't be done.

        A `codec` that is given replaces the preferred one, and says by "+zstd" whether to compress.
        """
        name, zstd = self._prefer, self._zstd
        if codec is not None:
            name, zstd = codec.removesuffix(_SUFFIX), codec.endswith(_SUFFIX)
        try:
            encoded = self._automatic(value) if name == "auto" else self._forced(name, value)
            return compression.compressed(encoded, value) if zstd else encoded
        except CodecError as error:
            error.value = value
            raise
        except Exception as error:
            raise CodecError(f"{_a(value)} can't be stored: {type(error).__name__}: {error}", value) from error

    def decode(self, codec: str, data: Piece) -> Any:
        """The inverse of encode.  `data` has been checked against its digest.

        The value owns its memory: of a writable view, which nobody else may use any more, large arrays are part.
        """
        simple = _SIMPLE.get(codec)
        try:
            if simple is not None:
                return simple(data)
            if codec.endswith(_SUFFIX):
                return self.decode(codec.removesuffix(_SUFFIX), compression.decompressed(data))
            return self._decoded(codec, data)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(
                f"the stored value ({codec}, {len(data)} bytes, as it was written) can't be loaded here: "
                f"{type(error).__name__}: {error}. Is a module or a class missing that it needs?"
            ) from error

    def _automatic(self, value: Any) -> Encoded:
        kind = type(value)
        simple = _WRITERS.get(kind)
        if simple is not None:
            encoded = simple(value)
            if encoded is not None:
                return encoded
        encoded = self._registered(value) or _leaf(value)
        if encoded is None:
            encoded = _tagged(value, _TAGS_MAX if self._pickle_refused is None else None)
        return encoded if encoded is not None else self._pickled(value)

    def _registered(self, value: Any) -> Encoded | None:
        own = registry.by_kind.get(type(value))
        if own is None:
            return None
        if not own.safe:
            self._refuse_unsafe(f"{_a(value)} is stored by the codec {own.name!r}, which isn't safe")
        return own.encoded(value)

    def _forced(self, name: str, value: Any) -> Encoded:
        if name == "pickle":
            return self._pickled(value)
        own = registry.by_name.get(name)
        encoded = None
        if own is not None and type(value) is own.kind:
            if not own.safe:
                self._refuse_unsafe(f"the codec {name!r} isn't safe")
            encoded = own.encoded(value)
        elif name in _FORCED:
            encoded = _FORCED[name](value)
        elif own is None:
            raise CodecError(f"no codec {name!r} is known: register it with dibs.register_codec, or use 'auto'")
        if encoded is None:
            raise CodecError(f"{_a(value)} can't be stored as {name!r} and come back as it is; use codec='auto'")
        return encoded

    def _pickled(self, value: Any) -> Encoded:
        self._refuse_unsafe(f"{_a(value)} can only be stored as a pickle")
        from dibs.codec import pickles

        try:
            return pickles.encode(value)
        except Exception as error:
            raise CodecError(
                f"{_a(value)} can't be pickled: {error}. "
                "Return what it was made from, or something made of plain values and arrays",
                value,
            ) from error

    def _refuse_unsafe(self, what: str) -> None:
        if self._pickle_refused is not None:
            raise CodecError(f"{what}, and {self._pickle_refused}")

    def _decoded(self, codec: str, data: Piece) -> Any:
        if codec == "pickle":
            self._refuse_unsafe("the stored value is a pickle")
            from dibs.codec import pickles

            return pickles.decode(data)
        own = registry.by_name.get(codec)
        if own is not None and not own.safe:
            self._refuse_unsafe(f"the stored value is of the codec {codec!r}, which isn't safe")
            return own.decoded(data)
        return _decode_tagged(data) if codec == "tagged-json" else _decode_safe(codec, data)


# -- the codecs that never execute code ------------------------------------------------------------------------------


def _leaf(value: Any) -> Encoded | None:
    """Arrays, tables and tensors: recognised by the package that defines the type, so nothing is imported to ask."""
    root = module_root(type(value))
    if root == "numpy":
        return _npy(value)
    if root in ("pandas", "polars", "pyarrow"):
        return _arrow(value)
    if root == "torch" or _holds_tensors(value):
        return _safetensors(value)
    return None


def _safe_leaf(value: Any) -> Encoded | None:
    """What may be attached to tagged JSON: anything but dicts of tensors, which it can hold one by one."""
    own = registry.by_kind.get(type(value))
    if own is not None:
        return own.encoded(value) if own.safe else None
    return _leaf(value)


def _holds_tensors(value: Any) -> bool:
    if type(value) is not dict and type(value).__qualname__ != "OrderedDict":
        return False
    return bool(value) and all(module_root(type(item)) == "torch" for item in value.values())


def _npy(value: Any) -> Encoded | None:
    from dibs.codec import npy

    return npy.encode(value)


def _arrow(value: Any) -> Encoded | None:
    try:
        from dibs.codec import arrow
    except ImportError:
        return None  # pandas alone, without pyarrow: a pickle keeps it just as exactly
    return arrow.encode(value)


def _safetensors(value: Any) -> Encoded | None:
    from dibs.codec import tensors

    return tensors.encode(value)


def _tagged(value: Any, tags_max: int | None = None) -> Encoded | None:
    from dibs.codec import tagged

    return tagged.encode(value, _safe_leaf, tags_max)


def _decode_tagged(data: Piece) -> Any:
    from dibs.codec import tagged

    return tagged.decode(data, _decode_safe)


def _decode_safe(codec: str, data: Piece) -> Any:
    """Decode what never executes code, whoever wrote it."""
    own = registry.by_name.get(codec)
    if own is not None and own.safe:
        return own.decoded(data)
    if codec == "npy":
        from dibs.codec import npy

        return npy.decode(data)
    if codec == "arrow":
        from dibs.codec import arrow

        return arrow.decode(data)
    if codec == "safetensors":
        from dibs.codec import tensors

        return tensors.decode(data)
    if codec in _SIMPLE:
        return _SIMPLE[codec](data)
    raise CodecError(
        f"the stored value has the codec {codec!r}, which isn't known here: import the module that registers it "
        "(dibs.register_codec), or use the version of dibs that wrote it"
    )


def _a(value: Any) -> str:
    kind = type(value)
    return f"a value of type {kind.__module__}.{kind.__qualname__}"


def _only(kind: type, encode: Callable[[Any], Encoded | None]) -> Callable[[Any], Encoded | None]:
    return lambda value: encode(value) if type(value) is kind else None


_SIMPLE: Final[dict[str, Callable[[Piece], Any]]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "str": decode_str,
    "json": decode_json,
}

_WRITERS: Final[dict[type, Callable[[Any], Encoded | None]]] = {
    bytes: encode_bytes,
    bytearray: encode_bytearray,
    str: encode_str,
    **dict.fromkeys((type(None), bool, int, float, list, dict), encode_json),
}

_FORCED: Final[dict[str, Callable[[Any], Encoded | None]]] = {
    "bytes": _only(bytes, encode_bytes),
    "bytearray": _only(bytearray, encode_bytearray),
    "str": _only(str, encode_str),
    "json": lambda value: encode_json(value) or _tagged(value),
    "tagged-json": _tagged,
    "npy": lambda value: _npy(value) if module_root(type(value)) == "numpy" else None,
    "arrow": lambda value: _leaf(value) if module_root(type(value)) in ("pandas", "polars", "pyarrow") else None,
    "safetensors": lambda value: _leaf(value) if module_root(type(value)) == "torch" or _holds_tensors(value) else None,
}


def check_known(name: str, where: str) -> None:
    """Raise SettingsError when there is no codec of that name: before anything is computed that it can't store."""
    plain = name.removesuffix(_SUFFIX)
    if plain not in ("auto", "pickle") and plain not in _FORCED and plain not in registry.by_name:
        known = ", ".join(sorted({"auto", "pickle", *_FORCED, *registry.by_name}))
        raise SettingsError(
            f"{where}: there is no codec {name!r}; known are {known}, each also with '+zstd'. "
            "Register one of your own before, with dibs.register_codec"
        )
