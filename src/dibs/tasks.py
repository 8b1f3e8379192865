"""Waiting in asyncio: short steps run in a few threads, and waits between them take no thread at all.

Not in the event loop's own pool: tasks that wait would fill it, and the one that they wait for would find no thread
to go on in.
"""

from __future__ import annotations

import contextvars
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

from dibs.runtime.pool import Pool
from dibs.waiting import Awaited, Pause, Steps

if TYPE_CHECKING:
    import asyncio

A = TypeVar("A")
T = TypeVar("T")

_ASK_EVERY_S: Final = 0.02
"""How often to ask what nobody tells."""


_ROUND_MAX: Final = 32
"""So many tasks of dibs go on in one round of an event loop."""


class _Done(NamedTuple):
    what: Any


class Inbox:
    """What others have for the tasks of one event loop: a little in each of its rounds, so that none takes long.

    Thousands of tasks that start at once, or wait for the same flight, would keep the loop from everything else.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._calls: deque[Callable[[], object] | asyncio.Future[None]] = deque()
        self._serving = False
        self._admitted = 0

    def put(self, call: Callable[[], object]) -> bool:
        """Have the loop call it; from any thread.  False when the loop is closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        self._calls.append(call)
        try:
            if not self._serving:
                self._serving = True
                loop.call_soon_threadsafe(self._serve)
        except RuntimeError:  # closed just now
            return False
        return True

    def turn(self) -> asyncio.Future[None] | None:
        """What a task that sets out awaits first; None when it may go on in this round."""
        loop = self._loop()
        assert loop is not None
        if self._admitted < _ROUND_MAX:
            self._admitted += 1
            if not self._serving:
                self._serving = True
                loop.call_soon(self._serve)
            return None
        turn = loop.create_future()
        self._calls.append(turn)
        return turn

    def _serve(self) -> None:
        loop = self._loop()
        assert loop is not None
        self._admitted = len(self._calls)  # who comes now stands behind those who are waiting
        try:
            for _ in range(_ROUND_MAX):
                if not self._calls:
                    self._serving = False
                    if not self._calls:  # nobody came in between, who relied on us
                        return
                    self._serving = True
                call = self._calls.popleft()
                if callable(call):
                    call()
                elif not call.done():
                    call.set_result(None)
        except BaseException:
            loop.call_soon(self._serve)  # the others rely on us all the same
            raise
        loop.call_soon(self._serve)


_inboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Inbox] = WeakKeyDictionary()


def inbox() -> Inbox:
    """The inbox of the event loop that runs in this thread: one for all caches, for they share its rounds."""
    import asyncio

    loop = asyncio.get_running_loop()
    found = _inboxes.get(loop)
    if found is None:
        found = _inboxes[loop] = Inbox(loop)
    return found


async def in_pool(
    pool: Pool,
    call: Callable[[], T],
    give_back: Callable[[T], object] = lambda result: None,
    skip: Callable[[], object] | None = None,
) -> T:
    """Return what `call` returns in a thread of `pool`, in the context of this task.

    When the task is cancelled, `call` runs all the same, and `give_back` gets what it returned, in a thread again;
    unless it has not begun and there is a `skip` to call instead.
    """
    import asyncio

    box = inbox()
    answer: asyncio.Future[tuple[T | None, BaseException | None]] = asyncio.get_running_loop().create_future()
    context = contextvars.copy_context()

    def run() -> None:
        if skip is not None and answer.cancelled():
            skip()
            return
        result, problem = None, None
        try:
            result = context.run(call)
        except BaseException as error:
            problem = error
        if answer.cancelled() or not box.put(lambda: deliver(result, problem)):
            undo(result, problem)

    def deliver(result: T | None, problem: BaseException | None) -> None:
        if not answer.done():
            answer.set_result((result, problem))
        else:
            pool.submit(lambda: undo(result, problem))

    def undo(result: T | None, problem: BaseException | None) -> None:
        if problem is None:
            context.run(give_back, result)  # type: ignore[arg-type]

    pool.submit(run)
    try:
        came = await answer
    except BaseException:
        if answer.done() and not answer.cancelled():  # it came, and the task was cancelled before it could take it
            missed = answer.result()
            pool.submit(lambda: undo(*missed))
        else:
            answer.cancel()
        raise
    try:
        if came[1] is not None:
            raise came[1]
        return came[0]  # type: ignore[return-value]
    finally:
        del came  # the traceback of an error leads back to here


