"""What each worker did: one append-only file of JSON lines per worker, so that a killed one damages nobody's.

A line is one `write` on a file opened for appending, so the parent never reads a mixed or half line for long.
Times are of the machine's monotonic clock, which all processes of one host share.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import NamedTuple

from dibs.runtime.system import system


class Entry(NamedTuple):
    """One line: `worker` did `kind` to `key`; `cpu_s` is what its process has used so far."""

    run: str
    worker: int
    at: float
    cpu_s: float
    kind: str
    key: str = ""
    seconds: float = 0.0
    detail: str = ""


class Journal:
    """Writes one worker's lines; `run` says which run through the keys they belong to."""

    def __init__(self, path: Path, worker: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._worker = worker
        self.run = ""

    def write(self, kind: str, key: str = "", seconds: float = 0.0, detail: str = "") -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = used.ru_utime + used.ru_stime
        entry = Entry(self.run, self._worker, system().monotonic(), cpu_s, kind, key, seconds, detail)
        os.write(self._file, json.dumps(entry).encode() + b"\n")


class Reader:
    """Reads what has been added to one journal since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> list[Entry]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [Entry(*json.loads(line)) for line in whole.splitlines()]
