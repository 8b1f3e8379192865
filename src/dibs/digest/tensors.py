"""PyTorch's tensors by dtype, shape and content, wherever they live; modules by class, parameters and settings."""

from __future__ import annotations

from typing import Any, Final

import numpy
import torch

from dibs.digest import objects
from dibs.digest.arrays import content
from dibs.digest.naming import full_name, is_own
from dibs.digest.refusal import Refused
from dibs.digest.walk import SCALARS, Encoder, Walk

_str = SCALARS[str]
_UNSIGNED: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SPARSE: Final = {torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def find(kind: type, value: Any) -> Encoder | None:
    if kind is torch.Tensor:
        return _tensor
    if issubclass(kind, torch.Tensor):
        return objects.with_attributes(kind, _tensor)
    if issubclass(kind, torch.nn.Module):
        return _module
    if issubclass(kind, torch.Size):
        return lambda value, walk: walk.known(b"torch.Size", b"t" + walk.sequence(tuple(value)))
    if issubclass(kind, torch.dtype | torch.layout | torch.memory_format | torch.device):
        return lambda value, walk: walk.known(b"torch.attribute", _str(str(value)))
    if issubclass(kind, torch.Generator):
        return lambda value, walk: walk.known(b"torch.Generator", _tensor(value.get_state(), walk))
    return None


def _tensor(value: Any, walk: Walk) -> bytes:
    """Device, strides and requires_grad don't count."""
    plain = value.detach()
    if plain.is_meta:
        raise Refused(value, "a meta tensor has no content")
    if plain.is_nested or plain.is_quantized:
        raise Refused(value, "nested and quantized tensors aren't supported", "pass the tensors that it is made of")
    if plain.layout is torch.sparse_coo:
        plain = plain.coalesce()
        return _sparse(plain, (plain.indices(), plain.values()), walk)
    if plain.layout in _SPARSE:
        by_row = plain.layout in (torch.sparse_csr, torch.sparse_bsr)
        compressed = plain.crow_indices() if by_row else plain.ccol_indices()
        inner = plain.col_indices() if by_row else plain.row_indices()
        return _sparse(plain, (compressed, inner, plain.values()), walk)
    if plain.layout is not torch.strided:
        raise Refused(value, f"nothing is known of the layout {plain.layout}", "pass it dense, with to_dense()")
    shape = b"t" + walk.sequence(tuple(plain.shape))
    return walk.known(b"torch.Tensor", _str(str(plain.dtype)), shape, _content(plain))


def _sparse(value: Any, tensors: tuple[Any, ...], walk: Walk) -> bytes:
    shape = b"t" + walk.sequence(tuple(value.shape))
    return walk.known(b"torch.sparse", _str(str(value.layout)), shape, *(_tensor(part, walk) for part in tensors))


def _content(plain: Any) -> bytes:
    plain = plain.cpu().resolve_conj().resolve_neg()
    try:
        array = plain.numpy()
    except TypeError:  # bfloat16, float8: NumPy has no name for them, but their bits are bits
        size_bytes = plain.element_size()
        if plain.dtype is torch.bfloat16:
            strange = plain != plain
            plain = torch.where(strange, torch.full_like(plain, torch.nan), plain) if strange.any() else plain
        array = plain.contiguous().view(_UNSIGNED[size_bytes]).numpy()
    return content(numpy.asarray(array))


def _module(value: Any, walk: Walk) -> bytes:
    """Class, parameters, buffers and submodules, in their order; training mode, and every attribute of one's own.

    What each module has and this one doesn't use (hooks, mostly) is left out: it differs from version to version.
    """
    kind = type(value)
    if walk.met is not None and is_own(kind):
        walk.met[kind] = None
    state = value.__getstate__() if hasattr(kind, "__getstate__") else vars(value)
    if not isinstance(state, dict):
        raise Refused(value, "its __getstate__ returns no dict", "pass its state_dict()")
    state = dict(state)
    common = vars(torch.nn.Module())
    order = tuple(state.pop("_modules", {}))
    submodules = vars(value).get("_modules", {})
    for name, unused in common.items():
        if name not in ("training", "_parameters", "_buffers") and _same(state.get(name), unused):
            state.pop(name, None)
    parts = [
        b"t" + walk.sequence(order),
        b"l" + _named(submodules, walk),
        b"d" + walk.mapping(state, ".{}".format),
    ]
    return walk.known(b"torch.Module", _str(full_name(kind)), *parts)


def _named(submodules: Any, walk: Walk) -> bytes:
    try:
        return walk.sequence(list(submodules.values()))
    except Refused as refused:
        index = int(refused.path.pop()[1:-1])
        raise refused.within(f".{list(submodules)[index]}") from refused.__cause__


def _same(value: Any, unused: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is unused
    return isinstance(value, dict | set | list) and not value and not unused
