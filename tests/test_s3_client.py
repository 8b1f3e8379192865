"""The connections of a bucket store: which requests leave, from which process, and how."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest

from dibs.errors import SettingsError, StoreUnavailable
from dibs.store import Record, asked_within
from dibs.stores.s3 import UNQUOTED, S3Store
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import delayed, nth

NAME = "keys/f/abc"


def data_of(store: S3Store, name: str = NAME) -> bytes | None:
    record = store.read(name)
    return record.data if isinstance(record, Record) else None


def test_no_checksums_are_sent_unasked_and_no_round_trip_is_spent_on_expect(
    proxied: S3Store, proxy: FaultProxy
) -> None:
    version = proxied.swap(NAME, None, b"one")
    proxied.swap(NAME, version, b"two")
    data_of(proxied)
    for method in ("PUT", "GET"):
        headers = proxy.headers(method, f"{proxied.prefix}/records/{NAME}")
        unasked = [h for h in headers if "checksum" in h or h in ("x-amz-trailer", "content-md5", "expect")]
        assert unasked == []


def test_conditions_are_sent_with_quoted_etags(proxied: S3Store, proxy: FaultProxy) -> None:
    version = proxied.swap(NAME, None, b"one")
    assert proxy.headers("PUT", f"{proxied.prefix}/records/{NAME}")["if-none-match"] == "*"
    second = proxied.swap(NAME, version, b"two")
    assert proxy.headers("PUT", f"{proxied.prefix}/records/{NAME}")["if-match"] == f'"{version}"'
    proxied.dialect = UNQUOTED
    proxied.swap(NAME, second, b"three")
    assert proxy.headers("PUT", f"{proxied.prefix}/records/{NAME}")["if-match"] == second


def test_a_listing_shows_names_below_the_prefix_only(direct: S3Store) -> None:
    for name in ("a/1", "a/2", "a/b/3", "ab/4"):
        direct.swap(name, None, b"12345")
    listed = list(direct.scan("a/"))
    assert [(entry.name, entry.size_bytes) for entry in listed] == [("a/1", 5), ("a/2", 5), ("a/b/3", 5)]
    assert all(entry.age_s is not None and 0 <= entry.age_s < 10 for entry in listed)
    assert list(direct.scan("none/")) == []


def test_a_listing_is_read_page_by_page(direct: S3Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: direct.swap(f"a/{n:04}", None, b"%d" % n), range(1003)))
    before = direct.requests
    listing = direct.scan("a/")
    assert next(listing).name == "a/0000"
    assert direct.requests.get("ListObjectsV2", 0) - before.get("ListObjectsV2", 0) == 1
    assert len(list(listing)) == 1002
    assert direct.requests["ListObjectsV2"] - before.get("ListObjectsV2", 0) == 2


def _use_in_child(store: S3Store, out: Connection) -> None:
    answers = [data_of(store, f"keys/{n % 2}") for n in range(50)]
    out.send((answers == [b"0", b"1"] * 25, store.requests))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_forked_children_do_not_share_their_parents_connections(direct: S3Store) -> None:
    for n in range(2):
        direct.swap(f"keys/{n}", None, b"%d" % n)
        data_of(direct, f"keys/{n}")
    stop, wrong = threading.Event(), []

    def keep_reading() -> None:
        while not stop.is_set():
            if data_of(direct, "keys/0") != b"0":
                wrong.append("parent")

    reader = threading.Thread(target=keep_reading)
    reader.start()
    context = multiprocessing.get_context("fork")
    try:
        children = []
        for _ in range(4):
            ours, theirs = context.Pipe()
            child = context.Process(target=_use_in_child, args=(direct, theirs))
            child.start()
            children.append((child, ours))
        for child, ours in children:
            assert ours.poll(30), "the child hangs"
            right, requests = ours.recv()
            assert right
            assert requests == {"GetObject": 50}, "the child counts its own requests only"
            child.join()
    finally:
        stop.set()
        reader.join()
    assert wrong == []


def test_threads_share_one_client(proxied: S3Store, proxy: FaultProxy) -> None:
    proxied.swap(NAME, None, b"one")
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: data_of(proxied), range(64))) == {b"one"}
    assert proxied.requests == {"PutObject": 1, "GetObject": 64}


def test_a_closed_store_opens_again_when_used(direct: S3Store) -> None:
    direct.swap(NAME, None, b"one")
    direct.close()
    direct.close()
    assert data_of(direct) == b"one"


def test_a_limit_holds_from_the_next_request_on_and_only_shortens(proxied: S3Store, proxy: FaultProxy) -> None:
    assert proxied.request_timeout_s == 10.0
    data_of(proxied)
    for limit_s, then_s in ((5.0, 5.0), (7.0, 5.0), (5.0, 5.0)):
        proxied.limit_requests(limit_s)
        assert proxied.request_timeout_s == then_s
    proxy.plan = nth(delayed(0.05), "GET")  # slow is not silent
    assert data_of(proxied) is None
    assert len(proxy.fired) == 1
    with pytest.raises(SettingsError):
        proxied.limit_requests(0)


def test_who_is_in_a_hurry_shortens_nobody_elses_requests(proxied: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = nth(delayed(0.6), "GET")
    with asked_within(0.3), pytest.raises(StoreUnavailable):
        data_of(proxied)
    assert proxied.request_timeout_s == 10.0
    proxy.plan = nth(delayed(0.6), "GET")
    assert data_of(proxied) is None
    assert len(proxy.fired) == 2
    clients = proxied._clients._made
    assert clients is not None
    for number in range(100):
        with asked_within(0.3 + number / 100):
            proxied._clients.records()
    assert len(clients.clients) == 4


def test_the_server_is_named_by_its_address(proxied: S3Store, proxy: FaultProxy) -> None:
    assert f"http://{proxied.server}" == proxy.endpoint_url


def test_the_distance_to_the_servers_clock_is_known_after_the_first_answer(direct: S3Store) -> None:
    assert direct.server_date_distance_s() is None
    data_of(direct)
    distance_s = direct.server_date_distance_s()
    assert distance_s is not None
    assert abs(distance_s) < 3
