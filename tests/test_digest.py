"""Equal values have equal digests and different ones different, for scalars, containers and what holds them."""

from __future__ import annotations

import collections
import copy
import json
import math
import pickle
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dibs.digest import digest_of, digest_of_call, preview
from dibs.errors import Undigestible
from tests import golden_digest, reference_digest

# --- values -----------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=()), max_size=30)
long_texts = st.integers(900, 1200).map(lambda size: "x" * size)
numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats() | st.complex_numbers()
scalars = st.none() | st.booleans() | numbers | texts | long_texts | st.binary(max_size=20) | st.just(...)
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=8)
values = st.recursive(
    scalars | st.sets(hashable, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=5)
        | st.dictionaries(texts, inner, max_size=5)
        | st.lists(st.floats(), max_size=8)
        | st.lists(st.integers(), max_size=8)
        | st.lists(texts, max_size=8)
    ),
    max_leaves=20,
)


def strict(value: Any) -> Any:
    """A form whose equality is: same type and same content, all the way down; by other means than the digest's."""
    kind = type(value)
    if kind is float:
        return "float", "nan" if value != value else struct.pack("<d", value)
    if kind is complex:
        return "complex", strict(value.real), strict(value.imag)
    if kind in (list, tuple):
        return kind.__name__, tuple(strict(item) for item in value)
    if kind in (set, frozenset):
        return kind.__name__, frozenset(collections.Counter(strict(item) for item in value).items())
    if kind is dict:
        pairs = collections.Counter((strict(key), strict(item)) for key, item in value.items())
        return "dict", frozenset(pairs.items())
    return kind.__name__, value


