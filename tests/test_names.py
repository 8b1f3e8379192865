"""Keys are any text; record names are plain, stay inside the root, and never meet."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dibs.names import KEYS, LOCKS, address, blob_name, from_address, key_of, record_name
from dibs.store import checked_name

keys = st.text(max_size=300) | st.text("./~%\\ \0a", max_size=12)

AWKWARD = [
    "", ".", "..", "../..", "/", "//", "a/b", "~", "%", "%25", "%7E", "%2E", "a~b", "\0", "\n", " ", "\\",
    "\xe9", "e\u0301",
]  # fmt: skip


@given(st.lists(keys, min_size=2, max_size=8, unique=True))
@example(AWKWARD)
@example(["x" * 150, "x" * 151, "x" * 152, "x" * 4096, "x" * 60 + "y" * 91])
@example(["\ud800", "\udfff", "?", "%ED%A0%80"])
def test_different_keys_have_different_names(several: list[str]) -> None:
    assert len({record_name(KEYS, key) for key in several}) == len(several)


@given(keys)
@example("\ud800" * 4096)
@example("😀" * 4096)
def test_no_key_leaves_the_root(key: str) -> None:
    name = record_name(KEYS, key)
    assert checked_name(name) == name
    assert name.count("/") == (2 if "/" in key else 1)
    assert checked_name(blob_name(name, 2**70, "c" * 16))


@given(keys)
def test_a_key_and_a_lock_of_one_name_are_apart(key: str) -> None:
    assert record_name(KEYS, key) != record_name(LOCKS, key)


@pytest.mark.parametrize("key", ["features", "train-2024_01.csv", "a=1,b=2", "v1.2+3", "me@host"])
def test_plain_short_keys_are_readable(key: str) -> None:
    assert record_name(KEYS, key) == f"keys/{key}"


@given(keys)
@example("\ud800")
@example("")
@example(".")
def test_the_key_of_a_name_is_the_key_or_unknown_for_long_ones(key: str) -> None:
    found = key_of(record_name(KEYS, key))
    assert found == key or (found is None and len(record_name(KEYS, key)) > 90)


@pytest.mark.parametrize("key", AWKWARD)
def test_awkward_keys_are_found_again(key: str) -> None:
    assert key_of(record_name(KEYS, key)) == key


@given(st.sampled_from([KEYS, LOCKS]), keys)
def test_an_address_leads_back_to_its_space_and_key(space: str, key: str) -> None:
    assert from_address(address(space, key)) == (space, key)
