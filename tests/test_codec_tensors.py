"""Tensors and state dicts of PyTorch come back the same, as safetensors files that others can read."""

from __future__ import annotations

import collections
import importlib.util
import json
import os
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from bench.sameness import same
from dibs.codec import Codec, Encoded
from dibs.errors import CodecError

if importlib.util.find_spec("torch") is None and os.environ.get("CI") != "true":
    pytest.skip("torch is not installed", allow_module_level=True)

import torch

CODEC = Codec(None)
REFUSING = Codec("pickles are refused here")


def there_and_back(value: Any, codec: Codec = REFUSING) -> tuple[Encoded, Any]:
    encoded = codec.encode(value)
    assert len(encoded.joined()) == encoded.size_bytes
    return encoded, codec.decode(encoded.codec, memoryview(bytearray(encoded.joined())))


def model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))


EXACT: dict[str, Callable[[], Any]] = {
    **{str(dtype): lambda dtype=dtype: torch.tensor([0, 1, 1]).to(dtype) for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)},
    "no dimension": lambda: torch.tensor(3.5), "empty": lambda: torch.empty(0, 3),
    "nan": lambda: torch.tensor([torch.nan, -0.0]),
    "transposed": lambda: torch.arange(6).reshape(2, 3).T, "strided": lambda: torch.arange(10)[::3],
    "part of a large one": lambda: torch.arange(10_000)[5:7], "channels last": lambda: torch.randn(1, 2, 3, 4).to(
        memory_format=torch.channels_last),
    "requires grad": lambda: torch.ones(2, requires_grad=True), "parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "frozen parameter": lambda: torch.nn.Parameter(torch.ones(2), requires_grad=False),
    "dict": lambda: {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.int8), "": torch.empty(0)},
    "dict of mixed": lambda: {"p": torch.nn.Parameter(torch.ones(2)), "t": torch.ones(2)},
    "state dict": lambda: model().state_dict(), "ordered dict": lambda: collections.OrderedDict(a=torch.ones(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_tensors_come_back_the_same_without_a_pickle(name: str) -> None:
    value = EXACT[name]()
    encoded, loaded = there_and_back(value)
    assert encoded.codec == "safetensors"
    assert same(loaded, value)


def test_a_part_of_a_large_tensor_is_stored_alone() -> None:
    assert CODEC.encode(torch.arange(100_000)[5:7]).size_bytes < 400


def test_the_order_of_a_dict_and_the_versions_in_a_state_dict_are_kept() -> None:
    state = model().state_dict()
    _, loaded = there_and_back(state)
    assert list(loaded) == list(state) and loaded._metadata == state._metadata
    assert type(loaded._metadata) is collections.OrderedDict
    model().load_state_dict(loaded)


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    tied = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 100))
    tied[1].weight = tied[0].weight
    for state in (tied.state_dict(), dict(tied.named_parameters(remove_duplicate=False))):
        encoded, loaded = there_and_back(state)
        assert encoded.size_bytes < 45_000
        loaded["0.weight"].data[0, 0] = 7
        assert loaded["1.weight"][0, 0] == 7
        assert (loaded["0.weight"] is loaded["1.weight"]) == (state["0.weight"] is state["1.weight"])


def test_a_checkpoint_keeps_the_state_dicts_inside_it_as_they_are() -> None:
    state = model().state_dict()
    value = {"model": state, "epoch": 3, "plain": {"w": torch.ones(2)}, "history": [(1, 0.5)]}
    encoded, loaded = there_and_back(value)
    assert encoded.codec == "tagged-json"
    assert same(loaded, value) and loaded["model"]._metadata == state._metadata


def test_views_that_overlap_come_back_equal() -> None:
    base = torch.arange(6.0)
    value = {"a": base[:4], "b": base[2:]}
    _, loaded = there_and_back(value)
    assert same(loaded, value)


OTHERS: dict[str, Callable[[], Any]] = {
    "module": lambda: torch.nn.Linear(2, 2),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "expanded": lambda: torch.zeros(1).expand(1000),
    "subclass": lambda: torch.ones(2).as_subclass(Marked),
    "device": lambda: torch.device("cpu"),
    "dtype": lambda: torch.float32,
    "result of a computation": lambda: torch.ones(2, requires_grad=True) * 2,
}


class Marked(torch.Tensor):
    pass


@pytest.mark.parametrize("name", OTHERS)
def test_what_safetensors_cannot_say_goes_to_pickle(name: str) -> None:
    value = OTHERS[name]()
    encoded, loaded = there_and_back(value, CODEC)
    assert encoded.codec == "pickle" and type(loaded) is type(value)
    assert encoded.size_bytes < 10_000
    with pytest.raises(CodecError, match="refused here"):
        REFUSING.encode(value)


def test_a_tensor_is_encoded_from_where_it_lies_and_decoded_where_the_bytes_lie() -> None:
    tensor = torch.arange(10_000.0)
    encoded = CODEC.encode({"a": tensor})
    piece = max(encoded.pieces, key=len)
    assert numpy.frombuffer(piece, "u1").ctypes.data == tensor.data_ptr()
    data = memoryview(bytearray(encoded.joined()))
    loaded = CODEC.decode("safetensors", data)["a"]
    start = numpy.frombuffer(data, "u1").ctypes.data
    assert start <= loaded.data_ptr() < start + len(data)
    loaded[0] = 5


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_misaligned_memory_breaks_nothing(shift: int) -> None:
    value = {"a": torch.arange(7, dtype=torch.float64), "b": torch.arange(3, dtype=torch.int16)}
    joined = CODEC.encode(value).joined()
    data = memoryview(bytearray(shift) + joined)[shift:]
    loaded = CODEC.decode("safetensors", data)
    assert same(loaded, value)
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in loaded.values())


def test_the_library_reads_what_is_written_and_the_other_way_round() -> None:
    library = pytest.importorskip("safetensors.torch")
    value = {"b": torch.arange(5, dtype=torch.bfloat16), "a": torch.ones(2, 3), "c": torch.tensor([True, False, True])}
    assert same(dict(sorted(library.load(CODEC.encode(value).joined()).items())), dict(sorted(value.items())))
    loaded = CODEC.decode("safetensors", library.save(value))
    assert same(dict(sorted(loaded.items())), dict(sorted(value.items())))


def forged(**tensor: Any) -> bytes:
    said = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | tensor
    header = json.dumps({"a": said}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def test_a_header_that_lies_is_damage() -> None:
    assert CODEC.decode("safetensors", forged())["a"].tolist() == [0, 0]
    for lie in (
        {"data_offsets": [0, 2**60]}, {"data_offsets": [-8, 0]}, {"data_offsets": [8, 0]}, {"data_offsets": [4, 12]},
        {"shape": [2**61]}, {"shape": [-2]}, {"shape": [-1, -2]}, {"shape": [2.0]}, {"shape": [2**40, 2**40]},
        {"shape": "2"}, {"dtype": "PICKLE"}, {"dtype": "F64"},
    ):  # fmt: skip
        with pytest.raises(CodecError):
            CODEC.decode("safetensors", forged(**lie))
    for data in (b"", b"\xff" * 8, b"\xff" * 100, (2).to_bytes(8, "little") + b"[]"):
        with pytest.raises(CodecError):
            CODEC.decode("safetensors", data)
