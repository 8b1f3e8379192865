"""Codecs of one's own, and codecs that are asked for by name."""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from dibs.codec import Codec, registry
from dibs.codec.registry import register_codec
from dibs.errors import CodecError, SettingsError

CODEC = Codec(None)
REFUSING = Codec("pickles are refused here")


class Mesh:
    def __init__(self, points: list[int]) -> None:
        self.points = points

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mesh) and self.points == other.points

    __hash__ = None  # type: ignore[assignment]


class Finer(Mesh):
    pass


def write(mesh: Mesh) -> bytes:
    return bytes(mesh.points)


def read(data: memoryview) -> Mesh:
    return Mesh(list(data))


@pytest.fixture(autouse=True)
def _nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "by_name", {})
    monkeypatch.setattr(registry, "by_kind", {})


def test_a_registered_type_is_stored_by_its_codec_whose_name_stands_in_the_entry() -> None:
    register_codec("mesh", Mesh, write, read, safe=True)
    encoded = REFUSING.encode(Mesh([1, 2]))
    assert (encoded.codec, encoded.joined(), encoded.size_bytes) == ("mesh", b"\1\2", 2)
    assert REFUSING.decode("mesh", encoded.joined()) == Mesh([1, 2])


def test_a_subclass_keeps_its_type_so_the_codec_of_its_parent_is_not_for_it() -> None:
    register_codec("mesh", Mesh, write, read, safe=True)
    encoded = CODEC.encode(Finer([1]))
    assert encoded.codec == "pickle"
    assert type(CODEC.decode("pickle", encoded.joined())) is Finer


def test_a_safe_codec_works_inside_other_values_too() -> None:
    register_codec("mesh", Mesh, write, read, safe=True)
    encoded = REFUSING.encode({"mesh": Mesh([1]), "n": (2,)})
    assert encoded.codec == "tagged-json"
    assert REFUSING.decode(encoded.codec, encoded.joined()) == {"mesh": Mesh([1]), "n": (2,)}


def test_pieces_of_arrays_and_pieces_made_when_walked_are_taken() -> None:
    array = numpy.arange(6.0)

    class Walked:
        size_bytes = 3

        def __iter__(self) -> Iterator[bytes]:
            return iter((b"a", b"bc"))

    register_codec("mesh", Mesh, lambda _: [b"head", array.data], read, safe=True)
    assert CODEC.encode(Mesh([])).joined() == b"head" + array.tobytes()
    assert CODEC.encode(Mesh([])).size_bytes == 52
    register_codec("mesh", Mesh, lambda _: Walked(), read, safe=True)
    assert (CODEC.encode(Mesh([])).joined(), CODEC.encode(Mesh([])).size_bytes) == (b"abc", 3)


def test_an_unsafe_codec_is_refused_where_pickles_are_both_ways_and_inside_others() -> None:
    opened: list[bytes] = []
    register_codec("mesh", Mesh, write, lambda data: opened.append(bytes(data)) or Mesh([]), safe=False)
    assert CODEC.encode(Mesh([1])).codec == "mesh"
    with pytest.raises(CodecError, match="'mesh', which isn't safe, and pickles are refused here"):
        REFUSING.encode(Mesh([1]))
    with pytest.raises(CodecError, match="refused here"):
        REFUSING.encode((Mesh([1]),))
    with pytest.raises(CodecError, match="refused here"):
        REFUSING.decode("mesh", b"\1")
    assert opened == []


def test_the_last_codec_of_a_type_writes_and_all_are_read() -> None:
    register_codec("mesh", Mesh, write, read, safe=True)
    register_codec("mesh.2", Mesh, lambda mesh: b"2" + write(mesh), lambda data: read(data[1:]), safe=True)
    assert CODEC.encode(Mesh([1])).codec == "mesh.2"
    assert CODEC.decode("mesh", b"\1") == CODEC.decode("mesh.2", b"2\1") == Mesh([1])
    register_codec("mesh.2", decimal.Decimal, lambda _: b"", lambda _: decimal.Decimal(), safe=True)
    assert CODEC.encode(Mesh([1])).codec == "pickle"


