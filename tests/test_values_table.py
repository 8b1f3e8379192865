"""docs/values.md says how each of many values is stored, and is what the command would write."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import Any

import pytest

from bench.sameness import same
from bench.values_table import BEGIN, END, FILE, PARTS, rows, table, there_and_back, without_sizes
from dibs.codec import Codec

NEEDED = {"Standard types": (), "NumPy": ("numpy",), "pandas, Polars, Arrow": ("pandas", "polars", "pyarrow"),
          "PyTorch": ("torch",)}  # fmt: skip
MISSING = [name for names in NEEDED.values() for name in names if importlib.util.find_spec(name) is None]


def values(part: str) -> dict[str, Any]:
    missing = [name for name in NEEDED[part] if name in MISSING]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"{missing} not installed")
    return PARTS[part]()


@pytest.mark.parametrize("part", PARTS)
def test_every_value_of_the_table_comes_back_the_same(part: str) -> None:
    made = values(part)
    assert len(rows(made)) == len(made)


@pytest.mark.parametrize("part", PARTS)
def test_every_value_of_the_table_comes_back_the_same_when_compressed_and_from_immutable_bytes(part: str) -> None:
    pytest.importorskip("backports.zstd")
    codec = Codec(None, zstd=True)
    for name, value in values(part).items():
        encoded, loaded = there_and_back(value, codec)
        assert same(value, loaded), name
        assert same(value, codec.decode(encoded.codec, encoded.joined())), name


@pytest.mark.parametrize("part", PARTS)
def test_no_two_values_of_the_table_are_the_same_so_the_comparison_sees_something(part: str) -> None:
    made = list(values(part).items())
    twins = [(a, b) for n, (a, one) in enumerate(made) for b, other in made[n + 1 :] if same(one, other)]
    assert twins == []


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
def test_the_file_is_what_the_command_writes_sizes_aside() -> None:
    text = FILE.read_text()
    written = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert without_sizes(written) == without_sizes(table()), "run: python -m bench.values_table"
    assert written.count("| equal |") >= 60, importlib.metadata.version("dibs")
