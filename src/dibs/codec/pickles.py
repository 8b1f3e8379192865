"""Everything else as a pickle (cloudpickle, protocol 5), with large buffers beside the stream and not in it.

Without such buffers the bytes are a plain pickle; with them a container: the stream, then the buffers, aligned, so
that arrays inside the value can lie in a mapped file.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

from dibs.codec.container import MAGIC, pack, unpack
from dibs.codec.encoded import Encoded, Piece, in_pieces, module_root, whole, writable

_TRIED_BYTES_MAX: Final = 1 << 20
_SHAPED: Final = ("numpy", "pandas", "polars", "pyarrow", "scipy", "torch")
_BESIDE_BYTES_MIN: Final = 4096


def encode(value: Any) -> Encoded:
    """The pickle of the value; raises what pickling raises, or TypeError when the pickle gives back something else."""
    import cloudpickle

    buffers: list[memoryview] = []

    def beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if len(raw) < _BESIDE_BYTES_MIN:
            return True  # in the stream: the padding would cost more than the copy
        buffers.append(raw)
        return False

    stream = cloudpickle.dumps(value, protocol=5, buffer_callback=beside)
    if len(stream) <= _TRIED_BYTES_MAX:
        _try(stream, buffers, value)
    if not buffers:
        return whole("pickle", stream)
    return pack("pickle", [whole("", stream), *(in_pieces("", (buffer,)) for buffer in buffers)])


def decode(data: Piece) -> Any:
    """Load a pickle: whoever calls this trusts its writer."""
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        return pickle.loads(view)
    stream, *buffers = unpack(writable(view))
    return pickle.loads(stream, buffers=buffers)


def _try(stream: bytes, buffers: list[memoryview], value: Any) -> None:
    """Some classes can be pickled and not loaded, or come back as something else: better to hear of it now."""
    loaded = pickle.loads(stream, buffers=buffers)
    if type(loaded) is not type(value):
        kind = type(loaded)
        raise TypeError(f"its pickle gives back a {kind.__module__}.{kind.__qualname__}")
    if module_root(type(value)) in _SHAPED and getattr(loaded, "shape", None) != getattr(value, "shape", None):
        raise ValueError(f"its pickle gives back something of shape {loaded.shape}")  # rows without columns, of Arrow