def test_an_unknown_codec_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(CodecError, match=r"'mesh'.*import the module that registers it.*register_codec"):
        CODEC.decode("mesh", b"")
    with pytest.raises(CodecError, match=r"no codec 'mesh' is known: register it"):
        CODEC.encode(1, "mesh")


def test_a_codec_that_makes_another_type_or_raises_is_an_error() -> None:
    register_codec("mesh", Mesh, write, lambda data: bytes(data), safe=True)
    with pytest.raises(CodecError, match="is for Mesh, and made a <class 'bytes'>"):
        CODEC.decode("mesh", b"")
    register_codec("mesh", Mesh, lambda _: 1 / 0, read, safe=True)  # type: ignore[arg-type,return-value]
    value = Mesh([1])
    with pytest.raises(CodecError, match="ZeroDivisionError") as caught:
        CODEC.encode(value)
    assert caught.value.value is value


@pytest.mark.parametrize("name", ["pickle", "json", "npy", "auto", "a+zstd", "", "1", "a b", "a/b", "é", "x" * 61])
def test_a_name_that_belongs_to_dibs_or_is_none_cannot_be_registered(name: str) -> None:
    with pytest.raises(SettingsError, match="can't be named"):
        register_codec(name, Mesh, write, read, safe=True)


@pytest.mark.parametrize("kind", [int, dict, bytes, "Mesh", None])
def test_types_that_every_value_is_made_of_cannot_be_registered(kind: Any) -> None:
    with pytest.raises(SettingsError, match="can't be registered"):
        register_codec("mine", kind, write, read, safe=True)


# -- codecs asked for by name ----------------------------------------------------------------------------------------

FORCED = [
    ("json", [1], "json"), ("json", (1,), "tagged-json"), ("npy", numpy.arange(3), "npy"), ("pickle", [1], "pickle"),
    ("pickle", b"raw", "pickle"), ("bytes", b"raw", "bytes"), ("str", "text", "str"),
    ("tagged-json", [1], "tagged-json"),
    ("auto", (1,), "tagged-json"), ("bytearray", bytearray(b"a"), "bytearray"),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "value", "found"), FORCED)
def test_a_codec_that_is_asked_for_is_taken(codec: str, value: Any, found: str) -> None:
    for encoded in (CODEC.encode(value, codec), Codec(None, prefer=codec).encode(value)):
        assert encoded.codec == found
        loaded = CODEC.decode(encoded.codec, encoded.joined())
        assert type(loaded) is type(value) and numpy.array_equal(loaded, value)


REFUSED = [
    ("json", numpy), ("json", Mesh([1])), ("npy", [1]), ("npy", numpy.float64(1)), ("npy", numpy.array([{}])),
    ("arrow", [1]), ("arrow", numpy.arange(3)), ("safetensors", {"a": numpy.arange(3)}), ("safetensors", {}),
    ("bytes", "text"), ("str", b"raw"), ("bytes", bytearray(b"a")), ("safetensors", 1),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "value"), REFUSED, ids=lambda part: str(part)[:20])
def test_a_value_that_the_codec_cannot_take_is_an_error_that_carries_it(codec: str, value: Any) -> None:
    with pytest.raises(CodecError, match=f"can't be stored as '{codec}'") as caught:
        CODEC.encode(value, codec)
    assert caught.value.value is value


def test_a_pickle_that_is_asked_for_is_refused_where_pickles_are() -> None:
    with pytest.raises(CodecError, match="refused here"):
        REFUSING.encode([1], "pickle")


def test_a_registered_codec_is_taken_by_name_for_its_type_only() -> None:
    register_codec("mesh", Mesh, write, read, safe=True)
    register_codec("mesh.2", Mesh, write, read, safe=True)
    assert CODEC.encode(Mesh([1]), "mesh").codec == "mesh"
    with pytest.raises(CodecError, match="can't be stored as 'mesh'"):
        CODEC.encode(Finer([1]), "mesh")
