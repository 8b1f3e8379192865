"""A swap on a bucket is done, refused or unknown, whatever the network and the server do to its request."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from dibs.errors import Conflict, StoreUnavailable, StoreUnsuitable
from dibs.store import UNCHANGED, Record
from dibs.stores.s3 import S3Store
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import (
    ANSWER_HANGS,
    ANSWER_LOST,
    REQUEST_HANGS,
    REQUEST_LOST,
    TRUNCATED,
    TWICE,
    Fault,
    Fired,
    Lie,
    always,
    ghost,
    nth,
    status,
)
from dibs.testing.servers import Server

NAME = "keys/f/abc"
TIMEOUT_S = 1.0  # half of it is the slack for a busy machine


def data_of(store: S3Store) -> bytes | None:
    record = store.read(NAME)
    assert record is not UNCHANGED
    return None if record is None else record.data


def key_of(store: S3Store) -> str:
    return f"{store.prefix}/records/{NAME}"


# --- without faults -------------------------------------------------------------------------------------


def test_a_created_record_is_read_with_its_version_and_age(direct: S3Store) -> None:
    version = direct.swap(NAME, None, b"one")
    record = direct.read(NAME)
    assert isinstance(record, Record)
    assert record[:2] == (b"one", version)
    assert record.age_s is not None
    assert 0 <= record.age_s < 10


def test_a_swap_from_the_version_just_read_succeeds_once(direct: S3Store) -> None:
    first = direct.swap(NAME, None, b"one")
    direct.swap(NAME, first, b"two")
    with pytest.raises(Conflict):
        direct.swap(NAME, first, b"three")
    assert data_of(direct) == b"two"


def test_creating_what_exists_is_a_conflict(direct: S3Store) -> None:
    direct.swap(NAME, None, b"one")
    with pytest.raises(Conflict, match="412"):
        direct.swap(NAME, None, b"two")
    assert data_of(direct) == b"one"


def test_swapping_what_does_not_exist_is_a_conflict_and_creates_nothing(direct: S3Store) -> None:
    with pytest.raises(Conflict, match="404"):
        direct.swap(NAME, "0" * 32, b"one")
    assert direct.read(NAME) is None


def test_a_hit_costs_one_request(proxied: S3Store, direct: S3Store, proxy: FaultProxy) -> None:
    direct.swap(NAME, None, b"one")
    assert data_of(proxied) == b"one"
    assert proxy.counts() == {("GET", key_of(proxied)): 1}
    assert proxied.requests == {"GetObject": 1}


def test_an_unchanged_record_costs_one_request_and_no_body(proxied: S3Store, proxy: FaultProxy) -> None:
    version = proxied.swap(NAME, None, b"one")
    assert proxied.read(NAME, unless=version) is UNCHANGED
    assert proxy.counts() == {("PUT", key_of(proxied)): 1, ("GET", key_of(proxied)): 1}


def test_a_record_of_impossible_size_is_damaged_and_can_be_replaced(direct: S3Store, ministack_server: Server) -> None:
    ministack_server.client().put_object(Bucket="dibs-tests", Key=key_of(direct), Body=b"x" * 100_000)
    record = direct.read(NAME)
    assert isinstance(record, Record)
    assert record.data == b""
    direct.swap(NAME, record.version, b"healed")
    assert data_of(direct) == b"healed"


# --- unknown --------------------------------------------------------------------------------------------

UNKNOWN = [
    pytest.param(REQUEST_LOST, False, id="request lost"),
    pytest.param(ANSWER_LOST, True, id="answer lost"),
    *[pytest.param(status(n), False, id=f"{n} before") for n in (409, 429, 500, 502, 503)],
    *[pytest.param(status(n, applied=True), True, id=f"{n} after") for n in (409, 429, 500, 503)],
    pytest.param(status(400, "RequestTimeout"), False, id="400 RequestTimeout"),
    pytest.param(status(503, "ServiceUnavailable"), False, id="503 ServiceUnavailable"),
]


def swap_from_nothing(store: S3Store) -> None:
    store.swap(NAME, None, b"new")


def swap_from_something(store: S3Store) -> None:
    record = store.read(NAME)
    assert isinstance(record, Record)
    store.swap(NAME, record.version, b"new")


@pytest.mark.parametrize(("fault", "applied"), UNKNOWN)
@pytest.mark.parametrize("swap", [swap_from_nothing, swap_from_something])
def test_a_swap_without_a_clear_answer_is_unknown_and_sent_once(
    proxied: S3Store,
    direct: S3Store,
    proxy: FaultProxy,
    swap: Callable[[S3Store], None],
    fault: Fault,
    applied: bool,
) -> None:
    if swap is swap_from_something:
        direct.swap(NAME, None, b"old")
    proxy.plan = nth(fault, "PUT")

    with pytest.raises(StoreUnavailable, match="may or may not have happened") as caught:
        swap(proxied)

    assert key_of(proxied) in str(caught.value)
    assert proxy.fired == [Fired(fault, "PUT", key_of(proxied))]
    assert proxy.count("PUT") == 1, "the SDK sent it again"
    before = b"old" if swap is swap_from_something else None
    assert data_of(direct) == (b"new" if applied else before)


@pytest.mark.parametrize("hang", [REQUEST_HANGS, ANSWER_HANGS], ids=lambda fault: fault.kind)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_request_that_hangs_is_given_up_in_time(
    proxied: S3Store, proxy: FaultProxy, hang: Fault, method: str
) -> None:
    proxied.read("warm/up")  # making the client takes time of its own
    proxied.limit_requests(TIMEOUT_S)
    proxied.read("warm/up")
    proxy.plan = always(hang, method)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        proxied.read(NAME) if method == "GET" else proxied.swap(NAME, None, b"new")
    assert time.monotonic() - started < 1.5 * TIMEOUT_S
    assert proxy.fired == [Fired(hang, method, key_of(proxied))]


def test_a_ghost_lands_after_the_client_was_told_unknown(proxied: S3Store, direct: S3Store, proxy: FaultProxy) -> None:
    old = direct.swap(NAME, None, b"old")
    proxy.plan = nth(ghost(0.1), "PUT")
    with pytest.raises(StoreUnavailable):
        proxied.swap(NAME, old, b"late")
    assert data_of(direct) == b"old"
    proxy.settle()
    assert data_of(direct) == b"late"


def test_a_ghost_that_comes_too_late_changes_nothing(proxied: S3Store, direct: S3Store, proxy: FaultProxy) -> None:
    old = direct.swap(NAME, None, b"old")
    proxy.plan = nth(ghost(0.1), "PUT")
    with pytest.raises(StoreUnavailable):
        proxied.swap(NAME, old, b"late")
    direct.swap(NAME, old, b"newer")
    proxy.settle()
    assert data_of(direct) == b"newer"


def test_a_request_that_arrives_twice_looks_refused_although_it_was_done(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy
) -> None:
    # Why whoever gets a Conflict must still look for its own attempt: something below dibs may send again.
    proxy.plan = nth(TWICE, "PUT")
    with pytest.raises(Conflict):
        proxied.swap(NAME, None, b"mine")
    assert data_of(direct) == b"mine"


@pytest.mark.parametrize(
    "fault",
    [REQUEST_LOST, ANSWER_LOST, TRUNCATED, status(429), status(500), status(503), status(409)],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
def test_a_read_without_a_whole_answer_is_unavailable_and_sent_once(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, fault: Fault
) -> None:
    direct.swap(NAME, None, b"one")
    proxy.plan = nth(fault, "GET")
    with pytest.raises(StoreUnavailable) as caught:
        proxied.read(NAME)
    assert "may have happened" not in str(caught.value)
    assert proxy.fired == [Fired(fault, "GET", key_of(proxied))]
    assert proxy.count("GET") == 1
    assert data_of(proxied) == b"one"  # and the store goes on


def test_a_dead_server_is_unavailable_and_its_return_is_noticed(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy
) -> None:
    proxy.plan = always(REQUEST_LOST, "GET", "PUT")
    with pytest.raises(StoreUnavailable):
        proxied.read(NAME)
    with pytest.raises(StoreUnavailable):
        proxied.swap(NAME, None, b"one")
    proxy.plan = None
    proxied.swap(NAME, None, b"one")
    assert data_of(direct) == b"one"


# --- servers that lie -----------------------------------------------------------------------------------


def test_weak_etags_are_refused(proxied: S3Store, direct: S3Store, proxy: FaultProxy) -> None:
    direct.swap(NAME, None, b"one")
    proxy.lies = frozenset({Lie.WEAK_ETAG})
    with pytest.raises(StoreUnsuitable, match="weak ETags"):
        proxied.read(NAME)
    assert proxy.fired


def test_a_read_is_unchanged_also_when_the_server_sends_the_whole_object_again(
    proxied: S3Store, proxy: FaultProxy
) -> None:
    version = proxied.swap(NAME, None, b"one")
    proxy.lies = frozenset({Lie.DROP_304})
    assert proxied.read(NAME, unless=version) is UNCHANGED
    assert proxy.fired == [Fired(Lie.DROP_304, "GET", key_of(proxied))]
