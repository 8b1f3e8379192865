"""One worker process of the demo: asks for every key, in its own order, and writes down what happened."""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import dibs
from dibs.demo.journal import Journal
from dibs.demo.plan import KILLED_ON, STOPPED_ON, TASKS, Task, features_key, order_of
from dibs.demo.steps import memoize
from dibs.runtime.system import system

STRIKE_WAIT_S: Final = 20.0
_STEP_S: Final = 0.005


class Orders(NamedTuple):
    """What a worker is told when it starts."""

    number: int
    url: str
    ttl_s: float
    folder: str
    journal: str
    environment: dict[str, str]


def main(orders: Orders, commands: Connection) -> None:
    """The process: one run through all keys per command, until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then ends its workers
    os.environ.update(orders.environment)
    quiet = logging.getLogger("dibs")  # what happens is on the screen, by the journal
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    journal = Journal(Path(orders.journal), orders.number)
    try:
        from dibs.demo import work

        work.prepare()
        journal.write("ready")
        while True:  # ends when the parent hangs up
            journal.run = commands.recv()
            journal.write("starts")
            if journal.run == "without":
                _run_without(orders, journal)
            else:
                _run_with(orders, journal)
            journal.write("finished")
    except EOFError:
        return
    except BaseException:
        journal.write("error", detail=traceback.format_exc())
        raise SystemExit(1) from None


def _run_with(orders: Orders, journal: Journal) -> None:
    with dibs.open(orders.url, ttl_s=orders.ttl_s, wait_s=60.0) as cache:
        hits: set[str] = set()
        computed: set[str] = set()

        def compute(task: Task) -> Any:
            computed.add(task.key)
            halfway = _strike(orders, journal, task.key) if journal.run == "first" else lambda: None
            return _compute(journal, task.key, ask, halfway)

        steps = memoize(cache, compute)
        tasks = steps.keys()

        def listen(event: dibs.Event) -> None:
            task = tasks.get(event.key)
            if task is not None and event.kind == "hit":
                hits.add(task.key)
            elif task is not None:
                journal.write(event.kind, task.key, event.seconds, event.detail)

        cache.on_event(listen)

        def ask(key: str) -> Any:
            """The value of `key`; a score asks for its features on the way."""
            journal.write("asks", key)
            asked_at = system().monotonic()
            hits.discard(key)
            computed.discard(key)
            value = steps.ask(TASKS[key])
            how = "computed" if key in computed else "hit" if key in hits else "waited"
            journal.write(f"got: {how}", key, system().monotonic() - asked_at, _digest(value))
            return value

        for key in order_of(orders.number):
            ask(key)


def _run_without(orders: Orders, journal: Journal) -> None:
    """The same work without a cache; a worker still computes the features once only, and keeps them in memory."""
    kept: dict[str, Any] = {}

    def ask(key: str) -> Any:
        if key not in kept:
            kept[key] = _compute(journal, key, ask, lambda: None)
            journal.write("got: computed", key, detail=_digest(kept[key]))
        return kept[key]

    for key in order_of(orders.number):
        ask(key)


def _compute(journal: Journal, key: str, ask: Callable[[str], Any], halfway: Callable[[], None]) -> Any:
    from dibs.demo import work

    journal.write("begins", key)
    task = TASKS[key]
    value = work.score(task, ask(features_key(task.gamma))) if task.family else work.features(task.gamma, halfway)
    journal.write("ends", key)
    return value


def _strike(orders: Orders, journal: Journal, key: str) -> Callable[[], None]:
    """What the worker does halfway through `key`: the first one that gets there waits for its fate.

    So the strike falls in the middle of a computation however fast or busy the machine is.
    """

    def halfway() -> None:
        here = Path(orders.folder, f"victim-of-{sorted((KILLED_ON, STOPPED_ON)).index(key)}")
        try:
            os.close(os.open(here, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        journal.write("halfway", key)
        struck, until = struck_file(orders.folder, key), system().monotonic() + STRIKE_WAIT_S
        while not struck.exists() and system().monotonic() < until:
            system().sleep(_STEP_S)

    return halfway if key in (KILLED_ON, STOPPED_ON) else lambda: None


def struck_file(folder: str | Path, key: str) -> Path:
    """Its existence tells the victim that its strike has fallen, and that it may go on if it still can."""
    return Path(folder, f"struck-{sorted((KILLED_ON, STOPPED_ON)).index(key)}")


def _digest(value: Any) -> str:
    """Equal for equal values: a score as it is, features as a hash of their bytes."""
    if isinstance(value, float):
        return repr(value)
    from blake3 import blake3

    return str(blake3(value.tobytes()).hexdigest(8))
