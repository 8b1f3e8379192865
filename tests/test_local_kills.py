"""A writer that is killed before any of its system calls, or half-way through a write, loses nothing.

Each scenario runs in forked children, one for each system call, until one comes through alive.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dibs.runtime import Runtime, linux
from dibs.store import Record, Version
from dibs.stores.local import LocalStore

NAME = "keys/f/0123"
OS_CALLS = "open read pread pwrite write ftruncate fstat lseek close mkdir unlink rename replace"
CALLS = [*((os, name) for name in OS_CALLS.split()), (fcntl, "flock"), (linux, "exchange")]
CALLS_MAX = 60

Action = Callable[[LocalStore], object]


def die_at(step: int, torn: float | None) -> None:
    """In a child: replace the system calls by ones of which the `step`th kills; with `torn` after a part of a write."""
    left = step

    def dying(call: Callable[..., Any], writes: bool) -> Callable[..., Any]:
        def replaced(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if torn is not None and writes:
                    data = args[1]
                    call(args[0], data[: int(len(data) * torn)], *args[2:])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return replaced

    for module, name in CALLS:
        setattr(module, name, dying(getattr(module, name), name in ("pwrite", "write")))


def killed_at(step: int, torn: float | None, root: str, runtime: Runtime, action: Action) -> bool:
    """False when the child had fewer system calls than that and came through."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store = LocalStore(root, runtime)
            die_at(step, torn)
            action(store)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the action failed at step {step}"
    return False


def version_of(store: LocalStore) -> Version | None:
    record = store.read(NAME)
    return record.version if isinstance(record, Record) else None


def created(size: int) -> Callable[[LocalStore], None]:
    def prepare(store: LocalStore) -> None:
        store.swap(NAME, None, b"b" * size)

    return prepare


def rewritten(size: int) -> Callable[[LocalStore], None]:
    def prepare(store: LocalStore) -> None:
        store.swap(NAME, store.swap(NAME, None, b"a" * size), b"b" * size)

    return prepare


def damaged(store: LocalStore) -> None:
    store.swap(NAME, None, b"b")
    Path(store.files_of(NAME)[0]).write_bytes(b"garbage")


def nothing(store: LocalStore) -> None:
    pass


def swap_to(size: int) -> Action:
    def action(store: LocalStore) -> None:
        store.swap(NAME, version_of(store), b"n" * size)

    return action


SCENARIOS = [
    ("create", nothing, 300, {b"n" * 300}),
    ("create large", nothing, 30_000, {b"n" * 30_000}),
    ("first swap in place", created(300), 200, {b"b" * 300, b"n" * 200}),
    ("second swap in place", rewritten(300), 200, {b"b" * 300, b"n" * 200}),
    ("large swap in place", rewritten(30_000), 29_000, {b"b" * 30_000, b"n" * 29_000}),
    ("grow", rewritten(300), 30_000, {b"b" * 300, b"n" * 30_000}),
    ("heal", damaged, 300, {b"n" * 300}),
]  # fmt: skip


@pytest.mark.parametrize("torn", [None, 0.02, 0.5, 0.99])
@pytest.mark.parametrize(
    ("prepare", "size", "allowed"), [scenario[1:] for scenario in SCENARIOS], ids=[name for name, *_ in SCENARIOS]
)
def test_a_kill_at_any_system_call_leaves_old_or_new_or_damage_that_heals(
    prepare: Callable[[LocalStore], None], size: int, allowed: set[bytes],
    torn: float | None, runtime: Runtime, tmp_path: Path,
) -> None:  # fmt: skip
    for step in range(1, CALLS_MAX):
        root = str(tmp_path / str(step))
        before = LocalStore(root, runtime)
        prepare(before)
        existed = version_of(before) is not None
        before.close()

        killed = killed_at(step, torn, root, runtime, swap_to(size))

        store = LocalStore(root, runtime)
        record = store.read(NAME)
        if record is None:
            assert not existed, f"killed at step {step}: a record that was there is absent"
            store.swap(NAME, None, b"by the next worker")
        else:
            assert isinstance(record, Record)
            if record.version.startswith("damaged."):
                assert killed
                assert record.data == b""
            else:
                assert record.data in allowed, f"killed at step {step}: neither old nor new"
                assert killed or record.data == b"n" * size
            store.swap(NAME, record.version, b"by the next worker")
        after = store.read(NAME)
        assert isinstance(after, Record)
        assert after.data == b"by the next worker"
        store.close()
        if not killed:
            assert step > 8, "the system calls were not counted"
            return
    raise AssertionError("more system calls than expected")


def test_a_small_record_survives_every_kill_in_a_swap_without_damage(runtime: Runtime, tmp_path: Path) -> None:
    """Because it is written by one call into one block: damage would cost the key's value."""
    for step in range(1, CALLS_MAX):
        root = str(tmp_path / str(step))
        before = LocalStore(root, runtime)
        rewritten(300)(before)
        killed = killed_at(step, None, root, runtime, swap_to(200))
        record = LocalStore(root, runtime).read(NAME)
        assert isinstance(record, Record)
        assert record.data in (b"b" * 300, b"n" * 200)
        if not killed:
            return


def test_an_upload_that_is_killed_shows_nothing_or_all(runtime: Runtime, tmp_path: Path) -> None:
    content = b"x" * 3_000_000
    source = tmp_path / "source"
    source.write_bytes(content)

    def upload(store: LocalStore) -> None:
        with open(source, "rb") as file:
            store.upload(NAME, file)

    for step in range(1, CALLS_MAX):
        root = str(tmp_path / str(step))
        killed = killed_at(step, 0.5, root, runtime, upload)
        store = LocalStore(root, runtime)
        try:
            with store.download(NAME) as file:
                assert file.read() == content
        except FileNotFoundError:
            assert killed
        if not killed:
            return
    raise AssertionError("more system calls than expected")
