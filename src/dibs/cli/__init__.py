"""The command line: parse, call the public face, print, and say by the exit status how it went."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

from dibs.cli.parser import parsed
from dibs.cli.printing import Out, warnings_on_stderr
from dibs.errors import DibsError, SettingsError, StoreUnavailable, StoreUnsuitable, WaitTimeout

FAILED = 1
USAGE = 2
UNAVAILABLE = 3
TIMED_OUT = 4
INTERRUPTED = 130
PIPE_BROKEN = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; `argv` is without the program's name.

    0 done, 1 a check failed or something was not found, 2 wrong usage, 3 the store is unavailable or unsuitable,
    4 timed out waiting; `lock` hands on its command's own, and uses 124 for a timed-out wait and 125 for a
    failure of dibs itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may hold what this terminal can't show
    try:
        with warnings_on_stderr():
            options = parsed(sys.argv[1:] if argv is None else argv)
            status: int = options.run(options, Out(options.json))
            sys.stdout.flush()
            return status
    except SystemExit as ending:  # of argparse
        return ending.code if isinstance(ending.code, int) else USAGE
    except DibsError as error:
        print(f"dibs: {error}", file=sys.stderr)
        return _status(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left; nobody misses the rest, nor a complaint about it at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_BROKEN


def _status(error: DibsError) -> int:
    match error:
        case SettingsError():
            return USAGE
        case StoreUnavailable() | StoreUnsuitable():
            return UNAVAILABLE
        case WaitTimeout():
            return TIMED_OUT
        case _:
            return FAILED
