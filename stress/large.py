"""Large values: how much memory a fresh process takes for one, and what broken connections and damage do to it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple

from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import ANSWER_LOST, HALF_SENT, REQUEST_LOST, TRUNCATED, Fault, Request, status
from dibs.testing.servers import Server
from stress.fleet import open_cache

SLACK_MIB: Final = 24
"""For the interpreter's own allocations while a value goes by."""
PARTS_MIB: Final = 5 * 16
"""Four parts on their way to a bucket and one that is read, whatever the size of the value."""

_PROGRAM: Final = """
import json, resource, sys, time
import numpy, dibs

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

url, what, mib = sys.argv[1], sys.argv[2], int(sys.argv[3])
cache = dibs.open(url)
cache.get_or_compute("warm-up", lambda: numpy.arange(20_000))
cache.get("warm-up")
before = peak_mib()
array = numpy.arange(mib << 17) if what == "store" else None
began = time.perf_counter()
if what == "store":
    cache.get_or_compute("large", lambda: array)
    took_s = time.perf_counter() - began
else:
    array = cache.get("large")
    took_s = time.perf_counter() - began
    assert array.size == mib << 17 and array.flags.writeable
    for start in range(0, array.size, 1 << 17):  # touches every page
        part = array[start : start + (1 << 17)]
        assert part[0] == start and part[-1] == start + (1 << 17) - 1 and part.sum() > 0
print(json.dumps({"peak_mib": peak_mib() - before, "took_s": took_s}))
"""


class Took(NamedTuple):
    """What a fresh process took to store or load an array; of memory, how much more than before."""

    peak_mib: float
    took_s: float


def in_fresh_process(url: str, what: str, mib: int, runtime_dir: str | None = None) -> Took:
    """`what` is "store" or "load"; an array of so many MiB must have been stored before it can be loaded."""
    environment = {**os.environ, "DIBS_RUNTIME_DIR": runtime_dir} if runtime_dir else None
    arguments = [sys.executable, "-c", _PROGRAM, url, what, str(mib)]
    ran = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return Took(**json.loads(ran.stdout))


def store_and_load(url: str, folder: str, mib: int) -> dict[str, Any]:
    """A fresh process stores an array, others load it; none has it in memory twice, or 1.2 times."""
    found: dict[str, Any] = {"mib": mib}
    steps = [("store", "store", "a"), ("load", "load", "a"), ("first look", "load", "b"), ("load again", "load", "b")]
    for name, what, host in steps:
        took = in_fresh_process(url, what, mib, os.path.join(folder, f"runtime-{host}"))
        parts_mib = PARTS_MIB if what == "store" and url.startswith("s3:") else 0
        assert took.peak_mib <= 1.2 * mib + parts_mib + SLACK_MIB, (name, took)
        found |= {f"{name} ratio": took.peak_mib / mib, f"{name} ms": took.took_s * 1e3}
    return found


def break_connections(server: Server, bucket: str, rounds: int, mib: int = 100, seed: int = 1) -> dict[str, Any]:
    """Large values go to a bucket and back while connections break: whole and right, or not at all."""
    from dibs.errors import StoreUnavailable
    from dibs.runtime.system import system
    from dibs.stores import open_store

    chance, lock = random.Random(seed), threading.Lock()
    broken: list[Fault] = []
    uploaded = downloaded = 0

    def plan(request: Request) -> Fault | None:
        with lock:
            if chance.random() > 0.15 or not request.key:
                return None
            faults = {"PUT": [HALF_SENT, ANSWER_LOST, status(503)], "GET": [TRUNCATED, REQUEST_LOST, status(500)]}
            fault = chance.choice(faults.get(request.method, [ANSWER_LOST]))
            broken.append(fault)
            return fault

    with FaultProxy(server.endpoint_url) as proxy:
        store = open_store(server._replace(endpoint_urls=(proxy.endpoint_url,)).url(bucket, "broken"), system())
        content = memoryview(chance.randbytes(mib << 20))
        for number in range(rounds):
            name = f"values/large/{number}-a"
            proxy.plan = plan
            try:
                store.upload(name, _Views(content))
                uploaded += 1
                with store.download(name) as file:
                    assert memoryview(file) == content, f"round {number}: other bytes came back"  # type: ignore[arg-type]
                downloaded += 1
            except (StoreUnavailable, FileNotFoundError):
                pass
            proxy.plan = None
            store.remove(name)
            # When the answer to the beginning of an upload is lost, it is begun twice, and one of them stays empty.
            left = list(store.clear_leftovers(lambda other: True))
            assert not any(line.size_bytes for line in left), f"round {number}: {left} stayed"
            assert not list(store.clear_leftovers(lambda other: True)), f"round {number}: leftovers stay"
        assert not proxy.errors, proxy.errors
    assert downloaded > rounds // 2, f"only {downloaded} of {rounds} came back"
    return {"rounds": rounds, "uploaded": uploaded, "downloaded": downloaded, "broken": len(broken)}


class _Views:
    """Hands out views of memory, as an encoded array does."""

    def __init__(self, content: memoryview) -> None:
        self._rest = content

    def read(self, size: int, /) -> memoryview:
        chunk, self._rest = self._rest[:size], self._rest[size:]
        return chunk


def damage_mapped(folder: str, rounds: int, seed: int = 1) -> dict[str, Any]:
    """A mapped array's file is flipped, cut, lengthened or removed: never a wrong value, always a reported miss."""
    import numpy

    chance = random.Random(seed)
    expected = numpy.arange(1 << 17)
    healings = 0
    with open_cache(os.path.join(folder, "cache")) as cache:
        events: list[str] = []
        cache.on_event(lambda event: events.append(event.kind))
        for number in range(rounds):
            key = f"array {number}"
            cache.get_or_compute(key, lambda: expected.copy())
            mine = cache.get(key)
            mine[:] = 0  # a private view: nobody sees this
            if number % 2:
                with open_cache(os.path.join(folder, "cache")) as other:
                    assert (other.get(key) == expected).all()
            (path,) = (path for path in Path(folder, "cache", "blobs").rglob(f"*{number}*/*/*") if path.is_file())
            _damage(path, chance)
            events.clear()
            assert (cache.get_or_compute(key, lambda: expected.copy()) == expected).all(), f"round {number}"
            assert "healed" in events, f"round {number}: without a report"
            healings += 1
            assert (cache.get(key) == expected).all()
            cache.forget(key)
            for blob in Path(folder, "cache", "blobs").rglob("*-*"):
                if blob.is_file():
                    blob.unlink()
    return {"damages": rounds, "healed": healings}


def _damage(path: Path, chance: random.Random) -> None:
    how = chance.choice(["flip", "cut", "lengthen", "remove", "rewrite"])
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        with open(path, "r+b") as file:
            file.write(content)
    elif how == "cut":
        os.truncate(path, chance.randrange(len(content)))
    elif how == "lengthen":
        with open(path, "ab") as file:
            file.write(b"\0")
    elif how == "remove":
        path.unlink()
    else:
        path.unlink()
        path.write_bytes(bytes(len(content)))
