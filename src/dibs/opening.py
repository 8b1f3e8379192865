"""From a URL and settings to a cache: `dibs.open`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, Literal

from dibs.cache import Cache
from dibs.errors import SettingsError
from dibs.settings import UNSET, gather
from dibs.store import Backend

_DEFAULT_URL: Final = "./.dibs"


def open(  # noqa: A001 - dibs.open is its public name
    url: str | os.PathLike[str] | Backend | None = None,
    *,
    ttl_s: float = UNSET,
    beat_s: float | None = UNSET,
    hold_max_s: float | None = UNSET,
    wait_s: float | None = UNSET,
    failures_max: int = UNSET,
    deaths_max: int = UNSET,
    retry_after_s: float = UNSET,
    codec: str = UNSET,
    allow_pickle: bool | None = UNSET,
    secret: str | bytes | Sequence[str | bytes] | None = UNSET,
    heartbeat: Literal["thread", "process", "manual"] = UNSET,
    on_unavailable: Literal["raise", "compute"] = UNSET,
    read_only: bool = UNSET,
    disable: bool = UNSET,
    **unknown: Any,
) -> Cache:
    """Open a cache: a folder, a bucket, or a store of your own.

    `url` is "./dir", "file:///dir", "s3://bucket/prefix?endpoint_url=…&region=…&profile=…", "memory:" or a
    `Store`; None stands for `$DIBS_URL`, else the `url` of the settings files, else `./.dibs`.

    What isn't given here comes from `DIBS_*` variables, then from the nearest `dibs.toml` or `[tool.dibs]` in
    `pyproject.toml`, then from the defaults below.  Times are in seconds.

    - `ttl_s` (60): a hold that nobody renewed for so long may be taken over; `beat_s` (a sixth of it): how often
      the holder renews it; `hold_max_s` (None): it stops after so long, so that others take over from what hangs.
    - `wait_s` (None): the longest wait for another worker, then WaitTimeout.
    - `failures_max` (3), `deaths_max` (10), `retry_after_s` (60): a key that has failed, or killed its worker, so
      often raises ComputeFailed until so long has passed without an attempt.
    - `codec` ("auto"): how values are stored: by their type, or by the codec of that name; "+zstd" compresses.
    - `allow_pickle` (None): load values that are pickles: only from a folder that nobody else can write (None),
      always (True), never (False).  With a `secret` they are signed, and taken from anywhere.
    - `secret` (None): every entry is signed with it and checked before it is read; several, newest first, to
      change it.  At least 16 bytes.  `$DIBS_SECRET` takes several separated by spaces.
    - `heartbeat` ("thread"): who renews holds: "thread", "process" (also while native code holds the interpreter
      lock) or "manual" (`slot.beat()`).
    - `on_unavailable` ("raise"): what to do when the store is away; "compute" works without sharing, and warns.
    - `read_only` (False): never writes.  `disable` (False): computes everything and leaves the store alone; locks
      then exclude the threads of this process only, and say so in the log.

    Raises SettingsError for an unknown or impossible setting, StoreUnsuitable when the store can't keep dibs'
    promises, StoreUnavailable when it doesn't answer.

    >>> cache = open("memory:")
    >>> cache.get_or_compute("answer", lambda: 42)
    42
    """
    from dibs.runtime.system import system
    from dibs.stores import open_store, stand_in_for

    arguments = {name: value for name, value in locals().items() if name in _ARGUMENTS and value is not UNSET}
    arguments.update(unknown)
    if isinstance(url, os.PathLike):
        url = os.fspath(url)
    backend: Backend | None = None
    if url is None or isinstance(url, str):
        found, gathered = gather({"url": url, **arguments} if url is not None else arguments)
        where = found or _DEFAULT_URL
    else:
        _, gathered = gather(arguments)
        where, backend = url.url, url
        if gathered.heartbeat == "process":
            raise SettingsError(
                "heartbeat = 'process': the helper process can't open a store that is given as an object; give its URL"
            )
    if gathered.disable:
        backend = stand_in_for(where, system())
    elif backend is None:
        backend = open_store(where, system(), make=not gathered.read_only)
    return Cache(backend, system(), gathered)


_ARGUMENTS: Final = frozenset(open.__kwdefaults__ or {})
