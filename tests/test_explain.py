"""`explain`: what a key is made of, and which ingredient changed since the nearest earlier entry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs.memoize.explanation import _hint
from dibs.memoize.recipe import CUT, INGREDIENTS_SIZE_MAX, packed, unpacked


@pytest.fixture
def cache(tmp_path: Path) -> dibs.Cache:
    return dibs.open(tmp_path / "cache")


def test_a_changed_argument_is_named_with_both_values(cache: dibs.Cache) -> None:
    @cache.memoize
    def train(data: str, lr: float, layers: int = 3) -> str:
        return data

    train("news", 0.1)
    train("news", 0.2, 5)
    found = train.explain("news", 0.1, 4)
    assert found.state == "miss"
    assert found.nearest == train.key("news", 0.1)
    assert [change.ingredient for change in found.changes] == ["argument layers"]
    assert "3" in found.changes[0].before
    assert "4" in found.changes[0].now
    text = str(found)
    assert "miss" in text
    assert "argument layers" in text
    assert "->" in text


def test_a_hit_says_when_and_by_whom_it_was_computed(cache: dibs.Cache) -> None:
    @cache.memoize
    def work(x: int) -> int:
        return x

    work(1)
    found = work.explain(1)
    assert found.state == "hit"
    assert "computed 20" in found.detail
    assert "pid" in found.detail
    assert "argument x" in found.ingredients
    assert "nothing to compare" not in str(found)


def test_the_first_call_of_a_function_has_nothing_to_compare_with(cache: dibs.Cache) -> None:
    @cache.memoize
    def work(x: int) -> int:
        return x

    found = work.explain(1)
    assert (found.state, found.nearest, found.changes) == ("miss", None, ())
    assert "never computed" in str(found)
    assert "nothing to compare with" in str(found)


def test_the_nearest_entry_has_the_fewest_differences_and_then_is_the_newest(cache: dibs.Cache) -> None:
    @cache.memoize
    def work(a: int, b: int, c: int) -> int:
        return a

    work(1, 1, 1), work(2, 2, 2), work(1, 1, 9), work(7, 7, 7)
    assert work.explain(1, 1, 5).nearest == work.key(1, 1, 9)


def test_a_changed_part_of_the_code_is_named(cache: dibs.Cache) -> None:
    def make(rate: float) -> Any:
        @cache.memoize(name="rated")
        def rated(x: int) -> float:
            return x * rate

        return rated

    make(0.5)(1)
    found = make(0.25).explain(1)
    assert [change.ingredient for change in found.changes] == ["code: closure rate"]
    assert "0.5" in found.changes[0].before
    assert "0.25" in found.changes[0].now


@pytest.mark.parametrize(
    ("before", "now", "hint"),
    [
        ((1,), (1.0,), "only the type differs"),
        ((0.3,), (0.1 + 0.2,), "only float noise"),
        (({"lr": 0.3, "n": 2},), ({"lr": 0.1 + 0.2, "n": 2},), "only float noise"),
        ((1,), (2,), ""),
        ((1000001,), (1000002,), ""),
        ((0.3,), (0.31,), ""),
        (("a",), ("b",), ""),
    ],
)
def test_a_miss_that_looks_like_a_mistake_is_pointed_out(
    cache: dibs.Cache, before: tuple[Any], now: tuple[Any], hint: str
) -> None:
    @cache.memoize
    def work(x: Any) -> None: ...

    work(*before)
    (change,) = work.explain(*now).changes
    assert hint in change.hint
    assert bool(hint) == bool(change.hint)
    assert hint in str(work.explain(*now))


def test_text_that_differs_is_no_noise() -> None:
    assert _hint("'run-1.0'", "'run-1.0'") == ""
    assert _hint("'model 1.0'", "'model 2.0'") == ""
    assert "type" in _hint("'1'", "1")
    assert "type" in _hint("[1, 2]", "(1, 2)")
    assert _hint("[1, 2]", "[1, 3]") == ""


def test_kept_ingredients_have_a_limit() -> None:
    many = {f"argument a{number}": ("0" * 16, "x" * 80) for number in range(500)}
    data = packed(many)
    assert len(data) <= INGREDIENTS_SIZE_MAX
    *some, last = unpacked(data)
    assert set(some) < set(many)
    assert last == CUT
    assert unpacked(data)[CUT] == ("", f"{500 - len(some)} more")
    fewer = {f"argument a{number}": ("0" * 16, "x" * 80) for number in range(150)}
    assert set(unpacked(packed(fewer))) == set(fewer), "previews go first"
    assert unpacked(packed({"argument x": ("0" * 16, "é")})) == {"argument x": ("0" * 16, "é")}
    for damaged in (None, b"", b"{", b"[1]", b'{"a": 1}', b'{"a": [1, 2, 3]}'):
        assert unpacked(damaged) == {}


def test_what_there_was_no_room_for_is_not_called_new(cache: dibs.Cache) -> None:
    names = [f"parameter_{number}_{'x' * 40}" for number in range(300)]
    space: dict[str, Any] = {}
    exec(f"def wide({', '.join(names)}): return 1", space)  # noqa: S102 - parameter names alone
    wide = cache.memoize(space["wide"])
    wide(*range(300))
    assert CUT in cache.explain(wide.key(*range(300))).ingredients
    (change,) = wide.explain(-1, *range(1, 300)).changes
    assert change.ingredient == f"argument {names[0]}"
    assert change.before, "it is not new"
    assert wide.explain(*range(299), -1).changes == ()


def test_only_the_newest_entries_are_looked_at(cache: dibs.Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dibs.memoize.explanation.LOOKED_AT_MAX", 5)

    @cache.memoize
    def work(x: int) -> int:
        return x

    for x in range(8):
        work(x)
    assert work.explain(100).looked_at == 5


def test_the_command_explains_a_stored_key_and_retags_a_version(tmp_path: Path) -> None:
    program = tmp_path / "train.py"

    def run(rate: str, *more: str) -> subprocess.CompletedProcess[str]:
        program.write_text(
            "import dibs, sys\n"
            "cache = dibs.open('cache')\n"
            f"RATE = {rate}\n"
            "@cache.memoize\n"
            "def fit(x):\n"
            "    print('computing')\n"
            "    return x * RATE\n"
            "if __name__ == '__main__':\n"
            "    print(fit(2), fit.key(2))\n"
        )
        return subprocess.run([sys.executable, *more], cwd=tmp_path, capture_output=True, text=True, check=False)

    first = run("0.5", "train.py").stdout.split()
    second = run("0.25", "train.py").stdout.split()
    assert first[:2] == ["computing", "1.0"]
    assert second[:2] == ["computing", "0.5"]
    explained = run("0.25", "-m", "dibs", "--store", "cache", "explain", second[2])
    assert explained.returncode == 0, explained.stderr
    assert "constant" in explained.stdout
    assert "0.25" in explained.stdout
    assert "0.5" in explained.stdout
    data = json.loads(run("0.25", "-m", "dibs", "--store", "cache", "explain", second[2], "--json").stdout)
    assert data["state"] == "hit"
    assert data["nearest"] == first[2]

    listed = run("0.25", "-m", "dibs", "--store", "cache", "retag", "train.fit")
    assert listed.returncode == 0, listed.stderr
    assert len([line for line in listed.stdout.splitlines() if "def fit" in line]) == 2
    # An edit that changes nothing that matters, as its author knows: what 0.25 computed counts for 0.125.
    retagged = run("0.125", "-m", "dibs", "--store", "cache", "retag", "train.py:fit")
    assert retagged.returncode == 0, retagged.stderr
    third = run("0.125", "train.py").stdout.split()
    assert third == second[1:], "computed again, or with another key"
    missing = run("0.125", "-m", "dibs", "--store", "cache", "explain", "train.fit/" + "0" * 40)
    assert missing.returncode == 1
