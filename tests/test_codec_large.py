"""Large values aren't copied: what is encoded is the value's own memory, what is decoded is the mapped memory."""

from __future__ import annotations

import collections
import subprocess
import sys
from typing import Any

import numpy
import pytest

from dibs.codec import Codec, Encoded, Hasher, digest

CODEC = Codec(None)
REFUSING = Codec("pickles are refused here")
MIB = 1 << 20


class Box:
    """A class of one's own, for which only a pickle will do."""

    def __init__(self, content: Any) -> None:
        self.content = content


def address(piece: Any) -> int:
    return int(numpy.frombuffer(piece, "u1").ctypes.data)


def lies_in(array: Any, memory: Any) -> bool:
    return address(memory) <= array.ctypes.data < address(memory) + len(memory)


def largest(encoded: Encoded) -> Any:
    return max(encoded.pieces, key=len)


def received(encoded: Encoded, shift: int = 0) -> memoryview:
    """The bytes in writable memory of their own, as a mapping or a download gives them; perhaps misaligned."""
    memory = bytearray(encoded.size_bytes + 64 + shift)
    start = -address(memory) % 64 + shift
    memory[start : start + encoded.size_bytes] = encoded.joined()
    return memoryview(memory)[start : start + encoded.size_bytes]


ORDERS = {
    "C": numpy.ones((64, 256)), "F": numpy.asfortranarray(numpy.ones((64, 256))), "times": numpy.zeros(999, "M8[s]"),
}  # fmt: skip


@pytest.mark.parametrize("array", ORDERS.values(), ids=ORDERS)
def test_an_array_is_encoded_from_where_it_lies(array: Any) -> None:
    piece = largest(CODEC.encode(array))
    assert address(piece) == array.ctypes.data
    assert len(piece) == array.nbytes


def test_an_array_is_decoded_where_the_bytes_lie_and_can_be_written() -> None:
    data = received(REFUSING.encode(numpy.arange(1000.0)))
    loaded = REFUSING.decode("npy", data)
    assert lies_in(loaded, data)
    loaded[0] = 7
    assert data[-8000:-7992] == numpy.float64(7).tobytes()


def test_immutable_bytes_are_copied_so_that_arrays_can_be_written() -> None:
    data = REFUSING.encode(numpy.arange(1000.0)).joined()
    loaded = REFUSING.decode("npy", data)
    loaded[0] = 7
    assert not lies_in(loaded, data)
    assert REFUSING.decode("npy", data)[0] == 0


def test_the_memory_lives_as_long_as_the_array() -> None:
    loaded = REFUSING.decode("npy", received(REFUSING.encode(numpy.arange(100_000.0))))
    others = [bytearray(800_200) for _ in range(20)]
    assert others and (loaded == numpy.arange(100_000.0)).all()


VIEWS = {
    "every third": numpy.arange(1000.0)[::3], "backwards": numpy.arange(1000)[::-1],
    "a column": numpy.arange(12_000).reshape(3000, 4)[:, 2],
    "transposed middle axis": numpy.ones((30, 40, 50)).swapaxes(1, 2),
    "broadcast": numpy.broadcast_to(numpy.arange(5), (7, 5)), "more than one chunk": numpy.arange(3 * MIB)[::2],
}  # fmt: skip


@pytest.mark.parametrize("array", VIEWS.values(), ids=VIEWS)
def test_an_array_that_is_not_contiguous_is_walked_in_chunks_as_often_as_wanted(array: Any) -> None:
    encoded = REFUSING.encode(array)
    once, again = b"".join(encoded.pieces), b"".join(encoded.pieces)
    assert once == again and len(once) == encoded.size_bytes
    assert max(map(len, encoded.pieces)) <= 4 * MIB
    loaded = REFUSING.decode("npy", once)
    assert loaded.dtype == array.dtype and (loaded == array).all() and loaded.shape == array.shape


INSIDE = {
    "pickle": lambda array: Box(array),
    "tagged-json": lambda array: {"array": array, "name": ("x",)},
}


@pytest.mark.parametrize("codec", INSIDE)
def test_an_array_inside_another_value_is_not_copied_either_way(codec: str) -> None:
    array = numpy.arange(10_000.0)
    encoded = CODEC.encode(INSIDE[codec](array))
    assert encoded.codec == codec and address(largest(encoded)) == array.ctypes.data
    data = received(encoded)
    loaded = CODEC.decode(codec, data)
    inner = loaded.content if codec == "pickle" else loaded["array"]
    assert lies_in(inner, data) and inner.flags.aligned and inner.flags.writeable and (inner == array).all()
    assert (inner.ctypes.data - address(data)) % 64 == 0
    copied = CODEC.decode(codec, encoded.joined())
    inner = copied.content if codec == "pickle" else copied["array"]
    inner[0] = 1
    assert array[0] == 0


