"""Waiting tasks: what blocks runs in a thread of its own, and a cancelled task leaves nothing held behind.

Not in the event loop's pool: tasks that wait would fill it, and the one that they wait for would find no thread to
go on in.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TypeVar

from dibs.runtime import Runtime

T = TypeVar("T")


async def in_thread(
    runtime: Runtime,
    call: Callable[[Callable[[], bool]], T],
    give_back: Callable[[T], object] = lambda result: None,
) -> T:
    """Return what `call` returns, from a thread; the event loop goes on meanwhile.

    `call` gets a function that says whether it is still wanted.  When the task is cancelled, what it returns all
    the same is given to `give_back`, in a thread again.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(call, answer.cancelled)
        except BaseException as error:
            tell(lambda error=error: fail(error))  # type: ignore[misc]
        else:
            if answer.cancelled() or not tell(lambda: deliver(result)):
                give_back(result)

    def deliver(result: T) -> None:
        if answer.done():
            runtime.start(lambda: (give_back(result), None)[1], "dibs-task")
        else:
            answer.set_result(result)

    def fail(error: BaseException) -> None:
        if not answer.done():
            answer.set_exception(error)

    def tell(what: Callable[[], object]) -> bool:
        try:
            loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop is closed
            return False
        return True

    runtime.start(run, "dibs-task")
    try:
        return await answer
    except asyncio.CancelledError:
        if answer.done() and not answer.cancelled() and answer.exception() is None:
            result = answer.result()  # it came, and the task was cancelled before it could take it
            runtime.start(lambda: (give_back(result), None)[1], "dibs-task")
        raise
