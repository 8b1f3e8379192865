"""A few threads that do the jobs they are handed; whoever hands them over waits while all are busy.

So what the jobs hold in memory is bounded by their number, and the first error ends the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from dibs.runtime import Event, Runtime

Job = Callable[[], object]

STOP_LIMIT_S: Final = 10.0


class Crew:
    """At most `members_max` jobs at once, each in a thread of its own; used by one thread."""

    def __init__(self, runtime: Runtime, members_max: int, name: str) -> None:
        self._runtime, self._members_max, self._name = runtime, members_max, name
        self._lock = runtime.lock()
        self._busy = 0
        self._error: BaseException | None = None
        self._ended: Event = runtime.event()

    def wait_for_room(self) -> None:
        """Return when another job could start; raises what a job raised."""
        self._wait(self._members_max - 1)

    def start(self, job: Job) -> None:
        """Let a job be done as soon as there is room; raises what an earlier one raised."""
        self.wait_for_room()
        with self._lock:
            self._busy += 1
        self._runtime.start(partial(self._do, job), self._name)

    def finish(self) -> None:
        """Wait for all; raises what one of them raised."""
        self._wait(0)

    def stop(self) -> None:
        """Let nothing more be begun, and wait, but not for ever, for what is under way."""
        with self._lock:
            self._error = self._error or InterruptedError("stopped")
        give_up_at = self._runtime.monotonic() + STOP_LIMIT_S
        while True:  # ends with the jobs, or with the limit
            with self._lock:
                busy, ended = self._busy, self._ended
            left_s = give_up_at - self._runtime.monotonic()
            if not busy or left_s <= 0:
                return
            ended.wait(left_s)

    @property
    def stopped(self) -> bool:
        """True once a job failed or the whole was given up: the others need not go on."""
        return self._error is not None

    def _wait(self, busy_max: int) -> None:
        while True:  # ends with the jobs, whose requests have time limits
            with self._lock:
                busy, ended = self._busy, self._ended
            if self._error is not None:
                raise self._error
            if busy <= busy_max:
                return
            ended.wait()

    def _do(self, job: Job) -> None:
        try:
            if not self.stopped:
                job()
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
        finally:
            with self._lock:
                self._busy -= 1
                ended, self._ended = self._ended, self._runtime.event()
            ended.set()
