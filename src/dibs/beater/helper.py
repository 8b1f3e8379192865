"""How the helper process begins: it leaves the family of its holder, and says why if it can't begin."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import Any, Final

from dibs.beater.board import Board
from dibs.beater.holder import HolderProcess

_COMPLAINT_LENGTH_MAX: Final = 2000


def main(connection: socket.socket, board_fd: int, orders: dict[str, Any]) -> None:
    """Be the helper of the process that started this one.  Returns only if it can't."""
    holder = HolderProcess(orders["pid"], orders["start_ticks"])
    if os.getppid() != orders["pid"]:
        return  # it ended meanwhile
    if os.fork():
        # So that the helper is no child of the holder: programs wait until all their children have ended.
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They mean the holder, which may need its holds for a while yet; the helper ends when the holder has.
        signal.signal(number, signal.SIG_IGN)
    try:
        from dibs.beater.beating import Beats

        beats = Beats(orders, holder, Board(board_fd), connection)
    except Exception as error:
        with suppress(OSError):
            connection.send(f"{type(error).__name__}: {error}"[:_COMPLAINT_LENGTH_MAX].encode())
        raise
    beats.run()
