"""Damaged and hostile bytes of every codec end in a CodecError: no crash, no hang, no huge allocation, no code run."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import sys
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.values_table import PARTS
from dibs.codec import Codec
from dibs.codec.container import MAGIC
from dibs.errors import CodecError

REFUSING = Codec("pickles are refused here")
ENTRIES: list[tuple[str, bytes]] = []
for _part in ("Standard types", "NumPy"):
    for _value in PARTS[_part]().values():
        try:
            _encoded = REFUSING.encode(_value)
        except CodecError:
            continue
        ENTRIES.append((_encoded.codec, _encoded.joined()))


def decoded(codec: str, data: bytes) -> None:
    """Either way is fine, but for another error than a CodecError."""
    try:
        REFUSING.decode(codec, memoryview(bytearray(data)))
    except CodecError:
        pass


def test_every_safe_codec_of_the_standard_library_and_numpy_is_among_the_entries() -> None:
    assert {codec for codec, _ in ENTRIES} == {"bytes", "bytearray", "str", "json", "tagged-json", "npy"}


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(ENTRIES), st.data())
def test_flipped_cut_and_overwritten_bytes_never_raise_anything_else(entry: Any, data: st.DataObject) -> None:
    codec, whole = entry
    damaged = bytearray(whole)
    places = st.integers(0, max(len(damaged) - 1, 0))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(places)
        damaged[place : place + 8] = data.draw(
            st.binary(min_size=0, max_size=9) | st.sampled_from([b"\xff" * 8, struct.pack("<Q", 2**40), b""])
        )
    decoded(codec, bytes(damaged))


@pytest.mark.parametrize("part", ["pandas, Polars, Arrow", "PyTorch"])
def test_tables_and_tensors_that_were_cut_or_flipped_never_raise_anything_else(part: str) -> None:
    pytest.importorskip({"PyTorch": "torch"}.get(part, "polars"))
    for value in PARTS[part]().values():
        try:
            encoded = REFUSING.encode(value)
        except CodecError:
            continue
        whole = encoded.joined()
        for cut in range(0, len(whole), max(len(whole) // 20, 1)):
            with pytest.raises(CodecError):
                REFUSING.decode(encoded.codec, memoryview(bytearray(whole[:cut])))
        for place in range(0, len(whole), max(len(whole) // 40, 1)):
            decoded(encoded.codec, whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])


@pytest.mark.parametrize("codec", ["str", "json", "tagged-json", "npy", "arrow", "safetensors", "str+zstd", "npy+zstd"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe garbage", bytes(1000), MAGIC, MAGIC + b"\xff" * 100],
    ids=["no", "few", "zeros", "magic", "big"],
)
def test_garbage_is_an_error_that_names_the_codec(codec: str, data: bytes) -> None:
    if codec == "str" and data in (b"", bytes(1000)):
        return  # text
    with pytest.raises(CodecError, match=codec.replace("+", r"\+")):
        REFUSING.decode(codec, data)


def test_a_suffix_can_be_repeated_only_as_often_as_there_is_data() -> None:
    with pytest.raises(CodecError):
        REFUSING.decode("json" + "+zstd" * 10_000, b"1")


# -- npy -------------------------------------------------------------------------------------------------------------


def npy(header: str, content: bytes = b"", length: int | None = None) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text + content


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976,)}", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1.0,)}", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': 1, 'shape': (1,)}", bytes(8)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(7)),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(9)),
        npy("{'descr': '<f8'}", bytes(8)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
        npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(8)),
        npy("print('executed')"),
        npy("(" * 9_000),
        npy("{'descr': '<f8'}", length=65_535),
        npy(" " * 20_000),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1," * 70 + ")}", bytes(8)),
    ],
)
def test_a_forged_header_of_an_array_is_damage(data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CodecError, match="npy"):
        REFUSING.decode("npy", data)
    assert capsys.readouterr().out == ""


def test_numpy_reads_what_is_written_and_the_other_way_round() -> None:
    for array in (numpy.arange(6.0).reshape(2, 3).T, numpy.array(3), numpy.zeros(2, [("é", "<i4"), ("b", "U3")])):
        again = numpy.load(io.BytesIO(REFUSING.encode(array).joined()), allow_pickle=False)
        assert again.dtype == array.dtype and again.tobytes() == array.tobytes()
        file = io.BytesIO()
        numpy.save(file, array)
        loaded = REFUSING.decode("npy", file.getvalue())
        assert loaded.dtype == array.dtype and loaded.tobytes() == array.tobytes()


# -- tagged JSON and containers --------------------------------------------------------------------------------------


def tagged(said: Any, *sections: bytes, lengths: list[int] | None = None) -> bytes:
    return container(json.dumps(said).encode(), *sections, lengths=lengths)


def container(*parts: bytes, lengths: list[int] | None = None) -> bytes:
    sizes = lengths if lengths is not None else [len(part) for part in parts]
    data = MAGIC + struct.pack(f"<{len(sizes) + 1}Q", len(sizes), *sizes)
    for part in parts:
        data += bytes(-len(data) % 64) + part
    return data


def test_a_container_is_read_where_its_lengths_are_true() -> None:
    assert REFUSING.decode("tagged-json", tagged([{"$at": ["bytes", 0]}], b"abc")) == [b"abc"]


@pytest.mark.parametrize(
    "data",
    [
        tagged([{"$at": ["bytes", 0]}], b"abc", lengths=[24, 2**63]),
        tagged([{"$at": ["bytes", 0]}], b"abc", lengths=[24, 4]),
        tagged([{"$at": ["bytes", 0]}], b"abc", lengths=[24, 2]),
        tagged([{"$at": ["bytes", 0]}], b"abc", lengths=[]),
        MAGIC + struct.pack("<Q", 2**61),
        MAGIC + struct.pack("<Q", 2**64 - 1) + bytes(100),
        tagged([1], b"abc") + b"x",
        tagged([{"$at": ["bytes", 7]}], b"abc"),
        tagged([{"$at": ["npy", 0]}], b"abc"),
        tagged([{"$at": ["tagged-json", 0]}], b"1"),
        tagged([{"$at": ["json+zstd", 0]}], b"1"),
        tagged([{"$at": [[], 0]}], b"1"),
        b'{"$eval":"1"}', b'{"$tuple":[1],"more":2}', b'{"$tuple":1}', b'{"$numpy":["O","AAAAAAAAAAA="]}',
        b'{"$numpy":["f8,f8","AAAAAAAAAAAAAAAAAAAAAA=="]}', b'{"$numpy":["(1000000000,)f8","AA=="]}',
        b'{"$numpy":["<f8","AA=="]}', b'{"$set":[[]]}', b'{"$dict":[[[],1]]}', b'{"$int":"ten"}', b'{"$bytes":"!"}',
        b'{"$datetime":["2026-01-01T00:00:00","../../etc/passwd",0]}', b'{"$uuid":"1"}', b'{"$PosixPath":1}',
        b'{"$fraction":["0x1","0x0"]}', b'{"$decimal":"ten"}', b'{"$range":["0x0","0x1","0x0"]}',
        b"[" * 100_000, b'{"$tuple":[' * 100_000, b'{"a":' * 100_000,
    ],
)  # fmt: skip
def test_forged_tags_lengths_and_depths_are_damage(data: bytes) -> None:
    with pytest.raises(CodecError):
        REFUSING.decode("tagged-json", data)


# -- code ------------------------------------------------------------------------------------------------------------

EXECUTED: list[str] = []


def execute(what: str) -> None:
    EXECUTED.append(what)


class Bomb:
    def __reduce__(self) -> Any:
        return execute, ("boom",)


def pickled_array() -> bytes:
    file = io.BytesIO()
    numpy.save(file, numpy.array([Bomb()]), allow_pickle=True)
    return file.getvalue()


BOMB = pickle.dumps(Bomb())
HOSTILE = {
    "plain": ("pickle", BOMB),
    "with buffers": ("pickle", container(BOMB, b"")),
    "attached": ("tagged-json", tagged([{"$at": ["pickle", 0]}], BOMB)),
    "as an array": ("npy", pickled_array()),
    "attached as an array": ("tagged-json", tagged([{"$at": ["npy", 0]}], pickled_array())),
    "as a scalar": ("tagged-json", json.dumps({"$numpy": ["|O", base64.b64encode(BOMB).decode()]}).encode()),
    "as another codec": ("json", BOMB),
    "as a table": ("arrow", BOMB),
    "as tensors": ("safetensors", BOMB),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_entry_is_executed_where_pickles_are_refused(name: str) -> None:
    codec, data = HOSTILE[name]
    for form in (data, memoryview(bytearray(data))):
        with pytest.raises(CodecError):
            REFUSING.decode(codec, form)
    assert EXECUTED == []


def test_the_bomb_works_where_pickles_are_trusted_so_the_test_above_tests_something() -> None:
    for name in ("plain", "with buffers"):
        EXECUTED.clear()
        Codec(None).decode(*HOSTILE[name])
        assert EXECUTED == ["boom"]
    EXECUTED.clear()


def test_looking_at_a_value_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from dibs.codec import Codec; codec = Codec(None)\n"
        "class Own: pass\n"
        "for value in (b'', '', 1, None, [1], {'a': 1.5}, (1,), {1: 2}, {1}): codec.decode(*codec.encode(value)[:1],"
        " codec.encode(value).joined())\n"
        "print(sorted({'numpy', 'pandas', 'polars', 'pyarrow', 'torch', 'cloudpickle'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# -- pickles that would not come back --------------------------------------------------------------------------------


class Unloadable(Exception):
    """As many exceptions: it can be pickled, and loading calls it with other arguments."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Turncoat:
    def __reduce__(self) -> Any:
        return dict, ()


@pytest.mark.parametrize("value", [Unloadable(1, "a"), Turncoat(), numpy.array([Unloadable(1, "a")])], ids=str)
def test_what_would_not_come_back_from_its_pickle_is_not_stored(value: Any) -> None:
    with pytest.raises(CodecError, match="can't be pickled") as caught:
        Codec(None).encode(value)
    assert caught.value.value is value
