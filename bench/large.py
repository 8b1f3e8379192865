"""`python -m bench.large`: large arrays out and in, with the memory they take; results of 1 MB beside joblib's.

Each store and load of a large array happens in a fresh process, whose memory and time are shown: memory beyond what
it had before, as a ratio to the array.  `load` is on the host that stored it; `first look` where nobody has verified
the blob yet.  The mapped results of 1 MB are interleaved, round by round, in one folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

from dibs.testing.servers import ServiceMissing, ministack
from stress.large import store_and_load

ROUNDS, CALLS = 9, 500


def large(title: str, url: str, folder: str, mib: int) -> None:
    found = store_and_load(url, folder, mib)
    print(f"\n{mib} MiB array, {title}")
    for name in ("store", "load", "first look", "load again"):
        print(f"    {name:12} {found[f'{name} ms']:10.2f} ms    memory {found[f'{name} ratio']:.3f} x the array")


def results(folder: str) -> None:
    """Microseconds for a result of 1 MB that is there, with its first and last element read."""
    import joblib
    import numpy

    import dibs

    def compute(number: int) -> Any:
        return numpy.arange(125_000.0) + number

    cache = dibs.open(os.path.join(folder, "dibs"))
    memory = joblib.Memory(os.path.join(folder, "joblib"), mmap_mode="r", verbose=0)
    remembered = memory.cache(compute)
    path = os.path.join(folder, "by-hand.npy")
    numpy.save(path, compute(1))
    dump = os.path.join(folder, "dump")
    joblib.dump(compute(1), dump)
    asks: dict[str, Callable[[], Any]] = {
        "numpy.load, mapped (floor)": lambda: numpy.load(path, mmap_mode="r"),
        "joblib.load, mapped": lambda: joblib.load(dump, mmap_mode="r"),
        "joblib.Memory, mapped": lambda: remembered(1),
        "dibs": lambda: cache.get_or_compute("array", lambda: compute(1)),
        "dibs, peeked at": lambda: cache.get("array"),
    }
    found: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(ROUNDS):
        for name, ask in asks.items():
            found[name].append(_per_call_s(ask))
    floor = _median(found["numpy.load, mapped (floor)"])
    print("\nwarm hit of a result of 1 MB, mapped")
    for name, times_s in found.items():
        low, high = min(times_s) * 1e6, max(times_s) * 1e6
        middle = _median(times_s)
        print(f"    {name:28} {middle * 1e6:8.1f} µs  [{low:.1f} to {high:.1f}]  {middle / floor:6.2f} x numpy.load")


def _per_call_s(ask: Callable[[], Any]) -> float:
    assert ask()[0] == 1.0
    began = time.perf_counter()
    for _ in range(CALLS):
        array = ask()
        assert array[0] == 1.0 and array[-1] == 125_000.0
    return (time.perf_counter() - began) / CALLS


def _median(times_s: list[float]) -> float:
    return sorted(times_s)[len(times_s) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large array (default: 1024)")
    parser.add_argument("--where", help="folder to work in, on the disk that you mean (default: the temporary one)")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.platform()}")
    with tempfile.TemporaryDirectory(dir=arguments.where) as folder:
        results(folder)
        large("folder", os.path.join(folder, "cache"), folder, arguments.mib)
        try:
            with ministack() as server, server.credentials():
                server.make_bucket("dibs-bench")
                large("bucket (MiniStack)", server.url("dibs-bench", "large"), folder, arguments.mib)
        except ServiceMissing as why:
            print(f"not measured on a bucket: {why}")


if __name__ == "__main__":
    main()
