"""Cells to bytes and back: what comes back is what was written, or is known to be damaged."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dibs.cell import Cell, Ended, Failures, Hold, Value
from dibs.errors import StoreUnsuitable
from dibs.record import FORMAT, Damaged, decode, encode, sealed, unsealed
from dibs.runtime import Holder

tokens = st.text("0123456789abcdef", min_size=16, max_size=16)
texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
numbers = st.integers(0, 2**70)
seconds = st.floats(0, 1e9, allow_nan=False)
maybe_seconds = st.none() | seconds
holders = st.builds(Holder, texts, texts, numbers, numbers, numbers, texts, texts, tokens)
holds = st.builds(
    Hold, tokens, holders, seconds, numbers, seconds, maybe_seconds, st.none() | st.floats(0, 1), st.none() | texts,
    seconds,
)  # fmt: skip
values = st.builds(
    Value, numbers, tokens, st.sampled_from(["bytes", "str", "json", "npy", "pickle"]), numbers, tokens,
    st.none() | st.binary(max_size=200), st.none() | texts, seconds, texts, seconds, maybe_seconds, seconds,
)  # fmt: skip
hows = st.sampled_from(["released", "committed", "failed", "taken over", "dropped"])
endings = st.builds(Ended, numbers, tokens, hows)
cells = st.builds(
    Cell, texts, numbers, numbers, st.none() | holds, st.none() | values,
    st.none() | st.builds(Failures, numbers, numbers, texts, texts), st.lists(endings, max_size=4).map(tuple),
)  # fmt: skip

HOLD = Hold("c" * 16, Holder("höst", "boot", 1, 2, 3, "/b", "1:2", "p" * 16), 60.0, 3, 1.5, 2.5, 0.25, "keys/ü", 1.0)
VALUE = Value(4, "c" * 16, "bytes", 9, "d" * 32, b'\n"}{\x00\xff\n', None, 1.0, "höst pid 2", 3.0, None, 0.0)
FULL = Cell("ключ/\n\"'", 7, 4, None, VALUE, Failures(1, 2, "Traceback\n…", "höst"), (Ended(6, "c" * 16, "released"),))
HELD = Cell("k", 7, 4, HOLD, None, None, ())


@settings(max_examples=400, deadline=None)
@given(cells, tokens)
def test_a_cell_comes_back_as_it_was(cell: Cell, attempt: str) -> None:
    assert decode(encode(cell, attempt)) == (cell, attempt)


def test_inline_bytes_may_be_anything_newlines_too_and_empty_is_not_absent() -> None:
    for inline in (b"", b"\n", b"\n\n", bytes(range(256))):
        cell = Cell("k", value=VALUE._replace(inline=inline))
        assert decode(encode(cell, "a")).cell == cell


def test_no_two_attempts_give_the_same_bytes() -> None:
    assert encode(FULL, "a" * 16) != encode(FULL, "b" * 16)


@pytest.mark.parametrize("cell", [FULL, HELD], ids=["done", "held"])
def test_each_flipped_bit_shows(cell: Cell) -> None:
    data = encode(cell, "a" * 16)
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                decoded = decode(bytes(flipped))
            except Damaged:
                continue
            assert decoded.cell == cell, f"bit {bit} of byte {position} made another cell"


def test_each_changed_byte_is_called_damage() -> None:
    data = encode(FULL, "a" * 16)
    for position in range(len(data)):
        with pytest.raises(Damaged):
            decode(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


@pytest.mark.parametrize("cell", [FULL, HELD], ids=["done", "held"])
def test_each_truncation_and_each_addition_shows(cell: Cell) -> None:
    data = encode(cell, "a" * 16)
    for length in range(len(data)):
        with pytest.raises(Damaged):
            decode(data[:length])
    for more in (b"\0", b"\n", data):
        with pytest.raises(Damaged):
            decode(data + more)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: b'{"dibs":1,"check":"' + tail))
def test_garbage_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged):
        decode(data)


@pytest.mark.parametrize(
    "body", [b"", b"\n", b'"x":1}\n', b'"key":"k"}\n', b"[]", b'"key":"k","generation":1,"epoch":1,"hold":[]}\n']
)
def test_a_well_sealed_body_that_is_no_cell_is_damage(body: bytes) -> None:
    with pytest.raises(Damaged):
        decode(sealed(body))


def _sealed_as(number: bytes, body: bytes) -> bytes:
    check = blake3(number + body).hexdigest(16).encode()
    return b'{"dibs":' + number + b',"check":"' + check + b'",' + body


@pytest.mark.parametrize("number", [b"2", b"17", b"999999"])
def test_a_sound_record_of_a_newer_format_is_an_error_that_says_what_to_do(number: bytes) -> None:
    with pytest.raises(StoreUnsuitable, match=rf"format {number.decode()}.*format {FORMAT}.*upgrade"):
        decode(_sealed_as(number, b'"anything":[1,2]}\nraw'))


def test_a_damaged_record_of_a_newer_format_is_damage() -> None:
    data = _sealed_as(b"2", b'"anything":[1,2]}\nraw')
    for position in [*range(8), *range(len(data) - 20, len(data))]:
        with pytest.raises(Damaged):
            unsealed(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


@pytest.mark.parametrize("progress", [float("nan"), float("inf"), True])
def test_a_hold_is_readable_whatever_progress_its_holder_reported(progress: float) -> None:
    data = encode(HELD._replace(hold=HOLD._replace(progress=progress)), "a")
    assert decode(data).cell.hold is not None
