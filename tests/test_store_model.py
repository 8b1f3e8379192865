"""Stores against a dict, by random steps: whatever the order, a store answers as the dict would.

`StoreMachine` fits any store: subclass it with an `open_store`, and expose `Subclass.TestCase`.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dibs.errors import Conflict
from dibs.runtime.system import SystemRuntime, system
from dibs.store import RECORD_SIZE_MAX, UNCHANGED, Backend, Record, Version
from dibs.stores.local import LocalStore
from dibs.stores.memory import MemoryStore
from dibs.testing.servers import Server

NAMES = ["card", "keys/f/a", "keys/f/b", "keys/f/a%2Fb", "keys/g/a", "keys/f", "locks/a"]
PREFIXES = ["keys/", "keys/f/", "locks/", "none/"]
names = st.sampled_from(NAMES)
contents = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda size, byte: bytes([byte]) * size, st.integers(0, RECORD_SIZE_MAX - 20), st.integers(0, 255)),
)


class Known(NamedTuple):
    data: bytes
    version: Version


class StoreMachine(RuleBasedStateMachine):
    """Records and blobs of one store that nobody else uses."""

    def __init__(self) -> None:
        super().__init__()
        self.store = self.open_store()
        self.model: dict[str, Known] = {}
        self.past: dict[str, list[Version]] = {}
        self.blobs: dict[str, bytes] = {}
        self.writes = 0

    def open_store(self) -> Backend:
        raise NotImplementedError

    def teardown(self) -> None:
        self.store.close()

    def _record(self, data: bytes) -> bytes:
        """What is written: no two writes of dibs are ever equal, and a bucket's versions rely on it."""
        self.writes += 1
        return b"%d " % self.writes + data

    def _wrote(self, name: str, data: bytes, version: Version) -> None:
        for versions in self.past.values():
            assert version not in versions, "a version came twice"
        self.past.setdefault(name, []).append(version)
        self.model[name] = Known(data, version)

    def _is_refused(self, name: str, old: Version | None, data: bytes) -> None:
        with pytest.raises(Conflict):
            self.store.swap(name, old, data)
        self.read(name)

    @rule(name=names, data=contents)
    def create(self, name: str, data: bytes) -> None:
        data = self._record(data)
        if name in self.model:
            self._is_refused(name, None, data)
        else:
            self._wrote(name, data, self.store.swap(name, None, data))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), new=contents)
    def swap(self, data: st.DataObject, new: bytes) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        new = self._record(new)
        self._wrote(name, new, self.store.swap(name, self.model[name].version, new))

    @precondition(lambda self: self.past)
    @rule(data=st.data(), name=names, new=contents)
    def swap_from_elsewhere(self, data: st.DataObject, name: str, new: bytes) -> None:
        """From an old version, or from the version of another record."""
        versions = sorted(version for versions in self.past.values() for version in versions)
        old = data.draw(st.sampled_from(versions))
        if name not in self.model or self.model[name].version != old:
            self._is_refused(name, old, self._record(new))

    @rule(name=names)
    def read(self, name: str) -> None:
        record = self.store.read(name)
        if name not in self.model:
            assert record is None
        else:
            assert isinstance(record, Record)
            assert (record.data, record.version) == self.model[name]
            assert record.age_s is None or record.age_s >= 0

    @precondition(lambda self: self.past)
    @rule(data=st.data(), name=names)
    def read_unless(self, data: st.DataObject, name: str) -> None:
        unless = data.draw(st.sampled_from(sorted(version for versions in self.past.values() for version in versions)))
        answer = self.store.read(name, unless)
        if name not in self.model:
            assert answer is None
        elif self.model[name].version == unless:
            assert answer is UNCHANGED
        else:
            assert isinstance(answer, Record)
            assert answer[:2] == self.model[name]

    @rule(prefix=st.sampled_from(PREFIXES))
    def scan(self, prefix: str) -> None:
        listed = [line.name for line in self.store.scan(prefix)]
        assert sorted(listed) == sorted(name for name in self.model if name.startswith(prefix))

    @rule()
    def close(self) -> None:
        self.store.close()

    @rule(name=names, data=contents)
    def upload(self, name: str, data: bytes) -> None:
        self.store.upload(name, io.BytesIO(data))
        self.blobs[name] = data

    @rule(name=names)
    def download(self, name: str) -> None:
        if name not in self.blobs:
            with pytest.raises(FileNotFoundError), self.store.download(name):
                pass
        else:
            with self.store.download(name) as file:
                assert file.read() == self.blobs[name]

    @rule(name=names)
    def remove(self, name: str) -> None:
        self.store.remove(name)
        self.blobs.pop(name, None)


class MemoryMachine(StoreMachine):
    def open_store(self) -> Backend:
        return MemoryStore(system())


class LocalMachine(StoreMachine):
    """A folder, now and then damaged, and used by two clients in turn."""

    runtime: ClassVar[SystemRuntime] = system()

    def open_store(self) -> Backend:
        self.folder = tempfile.mkdtemp()
        self.other: Backend = LocalStore(self.folder, self.runtime)
        return LocalStore(self.folder, self.runtime)

    def teardown(self) -> None:
        super().teardown()
        self.other.close()
        assert os.listdir(os.path.join(self.folder, "tmp")) == [] if os.path.exists(self.folder + "/tmp") else True
        shutil.rmtree(self.folder)

    @rule()
    def take_turns(self) -> None:
        self.store, self.other = self.other, self.store

    @precondition(lambda self: self.model)
    @rule(data=st.data(), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def flip_a_byte(self, data: st.DataObject, where: float, flip: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        with open(self.store.files_of(name)[0], "r+b") as file:
            content = bytearray(file.read())
            if content:
                content[int(where * len(content))] ^= flip
                file.seek(0)
                file.write(content)
        self._is_whole_or_damaged(name)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), kept=st.floats(0, 1), zeroed=st.booleans())
    def cut_off(self, data: st.DataObject, kept: float, zeroed: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        path = self.store.files_of(name)[0]
        size = os.path.getsize(path)
        os.truncate(path, int(kept * size))
        if zeroed:
            os.truncate(path, size)
        self._is_whole_or_damaged(name)

    def _is_whole_or_damaged(self, name: str) -> None:
        """Never absent, never an older record; and from damage it can be swapped."""
        record = self.store.read(name)
        assert isinstance(record, Record)
        if record[:2] == self.model[name]:
            return
        assert record.data == b""
        assert record.version.startswith("damaged.")
        assert self.store.read(name, unless=record.version) is UNCHANGED
        self._is_refused_while_damaged(name, self.model[name].version)
        self._is_refused_while_damaged(name, None)
        self._wrote(name, b"healed", self.store.swap(name, record.version, b"healed"))

    def _is_refused_while_damaged(self, name: str, old: Version | None) -> None:
        with pytest.raises(Conflict):
            self.store.swap(name, old, b"over damage")


quick = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)  # what a busy machine finds slow is not a bug


def _case(machine: type[StoreMachine]) -> Any:
    case = machine.TestCase
    case.settings = quick
    return case


TestMemory = _case(MemoryMachine)
TestLocal = _case(LocalMachine)


@pytest.mark.s3
def test_a_bucket_answers_as_a_dict_would(ministack_server: Server, s3_store: Callable[[Server], Backend]) -> None:
    class BucketMachine(StoreMachine):
        def open_store(self) -> Backend:
            return s3_store(ministack_server)

    run_state_machine_as_test(BucketMachine, settings=settings(quick, max_examples=15, stateful_step_count=20))
