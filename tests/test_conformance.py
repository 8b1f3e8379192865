"""Every store does what a store must do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dibs.runtime import Runtime
from dibs.store import Backend, Version
from dibs.stores.local import LocalStore
from dibs.stores.memory import MemoryStore
from dibs.testing.conformance import CHECKS, Opener, check_all

every_check = pytest.mark.parametrize("check", [check for _, check in CHECKS], ids=[name for name, _ in CHECKS])


@every_check
def test_memory(check: Callable[[Opener], None], runtime: Runtime) -> None:
    store = MemoryStore(runtime)
    check(lambda: store)


@every_check
def test_a_folder(check: Callable[[Opener], None], runtime: Runtime, tmp_path: Path) -> None:
    check(lambda: LocalStore(str(tmp_path / "store"), runtime))


class Careless(MemoryStore):
    """Ignores conditions, as some servers do."""

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        there = self.read(name)
        return super().swap(name, there.version if there else None, new)  # type: ignore[union-attr]


class Forgetful(MemoryStore):
    """Numbers its versions by content."""

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        version = super().swap(name, old, new)
        kept = self._records[name]
        self._records[name] = kept._replace(version=str(len(new)))
        return version and str(len(new))


@pytest.mark.parametrize("planted", [Careless, Forgetful])
def test_a_store_that_breaks_its_promise_is_found_out(planted: type[MemoryStore], runtime: Runtime) -> None:
    store: Backend = planted(runtime)
    with pytest.raises(AssertionError):
        check_all(lambda: store)
