"""A few requests are enough to refuse a server that doesn't keep its word."""

from __future__ import annotations

import pytest

from dibs.card import read_card
from dibs.errors import Conflict, StoreUnavailable, StoreUnsuitable
from dibs.probe import introduce, probe
from dibs.store import Record, Unchanged, Version
from dibs.stores.memory import MemoryStore
from tests.fakes import FaultyStore, HandRuntime, cache_on


class Server(FaultyStore):
    """An honest remote store that counts its requests."""

    def __init__(self) -> None:
        self.runtime = HandRuntime()
        super().__init__(MemoryStore(self.runtime), remote=True)

    @property
    def requests_sent(self) -> int:
        return self.sent + self.reads


class IgnoresCreateCondition(Server):
    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        there = self._store.read(name)
        if old is None and isinstance(there, Record):
            old = there.version
        return super().swap(name, old, new)


class IgnoresSwapCondition(Server):
    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        there = self._store.read(name)
        if old is not None and isinstance(there, Record):
            old = there.version
        return super().swap(name, old, new)


class CreatesOnMissing(Server):
    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        if old is not None and self._store.read(name) is None:
            old = None
        return super().swap(name, old, new)


class ConstantVersion(Server):
    def read(self, name: str, unless: Version | None = None) -> Record | None | Unchanged:
        record = super().read(name)
        return record._replace(version="v") if isinstance(record, Record) else record

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        there = self._store.read(name)
        super().swap(name, there.version if old == "v" and isinstance(there, Record) else old, new)
        return "v"


class StaleReads(Server):
    """Answers reads with what stood there before the last change, as a cache in between would."""

    def __init__(self) -> None:
        super().__init__()
        self.stale: dict[str, Record | None] = {}

    def read(self, name: str, unless: Version | None = None) -> Record | None | Unchanged:
        super().read(name)
        return self.stale.get(name)

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        there = self._store.read(name)
        version = super().swap(name, old, new)
        assert not isinstance(there, Unchanged)
        self.stale[name] = there
        return version


class NeverUnchanged(Server):
    def read(self, name: str, unless: Version | None = None) -> Record | None | Unchanged:
        return super().read(name)


class RefusesItsOwnVersions(Server):
    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        if old is not None:
            self.sent += 1
            raise Conflict(name)
        return super().swap(name, old, new)


class SpeaksUnquoted(Server):
    """Honours conditions in its second dialect only."""

    def __init__(self) -> None:
        super().__init__()
        self.dialects = ("quoted", "unquoted")

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        if old is not None and self.dialect != "unquoted":
            self.sent += 1
            raise Conflict(name)
        return super().swap(name, old, new)


LIARS = {
    IgnoresCreateCondition: "If-None-Match",
    IgnoresSwapCondition: "If-Match",
    CreatesOnMissing: "absent",
    ConstantVersion: "same version",
    StaleReads: "what was written last",
    NeverUnchanged: "whole",
    RefusesItsOwnVersions: "refuses If-Match",
}


@pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.__name__)
def test_each_lying_server_is_refused_at_open_in_under_20_requests_with_its_lie(liar: type[Server]) -> None:
    server = liar()
    with pytest.raises(StoreUnsuitable, match=LIARS[liar]) as caught:
        cache_on(server, server.runtime)
    assert "conditional writes" in str(caught.value), "and with a remedy"
    assert server.requests_sent < 20
    assert read_card(server._store) is None, "nothing vouches for it"


def test_an_honest_server_is_believed_and_probed_once() -> None:
    server = Server()
    card = introduce(server, server.runtime)
    assert card.servers == (("test", server.dialect),)
    assert server.requests_sent < 20
    before = server.requests_sent
    assert introduce(server, server.runtime) == card
    assert server.requests_sent == before + 1, "one read when the card vouches for it"


def test_another_server_on_the_same_store_is_probed_again() -> None:
    server = Server()
    introduce(server, server.runtime)
    server.server = "another"
    before = server.requests_sent
    assert ("another", "plain") in introduce(server, server.runtime).servers
    assert server.requests_sent > before + 5


def test_the_dialect_that_a_server_wants_is_found_and_remembered() -> None:
    server = SpeaksUnquoted()
    introduce(server, server.runtime)
    server.dialect = "quoted"
    introduce(server, server.runtime)
    assert server.dialect == "unquoted"


def test_a_passing_fault_is_no_lie() -> None:
    server = Server()
    failing = [True]

    def fail_once(kind: str, name: str) -> None:
        if kind == "swap" and failing:
            failing.clear()
            raise StoreUnavailable("503")

    server.before = fail_once
    assert probe(server, server.runtime) == server.dialect


def test_a_server_that_is_down_is_unavailable_not_unsuitable() -> None:
    server = Server()
    server.down = True
    with pytest.raises(StoreUnavailable):
        introduce(server, server.runtime)


def test_read_only_probes_nothing() -> None:
    server = Server()
    introduce(server, server.runtime, read_only=True)
    assert server.sent == 0


def test_a_store_without_a_server_is_not_probed() -> None:
    store = FaultyStore(MemoryStore(runtime := HandRuntime()))
    introduce(store, runtime)
    assert store.sent == 2, "the card and its copy"
