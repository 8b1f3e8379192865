"""Run a command once in the whole fleet; for everybody else it is as if they had run it.

Whoever holds the key runs the command on two pipes and publishes its status, what it printed and its outputs.
Whoever finds them there puts the outputs in place and says again what was printed.  A failing command is a failure
of its key, so the next worker tries; a command that was asked to stop says nothing about its key.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from dibs.cache import Cache
from dibs.codec import register_codec
from dibs.command import result as results
from dibs.command.child import Child, NotStarted
from dibs.command.job import InputMissing, Job, Part, packed
from dibs.command.pipes import Pipes
from dibs.command.restore import Output, restore
from dibs.command.result import Pieces, Result
from dibs.command.transcript import Transcript, replay
from dibs.command.tree import entries_of, traces
from dibs.errors import CodecError, ComputeFailed, DibsError, WaitCircle
from dibs.once import Ask
from dibs.runtime import Runtime

FAILED: Final = 125
HELD: Final = "_DIBS_RUN_KEYS"
"""What the commands above a command hold, for the commands below; not a setting, so not DIBS_..."""
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class CommandFailed(Exception):
    """The command failed; what stands in the record says how, without a traceback through dibs."""

    __module__ = "builtins"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def __traceback__(self) -> None:  # type: ignore[override]
        return None


class NotKept(DibsError):
    """The command ran, or didn't, in a way that says nothing about its key; as dibs' own error it fails no key."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Terms(NamedTuple):
    """How the result is asked for; times in seconds."""

    wait_s: float | None = None
    expires_s: float | None = None
    recompute: bool = False


