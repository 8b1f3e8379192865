"""`python -m bench.memoized`: warm hits of memoized functions, dibs beside joblib.Memory and diskcache.memoize.

Contenders are interleaved, round by round, in one folder; shown are medians over the rounds, and dibs' ratio to each
peer.  Compare ratios: machines, and minutes, differ.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import diskcache
import joblib
import numpy as np

import dibs

ROUNDS = 7
ARRAY = np.random.default_rng(0).random(131_072)  # 1 MiB

Warm = Callable[[], Any]


def scalars(folder: str) -> dict[str, Warm]:
    """Three scalars in, a small dict out."""

    def accuracy(a: int, b: float, c: str) -> dict[str, Any]:
        return {"accuracy": a * b, "loss": 0.1, "name": c}

    return _warm(folder, accuracy, lambda f: f(3, 0.25, "knn"))


def array_argument(folder: str) -> dict[str, Warm]:
    """An array of 1 MB in, a float out."""

    def total(array: Any) -> float:
        return float(array.sum())

    return _warm(folder, total, lambda f: f(ARRAY))


def array_result(folder: str) -> dict[str, Warm]:
    """A number in, an array of 1 MB out; joblib maps it, as dibs does."""

    def make(seed: int) -> Any:
        return np.random.default_rng(seed).random(131_072)

    return _warm(folder, make, lambda f: f(2), mmap_mode="r")


def _warm(folder: str, function: Any, call: Callable[[Any], Any], mmap_mode: Any = None) -> dict[str, Warm]:
    contenders = {
        "dibs": dibs.open(f"{folder}/dibs").memoize(function),
        "joblib.Memory": joblib.Memory(f"{folder}/joblib", verbose=0, mmap_mode=mmap_mode).cache(function),
        "diskcache.memoize": diskcache.Cache(f"{folder}/diskcache").memoize()(function),
    }
    return {name: lambda f=f: call(f) for name, f in contenders.items()}  # type: ignore[misc]


PARTS = {"scalars": scalars, "array_argument": array_argument, "array_result": array_result}


def measure(part: str, folder: str) -> dict[str, float]:
    """Seconds per warm call of each contender: medians over the rounds."""
    found: dict[str, list[float]] = {}
    warm = PARTS[part](folder)
    for call in warm.values():
        call()
    for _ in range(ROUNDS):
        for name, call in warm.items():
            call()
            times = 500 if part == "scalars" else 100
            began = time.perf_counter()
            for _ in range(times):
                call()
            found.setdefault(name, []).append((time.perf_counter() - began) / times)
    return {name: median(values) for name, values in found.items()}


def main(names: list[str]) -> None:
    for name in names or list(PARTS):
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(name, folder)
        print(f"\n{name}: {PARTS[name].__doc__}")
        for contender, value in seconds.items():
            print(f"    {contender:20} {value * 1e6:10.1f} µs   dibs takes {seconds['dibs'] / value:6.2f} x as long")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.memoized", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"what to measure: {', '.join(PARTS)} (default: all)")
    logging.disable(logging.CRITICAL)
    sys.exit(main(parser.parse_args().part))
