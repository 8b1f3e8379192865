"""Tensors and state dicts of PyTorch as safetensors files, without a copy either way.

https://github.com/huggingface/safetensors describes the format; its library reads what is written here, and the other
way round. What the format doesn't say stands in its metadata under `dibs`: the order, tensors that are one and the
same, `requires_grad`, and the type of the whole (a tensor, a dict, a state dict with its `_metadata`).
Sparse, quantized and non-CPU tensors and modules are left to a pickle; of views that overlap otherwise, each is stored
on its own, by tagged JSON.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
from typing import Any, Final

import torch

from dibs.codec import tagged
from dibs.codec.encoded import Encoded, Piece, as_piece, in_pieces, writable

_MARK: Final = "dibs"
_ALIGN: Final = 64
_NAMES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAME_OF: Final = {dtype: name for name, dtype in _NAMES.items()}
_KIND_OF: Final[dict[type, str]] = {torch.Tensor: "Tensor", torch.nn.Parameter: "Parameter"}


def encode(value: Any) -> Encoded | None:
    """The tensors in pieces; None when it isn't a tensor or a dict of tensors, or one that would come back changed."""
    about: dict[str, Any]
    if type(value) in _KIND_OF:
        named, about = {"tensor": value}, {"type": "tensor"}
    elif type(value) is dict and value:
        named, about = value, {"type": "dict"}
    elif type(value) is collections.OrderedDict:
        extras = dict(vars(value))
        metadata = extras.pop("_metadata", None)
        if extras or type(metadata) not in (type(None), collections.OrderedDict):
            return None
        metadata = None if metadata is None else list(map(list, metadata.items()))
        named, about = value, {"type": "OrderedDict", "metadata": metadata}
    else:
        return None
    if not all(type(name) is str and name != "__metadata__" and _is_sayable(item) for name, item in named.items()):
        return None
    firsts = _first_names(named)
    if firsts is None:
        return None
    objects: dict[int, str] = {}
    about["order"] = [
        [name, firsts[name], objects.setdefault(id(item), name), _KIND_OF[type(item)], item.requires_grad]
        for name, item in named.items()
    ]
    return _write({name: named[name] for name in set(firsts.values())}, about)


def decode(data: Piece) -> Any:
    view = memoryview(data)
    header, start = _read_header(view)
    metadata = header.pop("__metadata__", {})
    memory = writable(view[start:])
    tensors = {name: _tensor(name, said, memory) for name, said in header.items()}
    if _MARK not in metadata:
        return tensors  # written by somebody else
    about = tagged.decode(metadata[_MARK].encode(), _nothing)
    named: dict[str, Any] = {}
    for name, first, same, kind, requires_grad in about["order"]:
        if same != name:
            named[name] = named[same]
        elif kind == "Parameter":
            named[name] = torch.nn.Parameter(tensors[first], requires_grad)
        else:
            named[name] = (tensors[first] if first == name else tensors[first].detach()).requires_grad_(requires_grad)
    if about["type"] == "tensor":
        return named["tensor"]
    if about["type"] == "dict":
        return named
    ordered = collections.OrderedDict(named)
    if about["metadata"] is not None:
        ordered._metadata = collections.OrderedDict(map(tuple, about["metadata"]))  # type: ignore[attr-defined]
    return ordered


def _is_sayable(tensor: Any) -> bool:
    return bool(
        type(tensor) in _KIND_OF
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.dtype in _NAME_OF
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not vars(tensor)  # attributes of one's own
        and tensor.is_leaf
    )


def _first_names(named: dict[str, Any]) -> dict[str, str] | None:
    """For each name the first one of the same view of memory: a state dict makes a tensor each of tied weights.

    None when tensors share memory in another way, or repeat theirs: storing each whole would unshare it.
    """
    views: dict[Any, str] = {}
    firsts, spans = {}, []
    for name, tensor in named.items():
        view = (tensor.data_ptr() or id(tensor), tensor.dtype, tuple(tensor.shape), tensor.stride())
        firsts[name] = views.setdefault(view, name)
        if firsts[name] == name and tensor.numel():
            steps = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
            if steps + 1 < tensor.numel():
                return None
            spans.append((tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.element_size()))
    spans.sort()
    overlap = any(one[1] > other[0] for one, other in itertools.pairwise(spans))
    return None if overlap else firsts


# -- the format ----------------------------------------------------------------------------------------------------


def _write(tensors: dict[str, Any], about: dict[str, Any]) -> Encoded | None:
    said = tagged.encode(about, lambda value: None, None)
    if said is None:
        return None
    header: dict[str, Any] = {"__metadata__": {_MARK: said.joined().decode()}}
    pieces: list[Piece] = []
    end = 0
    # The widest items first, as the library does: then each tensor is aligned to its items.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        flat = tensors[name].detach().contiguous().reshape(-1)
        size = flat.numel() * flat.element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAME_OF[flat.dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
        if size:
            pieces.append(as_piece(flat.view(torch.uint8).numpy()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    return in_pieces("safetensors", [len(text).to_bytes(8, "little") + text, *pieces])


def _read_header(view: memoryview) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or size > len(view) - 8:
        raise ValueError(f"a header of {size} bytes is announced in {len(view)} bytes")
    header = json.loads(str(view[8 : 8 + size], "utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + size


def _tensor(name: str, said: Any, memory: memoryview) -> Any:
    dtype, shape, (start, end) = _NAMES[said["dtype"]], said["shape"], said["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"{name!r} has a negative size")
    count = math.prod(shape)
    if not start <= end <= len(memory) or end - start != count * dtype.itemsize:
        raise ValueError(f"{name!r} of shape {shape} is said to lie at {start} to {end} of {len(memory)} bytes")
    if not count:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(memory, dtype=torch.uint8, count=end - start, offset=start)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).reshape(shape)


def _nothing(codec: str, data: memoryview) -> Any:
    raise ValueError("nothing is attached to a description of tensors")
