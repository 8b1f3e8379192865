"""One command that runs for us: it gets our signals, and is ended with all that it started when it must stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from dibs.runtime import Runtime

PATIENCE_S: Final = 10.0
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_S: Final = 0.02


class NotStarted(Exception):
    """The command could not be started; `status` is what a shell would say."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Child:
    """One command, from its start to its end.

    On a terminal it stays in our process group, so that Ctrl-C, Ctrl-Z and the keyboard reach it as usual;
    elsewhere it leads a group of its own, so that all that it starts can be ended with it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], runtime: Runtime) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._runtime = runtime
        self._own_group = not _on_a_terminal()
        self._process: subprocess.Popen[bytes] | None = None
        self._pending: list[int] = []
        self._stopping = False
        self._interrupted = False
        self._gone = runtime.event()
        self.ended = runtime.event()

    @property
    def stopped(self) -> bool:
        """True when `stop` had to end it."""
        return self._stopping

    @property
    def interrupted(self) -> bool:
        """True when somebody asked us, and so the command, to stop."""
        return self._interrupted

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @contextmanager
    def receiving_signals(self) -> Iterator[None]:
        """Pass our signals on to the command, from before it starts until the block ends."""
        before: dict[signal.Signals, Any] = {}
        for number in _PASSED_ON:
            # What somebody has ignored for us (nohup) stays ignored, by the command too.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._received)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        if number == signal.SIGINT and not self._own_group:
            return  # the terminal has sent it to the command as well
        if self._process is None:
            self._pending.append(number)
        else:
            self._send(number)

    def start(self, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None) -> None:
        """Start the command on these files (None: ours); raises NotStarted."""
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                process_group=0 if self._own_group else None,
                preexec_fn=_dying_with_us(),
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotStarted(f"{self._command[0]}: {os.strerror(error.errno or 0)}", NOT_FOUND) from None
        except (OSError, ValueError) as error:  # no permission, no program, a NUL in an argument
            raise NotStarted(f"{self._command[0]}: {error}", NOT_EXECUTABLE) from None
        for number in self._pending:
            self._send(number)

    def has_ended(self) -> bool:
        """Look whether it has ended, without waiting."""
        assert self._process is not None
        return self._process.poll() is not None

    @property
    def killed_by(self) -> int | None:
        """The signal that ended it, if one did."""
        assert self._process is not None
        status = self._process.returncode
        return -status if status is not None and status < 0 else None

    def wait(self) -> int:
        """Wait for its end, and for the end of `stop` if that runs; its status as a shell gives it."""
        assert self._process is not None
        status = self._process.wait()
        self.ended.set()
        if self._stopping:
            self._gone.wait(PATIENCE_S + 1.0)
        return status if status >= 0 else 128 - status

    def stop(self) -> None:
        """End the command and what it started: politely, and after `PATIENCE_S` by force."""
        if self.ended.is_set():
            return
        self._stopping = True
        give_up_at = self._runtime.monotonic() + PATIENCE_S
        family = self._family()
        self._send(signal.SIGTERM)
        for process in family:
            process.send(signal.SIGTERM)
        while self._lives(family) and self._runtime.monotonic() < give_up_at:
            self._runtime.sleep(_POLL_S)
        self._send(signal.SIGKILL)
        for process in family:
            process.send(signal.SIGKILL)
        self._gone.set()

    def _send(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError, PermissionError):
            if self._own_group:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def _lives(self, family: list[_Relative]) -> bool:
        if not self._own_group:
            return not self.ended.is_set() or any(process.lives() for process in family)
        assert self._process is not None
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def _family(self) -> list[_Relative]:
        """What the command has started, where no process group of its own tells."""
        if self._own_group:
            return []
        import psutil

        assert self._process is not None
        try:
            return [_Relative(process) for process in psutil.Process(self._process.pid).children(recursive=True)]
        except psutil.Error:
            return []


class _Relative:
    """A process below the command; psutil makes sure that its pid is not somebody else's by now."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def lives(self) -> bool:
        return bool(self._process.is_running())

    def send(self, number: int) -> None:
        import psutil

        with suppress(psutil.Error):
            self._process.send_signal(number)


def _on_a_terminal() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


def _dying_with_us() -> Callable[[], object] | None:
    """What the child does first: ask its kernel to end it when we are killed outright.

    Our death frees the lock at once, so a command that went on would run beside the next holder's.
    Linux only; what the command itself has started is not reached.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    pr_set_pdeathsig = 1
    return lambda: prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)
