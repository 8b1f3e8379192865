"""With a secret, nothing is read or executed that the fleet didn't store under this very key."""

from __future__ import annotations

import io
import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dibs.cache import Cache
from dibs.cell import Cell, Value
from dibs.codec import digest
from dibs.errors import CodecError, SettingsError
from dibs.names import KEYS, blob_name, record_name
from dibs.record import decode, encode
from dibs.runtime.system import SystemRuntime
from dibs.settings import Secrets, Settings
from dibs.signing import SECRET_SIZE_MIN, Entry, Signer, encoded
from dibs.store import Record
from dibs.stores.memory import MemoryStore
from tests.fakes import Counted, Elsewhere

SECRET, OLD_SECRET, STRANGERS = b"the secret of the fleet", b"its secret of last year", b"a stranger's secret"
ENTRY = Entry("store", "keys/f/abc", 3, "claim", "pickle", None, 10, "digest", None, None)
PADDING = {"inline": 10, "blob": 50_000}


class Shared(MemoryStore):
    """A store that others can write to."""

    private = False  # type: ignore[misc]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path, padding: int) -> None:
        self.path, self.padding = path, padding

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, (str(self.path), "x" * self.padding)


def _explode(path: str, padding: str) -> Bomb:
    Path(path).touch()
    return Bomb(Path(path), len(padding))


@dataclass
class Thing:
    """What can only be stored as a pickle."""

    text: str


class Place:
    """A store that others can write to, a cache of the fleet on it, and what a stranger can do there."""

    def __init__(self, kind: str, size: str, tmp_path: Path) -> None:
        self.runtime = SystemRuntime(runtime_dir=str(tmp_path / "runtime"))
        self.padding = PADDING[size]
        self.exploded = tmp_path / "exploded"
        self._kind, self._tmp_path = kind, tmp_path
        self.store = self.make_store("store")
        self.cache = self.open(SECRET)

    def make_store(self, name: str) -> Any:
        if self._kind == "memory":
            return Shared(self.runtime)
        from dibs.stores import open_store

        folder = self._tmp_path / name
        folder.mkdir()
        folder.chmod(0o777)
        return open_store(str(folder), self.runtime)

    def open(self, *secrets: bytes, store: Any = None, **settings: Any) -> Cache:
        secret = Secrets(secrets) if secrets else None
        return Cache(store or self.store, self.runtime, Settings(secret=secret, **settings))

    @property
    def bomb(self) -> bytes:
        return pickle.dumps(Bomb(self.exploded, self.padding), protocol=5)

    def put_bomb(self, key: str, cache: Cache | None = None) -> None:
        """Store a pickle that tells when it is loaded from now on (storing tries it once)."""
        (cache or self.cache).put(key, Bomb(self.exploded, self.padding))
        self.exploded.unlink(missing_ok=True)

    def cell(self, key: str) -> Cell:
        record = self.store.read(record_name(KEYS, key))
        assert isinstance(record, Record)
        return decode(record.data).cell

    def forge(self, key: str, cell: Cell) -> None:
        """Write `cell` as the record of `key`, with a check that is right: anybody can do that."""
        name = record_name(KEYS, key)
        record = self.store.read(name)
        version = record.version if isinstance(record, Record) else None
        self.store.swap(name, version, encode(cell._replace(key=key), os.urandom(8).hex()))

    def changed(self, key: str, **fields: Any) -> None:
        cell = self.cell(key)
        assert cell.value is not None
        self.forge(key, cell._replace(value=cell.value._replace(**fields)))

    def planted(self, key: str, payload: bytes, codec: str = "pickle") -> Value:
        """A value of the stranger's own, in its place."""
        cell = self.cell(key)
        blob = blob_name(record_name(KEYS, key), cell.epoch, "abc") if self.padding > 20_000 else None
        if blob is not None:
            self.store.upload(blob, io.BytesIO(payload))
        inline = payload if blob is None else None
        return Value(cell.epoch, "abc", codec, len(payload), digest(payload), inline, blob)

    def refuses(self, key: str, why: str) -> None:
        """No way of asking for it reads it, and each says why; a forget heals."""
        compute = Counted("anew")
        for cache in (self.cache, self.open(SECRET, OLD_SECRET)):
            asks: list[Callable[[], object]] = [
                partial(cache.get, key),
                partial(cache.get_or_compute, key, compute),
                partial(cache.get_or_compute, key, compute, stale_ok=True),
                cache.once(key).__enter__,
            ]
            for ask in asks:
                with pytest.raises(CodecError, match=why) as caught:
                    ask()
                assert repr(key) in str(caught.value)
                assert f"dibs forget {key}" in str(caught.value)
        assert not self.exploded.exists(), "it was executed"
        assert compute.calls == 0, "it was computed anew without a word"
        self.cache.forget(key)
        assert self.cache.get_or_compute(key, compute) == "anew"


