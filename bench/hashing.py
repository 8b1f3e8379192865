"""Digests of arguments beside what others use: `python -m bench.hashing`; ratios of one run, rounds interleaved.

Only dibs and joblib (and dask, mostly) make keys that are meant to be the same for equal values; a pickle and a bare
hash show what the memory and the encoding cost, and are no keys: see docs/digest.md for what they get wrong.
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import blake3
import joblib
import numpy as np
import pandas as pd
import xxhash
from dask.tokenize import tokenize

from dibs.digest import digest_of, digest_of_call

ROUNDS = 7
ROUND_S = 0.15

Contender = Callable[[Any], object]


def pickle_xxh3(value: Any) -> bytes:
    buffers: list[pickle.PickleBuffer] = []
    hashed = xxhash.xxh3_128(pickle.dumps(value, 5, buffer_callback=buffers.append))
    for buffer in buffers:
        hashed.update(buffer.raw())
    return hashed.digest()


def pickle_in_band_xxh3(value: Any) -> bytes:
    return xxhash.xxh3_128_digest(pickle.dumps(value))


CONTENDERS: dict[str, Contender] = {
    "dibs": digest_of,
    "joblib.hash": joblib.hash,
    "dask.tokenize": tokenize,
    "pickle + xxh3": pickle_in_band_xxh3,
    "same, out of band": pickle_xxh3,
}


def call(value: list[tuple[str, Any]]) -> str:
    return digest_of_call(b"f", value)


def raw_blake3(value: np.ndarray[Any, Any]) -> bytes:
    # A pool of its own, as dibs: the shared one of AUTO doesn't survive a fork.
    return blake3.blake3(memoryview(value).cast("B"), max_threads=2).digest()


def leaf(number: int) -> Any:
    return [number, number * 0.37, f"value {number}", number % 2 == 0, None][number % 5]


def tree(depth: int, start: int = 0) -> dict[str, Any]:
    if depth == 0:
        return {f"key {number}": leaf(start + number) for number in range(10)}
    return {f"key {number}": tree(depth - 1, 10 * (start + number)) for number in range(10)}


def cases() -> dict[str, tuple[Callable[[], Any], dict[str, Contender], int]]:
    """Name -> (value, contenders, bytes or 0)."""
    rng = np.random.default_rng(1)
    rows = 1_000_000
    texts = pd.Series([f"name {number % 5000} of {number}" for number in range(rows)])
    columns = {"id": np.arange(rows), "x": rng.random(rows)}
    floats = {**CONTENDERS, "raw blake3": raw_blake3}
    no_dask = {name: made for name, made in CONTENDERS.items() if name != "dask.tokenize"}
    records = [{"id": number, "name": "x", "score": number / 2} for number in range(20_000)]
    scalars = [("steps", 3), ("rate", 0.1), ("model", "bert")]
    of_call = {**CONTENDERS, "dibs": call}
    return {
        "three scalars, as a call": (lambda: scalars, of_call, 0),
        "array of 1 MB": (lambda: rng.random(125_000), floats, 1_000_000),
        "array of 100 MB": (lambda: rng.random(12_500_000), floats, 100_000_000),
        "array of 100 MB with NaN": (lambda: np.where(np.arange(12_500_000) % 9, 1.5, np.nan), floats, 100_000_000),
        "array of 100 MB, F order": (lambda: np.asfortranarray(rng.random((2500, 5000))), CONTENDERS, 100_000_000),
        "frame of 1e6 rows, strings as objects": (
            lambda: pd.DataFrame({**columns, "s": texts.astype(object)}),
            no_dask,
            0,
        ),
        "frame of 1e6 rows, strings in Arrow": (lambda: pd.DataFrame({**columns, "s": texts}), CONTENDERS, 0),
        "dict of 10,000 leaves, four deep": (lambda: tree(3), CONTENDERS, 0),
        "dict of 10,000 leaves, flat": (lambda: {str(number): leaf(number) for number in range(10_000)}, CONTENDERS, 0),
        "list of 20,000 small dicts": (lambda: records, CONTENDERS, 0),
    }


def measured(value: Any, contenders: dict[str, Contender]) -> dict[str, list[float]]:
    """Seconds per digest, one number per round."""
    times: dict[str, int] = {}
    for name, contender in contenders.items():
        began = time.perf_counter()
        contender(value)
        times[name] = max(int(ROUND_S / max(time.perf_counter() - began, 1e-6)), 1)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, contender in contenders.items():
            began = time.perf_counter()
            for _ in range(times[name]):
                contender(value)
            found[name].append((time.perf_counter() - began) / times[name])
    return found


def main(chosen: list[str], as_json: bool) -> None:
    lines = []
    print(f"Python {platform.python_version()}, numpy {np.__version__}, pandas {pd.__version__}, {platform.platform()}")
    for title, (make, contenders, size_bytes) in cases().items():
        if chosen and not any(word in title for word in chosen):
            continue
        found = measured(make(), contenders)
        medians = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
        print(f"\n{title}")
        for name, seconds in medians.items():
            rate = f"{size_bytes / seconds / 1e9:6.2f} GB/s" if size_bytes else " " * 11
            low, high = min(found[name]) * 1e6, max(found[name]) * 1e6
            ratio = seconds / medians["dibs"]
            print(f"    {name:18} {seconds * 1e6:12.2f} µs  [{low:.2f} to {high:.2f}]  {rate}  {ratio:8.2f} x dibs")
            lines.append({"title": title, "name": name, "seconds": seconds, "ratio": ratio})
    if as_json:
        print(json.dumps(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.hashing", description=__doc__)
    parser.add_argument("word", nargs="*", help="measure only the cases whose title has one of these words")
    parser.add_argument("--json", action="store_true", help="print the numbers once more, as one JSON list")
    arguments = parser.parse_args()
    sys.exit(main(arguments.word, arguments.json))
