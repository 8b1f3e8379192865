"""The worker processes: started, sent through the keys, struck, and always ended.

Whatever happens here, also Ctrl-C and an error, the block `with Crew(...)` leaves no process behind.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from dibs.demo.journal import Entry, Reader
from dibs.demo.plan import KILLED_ON, STOPPED_ON
from dibs.demo.worker import Orders, main, struck_file
from dibs.runtime.system import system

RUN_LIMIT_S: Final = 240.0
WITNESS_WAIT_S: Final = 5.0
WAKE_AFTER_S: Final = 30.0
POLL_S: Final = 0.01


class DemoFailed(Exception):
    """A worker failed, or the demo took too long; the message says what was seen."""


class Strike(NamedTuple):
    """What was done to a worker in the middle of its computation; `woken_at` is 0 for a killed one."""

    what: Literal["killed", "stopped"]
    key: str
    worker: int
    at: float
    woken_at: float = 0.0


class Worker(NamedTuple):
    process: Any
    commands: Connection
    journal: Reader


class Crew:
    """`count` workers on the store at `url`; `tell` gets each new entry and strike; `tick` is called all the time."""

    def __init__(
        self,
        count: int,
        url: str,
        ttl_s: float,
        environment: dict[str, str],
        tell: Callable[[Entry | Strike], None],
        tick: Callable[[], None],
    ) -> None:
        self.count = count
        self.entries: list[Entry] = []
        self.strikes: dict[str, Strike] = {}
        self._settings = (url, ttl_s, environment)
        self._tell, self._tick = tell, tick
        self._workers: dict[int, Worker] = {}
        self._who: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
        """Run, kind and key of an entry, to the workers who wrote such a one."""
        self._halfway: list[Entry] = []
        self._started = 0
        # A server that has the libraries loaded, so that they are not loaded once per worker.
        self._context = multiprocessing.get_context("forkserver")
        libraries = ["dibs.demo.work", "dibs.demo.worker", *(["boto3"] if url.startswith("s3:") else [])]
        self._context.set_forkserver_preload(libraries)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="dibs-demo-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.commands.close()  # the polite way: idle workers leave by themselves
        for worker in self._workers.values():
            if error is None:
                worker.process.join(2.0)
            if worker.process.is_alive():
                worker.process.kill()  # ends a stopped process too
            worker.process.join(5.0)
        self._folder.cleanup()

    def gather(self) -> None:
        """Start the workers that are missing and wait until all are ready."""
        url, ttl_s, environment = self._settings
        missing = set(range(1, self.count + 1)) - set(self._workers)
        for number in sorted(missing):
            self._started += 1
            journal = Path(self._folder.name, f"{self._started}.jsonl")
            orders = Orders(number, url, ttl_s, self._folder.name, str(journal), environment)
            theirs, ours = self._context.Pipe(duplex=False)
            process = self._context.Process(target=main, args=(orders, theirs), name=f"worker {number}")
            process.start()
            theirs.close()
            self._workers[number] = Worker(process, ours, Reader(journal))
        self._until(lambda: set(self._workers) <= self._who["", "ready", ""], "get ready")

    def run(self, name: str) -> None:
        """Send everybody through all keys, once, and wait for them; strike on the way if it is the first run."""
        for worker in self._workers.values():
            worker.commands.send(name)
        strike = self._strike if name == "first" else lambda: None

        def over() -> bool:
            strike()
            return set(self._workers) <= self._who[name, "finished", ""]

        self._until(over, f"finish the run “{name}”")

    def _until(self, over: Callable[[], bool], what: str) -> None:
        give_up_at = system().monotonic() + RUN_LIMIT_S
        while True:  # ends when it is over, or at the limit
            self._read()
            self._tick()
            if over():
                return
            for number, worker in self._workers.items():
                if not worker.process.is_alive():
                    raise DemoFailed(f"worker {number} ended with status {worker.process.exitcode}")
            if system().monotonic() > give_up_at:
                last = [f"worker {n}: {self._last(n)}" for n in self._workers]
                raise DemoFailed(f"the workers didn't {what} within {RUN_LIMIT_S:g} s; " + "; ".join(last))
            system().sleep(POLL_S)

    def _last(self, number: int) -> str:
        last = [entry for entry in self.entries if entry.worker == number][-1:]
        return f"{last[0].kind} {last[0].key}".strip() if last else "never began"

    def _read(self) -> None:
        for worker in self._workers.values():
            for entry in worker.journal.news():
                if entry.kind == "error":
                    raise DemoFailed(f"worker {entry.worker} failed:\n{entry.detail}")
                self.entries.append(entry)
                self._who[entry.run, entry.kind, entry.key].add(entry.worker)
                if entry.kind == "halfway":
                    self._halfway.append(entry)
                self._tell(entry)

    # -- strikes -------------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        for entry in self._halfway:
            if entry.key not in self.strikes and self._has_witness(entry):
                if entry.key == KILLED_ON:
                    self._kill(entry)
                else:
                    self._stop(entry)
        stopped = self.strikes.get(STOPPED_ON)
        if stopped is not None and not stopped.woken_at and self._may_wake(stopped):
            self._note(stopped._replace(woken_at=system().monotonic()))
            os.kill(self._workers[stopped.worker].process.pid, signal.SIGCONT)

    def _has_witness(self, halfway: Entry) -> bool:
        """True when somebody waits for what the victim computes, so that the take-over's delay means something."""
        askers = self._who["first", "miss", halfway.key]
        return bool(askers - {halfway.worker}) or system().monotonic() - halfway.at > WITNESS_WAIT_S

    def _kill(self, entry: Entry) -> None:
        victim = self._workers.pop(entry.worker)
        self._who["", "ready", ""].discard(entry.worker)
        at = system().monotonic()
        victim.process.kill()
        self._note(Strike("killed", entry.key, entry.worker, at))
        victim.commands.close()
        victim.process.join(5.0)

    def _stop(self, entry: Entry) -> None:
        at = system().monotonic()
        os.kill(self._workers[entry.worker].process.pid, signal.SIGSTOP)
        self._note(Strike("stopped", entry.key, entry.worker, at))
        struck_file(self._folder.name, entry.key).touch()

    def _note(self, strike: Strike) -> None:
        self.strikes[strike.key] = strike
        self._tell(strike)

    def _may_wake(self, stopped: Strike) -> bool:
        """True when somebody else has published the value, or when that takes suspiciously long."""
        published = self._who["first", "committed", stopped.key] - {stopped.worker}
        return bool(published) or system().monotonic() - stopped.at > WAKE_AFTER_S


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that its workers are ended too."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread, where signals don't arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
