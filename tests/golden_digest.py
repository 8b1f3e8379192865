"""Values whose digests are fixed for ever: `python -m tests.golden_digest` writes them to tests/golden/digest_v1.json.

Run it only when vectors are added: one that changes is a broken promise, because it orphans every cache there is.
`--print` shows what this interpreter makes of them, for the tests that compare processes.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import json
import math
import operator
import pathlib
import re
import sys
import types
import uuid
import zoneinfo
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from dibs.digest import digest_of

PATH = pathlib.Path(__file__).parent / "golden" / "digest_v1.json"


class Color(enum.Enum):
    RED = "red"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: float
    y: float


@dataclasses.dataclass
class Config:
    rate: float
    tags: set[str]


class Plain:
    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("__private", "shown")

    def __init__(self) -> None:
        self.shown, self.__private = 1, {"b", "a"}


class Keyed:
    def __dibs_key__(self) -> object:
        return ("what counts", 1)


class Reduced:
    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, (), {"a": 1}

    def __setstate__(self, state: object) -> None:
        assert state == {"a": 1}


class Words(list[str]):
    pass


class Number(int):
    pass


def cycle() -> list[Any]:
    inner: list[Any] = [1]
    outer = [inner]
    inner.append(outer)
    return outer


def shared() -> list[Any]:
    part = ["x" * 2000]
    return [part, part, [part]]


STRINGS = [f"word {number}" for number in range(30)]

STANDARD: dict[str, Callable[[], object]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2**63 - 1": lambda: 2**63 - 1,
    "2**63": lambda: 2**63,
    "-2**63 - 1": lambda: -(2**63) - 1,
    "10**400": lambda: 10**400,
    "0.0": lambda: 0.0,
    "-0.0": lambda: -0.0,
    "0.1": lambda: 0.1,
    "inf": lambda: math.inf,
    "nan": lambda: math.nan,
    "-nan": lambda: -math.nan,
    "1 - 2j": lambda: 1 - 2j,
    "''": str,
    "'é😀'": lambda: "é😀",
    "'\\ud800'": lambda: "\ud800",
    "'x' * 1015": lambda: "x" * 1015,
    "'x' * 1016": lambda: "x" * 1016,
    "b''": bytes,
    "b'\\0\\xff'": lambda: b"\0\xff",
    "bytes(5_000_000)": lambda: bytes(5_000_000),
    "bytearray(b'ab')": lambda: bytearray(b"ab"),
    "memoryview(b'ab')": lambda: memoryview(b"ab"),
    "[]": list,
    "()": tuple,
    "{}": dict,
    "set()": set,
    "frozenset()": frozenset,
    "[1, 2]": lambda: [1, 2],
    "(1, 2)": lambda: (1, 2),
    "[1, 2**63]": lambda: [1, 2**63],
    "[True, 1]": lambda: [True, 1],
    "[1.0, nan]": lambda: [1.0, math.nan],
    "['a', 'bc', '\\ud800']": lambda: ["a", "bc", "\ud800"],
    "[1, 'a', None, [2.5]]": lambda: [1, "a", None, [2.5]],
    "{'b': 1, 'a': [2]}": lambda: {"b": 1, "a": [2]},
    "{1: 'a', 'b': 2, (3,): None}": lambda: {1: "a", "b": 2, (3,): None},
    "{1, 2, 3}": lambda: {1, 2, 3},
    "set of str": lambda: set(STRINGS),
    "frozenset of str": lambda: frozenset(STRINGS),
    "set of frozensets": lambda: {frozenset(STRINGS), frozenset({"a", "b"})},
    "set of mixed": lambda: {1, "a", None, (1, "b"), 2.5},
    "list of 1,000 dicts": lambda: [{"id": number, "name": str(number), "half": number / 2} for number in range(1000)],
    "a cycle": cycle,
    "shared parts": shared,
    "range(0, 10, 3)": lambda: range(0, 10, 3),
    "range(5, 5)": lambda: range(5, 5),
    "slice(1, None, 2)": lambda: slice(1, None, 2),
    "array('d')": lambda: array.array("d", [1.0, 2.0]),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "OrderedDict": lambda: collections.OrderedDict(b=1, a=2),
    "Counter": lambda: collections.Counter("abracadabra"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "mappingproxy": lambda: types.MappingProxyType({"a": 1}),
    "SimpleNamespace": lambda: types.SimpleNamespace(b=1, a=2),
    "date": lambda: datetime.date(2026, 11, 21),
    "time": lambda: datetime.time(1, 2, 3, 4, fold=1),
    "datetime": lambda: datetime.datetime(2026, 11, 21, 1, 2, 3, 4),  # noqa: DTZ001
    "datetime, utc": lambda: datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC),
    "datetime, zone": lambda: datetime.datetime(2026, 11, 21, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "timezone": lambda: datetime.timezone(datetime.timedelta(hours=1), "CET"),
    "timedelta": lambda: datetime.timedelta(days=-1, microseconds=1),
    "Decimal('1.50')": lambda: decimal.Decimal("1.50"),
    "Decimal('-Infinity')": lambda: decimal.Decimal("-Infinity"),
    "Fraction(1, 3)": lambda: fractions.Fraction(1, 3),
    "UUID": lambda: uuid.UUID(int=7),
    "re.compile('a+', re.I)": lambda: re.compile("a+", re.IGNORECASE),
    "Path('a/b')": lambda: pathlib.Path("a/b"),
    "PurePosixPath('a/b')": lambda: pathlib.PurePosixPath("a/b"),
    "IPv4Address": lambda: ipaddress.ip_address("10.0.0.1"),
    "IPv6Network": lambda: ipaddress.ip_network("fd00::/8"),
    "int": lambda: int,
    "len": lambda: len,
    "str.upper": lambda: str.upper,
    "[1].index": lambda: [1].index,
    "partial": lambda: functools.partial(int, base=2),
    "itemgetter": lambda: operator.itemgetter(1, "a"),
    "list[int]": lambda: list[int],
    "int | None": lambda: int | None,
    "Enum": lambda: Color.RED,
    "Flag": lambda: Access.READ | Access.WRITE,
    "NamedTuple": lambda: Point(1.0, 2.0),
    "dataclass with a set": lambda: Config(0.1, set(STRINGS)),
    "object with a set": lambda: Plain(tags=set(STRINGS), size=1),
    "slots": Slotted,
    "__dibs_key__": Keyed,
    "__reduce__": Reduced,
    "subclass of list": lambda: Words(["a", "b"]),
    "subclass of int": lambda: Number(3),
    "ValueError('x')": lambda: ValueError("x"),
}


def _numpy() -> dict[str, Callable[[], object]]:
    import numpy as np

    return {
        "float64 (2, 3)": lambda: np.arange(6.0).reshape(2, 3),
        "float64, F order": lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "int32, big-endian": lambda: np.arange(3, dtype=">i4"),
        "float32 with NaN": lambda: np.array([1, np.nan], dtype="f4"),
        "float16": lambda: np.array([1, np.nan, 2], dtype="f2"),
        "complex128": lambda: np.array([1 + 2j]),
        "bool": lambda: np.array([True, False]),
        "0-d": lambda: np.array(1.5),
        "empty": lambda: np.zeros((0, 3)),
        "str": lambda: np.array(["ab", "c"]),
        "datetime64": lambda: np.array(["2026-11-21", "NaT"], dtype="M8[s]"),
        "object": lambda: np.array(["a-b", None, 1], dtype=object),
        "structured": lambda: np.array([(1, 2.0)], dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        "masked": lambda: np.ma.MaskedArray([1, 2, 3], mask=[0, 1, 0]),
        "1 MiB": lambda: np.arange(1 << 17),
        "8 MiB": lambda: np.arange(1 << 20),
        "np.float64(1.5)": lambda: np.float64(1.5),
        "np.int8(1)": lambda: np.int8(1),
        "np.float32": lambda: np.float32,
        "np.add": lambda: np.add,
        "dtype": lambda: np.dtype("f4"),
    }


def _pandas() -> dict[str, Callable[[], object]]:
    import pandas as pd

    return {
        "DataFrame": lambda: pd.DataFrame({"a": [1, 2], "b": [0.5, None], "c": pd.Categorical(["x", "y"])}),
        "strings": lambda: pd.Series(["a", None, "bc"], dtype="string", name="s"),
        "Int64": lambda: pd.array([1, None], dtype="Int64"),
        "MultiIndex": lambda: pd.MultiIndex.from_tuples([(1, 2.5), (2, 3.5)], names=["a", None]),
        "DatetimeIndex": lambda: pd.date_range("2026-11-21", periods=3, tz="UTC").as_unit("ns"),
        "Timestamp": lambda: pd.Timestamp("2026-11-21").as_unit("ns"),
    }


def _pyarrow() -> dict[str, Callable[[], object]]:
    import pyarrow as pa

    return {
        "table": lambda: pa.table({"a": [1, None], "s": ["x", "yz"], "l": [[1], None], "b": [True, None]}),
        "chunked": lambda: pa.chunked_array([[1.5], [None, 2.5]]),
        "dictionary": lambda: pa.array(["a", "b", "a"]).dictionary_encode(),
        "struct": lambda: pa.array([{"a": 1}, None]),
    }


def _polars() -> dict[str, Callable[[], object]]:
    import polars as pl

    return {"DataFrame": lambda: pl.DataFrame({"a": [1, None], "s": ["x", "y"], "l": [[1.5], []]})}


def _torch() -> dict[str, Callable[[], object]]:
    import torch

    return {
        "float32": lambda: torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "bfloat16": lambda: torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "Dropout": lambda: torch.nn.Dropout(0.25),
    }


def _scipy() -> dict[str, Callable[[], object]]:
    import numpy as np
    import scipy.sparse

    return {"csr": lambda: scipy.sparse.csr_matrix(np.diag([1.0, 0.0, 2.0]))}


FAMILIES: dict[str, Callable[[], dict[str, Callable[[], object]]]] = {
    "numpy": _numpy,
    "pandas": _pandas,
    "pyarrow": _pyarrow,
    "polars": _polars,
    "torch": _torch,
    "scipy": _scipy,
}


def digests(without: str = "") -> dict[str, str]:
    """The digests of all vectors that this interpreter has the packages for, perhaps without those of one."""
    makers = dict(STANDARD)
    for package, family in FAMILIES.items():
        if package != without and find_spec(package) is not None:
            makers |= {f"{package}: {name}": make for name, make in family().items()}
    return {name: digest_of(make(), name) for name, make in makers.items()}


def main() -> None:
    found = digests()
    if "--print" in sys.argv:
        print(json.dumps(found))
        return
    missing = [package for package in FAMILIES if find_spec(package) is None]
    if missing:
        sys.exit(f"the vectors can't be written without {', '.join(missing)}")
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps({"version": 1, "digests": found}, indent=1, ensure_ascii=True) + "\n")
    print(f"wrote {len(found)} digests to {PATH}")


if __name__ == "__main__":
    main()
