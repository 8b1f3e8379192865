"""`dibs run -- CMD…`: any command, once per fleet."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

from dibs.cli.opening import existing, made, wanted
from dibs.cli.printing import Out, say, shown
from dibs.errors import DibsError, SettingsError, WaitTimeout
from dibs.events import Event
from dibs.stores import directory_of

if TYPE_CHECKING:
    from dibs.cli.parser import Commands
    from dibs.command.job import Job, Stdin

TIMED_OUT: Final = 124
FAILED: Final = 125
_COPY_SIZE: Final = 1024 * 1024
_EPILOG: Final = """\
exit status: that of CMD (128 + N when signal N ended it), now or when it ran; 124 the wait for another worker timed
out; 125 dibs failed, an output is missing, or CMD has failed too often; 126 CMD can't be executed; 127 CMD was not
found.  With --dry-run: 0 it would be a hit, 1 it would run.

What counts: the words of CMD, the contents of --in, the values of --env, --version, and the paths as they are typed.
What doesn't: the working directory, and files that only CMD itself names.
"""


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    from dibs.cli.parser import seconds
    from dibs.cli.sweep import duration

    parser = commands.add_parser(
        "run",
        parents=[shared],
        help="any command, once per fleet",
        usage="dibs run [-h] [--store URL] [--in PATH]... [--out PATH]... [--env VAR]... [OPTION]... -- CMD ...",
        description="Run CMD unless somebody in the fleet has, or is doing so right now; then put its outputs in "
        "place, print what it printed, and end as it ended.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    many: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument("--in", dest="inputs", metavar="PATH", **many, help="a file or directory that CMD reads")
    parser.add_argument("--out", dest="outputs", metavar="PATH", **many, help="a file or directory that CMD writes")
    parser.add_argument("--env", dest="variables", metavar="VAR", **many, help="a variable whose value counts")
    parser.add_argument("--stdin", action="store_true", help="pass stdin on; its content counts (else it is empty)")
    parser.add_argument("--name", metavar="NAME", help="what its keys begin with (default: the name of the program)")
    parser.add_argument("--version", metavar="TEXT", help="counts: change it when the program has changed")
    parser.add_argument("--keep-failures", action="store_true", help="keep the result when CMD exits with a failure")
    parser.add_argument("--expires", type=duration, metavar="TIME", help="run it again after so long: 30d, 12h, 45s")
    parser.add_argument("--wait", type=seconds, metavar="S", help="the longest wait for another worker, in seconds")
    parser.add_argument("--recompute", action="store_true", help="run it even if its result is there")
    parser.add_argument("--dry-run", action="store_true", help="only say whether it would run, and why")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    if not options.command_line:
        raise SettingsError("run: no command. The form is: dibs run [--in PATH] [--out PATH] -- CMD ...")
    if out.json and not options.dry_run:
        raise SettingsError("run: --json goes with --dry-run; what CMD prints is passed on as it is")
    try:
        with ExitStack() as stack:
            stdin = stack.enter_context(_Spooled()).read() if options.stdin else None
            job = _declared(options, stdin)
            return _explained(options, job, out) if options.dry_run else _ran(options, job)
    except SettingsError:
        raise
    except WaitTimeout as error:
        say(str(error))
        return TIMED_OUT
    except BrokenPipeError:
        raise
    except (DibsError, OSError) as error:
        say(str(error))
        return FAILED


def _declared(options: argparse.Namespace, stdin: Stdin | None) -> Job:
    from dibs.command.job import Job

    directory = directory_of(wanted(options)[0])
    job = Job(
        tuple(options.command_line),
        tuple(options.inputs),
        tuple(options.outputs),
        tuple(options.variables),
        options.name,
        options.version,
        options.keep_failures,
        stdin,
    )
    job.check(None if directory is None else os.path.realpath(directory))
    return job


def _ran(options: argparse.Namespace, job: Job) -> int:
    from dibs.command.run import Run, Terms
    from dibs.runtime.system import system

    with made(options) as cache:
        if sys.stderr.isatty():
            cache.on_event(_report_wait)
        wait_s = cache.settings.wait_s if options.wait is None else options.wait
        return Run(cache, job, system()).status(Terms(wait_s, options.expires, options.recompute), say)


def _report_wait(event: Event) -> None:
    if event.kind == "waiting":
        say(f"waiting for {shown(event.key)}: {shown(event.detail)}")


def _explained(options: argparse.Namespace, job: Job, out: Out) -> int:
    from dibs.command.job import ingredients
    from dibs.command.run import Run
    from dibs.memoize import explain
    from dibs.runtime.system import system

    with existing(options) as place:
        asked = Run(place.cache, job, system())
        found = explain(place.cache._versions, asked.key, ingredients(asked.parts))
    if out.json:
        data = found._asdict()
        data["changes"] = [change._asdict() for change in found.changes]
        out.data(data)
    else:
        for line in str(found).splitlines():
            out.line(line)
    return 0 if found.state == "hit" and not options.recompute else 1


class _Spooled:
    """Our stdin in a file: it must be known as a whole before the command may start."""

    def __enter__(self) -> _Spooled:
        self._file = TemporaryFile(prefix="dibs-run-")
        return self

    def __exit__(self, *ending: object) -> None:
        self._file.close()

    def read(self) -> Stdin:
        from dibs.codec import Hasher
        from dibs.command.job import Stdin

        hasher = Hasher()
        size_bytes = 0
        while chunk := sys.stdin.buffer.read(_COPY_SIZE):
            hasher.update(chunk)
            size_bytes += len(chunk)
            self._file.write(chunk)
        self._file.flush()
        return Stdin(self._file.fileno(), hasher.hexdigest(), size_bytes)