@pytest.fixture(params=["memory", "local"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PADDING)
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(kind, request.param, tmp_path)


# --- entries of strangers ----------------------------------------------------------------------------------


def test_with_a_secret_pickles_go_through_a_store_that_others_can_write_to(place: Place) -> None:
    value = Thing("x" * place.padding)
    with pytest.raises(CodecError, match="others can write"):
        place.open().put("key", value)
    place.cache.put("key", value)
    assert place.open(SECRET).get("key") == value
    with pytest.raises(CodecError, match="others can write"):
        place.open().get("key")
    with pytest.raises(CodecError, match="allow_pickle is False"):
        place.open(SECRET, allow_pickle=False).get("key")


def test_an_unsigned_pickle_is_refused(place: Place) -> None:
    place.cache.put("key", "good")
    cell = place.cell("key")
    place.forge("key", cell._replace(value=place.planted("key", place.bomb)))
    place.refuses("key", "not signed")


def test_an_unsigned_value_of_a_harmless_kind_is_refused_too(place: Place) -> None:
    place.open(allow_pickle=True).put("key", "x" * place.padding)
    place.refuses("key", "not signed")


def test_a_pickle_that_is_signed_with_another_secret_is_refused(place: Place) -> None:
    place.put_bomb("key", place.open(STRANGERS))
    place.refuses("key", "another secret")


def test_a_pickle_with_the_signature_of_the_value_before_is_refused(place: Place) -> None:
    place.cache.put("key", "x" * place.padding)
    cell = place.cell("key")
    assert cell.value is not None
    bomb = place.planted("key", place.bomb)._replace(claim=cell.value.claim, signature=cell.value.signature)
    place.forge("key", cell._replace(value=bomb))
    place.refuses("key", "not that of this entry")


def test_bytes_that_were_changed_beneath_the_signature_are_not_read(place: Place) -> None:
    place.cache.put("key", Thing("x" * place.padding))
    value = place.cell("key").value
    assert value is not None
    bomb = place.bomb.ljust(value.size_bytes)[: value.size_bytes]
    if value.blob is None:
        place.changed("key", inline=bomb)
        place.refuses("key", "not those that were signed")
        return
    place.store.remove(value.blob)
    place.store.upload(value.blob, io.BytesIO(bomb))
    assert place.cache.get("key") is None
    assert place.cache.stats().healed == 1, "a blob that isn't what was written is damage, and reported as that"
    assert not place.exploded.exists()


def test_a_signed_entry_that_was_moved_to_another_key_is_refused(place: Place) -> None:
    place.put_bomb("theirs")
    place.cache.put("key", "good")
    place.forge("key", place.cell("theirs"))
    place.refuses("key", "not that of this entry")


def test_the_very_bytes_of_another_keys_record_are_damage(place: Place) -> None:
    place.put_bomb("theirs")
    place.cache.put("key", "good")
    theirs, mine = (place.store.read(record_name(KEYS, key)) for key in ("theirs", "key"))
    place.store.swap(record_name(KEYS, "key"), mine.version, theirs.data)
    assert place.cache.get("key") is None
    assert place.cache.stats().healed == 1
    assert not place.exploded.exists()


def test_a_blob_of_another_key_is_not_read_under_this_ones(kind: str, tmp_path: Path) -> None:
    place = Place(kind, "blob", tmp_path)
    place.put_bomb("theirs")
    place.cache.put("key", "x" * place.padding)
    theirs = place.cell("theirs").value
    assert theirs is not None
    place.changed("key", blob=theirs.blob, digest=theirs.digest, size_bytes=theirs.size_bytes, codec="pickle")
    place.refuses("key", "not that of this entry")


def test_an_entry_of_an_older_epoch_of_another_key_is_refused(place: Place) -> None:
    place.put_bomb("theirs")
    old = place.cell("theirs")
    place.cache.put("theirs", "newer")
    place.cache.put("key", "a")
    place.cache.put("key", "b")
    place.forge("key", old)
    place.refuses("key", "not that of this entry")


def test_an_entry_of_an_older_epoch_is_not_taken_for_one_of_this_epoch(place: Place) -> None:
    place.put_bomb("key")
    old = place.cell("key").value
    place.cache.put("key", "newer")
    cell = place.cell("key")
    assert old is not None
    place.forge("key", cell._replace(value=old._replace(epoch=cell.epoch)))
    place.refuses("key", "not that of this entry")


@pytest.mark.parametrize("length", [0, 1, 2, 10, 11, 30, 74])
def test_a_truncated_signature_is_refused(place: Place, length: int) -> None:
    place.put_bomb("key")
    value = place.cell("key").value
    assert value is not None
    assert value.signature is not None
    place.changed("key", signature=value.signature[:length])
    place.refuses("key", "cut or malformed|another secret")


CHANGES: dict[str, dict[str, Any]] = {
    "sooner": {"expires_s": 0.0}, "later": {"expires_s": 1e9}, "never": {"expires_s": None},
    "codec": {"codec": "pickle"}, "other ingredients": {"ingredients": b'{"a":1}'},
    "no ingredients": {"ingredients": None},
    "odd types": {"size_bytes": [1], "codec": {}}, "a text": {"expires_s": "soon"}, "claim": {"claim": "0" * 16},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_entry_that_was_changed_is_refused(place: Place, change: str) -> None:
    # A pickle in a value of bytes is as good as any other bytes, as long as nobody calls it a pickle.
    name = record_name(KEYS, "key")
    encoded_value = place.cache._values.encode(place.bomb)
    value = place.cache._values.store(name, encoded_value, 1, "1" * 16, 0.0, 3600, b"{}")
    place.forge("key", Cell("key", 1, 1, None, value))
    assert place.cache.get("key") == place.bomb
    place.changed("key", **CHANGES[change])
    place.refuses("key", "not that of this entry")


def test_an_entry_of_another_store_is_refused(place: Place) -> None:
    other = place.make_store("other")
    place.put_bomb("key", place.open(SECRET, store=other))
    place.cache.put("key", "good")
    record = other.read(record_name(KEYS, "key"))
    cell = decode(record.data).cell
    assert cell.value is not None
    if cell.value.blob is not None:
        with other.download(cell.value.blob) as source:
            place.store.upload(cell.value.blob, source)
    place.forge("key", cell)
    place.refuses("key", "not that of this entry")


def test_an_old_value_that_is_served_meanwhile_is_checked_as_well(place: Place) -> None:
    place.cache.put("key", "x" * place.padding)

    def compute() -> str:
        cell = place.cell("key")
        assert cell.value is not None
        bomb = place.planted("key", place.bomb)._replace(epoch=cell.value.epoch, signature=cell.value.signature)
        place.forge("key", cell._replace(value=bomb))
        with pytest.raises(CodecError, match="not that of this entry"):
            Elsewhere(place.open(SECRET)).get_or_compute("key", Counted(), stale_ok=True)
        return "new"

    assert place.cache.recompute("key", compute) == "new"
    assert not place.exploded.exists()
    assert place.cache.get("key") == "new"


def test_the_one_replay_that_signing_cannot_see_is_the_same_keys_own_past(place: Place) -> None:
    """As docs/security.md says; should this ever fail, the page has to change."""
    place.cache.put("key", "x" * place.padding)
    past = place.cell("key")
    place.cache.forget("key")
    place.forge("key", past)
    assert place.cache.get("key") == "x" * place.padding


# --- secrets -----------------------------------------------------------------------------------------------


def test_secrets_are_rotated_by_putting_the_new_one_in_front(place: Place) -> None:
    place.open(OLD_SECRET).put("old", 1)
    both = place.open(SECRET, OLD_SECRET)
    assert both.get("old") == 1
    both.put("new", 2)
    assert place.cache.get("new") == 2
    with pytest.raises(CodecError) as caught:
        place.cache.get("old")
    assert Signer((OLD_SECRET,)).ids[0] in str(caught.value), "which secret is missing can be told"
    assert Signer((SECRET,)).ids[0] in str(caught.value)


def test_secrets_are_shown_nowhere(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    signer = Signer((SECRET, OLD_SECRET))
    with caplog.at_level(logging.DEBUG):
        place.cache.put("key", Thing("x"))
        place.open(STRANGERS).put("theirs", 1)
        with pytest.raises(CodecError) as caught:
            place.cache.get("theirs")
    told = [repr(signer), str(signer), repr(place.cache), repr(place.cache.settings), str(caught.value), caplog.text]
    for listed in place.store.scan("keys/"):
        told.append(repr(place.store.read(listed.name)))
    for text in told:
        for secret in (SECRET, OLD_SECRET, STRANGERS):
            assert secret.decode() not in text
            assert secret.hex() not in text
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(signer)


@pytest.mark.parametrize("secrets", [(), (b"short",), (SECRET, b"x" * (SECRET_SIZE_MIN - 1))])
def test_a_missing_or_short_secret_is_an_error_that_does_not_show_it(secrets: tuple[bytes, ...]) -> None:
    with pytest.raises(SettingsError, match=r"secret") as caught:
        Signer(secrets)
    assert "short" not in str(caught.value)
    assert "xxx" not in str(caught.value)
    Signer((b"x" * SECRET_SIZE_MIN,))


# --- signatures --------------------------------------------------------------------------------------------


def test_a_signature_stays_what_it_is() -> None:
    """Changing what is signed, or how, makes every stored entry unreadable: then the version has to change too."""
    signature = "1:5c79613c:4c37f38dbc5d33cedd5864242abacf2d5c5dd19d57070a0795071d8519c982d4"
    assert Signer((SECRET,)).sign(ENTRY) == signature


def test_every_field_counts() -> None:
    signer = Signer((SECRET,))
    signature = signer.sign(ENTRY)
    assert signer.check(ENTRY, signature)
    others: dict[str, Any] = {
        "store_id": "stor", "name": "keys/f/abd", "epoch": 4, "claim": "clain", "codec": "bytes", "blob": "",
        "size_bytes": 11, "digest": "digesu", "expires_s": 0.0, "ingredients": "",
    }  # fmt: skip
    assert set(others) == set(Entry._fields)
    for field, other in others.items():
        assert not signer.check(ENTRY._replace(**{field: other}), signature), field


fields = st.none() | st.text(max_size=5) | st.integers() | st.floats(allow_nan=False)
entries = st.builds(Entry, *[fields] * len(Entry._fields))


@given(entries, entries)
def test_two_different_entries_are_never_signed_as_the_same_bytes(one: Entry, other: Entry) -> None:
    same = [(type(field), repr(field)) for field in one] == [(type(field), repr(field)) for field in other]
    assert (encoded(one) == encoded(other)) is same


@given(st.text(max_size=5), st.text(max_size=5), st.integers(0, 10))
def test_text_that_moves_from_one_field_to_the_next_is_another_entry(one: str, other: str, cut: int) -> None:
    together = one + other
    moved = ENTRY._replace(store_id=together[:cut], name=together[cut:])
    entry = ENTRY._replace(store_id=one, name=other)
    assert (encoded(moved) == encoded(entry)) is (moved == entry)


@given(st.text(max_size=90) | st.from_regex(r"1:[0-9a-f]{8}:[0-9a-f]{64}", fullmatch=True))
def test_no_text_but_the_signature_is_one(text: str) -> None:
    refusal = Signer((SECRET,)).refusal(ENTRY, text)
    assert refusal is not None
    assert not Signer((SECRET,)).check(ENTRY, text)


@pytest.mark.parametrize("signature", [5, ["1", "2", "3"], {}, b"1:2:3"])
def test_what_is_no_text_is_no_signature(signature: Any) -> None:
    assert not Signer((SECRET,)).check(ENTRY, signature)


def test_codes_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    signer = Signer((SECRET,))
    signature = signer.sign(ENTRY)

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr("dibs.signing.hmac.compare_digest", compare)
    assert not signer.check(ENTRY, signature), "nothing else decides"
    assert len(compared) == 1


def test_an_id_says_nothing_about_its_secret_but_which_it_is() -> None:
    ids = {Signer((bytes([number]) * 16,)).ids[0] for number in range(100)}
    assert len(ids) == 100
    assert all(len(id_) == 8 for id_ in ids)


def test_without_a_secret_signed_entries_can_be_read_and_nothing_is_signed(place: Place) -> None:
    place.cache.put("key", "x" * place.padding)
    assert place.open().get("key") == "x" * place.padding
    place.open().put("key", 1)
    value = place.cell("key").value
    assert value is not None
    assert value.signature is None


def test_every_way_of_storing_signs(place: Place) -> None:
    ways: dict[str, Callable[[], object]] = {
        "put": lambda: place.cache.put("put", Thing("x")),
        "compute": lambda: place.cache.get_or_compute("compute", lambda: Thing("x")),
        "recompute": lambda: place.cache.recompute("recompute", lambda: Thing("x")),
        "expiring": lambda: place.cache.put("expiring", Thing("x"), expires_s=60),
    }
    for key, way in ways.items():
        way()
        assert place.open(SECRET).get(key) == Thing("x")
        value = place.cell(key).value
        assert value is not None
        assert value.signature is not None
    with place.cache.once("once") as slot:
        slot.commit(Thing("x"))
    assert place.open(SECRET).get("once") == Thing("x")
