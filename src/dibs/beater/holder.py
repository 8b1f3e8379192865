"""The process that the helper belongs to: the helper ends with it, and keeps silent while it can't run.

The kernel tells of its end at once where there are pidfds (Linux 5.3); elsewhere it is looked at every second.
`PR_SET_PDEATHSIG` would not do: it tells of the end of the *thread* that started the helper.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Final

from dibs.runtime import process

LOOK_S: Final = 1.0


class HolderProcess:
    """Process `pid` that started at `start_ticks` (0: unknown); `pidfd` is -1 where there are none."""

    def __init__(self, pid: int, start_ticks: int) -> None:
        self.pid, self._start_ticks = pid, start_ticks
        self.pidfd = -1
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):  # an older kernel, or a sandbox that forbids it
                self.pidfd = os.pidfd_open(pid)

    @property
    def look_s(self) -> float:
        """How long one may wait before asking again whether it is gone."""
        return LOOK_S if self.pidfd < 0 else float("inf")

    def gone(self) -> bool:
        """True once it has ended, however it did."""
        if self.pidfd >= 0:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(0):
                return True
        return process.fate(self.pid, self._start_ticks).dead is not None

    def paused(self) -> bool:
        """True while it is stopped, traced or frozen: others may take over what it holds."""
        return process.paused(self.pid) is not None
