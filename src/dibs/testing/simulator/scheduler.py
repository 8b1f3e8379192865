"""Cooperative tasks and one heap of events in virtual time: one step at a time, all chance from one seed.

A task is a greenlet, so ordinary blocking code runs in it unchanged: where it would block, it *parks*, and
the scheduler goes on with whatever is due next.  Things that are due at the same instant run in an order
drawn from the seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from dibs.errors import SettingsError

if TYPE_CHECKING:
    from greenlet import greenlet as Greenlet

Action = Callable[[], None]

STEPS_MAX: Final = 3_000_000
LOOKS_MAX: Final = 200_000
"""So often may a task look at its clock without ever waiting, before that counts as a busy loop."""


class Disposed(BaseException):
    """Raised by every call into a world that has ended; unwinds the tasks that are still in it."""


class Livelock(BaseException):
    """A task never waits, or the world never gets anywhere: told apart from a hang, where nothing moves."""


class Thrown:
    """A wake-up that raises in the task, as a signal handler does in the main thread of a process."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Gate:
    """What all tasks of a process share: shut, they sleep through their wake-ups; dead, for ever."""

    __slots__ = ("dead", "kept", "shut")

    def __init__(self) -> None:
        self.dead = False
        self.shut = 0
        self.kept: list[Action] = []


class Task:
    """One thread of one simulated process."""

    __slots__ = ("done", "gate", "greenlet", "ident", "name", "parked", "waits_for")

    def __init__(self, ident: int, name: str, gate: Gate) -> None:
        self.ident = ident
        self.name = name
        self.gate = gate
        self.greenlet: Greenlet
        self.done = False
        self.parked = 0
        """Number of the present wait; a wake-up for an earlier one comes too late and does nothing."""
        self.waits_for = ""


def greenlet_class() -> Any:
    try:
        from greenlet import greenlet  # only a simulation needs it, and it is an extra
    except ImportError as error:
        raise SettingsError("the simulator needs greenlet: pip install 'dibs[simulate]'") from error
    return greenlet


class Scheduler:
    """The clock of the world, and who runs next."""

    def __init__(self, chance: random.Random) -> None:
        self._greenlet = greenlet_class()
        # Every task returns here when it parks or ends, also one that another task has started.
        self._hub = self._greenlet.getcurrent()
        self._heap: list[tuple[float, float, int, Action]] = []
        self._pushed = 0
        self._looks = 0
        self.chance = chance
        self.now = 0.0
        self.steps = 0
        self.current: Task | None = None
        self.over = False
        self.tasks: list[Task] = []
        self.on_crash: Callable[[Task, BaseException], None] = lambda task, error: None

    # --- for the world, between steps ---

    def at(self, when: float, action: Action) -> None:
        """Run `action` at virtual time `when`; among others of that instant, in a drawn order."""
        self._pushed += 1
        heapq.heappush(self._heap, (max(when, self.now), self.chance.random(), self._pushed, action))

    def after(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def spawn(self, gate: Gate, target: Callable[[], None], name: str) -> Task:
        """A new task that starts at this instant, or when its gate opens."""
        task = Task(len(self.tasks) + 1, name, gate)
        task.greenlet = self._greenlet(partial(self._live, task, target), self._hub)
        task.waits_for = "its start"
        self.tasks.append(task)
        self.wake(task, task.parked)
        return task

    def _live(self, task: Task, target: Callable[[], None], _: object = None) -> None:
        try:
            target()
        except Disposed:
            pass
        except Exception as error:
            if not self.over:
                self.on_crash(task, error)
        finally:
            task.done = True

    def wake(self, task: Task, parked: int, value: object = None, after_s: float = 0.0) -> None:
        """End wait number `parked` of `task` with `value`; nothing happens if it has ended already."""
        self.at(self.now + after_s, partial(self.resume, task, parked, value))

    def resume(self, task: Task, parked: int, value: object = None) -> None:
        """Let the task run until it parks again; when its process is stopped, as soon as that goes on."""
        gate = task.gate
        if task.done or task.parked != parked or gate.dead:
            return
        if gate.shut:
            gate.kept.append(partial(self.resume, task, parked, value))
            return
        task.parked += 1
        self.current = task
        self._looks = 0
        try:
            task.greenlet.switch(value)
        finally:
            self.current = None

    def shut(self, gate: Gate) -> None:
        gate.shut += 1

    def open(self, gate: Gate) -> None:
        gate.shut -= 1
        if gate.shut == 0:
            kept, gate.kept = gate.kept, []
            for action in kept:
                self.at(self.now, action)

    def run(self, finished: Callable[[], bool], until: float) -> str:
        """Run until `finished()`; return "finished", or why that can't be: "hang" or "time" or "livelock"."""
        heap, pop = self._heap, heapq.heappop
        assert self._greenlet.getcurrent() is self._hub, "a world runs where it was made"
        while not finished():
            if not heap:
                return "hang"
            when, _, _, action = pop(heap)
            if when > until:
                return "time"
            self.now = when
            self.steps += 1
            if self.steps > STEPS_MAX:
                return "livelock"
            try:
                action()
            except Livelock:
                return "livelock"
        return "finished"

    def dispose(self) -> None:
        """End the world: unwind every task that is still in it, and answer none of its calls any more."""
        self.over = True
        self._heap.clear()
        for task in self.tasks:
            if not task.done and task.greenlet:
                task.greenlet.throw(Disposed())
            task.done = True
        self.tasks.clear()

    # --- for the running task ---

    def check(self) -> None:
        """Called by all that a task may call: raises when the world is over or the task never waits."""
        if self.over:
            raise Disposed
        self._looks += 1
        if self._looks > LOOKS_MAX:
            raise Livelock(f"{self.current.name if self.current else '?'} looks at the world without ever waiting")

    def running(self) -> Task:
        if self.over:
            raise Disposed
        task = self.current
        assert task is not None, "only a task may wait; this ran outside of every task"
        return task

    def park(self, waits_for: str) -> Any:
        """Wait until someone wakes this task; return the value it is woken with, or raise what was thrown."""
        task = self.running()
        task.waits_for = waits_for
        value = self._hub.switch()
        if self.over:
            raise Disposed
        if isinstance(value, Thrown):
            raise value.error
        return value

    def give_way(self) -> None:
        """Let others that are due at this instant go first, or not, as the seed has it."""
        task = self.running()
        self.wake(task, task.parked)
        self.park("its turn")
