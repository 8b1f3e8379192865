"""Waiting in asyncio: short steps run in a few threads, and waits between them take no thread at all.

Not in the event loop's own pool: tasks that wait would fill it, and the one that they wait for would find no thread
to go on in.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from dibs.runtime.pool import Pool
from dibs.waiting import Pause, Steps

T = TypeVar("T")

_ASK_EVERY_S: Final = 0.02
"""How often to ask what nobody tells."""


class _Done(NamedTuple):
    what: Any


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

    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
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
        if not _tell(loop, lambda: deliver(result, problem)):
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
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not over.done():
            over.set_result(None)

    def tell() -> None:
        _tell(loop, end)

    told = pause.on.notify(tell)
    pause_s = pause.seconds if told else min(pause.seconds, _ASK_EVERY_S)
    timer = loop.call_later(pause_s, end)
    try:
        await over
    finally:
        timer.cancel()
    return pause.seconds - pause_s


def _tell(loop: Any, what: Callable[[], object]) -> bool:
    """Have the loop call `what`; False when it is closed."""
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        return False
    return True


def running_loop() -> object | None:
    """The event loop that runs in this thread."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()
