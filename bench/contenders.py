"""The locks and caches that are compared, each behind one small face; constructed once, as their users would."""

from __future__ import annotations

import fcntl
import os
import pickle
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import dibs


class Guard(Protocol):
    """A lock as a pair of calls."""

    def acquire(self) -> Any: ...
    def release(self) -> Any: ...


class KernelFlock:
    def __init__(self, folder: str) -> None:
        self._fd = os.open(os.path.join(folder, "flock"), os.O_RDWR | os.O_CREAT, 0o600)

    def acquire(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


class ExclusiveFile:
    """O_CREAT|O_EXCL with an owner record, and unlink: the floor of a lock that is a file."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "exclusive")
        self._owner = f'{{"pid": {os.getpid()}}}'.encode()

    def acquire(self) -> None:
        while True:
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                time.sleep(0.001)
                continue
            os.write(fd, self._owner)
            os.close(fd)
            return

    def release(self) -> None:
        os.unlink(self._path)


class DibsLock:
    def __init__(self, folder: str) -> None:
        self._cache = dibs.open(os.path.join(folder, "dibs"))
        self._lock: dibs.Lock | None = None

    def acquire(self) -> None:
        self._lock = self._cache.lock("bench").acquire()

    def release(self) -> None:
        assert self._lock is not None
        self._lock.release()


def _filelock(folder: str) -> Guard:
    import filelock

    return filelock.FileLock(os.path.join(folder, "filelock"))


def _filelock_lease(folder: str) -> Guard:
    import filelock

    return filelock.SoftFileLease(os.path.join(folder, "lease"), lease_duration=30.0)


def _fasteners(folder: str) -> Guard:
    import fasteners

    return fasteners.InterProcessLock(os.path.join(folder, "fasteners"))


def _portalocker(folder: str) -> Guard:
    import portalocker

    return portalocker.Lock(os.path.join(folder, "portalocker"), timeout=60, check_interval=0.005)


class _Flufl:
    def __init__(self, folder: str) -> None:
        from datetime import timedelta

        from flufl.lock import Lock

        self._lock = Lock(os.path.join(folder, "flufl"), lifetime=timedelta(seconds=60))

    def acquire(self) -> None:
        self._lock.lock()

    def release(self) -> None:
        self._lock.unlock()


def _diskcache(folder: str) -> Guard:
    import diskcache

    return diskcache.Lock(diskcache.Cache(os.path.join(folder, "diskcache")), "bench")


LOCKS: dict[str, Callable[[str], Guard]] = {
    "O_EXCL + unlink (floor)": ExclusiveFile,
    "kernel flock": KernelFlock,
    "fasteners": _fasteners,
    "portalocker": _portalocker,
    "flufl.lock": _Flufl,
    "filelock.FileLock": _filelock,
    "filelock.SoftFileLease": _filelock_lease,
    "diskcache.Lock": _diskcache,
    "dibs": DibsLock,
}
"""With a ttl, heartbeats and take-over: filelock.SoftFileLease and dibs; with a fencing number: dibs."""


Ask = Callable[[str, Callable[[], Any]], Any]
"""A cache as one call: the value of a key, computed once."""


def _by_hand(folder: str) -> Ask:
    """The floor: one pickle file a key, an O_EXCL lock file, a 1 ms poll; wrong as soon as somebody dies."""

    def ask(key: str, compute: Callable[[], Any]) -> Any:
        path = os.path.join(folder, key)
        while True:
            try:
                with open(path, "rb") as file:
                    return pickle.load(file)
            except FileNotFoundError:
                pass
            try:
                os.close(os.open(f"{path}.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                time.sleep(0.001)
                continue
            if os.path.exists(path):
                os.unlink(f"{path}.lock")
                continue
            value = compute()
            with open(f"{path}.new", "wb") as file:
                pickle.dump(value, file)
            os.rename(f"{path}.new", path)
            os.unlink(f"{path}.lock")
            return value

    return ask


def _diskcache_with_lock(folder: str) -> Ask:
    import diskcache

    cache = diskcache.Cache(os.path.join(folder, "diskcache"))

    def ask(key: str, compute: Callable[[], Any]) -> Any:
        value = cache.get(key, default=cache)
        if value is not cache:
            return value
        with diskcache.Lock(cache, f"{key}.lock"):
            value = cache.get(key, default=cache)
            if value is cache:
                value = compute()
                cache.set(key, value)
        return value

    return ask


def _joblib_with_filelock(folder: str) -> Ask:
    import filelock
    import joblib

    memory = joblib.Memory(os.path.join(folder, "joblib"), verbose=0)
    current: list[Callable[[], Any]] = []
    cached = memory.cache(_computed, ignore=["compute"])

    def ask(key: str, compute: Callable[[], Any]) -> Any:
        current[:] = [compute]
        if cached.check_call_in_cache(key, compute):
            return cached(key, compute)
        with filelock.FileLock(os.path.join(folder, f"{key}.lock"), poll_interval=0.005):
            return cached(key, compute)

    return ask


def _computed(key: str, compute: Callable[[], Any]) -> Any:
    return compute()


def _dibs(folder: str) -> Ask:
    return dibs.open(os.path.join(folder, "dibs")).get_or_compute


CACHES: dict[str, Callable[[str], Ask]] = {
    "by hand (floor)": _by_hand,
    "diskcache + its Lock": _diskcache_with_lock,
    "joblib + filelock": _joblib_with_filelock,
    "dibs": _dibs,
}


def _joblib_plain(folder: str) -> Ask:
    import joblib

    memory = joblib.Memory(os.path.join(folder, "joblib"), verbose=0)
    return memory.cache(_computed, ignore=["compute"])  # type: ignore[no-any-return]


def _diskcache_memoize(folder: str) -> Ask:
    """A key made of the function and three arguments, as its users write it."""
    import diskcache

    cached = diskcache.Cache(os.path.join(folder, "memoize")).memoize()(_of_three_scalars)
    return lambda key, compute: cached(key, 3, 0.5)


def _of_three_scalars(name: str, k: int, gamma: float) -> dict[str, Any]:
    return {"accuracy": 0.9, "loss": 0.1, "name": "knn"}


HITS: dict[str, Callable[[str], Ask]] = {
    "by hand (floor)": _by_hand,
    "diskcache.get": _diskcache_with_lock,
    "diskcache.memoize": _diskcache_memoize,
    "joblib.Memory": _joblib_plain,
    "dibs": _dibs,
}


@contextmanager
def fresh_folder(where: str) -> Any:
    """A folder for one contender in one round; what is left in it is removed."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(dir=where)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def version_of(name: str) -> str:
    """The installed version of a contender, for the table."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name.partition(" ")[0].partition(".")[0] if not name.startswith("flufl") else "flufl.lock")
    except PackageNotFoundError:
        return ""


def here() -> Path:
    return Path(__file__).resolve().parent