def rebuilt(value: Any) -> Any:
    """An equal value that shares nothing with this one, built in another order."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(rebuilt(item) for item in value)
    if kind in (set, frozenset):
        return kind(rebuilt(item) for item in reversed(list(value)))
    if kind is dict:
        return {rebuilt(key): rebuilt(item) for key, item in reversed(list(value.items()))}
    if kind is str:
        return "".join(list(value))
    return value


@given(values)
@settings(max_examples=150, deadline=None)
def test_equal_values_have_equal_digests(value: Any) -> None:
    digest = digest_of(value)
    assert len(digest) == 40 and int(digest, 16) >= 0
    assert digest_of(rebuilt(value)) == digest
    assert digest_of(copy.deepcopy(value)) == digest
    assert digest_of(pickle.loads(pickle.dumps(value))) == digest


@given(values, values)
@settings(max_examples=150, deadline=None)
def test_two_values_have_one_digest_only_if_they_are_equal_to_the_type(one: Any, other: Any) -> None:
    assert (digest_of(one) == digest_of(other)) == (strict(one) == strict(other))


@given(st.lists(st.sampled_from([0, 1, True, 1.0, 0.0, -0.0, "1", b"1", "", None, (), (1,), frozenset()]), max_size=3))
@settings(max_examples=100, deadline=None)
def test_what_looks_alike_is_told_apart(items: list[Any]) -> None:
    others = [items, tuple(items), {"a": items}, [items], [*items, 1], items[1:], [*items, [1]], [None, *items]]
    kept = {json.dumps(repr(strict(other))): digest_of(other) for other in others}
    assert len(set(kept.values())) == len(kept)


@given(values)
@settings(max_examples=150, deadline=None)
def test_the_fast_encoder_says_what_the_specification_says(value: Any) -> None:
    assert digest_of(value) == reference_digest.digest_of(value)
    named = [("a", value), ("é", 1), ("c", "x")]
    assert digest_of_call(b"prefix", named) == reference_digest.digest_of_call(b"prefix", named)


@pytest.mark.parametrize(
    "value",
    [
        [0.0] * 200, list(range(200)), [str(number) for number in range(500)], "x" * 5000, b"x" * 5_000_000,
        2**20000, {str(number): [number] for number in range(500)}, set(range(500)), [["x" * 2000] * 3] * 3,
        [{"a": number, "b": None} for number in range(500)], {number: number for number in range(500)},
        [1, 2**63, 2.0], [2**63], [math.nan, math.inf, -math.inf], [math.inf, -math.inf], ["\ud800", "\udc00"],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_long_values_follow_the_specification_too(value: Any) -> None:
    assert digest_of(value) == reference_digest.digest_of(value)


# --- what must not count, what must -----------------------------------------------------------------------


def test_every_nan_is_the_same() -> None:
    other = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
    assert digest_of(other) == digest_of(math.nan)
    assert digest_of([other, 1.0]) == digest_of([math.nan, 1.0])
    assert digest_of(complex(other, 1)) == digest_of(complex(math.nan, 1))


def test_negative_zero_is_another_number() -> None:
    assert digest_of(-0.0) != digest_of(0.0)
    assert digest_of([-0.0, 1.0]) != digest_of([0.0, 1.0])


def test_sharing_a_part_does_not_count() -> None:
    for part in (["x"], ["x" * 5000], {"a": ["x" * 5000]}, ("x", 1), bytes(2000)):
        assert digest_of([part, part]) == digest_of([part, copy.deepcopy(part)])


def test_parts_shared_a_thousandfold_are_encoded_once() -> None:
    value: list[Any] = ["x" * 2000]
    for _ in range(100):
        value = [value, value]  # 2**100 lists, unfolded
    assert digest_of(value) == digest_of(copy.deepcopy(value))


def test_cycles_have_a_digest() -> None:
    assert digest_of(golden_digest.cycle()) == digest_of(golden_digest.cycle())
    one: list[Any] = [1]
    one.append(one)
    other: list[Any] = [2]
    other.append(other)
    assert digest_of(one) == digest_of(copy.deepcopy(one))
    assert digest_of(one) != digest_of(other)
    assert digest_of(one) != digest_of([1, [1]])
    named: dict[str, Any] = {"a": {}}
    named["a"]["up"] = named
    also: dict[str, Any] = {"a": {}}
    also["a"]["up"] = also["a"]  # one level lower
    assert digest_of(named) != digest_of(also)


def test_a_part_in_a_cycle_reads_the_same_wherever_it_is_met_first() -> None:
    # The part holds a back-reference, so what was encoded of it once must not be used elsewhere.
    def build(copied: bool) -> Any:
        part: dict[str, Any] = {"text": "x" * 2000}
        top = {"a": part, "b": [None]}
        part["top"] = top
        again = {"text": "x" * 2000, "top": top} if copied else part
        top["b"] = [again]
        return top

    assert digest_of(build(copied=False)) == digest_of(build(copied=True))


def test_a_tangle_of_cycles_comes_to_an_end() -> None:
    class Node:
        def __init__(self) -> None:
            self.others: list[Node] = []

    nodes = [Node() for _ in range(30)]
    for node in nodes:
        node.others = list(nodes)
    with pytest.raises(Undigestible, match="tangle"):
        digest_of(nodes)


def test_two_nan_as_keys_do_not_depend_on_their_order() -> None:
    one, other = float("nan"), float("nan")
    assert digest_of({one: 1, other: 2}) == digest_of({other: 2, one: 1})
    assert digest_of({one: 1, other: 2}) == digest_of({one: 2, other: 1})


def test_the_fields_of_records_are_not_confused_by_their_schema() -> None:
    class Name(str):
        __slots__ = ()

    plain, named = {"a": 1, "b": 2}, {Name("a"): 1, Name("b"): 2}
    assert plain == named
    assert digest_of([plain, plain]) != digest_of([plain, named])
    assert digest_of([{1: 0}, {True: 0}, {1.0: 0}]) != digest_of([{1: 0}, {1: 0}, {1: 0}])


def test_very_deep_nesting_is_refused_clearly() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(Undigestible, match="recursion limit"):
        digest_of(value)
    for _ in range(99_800):
        value = value[0]
    assert digest_of(value)


def test_threads_do_not_disturb_each_other() -> None:
    value = [golden_digest.shared(), {"a": [list(range(100))]}]
    found: set[str] = set()

    def ask() -> None:
        found.update(digest_of(value) for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {digest_of(value)}


# --- calls ------------------------------------------------------------------------------------------------


def test_names_values_and_prefix_of_a_call_all_count() -> None:
    calls = [
        (b"f", [("a", 1), ("b", 2)]), (b"g", [("a", 1), ("b", 2)]), (b"f", [("a", 2), ("b", 1)]),
        (b"f", [("b", 1), ("a", 2)]), (b"f", [("a", 1)]), (b"f", []), (b"fa", [("", 1), ("b", 2)]),
        (b"f", [("a", [1]), ("b", 2)]),
    ]  # fmt: skip
    assert len({digest_of_call(prefix, named) for prefix, named in calls}) == len(calls)
    assert digest_of_call(b"", [("value", 1)]) != digest_of(1)


def test_a_call_of_large_values_needs_no_copy_of_them() -> None:
    import tracemalloc

    value = bytes(50_000_000)
    tracemalloc.start()
    try:
        digest_of_call(b"", [("a", value), ("b", {"deep": [value]})])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# --- golden vectors -----------------------------------------------------------------------------------------


def test_no_golden_vector_has_changed() -> None:
    kept = json.loads(golden_digest.PATH.read_text())
    found = golden_digest.digests()
    assert kept["version"] == 1
    assert {name: digest for name, digest in found.items() if kept["digests"].get(name) != digest} == {}
    assert len(found) >= 80
    assert sys.byteorder == "little" or any("big-endian" in name for name in found)


def test_no_two_golden_vectors_are_alike_unless_they_are_equal() -> None:
    alike = collections.defaultdict(set)
    for name, digest in json.loads(golden_digest.PATH.read_text())["digests"].items():
        alike[digest].add(name)
    assert sorted(map(sorted, (names for names in alike.values() if len(names) > 1))) == [
        ["-nan", "nan"],
        ["numpy: float64 (2, 3)", "numpy: float64, F order"],
    ]


# --- for people ---------------------------------------------------------------------------------------------


class Awkward:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1 + 0.2, "0.30000000000000004"), (1, "1"), ("news", "'news'"), (None, "None"), ([1, "a"], "[1, 'a']"),
        ((1,), "(1,)"), ({"a": 0.5}, "{'a': 0.5}"), ({"b", "a"}, "{'a', 'b'}"), (Awkward(), "Awkward"),
        (golden_digest.Color.RED, "Color.RED"), (golden_digest.Config(0.1, set()), "Config(rate=0.1, tags={})"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, … (100)]"), (10**1000, "int of 3322 bits"),
        (json.dumps, "json.dumps"), ("a\nb", "'a\\nb'"),
    ],
)  # fmt: skip
def test_a_preview_says_what_it_is(value: Any, shown: str) -> None:
    assert preview(value) == shown


@pytest.mark.parametrize("make", [
    lambda: "x" * 10**7, lambda: [["x" * 1000] * 1000] * 1000, lambda: {str(n): "y" * 99 for n in range(10**5)},
    lambda: golden_digest.cycle(), lambda: set(range(10**6)), lambda: Awkward,
])  # fmt: skip
def test_a_preview_is_short_and_quick(make: Callable[[], Any]) -> None:
    value = make()
    for _ in range(1000):
        assert len(preview(value)) <= 80
