"""What a cache holds when it is closed is given up, within one budget for all of it: a store may be down."""

from __future__ import annotations

from typing import Final

from dibs.errors import DibsError
from dibs.events import log
from dibs.heartbeat import Heartbeat
from dibs.hold import LiveHold
from dibs.runtime import Runtime

PATIENCE_S: Final = 2.0


def give_up_all(heartbeat: Heartbeat, runtime: Runtime) -> None:
    """End the heartbeat, and release what this process holds; what can't be released in time will time out."""
    heartbeat.close(PATIENCE_S)
    give_up_at = runtime.monotonic() + PATIENCE_S
    for hold in heartbeat.living():
        if not isinstance(hold, LiveHold) or not hold.mine():
            continue
        while hold.beating and runtime.monotonic() < give_up_at:
            runtime.sleep(0.01)
        left_s = give_up_at - runtime.monotonic()
        try:
            if left_s > 0:
                hold.release(left_s)
            else:
                hold.let_go()
                log.info("%r was not given up at close, and will time out", hold.key)
        except DibsError as error:
            log.info("%r was not given up at close: %s", hold.key, error)
