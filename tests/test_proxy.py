"""The fault proxy does what its plan says, counts what came in, and hands on everything else unchanged."""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from dibs.errors import Conflict, StoreUnavailable
from dibs.store import UNCHANGED, Record
from dibs.stores.s3 import S3Store
from dibs.testing.proxy import ONE_ETAG, FaultProxy
from dibs.testing.proxy_faults import (
    ANSWER_HANGS,
    REQUEST_LOST,
    Fired,
    Lie,
    Request,
    always,
    delayed,
    ghost,
    nth,
    status,
)
from dibs.testing.servers import Server

NAME = "keys/f/abc"


def data_of(store: S3Store) -> bytes | None:
    record = store.read(NAME)
    assert record is not UNCHANGED
    return None if record is None else record.data


# --- counting and planning ------------------------------------------------------------------------------


def test_requests_are_counted_by_method_and_key(proxied: S3Store, proxy: FaultProxy) -> None:
    key = f"{proxied.prefix}/records/{NAME}"
    version = proxied.swap(NAME, None, b"1")
    for _ in range(3):
        proxied.read(NAME, unless=version)
    list(proxied.scan("keys/"))
    assert proxy.counts() == {("PUT", key): 1, ("GET", key): 3, ("GET", ""): 1}
    assert proxy.count("GET") == 4
    proxy.reset()
    assert proxy.counts() == {}


def test_a_plan_sees_method_key_conditions_and_number(proxied: S3Store, proxy: FaultProxy) -> None:
    seen: list[Request] = []
    proxy.plan = seen.append
    version = proxied.swap(NAME, None, b"1")
    proxied.swap(NAME, version, b"2")
    key = f"{proxied.prefix}/records/{NAME}"
    assert seen == [
        Request("PUT", key, {"if-none-match": "*"}, 1),
        Request("PUT", key, {"if-match": f'"{version}"'}, 2),
    ]


