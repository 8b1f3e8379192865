"""What happened: small frozen records for callbacks, logs and counters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from dibs.runtime import Runtime

WARNING, INFO, DEBUG = 30, 20, 10
"""As in logging, which costs 4 ms that `import dibs` need not pay."""


class _Log:
    """The logger "dibs", looked up when something is to be logged."""

    def __getattr__(self, name: str) -> Any:
        import logging

        found = self.__dict__[name] = getattr(logging.getLogger("dibs"), name)
        return found


log: Final = _Log()

Kind = Literal[
    "hit", "miss", "claimed", "waited", "taken over", "computed", "committed", "refused", "adopted", "released",
    "failed", "lost", "healed", "unpublished", "beat failed", "put", "forgotten", "waiting", "still waiting",
]  # fmt: skip

_LEVELS: Final[dict[str, int]] = {
    "healed": WARNING, "unpublished": WARNING, "taken over": WARNING,
    "lost": WARNING, "refused": WARNING, "beat failed": WARNING,
    "waiting": INFO, "still waiting": WARNING,
}  # fmt: skip


class Event(NamedTuple):
    """One thing that happened to one key or lock in this process.

    `seconds` is what it took where that makes sense (computed, waited, taken over: since the last sign of life
    that was noticed), else 0.  `detail` is for people.
    """

    kind: Kind
    key: str
    generation: int = 0
    epoch: int = 0
    seconds: float = 0.0
    detail: str = ""


class Events:
    """Counts events, logs them, and calls back."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._begin()
        runtime.after_fork(self._begin)
        self.callbacks: tuple[Callable[[Event], None], ...] = ()

    def _begin(self) -> None:
        self._lock = self._runtime.lock()
        self.counts: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def emit(
        self, kind: Kind, key: str, generation: int = 0, epoch: int = 0, seconds: float = 0.0, detail: str = ""
    ) -> None:
        with self._lock:
            self.counts[kind] += 1
            if seconds:
                self.seconds[kind] += seconds
        level = _LEVELS.get(kind, DEBUG)
        if log.isEnabledFor(level):
            log.log(level, "%s %r%s", kind, key, f": {detail}" if detail else "")
        for callback in self.callbacks:
            try:
                callback(Event(kind, key, generation, epoch, seconds, detail))
            except Exception:
                log.exception("a callback of on_event raised; it is called again for the next event")

    def listen(self, callback: Callable[[Event], None]) -> None:
        with self._lock:
            self.callbacks = (*self.callbacks, callback)


class Unsaid(Events):
    """Keeps what happens under a lock, to be told outside it: a callback may ask for what the lock protects."""

    def __init__(self) -> None:
        self._kept: list[Event] = []

    def emit(
        self, kind: Kind, key: str, generation: int = 0, epoch: int = 0, seconds: float = 0.0, detail: str = ""
    ) -> None:
        self._kept.append(Event(kind, key, generation, epoch, seconds, detail))

    def tell(self, events: Events) -> None:
        """Emit what was kept to `events`, in order."""
        while self._kept:
            events.emit(*self._kept.pop(0))
