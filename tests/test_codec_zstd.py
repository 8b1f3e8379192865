"""Compression where it gains, and nowhere else; what was compressed says so."""

from __future__ import annotations

import builtins
import os
import sys
from typing import Any

import numpy
import pytest

from bench.sameness import same
from dibs.codec import Codec
from dibs.errors import CodecError

pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

PACKING = Codec("pickles are refused here", zstd=True)
PLAIN = Codec("pickles are refused here")
TEXT = "it was the best of times, it was the worst of times; " * 1000


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        (TEXT, "str+zstd"), (TEXT.encode(), "bytes+zstd"), ([TEXT] * 3, "json+zstd"), ((TEXT,), "tagged-json+zstd"),
        (numpy.arange(10_000), "npy+zstd"), ({"a": numpy.arange(10_000)}, "tagged-json+zstd"),
    ],
)  # fmt: skip
def test_what_gains_is_compressed_and_comes_back_without_being_asked_for_it(value: Any, codec: str) -> None:
    encoded = PACKING.encode(value)
    assert encoded.codec == codec and encoded.size_bytes < 0.5 * PLAIN.encode(value).size_bytes
    assert len(encoded.joined()) == encoded.size_bytes
    loaded = PLAIN.decode(encoded.codec, encoded.joined())
    assert same(loaded, value)
    if codec.startswith("npy"):
        loaded[0] = 5


@pytest.mark.parametrize(
    "value",
    [numpy.zeros(10_000), numpy.zeros(10_000, "c8"), numpy.zeros((100, 100), "f2"), os.urandom(100_000), b"short" * 20,
     os.urandom(20 << 20)],
    ids=["floats", "complex", "half floats", "noise", "short", "much noise"],
)  # fmt: skip
def test_floats_and_what_gains_less_than_5_percent_stay_as_they_are(value: Any) -> None:
    encoded = PACKING.encode(value)
    assert encoded == PLAIN.encode(value) or encoded.codec == "npy"


def test_a_table_is_compressed_unless_most_of_it_are_floats() -> None:
    pandas = pytest.importorskip("pandas")
    numbers, texts = numpy.zeros(1000), ["a text of some length"] * 1000
    assert PACKING.encode(pandas.DataFrame({"s": texts, "x": numbers})).codec == "arrow+zstd"
    assert PACKING.encode(pandas.DataFrame({"x": numbers, "y": numbers, "i": range(1000)})).codec == "arrow"


def test_a_state_dict_of_floats_is_not_compressed() -> None:
    torch = pytest.importorskip("torch")
    assert PACKING.encode({"w": torch.zeros(1000)}).codec == "safetensors"
    assert PACKING.encode({"i": torch.zeros(1000, dtype=torch.int64)}).codec == "safetensors+zstd"


def test_the_suffix_asks_for_compression_and_a_codec_that_is_given_replaces_the_setting() -> None:
    assert Codec(None, prefer="auto+zstd").encode(TEXT).codec == "str+zstd"
    assert PLAIN.encode(TEXT, "str+zstd").codec == "str+zstd"
    assert PACKING.encode(TEXT, "str").codec == "str"


def test_a_pickle_in_a_compressed_disguise_is_refused() -> None:
    encoded = Codec(None, zstd=True).encode([len, TEXT])
    assert encoded.codec == "pickle+zstd"
    with pytest.raises(CodecError, match="refused here"):
        PLAIN.decode(encoded.codec, encoded.joined())


def test_cut_forged_or_lengthened_frames_are_damage() -> None:
    data = PACKING.encode(TEXT).joined()
    nested = PACKING.encode(data * 2000).joined()
    for damaged in (data[:-1], data[: len(data) // 2], data[:5], b"", data + b"x", data + data, b"\0" * 100):
        with pytest.raises(CodecError, match=r"str\+zstd"):
            PLAIN.decode("str+zstd", damaged)
    assert PLAIN.decode("bytes+zstd", nested) == data * 2000


def test_a_frame_that_announces_far_more_than_it_can_hold_is_refused_before_memory_is_taken() -> None:
    # Magic, a header that gives the size of the content in 8 bytes, and that size.
    forged = bytes.fromhex("28b52ffd") + bytes([0b11100000]) + (2**50).to_bytes(8, "little") + bytes(20)
    with pytest.raises(CodecError, match="announced"):
        PLAIN.decode("bytes+zstd", forged)


def test_where_zstd_is_missing_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = PACKING.encode(TEXT).joined()
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name in ("backports", "compression"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for use in (lambda: Codec(None, zstd=True), lambda: PLAIN.decode("str+zstd", data)):
        with pytest.raises(CodecError, match=r"pip install \"dibs\[zstd\]\""):
            use()
