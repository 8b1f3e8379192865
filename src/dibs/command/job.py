"""What is declared about a command, and the key that is made of it.

What counts: the words of the command and the paths of inputs and outputs as they were typed, the contents of the
inputs, the values of the named variables (an unset one is not an empty one), the content of stdin if it is passed
on, the version, and whether failures are kept.  What doesn't: the working directory, the rest of the environment,
and programs and files that are named by the command alone.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dibs.digest import File, digest_of
from dibs.errors import DibsError, SettingsError, Undigestible

Ingredients = dict[str, tuple[str, str]]
"""Label -> (first 16 digits of its digest, a preview for people)."""

_FORMAT: Final = "dibs run 1"
_INGREDIENTS_SIZE_MAX: Final = 8 * 1024
_PREVIEW_SIZE: Final = 80
_NAME_SIZE_MAX: Final = 200


class InputMissing(DibsError):
    """A declared input is not there, or can't be read."""


class Stdin(NamedTuple):
    """What the command reads: a file that holds it, and its digest."""

    descriptor: int
    digest: str
    size_bytes: int


class Job(NamedTuple):
    """A command and what is declared about it; all paths as they were typed."""

    command: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    name: str | None = None
    version: str | None = None
    keep_failures: bool = False
    stdin: Stdin | None = None

    @property
    def family(self) -> str:
        """What the keys of this command begin with."""
        name = self.name if self.name is not None else os.path.basename(self.command[0]) or self.command[0]
        return f"run {_printable(name)}"

    def check(self, store_directory: str | None = None) -> None:
        """Raise SettingsError for what can't be meant."""
        if len(self.family.encode()) > _NAME_SIZE_MAX:
            raise SettingsError(f"the name {self.family[:40]!r}… has more than {_NAME_SIZE_MAX} bytes: give a --name")
        for variable in self.variables:
            if not variable or "=" in variable:
                raise SettingsError(f"--env {variable}: expected the name of a variable (its value is taken from ours)")
        for path in (*self.inputs, *self.outputs):
            if not path or "\0" in path:
                raise SettingsError(f"{path!r} is no path")
        _check_places(self.inputs, self.outputs, store_directory)

    def parts(self, environment: Mapping[str, str]) -> list[Part]:
        """Everything that counts, each with its digest.  Raises InputMissing."""
        found = [_part("command", "", [os.fsencode(word) for word in self.command], shlex.join(self.command))]
        found += [_input(path) for path in sorted(set(self.inputs))]
        for variable in sorted(set(self.variables)):
            value = environment.get(variable)
            preview = "not set" if value is None else repr(value)
            found.append(_part("env", variable, None if value is None else os.fsencode(value), preview))
        outputs = sorted(set(self.outputs))
        if outputs:
            found.append(_part("outputs", "", [os.fsencode(path) for path in outputs], shlex.join(outputs)))
        if self.version is not None:
            found.append(_part("version", "", os.fsencode(self.version), self.version))
        if self.stdin is not None:
            found.append(Part("stdin", "", self.stdin.digest, size_words(self.stdin.size_bytes)))
        if self.keep_failures:
            found.append(_part("failures", "", True, "kept"))
        return found

    def key(self, parts: Sequence[Part]) -> str:
        named = [(part.kind, os.fsencode(part.name), part.digest) for part in parts]
        return f"{self.family}/{digest_of((_FORMAT, named))}"

    def input_digests(self) -> dict[str, str]:
        """The contents of the inputs now, without those that the command may have changed as its outputs."""
        return {path: _input(path).digest for path in set(self.inputs) - set(self.outputs)}


class Part(NamedTuple):
    """One ingredient of a key."""

    kind: str
    name: str
    digest: str
    preview: str

    @property
    def label(self) -> str:
        return _printable(f"{self.kind} {self.name}" if self.name else self.kind)


def ingredients(parts: Sequence[Part]) -> Ingredients:
    """The parts as they are shown."""
    return {part.label: (part.digest[:16], _printable(part.preview)[:_PREVIEW_SIZE]) for part in parts}


def packed(parts: Sequence[Part]) -> bytes:
    """The ingredients as JSON that fits into a record; the last of very many are told as one."""
    kept = list(parts)
    while True:  # ends: the list gets shorter each time
        rest = parts[len(kept) :]
        folded = [Part("more inputs", str(len(rest)), digest_of([part.digest for part in rest]), "")] if rest else []
        data = json.dumps(ingredients([*kept, *folded]), separators=(",", ":")).encode()
        if len(data) <= _INGREDIENTS_SIZE_MAX:
            return data
        kept = kept[: -max(len(kept) // 8, 1)]


def _part(kind: str, name: str, content: object, preview: str) -> Part:
    return Part(kind, name, digest_of(content), preview)


def _input(path: str) -> Part:
    try:
        preview = "a directory" if os.path.isdir(path) else size_words(os.stat(path).st_size)
        return Part("in", path, digest_of(File(path)), preview)
    except OSError as error:
        raise InputMissing(f"--in {path}: {error.strerror}") from error
    except Undigestible as error:
        reason = str(error).partition(" Remedies:")[0]  # they are those of an argument of a function
        raise InputMissing(f"--in {path}: {reason}") from error


def size_words(size_bytes: int) -> str:
    return f"{size_bytes:,} bytes"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _check_places(inputs: Sequence[str], outputs: Sequence[str], store_directory: str | None) -> None:
    """An output is put in place as a whole, so nothing else may live in it; an input must not change by being used."""
    here = os.path.realpath(os.getcwd())
    places = {path: os.path.realpath(path) for path in (*inputs, *outputs)}
    for path in outputs:
        if _within(here, places[path]):
            raise SettingsError(f"--out {path} is, or contains, the working directory: name what lies in it")
        if store_directory is not None and _within(store_directory, places[path]):
            raise SettingsError(f"--out {path} contains the cache {store_directory}: put the cache elsewhere")
        for other in outputs:
            if places[other] != places[path] and _within(places[other], places[path]):
                raise SettingsError(f"--out {other} lies in --out {path}, which has it already: name one of them")
    for path in inputs:
        if store_directory is not None and _within(store_directory, places[path]):
            raise SettingsError(
                f"--in {path} contains the cache {store_directory}, which changes all the time: name what lies beside "
                "it, or put the cache elsewhere"
            )
        for other in outputs:
            if places[other] != places[path] and (
                _within(places[other], places[path]) or _within(places[path], places[other])
            ):
                raise SettingsError(
                    f"--out {other} and --in {path} lie in one another, so the output would count as an input: name "
                    "the inputs one by one"
                )


def _within(inner: str, outer: str) -> bool:
    return os.path.commonpath((inner, outer)) == outer
