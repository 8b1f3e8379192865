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
from types import FrameType, MethodType
from typing import Final, TypeVar
from weakref import WeakMethod

logger = logging.getLogger(__name__)

SIGTERM_LIMIT_S: Final = 5.0


T = TypeVar("T")


def _pop(callbacks: list[T]) -> T | None:
    try:
        return callbacks.pop()
    except IndexError:
        return None


class Leaving:
    """The callbacks of this process; a forked child starts without any."""

    def __init__(self) -> None:
        # Lists change by single append and pop, without a lock: SIGTERM may interrupt anything.
        self._lock = threading.RLock()
        self._callbacks: list[Callable[[], Callable[[], None] | None]] = []
        self._last: list[Callable[[bool], None]] = []
        self._registered = False
        self._listening = False

    def add(self, callback: Callable[[], None]) -> None:
        """Call back at the end, unless `callback` is a method of something that is gone by then."""
        self._callbacks[:] = [kept for kept in self._callbacks if kept() is not None]
        self._callbacks.append(WeakMethod(callback) if isinstance(callback, MethodType) else lambda: callback)
        self._register()

    def add_last(self, callback: Callable[[bool], None]) -> None:
        """Call back after all others; with False if one of them failed."""
        self._last.append(callback)
        self._register()

    def forked(self) -> None:
        self._lock = threading.RLock()
        self._callbacks, self._last = [], []
        self._registered = self._listening = False

    def run(self) -> None:
        """Run what is registered, newest first; each callback at most once."""
        clean = True
        while kept := _pop(self._callbacks):
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
            if self._listening or threading.current_thread() is not threading.main_thread():
                return
            self._listening = True
            try:
                # A handler of the application's own is left alone.
                if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                    signal.signal(signal.SIGTERM, self._terminated)
            except ValueError:
                pass  # a subinterpreter

    def _finalize(self) -> None:
        from multiprocessing.util import Finalize

        Finalize(None, self.run, exitpriority=100)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """Run the callbacks, then die of SIGTERM as the process would have without us."""
        # In a thread with a limit: this frame may have interrupted somebody who holds a lock that they need.
        runner = threading.Thread(target=self.run, name="dibs-leaving", daemon=True)
        try:
            runner.start()
        except RuntimeError:
            self.run()
        else:
            runner.join(SIGTERM_LIMIT_S)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        if os.getpid() == 1:
            # The kernel spares the first process of a container; without its holds it must not go on.
            os._exit(128 + signal.SIGTERM)


leaving: Final = Leaving()
