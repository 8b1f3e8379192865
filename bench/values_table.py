"""`python -m bench.values_table`: writes docs/values.md, which says of many values how they are stored.

Each value is encoded, decoded from memory of its own, and compared: equal, and of the same type all the way down.
`--check` writes nothing, and ends with 1 when the file isn't what would be written (sizes aside: libraries differ).
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import re
import sys
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.sameness import same
from dibs.codec import Codec, Encoded
from dibs.errors import CodecError

FILE = pathlib.Path(__file__).parent.parent / "docs" / "values.md"
BEGIN, END = "<!-- the table: python -m bench.values_table -->", "<!-- end of the table -->"


class Point(NamedTuple):
    x: int
    y: float


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


@dataclasses.dataclass
class Result:
    score: float
    labels: list[str]


def standard() -> dict[str, Any]:
    paris = zoneinfo.ZoneInfo("Europe/Paris")
    noon = datetime.datetime(2026, 3, 29, 12, 0, 0, 5)  # noqa: DTZ001 - one without a zone is wanted
    hour = datetime.timezone(datetime.timedelta(hours=1))
    return {
        'b"raw"': b"raw", '"text"': "text", '"é 😀"': "é 😀", '"\\ud800" (a lone surrogate)': "\ud800",
        "bytearray(b\"raw\")": bytearray(b"raw"),
        "None": None, "True": True, "1": 1, "1.5": 1.5, "-0.0": -0.0, "nan": math.nan, "-inf": -math.inf,
        "2**64": 2**64, "2**20000": 2**20_000, "1 - 2j": 1 - 2j,
        '[1, 1.0, True, None, "a"]': [1, 1.0, True, None, "a"], '{"b": [1], "a": {}}': {"b": [1], "a": {}},
        "list(range(1000))": list(range(1000)),
        "(1, 2.5)": (1, 2.5), '[{"pair": (1, (2,))}]': [{"pair": (1, (2,))}],
        '{1: "a", None: "b", (1, 2): "c"}': {1: "a", None: "b", (1, 2): "c"},
        '{"$tuple": ()}': {"$tuple": ()},
        "{1, 2}": {1, 2}, 'frozenset({"a"})': frozenset({"a"}), "range(0, 10, 3)": range(0, 10, 3),
        '{"image": b"..."} (1 kB)': {"image": bytes(1000)}, '{"image": b"..."} (100 kB)': {"image": bytes(100_000)},
        "datetime(...) without a zone": noon, "datetime(...) in UTC": noon.replace(tzinfo=datetime.UTC),
        "datetime(...) in Paris": noon.replace(tzinfo=paris), "time(...) at +01:00": datetime.time(1, tzinfo=hour),
        "date(2026, 1, 31)": datetime.date(2026, 1, 31), "timedelta(days=1.5)": datetime.timedelta(days=1.5),
        'Decimal("1.10")': decimal.Decimal("1.10"), "Fraction(1, 3)": fractions.Fraction(1, 3),
        "UUID(int=1)": uuid.UUID(int=1), 'PurePosixPath("a/b")': pathlib.PurePosixPath("a/b"),
        "named tuple": Point(1, 2.0), "IntEnum member": Level.HIGH, "subclass of str": Text("a"),
        "OrderedDict": collections.OrderedDict(b=1, a=2), "defaultdict": collections.defaultdict(list, a=[1]),
        "Counter": collections.Counter("abca"), "deque": collections.deque([1, 2], maxlen=3),
        "dataclass": Result(0.5, ["a"]), "compiled pattern": re.compile("a+"),
        "function": len, "class": Result, "exception's args": ValueError("bad", 3).args,
    }  # fmt: skip


def arrays() -> dict[str, Any]:
    import numpy as np

    record = np.dtype([("id", "<i4"), ("name", "U5")])
    return {
        "np.float64(1.5)": np.float64(1.5), "np.bool_(True)": np.bool_(True),
        'np.datetime64("2026-01-01")': np.datetime64("2026-01-01"),
        "float64 array, (100, 3)": np.arange(300.0).reshape(100, 3),
        "float64 array, Fortran order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "int16 array, big endian": np.arange(6, dtype=">i2"), "every other item of an array": np.arange(20)[::2],
        "0-d array": np.array(3.5), "empty array, (0, 3)": np.empty((0, 3), "f4"),
        "complex array": np.array([1 + 2j]), "bool array": np.array([True, False]),
        "text array": np.array(["é", "abc"]),
        "datetime64 array with NaT": np.array(["2026-01-01", "NaT"], "M8[ns]"), "structured array": np.zeros(3, record),
        "array of objects": np.array([{}, None, "a"]), "masked array": np.ma.array([1, 2], mask=[True, False]),
        "record array": np.zeros(3, record).view(np.recarray),
        '{"weights": array, "loss": 0.5}': {"weights": np.arange(1000.0), "loss": 0.5},
        "(array, array)": (np.zeros(3), np.ones(2, "i1")),
        "dataclass with an array": Result(0.5, np.zeros(1000)),  # type: ignore[arg-type],
    }  # fmt: skip


def tables() -> dict[str, Any]:
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    times = pd.date_range("2026-01-01", periods=3, freq="D", tz="Europe/Paris")
    pairs = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["letter", None])
    noted = pd.DataFrame({"a": [1]})
    noted.attrs = {"unit": "m"}
    objects = pd.Series(["a", 1, None], dtype=object)
    return {
        "DataFrame of numbers and text": pd.DataFrame({"n": [1, 2], "x": [0.5, np.nan], "s": ["a", None]}),
        "DataFrame, times as index": pd.DataFrame({"x": [1.0, 2.0, 3.0]}, index=times),
        "DataFrame, categories": pd.DataFrame({"c": pd.Categorical(["x", None], categories=["y", "x"], ordered=True)}),
        "DataFrame, intervals of pd.cut": pd.DataFrame({"c": pd.cut([1, 2, 3], 2)}),
        "DataFrame, MultiIndex both ways": pd.DataFrame(np.eye(4), index=pairs, columns=pairs),
        "DataFrame, columns 1, \"a\", None": pd.DataFrame([[1, 2, 3]], columns=[1, "a", None]),
        "DataFrame, nullable types": pd.DataFrame({"i": pd.array([1, None], dtype="Int8"),
        "b": pd.array([True, None], dtype="boolean")}),
        "DataFrame, Arrow types": pd.DataFrame({"i": pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int8())))}),
        "DataFrame with attrs": noted, "DataFrame, empty": pd.DataFrame(),
        "DataFrame, mixed objects": pd.DataFrame({"o": objects}),
        "DataFrame, sparse": pd.DataFrame({"s": pd.arrays.SparseArray([0, 0, 1])}),
        "Series": pd.Series([1, 2], index=["a", "b"], name=("x", 1)), "DatetimeIndex": times, "pd.Timestamp": times[0],
        "Polars DataFrame": pl.DataFrame({"a": [1, None], "l": [[1], []], "s": ["x", None]}),
        "Polars Series, Enum": pl.Series("e", ["a", "b"], dtype=pl.Enum(["b", "a"])),
        "Arrow table": pa.table({"a": [1, None], "d": pa.array(["x", "y"]).dictionary_encode()}),
        "Arrow array": pa.array([[1], None]), "Arrow scalar": pa.scalar(1),
        "{\"train\": DataFrame, \"n\": 3}": {"train": pd.DataFrame({"x": [1.0]}), "n": 3},
    }  # fmt: skip


def tensors() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    base = torch.arange(6.0)
    return {
        "tensor, bfloat16": torch.ones(3, dtype=torch.bfloat16), "tensor, transposed": torch.arange(6).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(2)), "dict of tensors": {"a": torch.ones(2), "b": torch.zeros(0)},
        "state dict with tied weights": model.state_dict(), "overlapping views": {"a": base[:4], "b": base[2:]},
        "sparse tensor": torch.eye(3).to_sparse(), "nn.Module": torch.nn.Linear(2, 2),
        "checkpoint {\"model\": …, \"epoch\": 3}": {"model": {"w": torch.ones(2)}, "epoch": 3},
    }  # fmt: skip


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "Standard types": standard, "NumPy": arrays, "pandas, Polars, Arrow": tables, "PyTorch": tensors,
}  # fmt: skip


def there_and_back(value: Any, codec: Codec) -> tuple[Encoded, Any]:
    encoded = codec.encode(value)
    return encoded, codec.decode(encoded.codec, memoryview(bytearray(encoded.joined())))


def rows(values: dict[str, Any]) -> list[str]:
    """The table's lines; an AssertionError names a value that didn't come back as it was."""
    lines = []
    for name, value in values.items():
        encoded, loaded = there_and_back(value, Codec(None))
        assert same(value, loaded), f"{name} came back as {loaded!r}"
        refusing = Codec("they are refused here")
        try:
            safe = "yes" if refusing.encode(value).codec == encoded.codec else "other"
        except CodecError:
            safe = "no"
        kind = type(value)
        known = kind.__module__ in ("builtins", "__main__", __name__)
        of = kind.__qualname__ if known else f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
        shown = name.replace("|", "\\|")
        lines.append(f"| `{shown}` | `{encoded.codec}` | equal | `{of}` | {encoded.size_bytes:,} | {safe} |")
    return lines


def table() -> str:
    head = "| value | codec | comes back | type | bytes | without pickles |\n|---|---|---|---|---:|---|"
    parts = [f"### {title}\n\n{head}\n" + "\n".join(rows(make())) for title, make in PARTS.items()]
    return "\n\n".join(parts)


def without_sizes(text: str) -> str:
    return re.sub(r"\| [\d,]+ (?=\|)", "| ", text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.values_table", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    asked = parser.parse_args()
    before = FILE.read_text()
    start, end = before.index(BEGIN) + len(BEGIN), before.index(END)
    after = f"{before[:start]}\n\n{table()}\n\n{before[end:]}"
    if asked.check:
        return int(without_sizes(before) != without_sizes(after))
    FILE.write_text(after)
    return 0


if __name__ == "__main__":
    # Under this name the classes above belong to a module, as those of a program do.
    from bench import values_table

    sys.exit(values_table.main())
