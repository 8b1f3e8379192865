"""Orderly ends of a process: interpreter exit, the end of a multiprocessing worker, SIGTERM.

Each of the three is needed: a forked worker skips atexit, and SIGTERM runs nothing at all by default.
One object serves the whole process, because there is but one SIGTERM.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from itertools import count
from types import FrameType, MethodType
from typing import Final, TypeVar
from weakref import WeakMethod

logger = logging.getLogger(__name__)

SIGTERM_LIMIT_S: Final = 5.0


# Beneath what turns every number into an enumeration and back, which takes four times as long: each hold comes by.
_set_handler: Final = getattr(signal.signal, "__wrapped__", signal.signal)
_handler_of: Final = getattr(signal.getsignal, "__wrapped__", signal.getsignal)
_SIGTERM: Final = int(signal.SIGTERM)
_DEFAULT: Final = int(signal.SIG_DFL)

T = TypeVar("T")


def _pop(callbacks: list[T]) -> T | None:
    try:
        return callbacks.pop()
    except IndexError:
        return None


def _pop_item(callbacks: dict[int, T]) -> T | None:
    try:
        return callbacks.popitem()[1]
    except KeyError:
        return None


class Leaving:
    """The callbacks of this process; a forked child starts without any."""

    def __init__(self) -> None:
        # Lists change by single append and pop, without a lock: SIGTERM may interrupt anything.
        self._lock = threading.RLock()
        self._numbers = count()
        self._callbacks: dict[int, Callable[[], Callable[[], None] | None]] = {}
        self._last: list[Callable[[bool], None]] = []
        self._registered = False
        self._keepers: set[int] = set()
        self._running = self._asked_to_die = False
        self._handler = self._terminated
        """One object for as long as this lives, so that it is known again."""

    def keeps(self, keeper: int, something: bool) -> None:
        """SIGTERM is caught only while something is held: a caught one waits for the main thread.

        It may arrive just before the main thread blocks in a system call, and is then not seen before that returns:
        an idle worker of a `Pool` would never hear `terminate`.
        """
        if something:
            self._keepers.add(keeper)
        else:
            self._keepers.discard(keeper)
        if self._running or threading.get_ident() != threading.main_thread().ident:
            return
        caught = _handler_of(_SIGTERM)
        try:
            if self._keepers and caught == _DEFAULT:  # a handler of the application's own is left alone
                _set_handler(_SIGTERM, self._handler)
            elif not self._keepers and caught is self._handler:
                _set_handler(_SIGTERM, _DEFAULT)
        except ValueError:  # a subinterpreter
            pass

    def add(self, callback: Callable[[], None]) -> None:
        """Call back at the end, unless `callback` is a method of something that is gone by then."""
        for number, kept in list(self._callbacks.items()):
            if kept() is None:
                self._callbacks.pop(number, None)
        kept = WeakMethod(callback) if isinstance(callback, MethodType) else lambda: callback
        self._callbacks[next(self._numbers)] = kept
        self._register()

    def add_last(self, callback: Callable[[bool], None]) -> None:
        """Call back after all others; with False if one of them failed."""
        self._last.append(callback)
        self._register()

    def forked(self) -> None:
        self._lock = threading.RLock()
        self._callbacks, self._last = {}, []
        self._registered = False
        self._running = self._asked_to_die = False
        self._keepers = set()
        self.keeps(0, False)

    def run(self) -> None:
        """Run what is registered, newest first; each callback at most once."""
        self._running = True
        clean = True
        while kept := _pop_item(self._callbacks):
            callback = kept()
            if callback is None:
                continue
            try:
                callback()
            except Exception:
                clean = False
                logger.exception("%r failed at exit", callback)
        while closing := _pop(self._last):
            closing(clean)
        self._running = False
        if self._asked_to_die and threading.current_thread() is threading.main_thread():
            self._die()

    def _register(self) -> None:
        with self._lock:
            if not self._registered:
                self._registered = True
                atexit.register(self.run)
                # Only a worker of multiprocessing needs this, and there it is imported.
                if "multiprocessing.util" in sys.modules:
                    from multiprocessing.util import register_after_fork

                    self._finalize()
                    # The bootstrap of a forked worker clears the finalizers, and calls this just after.
                    register_after_fork(self, Leaving._finalize)

    def _finalize(self) -> None:
        from multiprocessing.util import Finalize

        Finalize(None, self.run, exitpriority=100)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """Run the callbacks, then die of SIGTERM as the process would have without us."""
        if self._running:  # this frame interrupted it, or another thread is at it: it ends as we would
            self._asked_to_die = True
            return
        # In a thread with a limit: this frame may have interrupted somebody who holds a lock that they need.
        runner = threading.Thread(target=self.run, name="dibs-leaving", daemon=True)
        try:
            runner.start()
        except RuntimeError:
            self.run()
        else:
            runner.join(SIGTERM_LIMIT_S)
        self._die()

    def _die(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        if os.getpid() == 1:
            # The kernel spares the first process of a container; without its holds it must not go on.
            os._exit(128 + signal.SIGTERM)


leaving: Final = Leaving()