class Run:
    """One asking for the result of one command."""

    def __init__(self, cache: Cache, job: Job, runtime: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        """Raises InputMissing."""
        register_codec(results.CODEC, Result, Pieces, results.decode, safe=True)
        self._cache, self._job, self._runtime = cache, job, runtime
        self._environment = environment
        self.parts: list[Part] = job.parts(environment)
        self.key = job.key(self.parts)
        self._address = f"{cache.url} {self.key}"
        self._made: Result | None = None

    def status(self, terms: Terms, say: Callable[[str], object]) -> int:
        """Run it, or put back what it came to; the exit status, as a shell gives it.

        `say` gets what there is to say about it.  Raises WaitTimeout, WaitCircle, StoreUnavailable, BrokenPipeError
        when nobody reads what was printed.
        """
        if self._address in self._environment.get(HELD, "").split("\n"):
            raise WaitCircle([self.key])
        with Transcript() as transcript:
            try:
                result = self._asked(terms, transcript)
            except NotKept as ending:
                if str(ending):
                    say(str(ending))
                return ending.status
            except CommandFailed as failure:
                if failure.status == FAILED:
                    say(str(failure))
                return failure.status
            except ComputeFailed as refusal:
                say(_refusal(refusal))
                return FAILED
            return self._taken(result, say)

    def _asked(self, terms: Terms, transcript: Transcript) -> Result:
        ask = Ask(terms.wait_s, terms.expires_s, recompute=terms.recompute, ingredients=lambda: packed(self.parts))
        try:
            found = self._cache._ask(self.key, lambda: self._run(transcript), ask)
        except CodecError:
            # Others with the same outputs may have been faster, and have put theirs in place meanwhile.
            found = self._cache.get(self.key) if self._made is not None else None
            if found is None:
                raise
        if not isinstance(found, Result):
            raise CodecError(f"{self.key!r} has a value that is no result of a command: forget it")
        return found

    def _taken(self, result: Result, say: Callable[[str], object]) -> int:
        if result is self._made:
            return result.status
        if self._made is not None:
            say("another worker's result came first: its outputs are put in place")
        try:
            restore(result.outputs, self._runtime)
        except OSError as error:
            say(f"an output could not be put in place: {error.filename}: {error.strerror}")
            return FAILED
        if self._made is None:
            replay(result.said.chunks())
        return result.status

    # -- the command itself --------------------------------------------------------------------------------------

    def _run(self, transcript: Transcript) -> Result:
        """Run the command here.  Raises CommandFailed, and NotKept for what is no failure of the key."""
        before = {path: traces(path) for path in self._job.outputs}
        child = Child(self._job.command, self._environment_below(), self._runtime)
        status = self._streamed(child, transcript)
        words = shlex.join(self._job.command)[:200]
        if child.interrupted or child.killed_by in _STOPPING:
            raise NotKept("", status)
        if status != 0 and (not self._job.keep_failures or child.killed_by is not None):
            if transcript.gap is not None:  # it may have failed because of that
                raise NotKept(f"{words} is not kept: {transcript.gap}", status)
            said = transcript.tail.decode(errors="backslashreplace")
            raise CommandFailed(f"{words} ended with status {status}\n{said}".rstrip(), status)
        if transcript.gap is not None:
            raise NotKept(f"{words} is not kept: {transcript.gap}", status)
        self._check_inputs(words, status)
        self._made = Result(status, transcript, [self._output(path, before[path], status) for path in self._outputs()])
        return self._made

    def _streamed(self, child: Child, transcript: Transcript) -> int:
        """Start the command and pass on what it prints until it ends; its status."""
        pipes = Pipes(self._runtime)
        stdin = self._job.stdin
        try:
            with child.receiving_signals():
                if stdin is not None:
                    os.lseek(stdin.descriptor, 0, os.SEEK_SET)
                below = subprocess.DEVNULL if stdin is None else stdin.descriptor
                child.start(below, pipes.stdout, pipes.stderr)
                pipes.relay(child, transcript)
                return child.wait()
        except NotStarted as problem:
            raise NotKept(str(problem), problem.status) from None
        finally:
            pipes.close()

    def _environment_below(self) -> dict[str, str]:
        held = self._environment.get(HELD)
        return {**self._environment, HELD: f"{held}\n{self._address}" if held else self._address}

    def _outputs(self) -> list[str]:
        return sorted(set(self._job.outputs))

    def _output(self, path: str, before: object, status: int) -> Output:
        try:
            entries = entries_of(path)
        except FileNotFoundError:
            if status != 0:
                return Output(path, [])
            raise CommandFailed(f"the command ended well, but did not make --out {path}", FAILED) from None
        except OSError as error:
            raise CommandFailed(f"--out {path} can't be read: {error.strerror}", FAILED) from None
        except CodecError as error:
            raise CommandFailed(f"--out {path}: {error}", FAILED) from None
        if status == 0 and before is not None and traces(path) == before:
            raise CommandFailed(
                f"the command ended well, but left --out {path} as it was before, so it may be the result of something "
                "else. Remove it and run again; or, if it is no output of this command, don't declare it",
                FAILED,
            )
        return Output(path, entries)

    def _check_inputs(self, words: str, status: int) -> None:
        """What the command read may not be what the key says, when an input changed meanwhile."""
        declared = set(self._job.inputs) - set(self._job.outputs)
        before = {part.name: part.digest for part in self.parts if part.kind == "in" and part.name in declared}
        try:
            now = self._job.input_digests()
        except InputMissing as error:
            raise NotKept(f"{words} is not kept: it is gone by now: {error}", status) from None
        if now != before:
            changed = ", ".join(sorted(path for path in before if now[path] != before[path]))
            raise NotKept(f"{words} is not kept: its input changed while it ran: {changed}", status)


def _refusal(refusal: ComputeFailed) -> str:
    """Why nobody tries any more, and what the last one said."""
    last = refusal.traceback.partition(f"{CommandFailed.__name__}: ")[2] or refusal.traceback
    tally = f"it has failed {refusal.failures} times, and killed its worker {refusal.deaths} times"
    return f"{refusal.key}: {tally}. {refusal.remedy}; the last on {refusal.by}:\n{last.rstrip()}"
