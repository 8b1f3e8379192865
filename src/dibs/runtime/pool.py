"""A few threads that take short calls in turn: started when there is work, ended when there was none for a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from dibs.runtime import Event, Runtime

IDLE_S: Final = 5.0


class Pool:
    """At most `threads_max` threads; whoever may wait for long has no place in it.

    A forked child starts with no threads and nothing to do: the calls are its parent's.
    """

    def __init__(self, runtime: Runtime, threads_max: int) -> None:
        self._runtime = runtime
        self._threads_max = threads_max
        self._begin()

    def _begin(self) -> None:
        self._process = self._runtime.process()
        self._lock = self._runtime.lock()
        self._calls: deque[Callable[[], object]] = deque()
        self._idle: list[Event] = []
        self._threads = 0

    def submit(self, call: Callable[[], object]) -> None:
        """Run `call` soon; what it raises is lost."""
        if self._process != self._runtime.process():
            self._begin()
        start = False
        with self._lock:
            self._calls.append(call)
            if self._idle:
                self._idle.pop().set()  # the latest: those that are needed least end first
            elif self._threads < self._threads_max:
                self._threads += 1
                start = True
        if start:
            try:
                self._runtime.start(self._work, "dibs-task")
            except BaseException:
                with self._lock:
                    self._threads -= 1
                    if self._threads:
                        return  # the others will come to it
                    self._calls.remove(call)
                raise

    def _work(self) -> None:
        while True:  # ends after a while without work
            with self._lock:
                call = self._calls.popleft() if self._calls else None
                if call is None:
                    woken = self._runtime.event()
                    self._idle.append(woken)
            if call is None:
                if not woken.wait(IDLE_S) and self._ends(woken):
                    return
                continue
            try:
                call()
            except Exception:
                import logging  # costs 4 ms that `import dibs` need not pay

                logging.getLogger(__name__).exception("%r failed", call)
            del call  # an idle thread keeps nothing alive

    def _ends(self, woken: Event) -> bool:
        """True when nobody has woken this thread after all."""
        with self._lock:
            if woken.is_set():
                return False
            self._idle.remove(woken)
            self._threads -= 1
            return True