async def walk(pool: Pool, steps: Steps[T], give_back: Callable[[T], object] = lambda result: None) -> T:
    """Take the steps in threads of `pool`, and spend the pauses between them without one; return what they return.

    When the task is cancelled, the generator is closed; what it returned all the same is given to `give_back`.
    """

    def drop(came: Pause | _Done) -> None:
        if isinstance(came, _Done):
            give_back(came.what)
        else:
            steps.close()

    came = await in_pool(pool, lambda: _step(steps, None), drop, steps.close)
    while isinstance(came, Pause):
        try:
            left_s = await _spend(came)
        except BaseException:
            pool.submit(steps.close)
            raise
        spent = came._replace(seconds=left_s)
        came = await in_pool(pool, lambda spent=spent: _step(steps, spent), drop, steps.close)  # type: ignore[misc]
    result: T = came.what
    return result


def _step(steps: Steps[T], spent: Pause | None) -> Pause | _Done:
    """Go on, with what is left of the pause, until the next one or the end."""
    try:
        if spent is None:
            return next(steps)
        woken = spent.on is not None and spent.on.wait(0.0)
        return steps.send(woken) if woken or spent.seconds <= 0 else spent
    except StopIteration as end:
        return _Done(end.value)


async def _spend(pause: Pause) -> float:
    """Let the pause pass, or what it is about happen, or some time if nobody tells; return the seconds left of it."""
    import asyncio

    if pause.on is None:
        await asyncio.sleep(pause.seconds)
        return 0.0
    return await until(pause.on, pause.seconds)


async def until(awaited: Awaited, seconds: float) -> float:
    """Return when it has happened, after `seconds`, or before if nobody can tell; the seconds that are left then."""
    import asyncio

    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    box = inbox()

    def tell() -> None:
        box.put(end)

    pause_s = seconds if awaited.notify(tell) else min(seconds, _ASK_EVERY_S)
    timer = loop.call_later(pause_s, end)
    try:
        await over
    finally:
        timer.cancel()
    return seconds - pause_s


class Together(Generic[A]):
    """Calls about the same thing that have not begun yet are made as one, for all who asked: none of them is late."""

    def __init__(self, pool: Pool, lock: AbstractContextManager[Any]) -> None:
        self._pool = pool
        self._lock = lock
        self._queued: dict[object, list[tuple[A, Inbox, Any]]] = {}

    async def call(self, about: object, mine: A, call: Callable[[list[A]], Sequence[T]]) -> T:
        """Return what `call`, which gets what each one brought, has for `mine`; it runs in a thread of the pool."""
        import asyncio

        answer: asyncio.Future[tuple[T | None, BaseException | None]] = asyncio.get_running_loop().create_future()
        entry = mine, inbox(), answer
        with self._lock:
            queued = self._queued.get(about)
            if queued is None:
                self._queued[about] = [entry]
            else:
                queued.append(entry)
        if queued is None:
            context = contextvars.copy_context()
            try:
                self._pool.submit(lambda: context.run(self._run, about, call))
            except BaseException:
                self._run(about, _refuse)
                raise
        result, problem = await answer
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]

    def _run(self, about: object, call: Callable[[list[A]], Sequence[T]]) -> None:
        with self._lock:
            queued = [entry for entry in self._queued.pop(about) if not entry[2].cancelled()]
        answers: list[tuple[T | None, BaseException | None]]
        try:
            answers = [(result, None) for result in call([mine for mine, _, _ in queued])] if queued else []
        except BaseException as error:
            answers = [(None, error)] * len(queued)
        for (_, box, future), came in zip(queued, answers, strict=True):
            box.put(partial(_answer, future, came))


def _refuse(callers: Sequence[object]) -> Sequence[Any]:
    raise RuntimeError("no thread could be started to ask the store")


def _answer(future: Any, came: object) -> None:
    if not future.done():
        future.set_result(came)


def running_loop() -> object | None:
    """The event loop that runs in this thread."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


class NotAwaitable(TypeError):
    """A plain function where an async one is expected: a mistake of the program, not a failure of the key."""


def awaitable(result: Any, key: str) -> Awaitable[Any]:
    if hasattr(result, "__await__"):
        return result  # type: ignore[no-any-return]
    raise NotAwaitable(f"compute of {key!r} returned {type(result).__name__}, which can't be awaited: make it async")