def test_a_frames_numbers_are_encoded_from_where_they_lie_and_decoded_where_the_bytes_lie() -> None:
    pandas = pytest.importorskip("pandas")
    numbers = numpy.arange(10_000.0)
    frame = pandas.DataFrame({"x": pandas.Series(numbers, copy=False)}, copy=False)
    encoded = REFUSING.encode(frame)
    assert encoded.codec == "arrow" and address(largest(encoded)) == numbers.ctypes.data
    data = received(encoded)
    loaded = REFUSING.decode("arrow", data)
    assert lies_in(loaded["x"].to_numpy(), data)
    loaded.loc[0, "x"] = 7.0
    assert loaded["x"].iloc[0] == 7


def test_an_arrow_table_is_encoded_from_where_it_lies_and_decoded_where_the_bytes_lie() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"x": numpy.arange(10_000.0)})
    encoded = REFUSING.encode(table)
    assert address(largest(encoded)) == table.column("x").chunk(0).buffers()[1].address
    data = received(encoded)
    there = REFUSING.decode("arrow", data).column("x").chunk(0).buffers()[1].address
    assert address(data) <= there < address(data) + len(data)


@pytest.mark.parametrize("shift", [1, 2, 4, 7])
@pytest.mark.parametrize("kind", ["npy", "arrow", "tagged-json", "pickle"])
def test_misaligned_memory_breaks_nothing(kind: str, shift: int) -> None:
    array = numpy.arange(5000.0)
    value = {"npy": array, "tagged-json": (array, array[::2]), "pickle": Box(array)}.get(kind)
    if kind == "arrow":
        value = pytest.importorskip("pandas").DataFrame({"x": array, "i": numpy.arange(5000, dtype="i2")})
    encoded = CODEC.encode(value)
    assert encoded.codec == kind
    loaded = CODEC.decode(kind, received(encoded, shift))
    found = {"npy": lambda: loaded, "arrow": lambda: loaded["x"].to_numpy(copy=True), "pickle": lambda: loaded.content,
             "tagged-json": lambda: loaded[0]}[kind]()  # fmt: skip
    assert (found == array).all()
    found[0] = 1.0


PEAK = """
import resource, sys
import numpy
from dibs.codec import Codec, digest

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

array = numpy.ones({shape}){view}
value = {value}
before = peak()
encoded = Codec(None).encode(value)
assert encoded.size_bytes >= array.nbytes
assert len(digest(encoded.pieces)) == 32
print((peak() - before) / array.nbytes)
"""


@pytest.mark.parametrize(
    ("view", "value"),
    [("", "array"), ("[::2].T", "array"), ("", '{"a": array, "b": (1,)}'), ("", "[array, print]")],
    ids=["contiguous", "strided", "in a dict", "in a pickle"],
)
def test_encoding_and_hashing_a_large_array_takes_a_fifth_of_its_size_at_most(view: str, value: str) -> None:
    code = PEAK.format(shape="(8192, 4096)", view=view, value=value)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 0.2


def test_the_digest_of_pieces_is_that_of_the_whole() -> None:
    whole = bytes(range(256)) * 20_000
    pieces = [whole[:1], whole[1:3_000_000], b"", memoryview(whole)[3_000_000:]]
    hasher = Hasher()
    for piece in pieces:
        hasher.update(piece)
    assert digest(whole) == digest(pieces) == digest(bytearray(whole)) == hasher.hexdigest()
    assert digest([]) == digest(b"") != digest(b"\0")


def test_two_names_of_one_array_are_one_array_again() -> None:
    array = numpy.arange(3000.0)
    encoded = REFUSING.encode({"a": array, "b": [array]})
    assert encoded.size_bytes < 1.5 * array.nbytes
    loaded = REFUSING.decode(encoded.codec, encoded.joined())
    assert loaded["a"] is loaded["b"][0]


def test_a_list_of_very_many_small_arrays_is_left_to_the_faster_pickle() -> None:
    arrays = [numpy.arange(3) for _ in range(10_001)]
    assert CODEC.encode(arrays).codec == "pickle"
    assert REFUSING.encode(arrays).codec == "tagged-json"


def test_pieces_of_a_value_share_its_memory_and_joined_bytes_do_not() -> None:
    array = numpy.zeros(1000)
    encoded = CODEC.encode(collections.OrderedDict(a=array))
    joined = encoded.joined()
    array[0] = 5
    assert b"".join(encoded.pieces) != joined
