"""Worker processes for scenarios, and the log that they share: lines in one file, each written at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dibs
from dibs.cache import Cache
from dibs.runtime.system import SystemRuntime, system
from dibs.settings import Settings
from dibs.stores import open_store

METHODS = ("fork", "spawn", "forkserver")
PATIENCE_S = 120.0


def open_cache(url: str, host: str | None = None, **settings: Any) -> Cache:
    """A cache in this process; `host` makes it play another machine (another boot of another kernel)."""
    if host is None:
        return dibs.open(url, **settings)
    runtime = SystemRuntime(boot=f"boot-of-{host}", host=host, runtime_dir=f"/tmp/dibs-stress-{os.getuid()}-{host}")
    return Cache(open_store(url, runtime), runtime, Settings(**settings))


class Log:
    """Lines that many processes append; a killed writer leaves whole lines or none."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)

    def write(self, **fields: Any) -> None:
        line = json.dumps({"pid": os.getpid(), "at": time.monotonic(), **fields}) + "\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)

    def read(self, **match: Any) -> list[dict[str, Any]]:
        if not os.path.exists(self.path):
            return []
        with open(self.path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        return [line for line in lines if all(line.get(k) == v for k, v in match.items())]

    def wait_for(self, count: int = 1, **match: Any) -> list[dict[str, Any]]:
        """The lines that match, as soon as there are `count` of them."""
        for _ in until(PATIENCE_S, f"{count} lines with {match} in the log"):
            lines = self.read(**match)
            if len(lines) >= count:
                return lines
        raise AssertionError("unreachable")


def until(patience_s: float, what: str) -> Iterator[None]:
    """Ticks of 2 ms until the caller breaks off; fails when patience ends first."""
    give_up_at = time.monotonic() + patience_s
    while time.monotonic() < give_up_at:
        yield
        time.sleep(0.002)
    raise AssertionError(f"no {what} within {patience_s} s")


def _begin(environment: dict[str, str], target: Callable[..., None], *args: Any) -> None:
    """With the environment of now: that of a fork server is as old as the server, without a store's credentials."""
    os.environ.update(environment)
    target(*args)


@contextmanager
def worker(target: Callable[..., None], *args: Any, method: str = "fork") -> Iterator[BaseProcess]:
    """One process that is gone, one way or the other, when the block ends."""
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=_begin, args=(dict(os.environ), target, *args), daemon=True)
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join(10)


@contextmanager
def workers(count: int, target: Callable[..., None], *args: Any, method: str = "fork") -> Iterator[list[BaseProcess]]:
    """`count` processes, each called with its number first; all are gone when the block ends."""
    context: Any = multiprocessing.get_context(method)
    environment = dict(os.environ)
    processes = [
        context.Process(target=_begin, args=(environment, target, number, *args), daemon=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        for process in processes:
            process.join(10)


def join_all(processes: list[BaseProcess], patience_s: float = PATIENCE_S) -> None:
    """Wait for all; every one must end by itself, and well."""
    give_up_at = time.monotonic() + patience_s
    for process in processes:
        process.join(max(give_up_at - time.monotonic(), 0.1))
        assert process.exitcode == 0, f"worker {process.name} ended with {process.exitcode} (None: still running)"


def median(numbers: list[float]) -> float:
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]


def quiet_runtime() -> Any:
    """The process-wide runtime, for scenarios that need its clocks."""
    return system()
