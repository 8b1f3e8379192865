"""`dibs lock NAME -- CMD…`: run a command under a lock."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING, Final

from dibs.cache import Cache
from dibs.cli.opening import made
from dibs.cli.printing import Out, say
from dibs.command.child import Child, NotStarted
from dibs.errors import DibsError, LockLost, SettingsError, WaitTimeout
from dibs.events import Event
from dibs.locks import Lock
from dibs.runtime import Runtime

if TYPE_CHECKING:
    from dibs.cli.parser import Commands

TIMED_OUT: Final = 124
FAILED: Final = 125
GENERATION: Final = "DIBS_LOCK_GENERATION"
_LOOK_EVERY_MAX_S: Final = 0.5


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    from dibs.cli.parser import seconds

    parser = commands.add_parser(
        "lock",
        parents=[shared],
        help="run a command under a lock",
        usage="dibs lock [-h] [--store URL] [--ttl S] [--wait S] NAME -- CMD ...",
        description=f"Run CMD while holding the lock NAME; its fencing number is in ${GENERATION}.  SIGTERM, SIGINT "
        "and SIGHUP are passed on; CMD is stopped if the lock is lost.",
        epilog="exit status: that of CMD (128 + N when signal N ended it); 124 the wait timed out; 125 dibs failed, or "
        "the lock was lost; 126 CMD can't be executed; 127 CMD was not found",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--ttl", type=seconds, metavar="S", help="seconds of silence after which others may take over")
    parser.add_argument("--wait", type=seconds, metavar="S", help="the longest wait, in seconds (default: no limit)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    if not options.command_line:
        raise SettingsError("lock: no command. The form is: dibs lock NAME -- CMD ...")
    try:
        from dibs.runtime.system import system

        with made(options) as cache:
            ttl_s = cache.settings.ttl_s if options.ttl is None else options.ttl
            return _under_lock(_acquired(cache, options, ttl_s), options.command_line, system(), ttl_s)
    except SettingsError:
        raise
    except WaitTimeout as error:
        say(str(error))
        return TIMED_OUT
    except DibsError as error:
        say(str(error))
        return FAILED


def _acquired(cache: Cache, options: argparse.Namespace, ttl_s: float) -> Lock:
    wait_s = cache.settings.wait_s if options.wait is None else options.wait
    try:
        return cache.lock(options.name, ttl_s=ttl_s, wait_s=0.0).acquire()
    except WaitTimeout as error:
        if wait_s == 0:
            raise
        say(f"waiting: {error}")
    cache.on_event(_report_wait)
    return cache.lock(options.name, ttl_s=ttl_s, wait_s=wait_s).acquire()


def _report_wait(event: Event) -> None:
    if event.kind == "waiting":
        say(f"still waiting for the lock {event.key!r}: held by {event.detail}")


def _under_lock(lock: Lock, command: list[str], runtime: Runtime, ttl_s: float) -> int:
    environment = {**os.environ, GENERATION: str(lock.generation)}
    child = Child(command, environment, runtime)
    status = 0
    try:
        with child.receiving_signals():
            child.start()
            runtime.start(lambda: _watch(lock, child, min(ttl_s / 20, _LOOK_EVERY_MAX_S)), "dibs-lock-watch")
            status = child.wait()
    except NotStarted as problem:
        say(str(problem))
        status = problem.status
    finally:
        lost = _released(lock)
    if lost is None:
        return status
    how = "was stopped" if child.stopped else f"had ended with status {status}"
    say(f"the lock was lost: {lost}; {shlex.join(command)[:200]} {how}")
    return FAILED


def _watch(lock: Lock, child: Child, every_s: float) -> None:
    """Stop the command when the lock is lost, or can't be proved any more because the store is silent."""
    lost = lock.lost
    while not child.ended.is_set():  # ends with the command
        if not lost.wait(every_s) and lock.held:
            continue
        try:
            lock.check()
        except LockLost:
            child.stop()
            return


def _released(lock: Lock) -> str | None:
    """Give the lock back; why it was lost, if it was."""
    try:
        lock.release()
    except LockLost as error:
        return str(error)
    except DibsError as error:
        # The command ran under the lock all the time; only the others wait a little longer.
        say(f"the lock could not be given back, so it ends with its ttl: {error}")
    return None