def test_the_nth_request_is_hit_and_no_other(proxied: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = nth(status(503), "GET", 2)
    proxied.read(NAME)
    with pytest.raises(StoreUnavailable):
        proxied.read(NAME)
    proxied.read(NAME)
    assert proxy.fired == [Fired(status(503), "GET", f"{proxied.prefix}/records/{NAME}")]


def test_a_plan_that_raises_is_remembered(proxied: S3Store, proxy: FaultProxy) -> None:
    def broken(request: Request) -> None:
        raise RuntimeError("a bug in a test")

    proxy.plan = broken
    with pytest.raises(StoreUnavailable):
        proxied.read(NAME)
    assert [str(error) for error in proxy.errors] == ["a bug in a test"]
    proxy.errors.clear()


def test_a_delayed_request_is_answered_late(proxied: S3Store, proxy: FaultProxy) -> None:
    proxied.swap(NAME, None, b"1")
    proxy.plan = nth(delayed(0.2), "GET")
    started = time.monotonic()
    assert data_of(proxied) == b"1"
    assert time.monotonic() - started >= 0.2


def test_a_ghost_of_a_closed_proxy_never_lands(direct: S3Store, ministack_server: Server) -> None:
    with FaultProxy(ministack_server.endpoint_url, always(ghost(30), "PUT")) as other:
        address = urlsplit(other.endpoint_url).netloc
        connection = http.client.HTTPConnection(address, timeout=5)
        connection.request("PUT", f"/dibs-tests/{direct.prefix}/records/{NAME}", b"ghost")
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert data_of(direct) is None


def test_closing_the_proxy_ends_requests_that_hang(ministack_server: Server) -> None:
    with FaultProxy(ministack_server.endpoint_url, always(ANSWER_HANGS, "GET")) as other:
        connection = http.client.HTTPConnection(urlsplit(other.endpoint_url).netloc, timeout=5)
        connection.request("GET", "/dibs-tests/x")
        while not other.fired:
            time.sleep(0.01)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        connection.getresponse()


# --- HTTP -----------------------------------------------------------------------------------------------


@pytest.fixture
def raw(proxy: FaultProxy) -> Iterator[socket.socket]:
    address = urlsplit(proxy.endpoint_url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def test_connections_are_kept_open(raw: socket.socket) -> None:
    for _ in range(3):
        raw.sendall(b"GET /dibs-tests/none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(raw)[0] == 404


def test_chunked_bodies_arrive_whole(raw: socket.socket, direct: S3Store) -> None:
    path = f"/dibs-tests/{direct.prefix}/records/{NAME}".encode()
    raw.sendall(b"PUT " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    raw.sendall(b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n")
    assert answer(raw)[0] == 200
    assert data_of(direct) == b"abcdefg"


def test_expect_continue_is_answered_before_the_body(raw: socket.socket, direct: S3Store) -> None:
    path = f"/dibs-tests/{direct.prefix}/records/{NAME}".encode()
    head = b"PUT " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    raw.sendall(head)
    assert raw.recv(100).startswith(b"HTTP/1.1 100 ")
    raw.sendall(b"abc")
    assert answer(raw)[0] == 200
    assert data_of(direct) == b"abc"


def test_large_bodies_pass_in_both_directions(proxied: S3Store) -> None:
    content = bytes(range(256)) * 20_000
    proxied.upload("blobs/x", io.BytesIO(content))
    with proxied.download("blobs/x") as file:
        assert file.read() == content


# --- lies -----------------------------------------------------------------------------------------------


@pytest.fixture
def lying(proxied: S3Store, proxy: FaultProxy, request: pytest.FixtureRequest) -> Iterator[S3Store]:
    """A store whose server tells the lie that the test is parametrized with; the lie must have been told."""
    proxy.lies = frozenset({request.param})
    yield proxied
    assert request.param in {fired.fault for fired in proxy.fired}


def tells(lie: Lie) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("lying", [lie], indirect=True)


@tells(Lie.IGNORE_IF_NONE_MATCH)
def test_a_server_may_ignore_if_none_match(lying: S3Store) -> None:
    lying.swap(NAME, None, b"1")
    lying.swap(NAME, None, b"2")
    assert data_of(lying) == b"2"


@tells(Lie.IGNORE_IF_MATCH)
def test_a_server_may_ignore_if_match(lying: S3Store) -> None:
    lying.swap(NAME, None, b"1")
    lying.swap(NAME, "0" * 32, b"2")
    assert data_of(lying) == b"2"


@tells(Lie.CREATES_ON_IF_MATCH_MISSING)
def test_a_server_may_create_what_if_match_did_not_find(lying: S3Store) -> None:
    lying.swap(NAME, "0" * 32, b"1")
    assert data_of(lying) == b"1"
    with pytest.raises(Conflict):
        lying.swap(NAME, "0" * 32, b"2")


@tells(Lie.CONSTANT_ETAG)
def test_a_server_may_give_everything_the_same_etag(lying: S3Store) -> None:
    first = lying.swap(NAME, None, b"1")
    second = lying.swap(NAME, first, b"2")
    assert first == second == ONE_ETAG.strip('"')
    assert lying.read(NAME, unless=first) is UNCHANGED
    assert data_of(lying) == b"2"
    lying.swap(NAME, first, b"3")  # stale, and accepted


@tells(Lie.STALE_READS)
def test_a_server_may_show_what_was_there_before(lying: S3Store) -> None:
    first = lying.swap(NAME, None, b"1")
    assert data_of(lying) == b"1"
    lying.swap(NAME, first, b"2")
    assert lying.read(NAME, unless=first) is UNCHANGED
    assert data_of(lying) == b"2"


@tells(Lie.ALWAYS_409)
def test_a_server_may_answer_409_to_every_conditional_write(lying: S3Store) -> None:
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="409"):
            lying.swap(NAME, None, b"1")
    assert data_of(lying) is None


def test_a_lie_may_be_told_to_one_request_only(proxied: S3Store, proxy: FaultProxy) -> None:
    proxied.swap(NAME, None, b"1")
    proxy.plan = nth(Lie.IGNORE_IF_NONE_MATCH, "PUT")
    proxied.swap(NAME, None, b"2")
    with pytest.raises(Conflict):
        proxied.swap(NAME, None, b"3")
    record = proxied.read(NAME)
    assert isinstance(record, Record)
    assert record.data == b"2"


def test_without_a_plan_nothing_fires(proxied: S3Store, proxy: FaultProxy) -> None:
    version = proxied.swap(NAME, None, b"1")
    proxied.read(NAME, unless=version)
    assert proxy.fired == []
    proxy.plan = nth(REQUEST_LOST, "DELETE")
    proxied.read(NAME)
    assert proxy.fired == []
