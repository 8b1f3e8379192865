"""Blobs in a bucket arrive whole or not at all, and may be sent again, because nobody else writes their names."""

from __future__ import annotations

import io
import logging
import mmap
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from dibs.errors import StoreUnavailable, StoreUnsuitable
from dibs.stores import s3_blobs, s3_client, s3_download
from dibs.stores.s3 import S3Store
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import (
    ANSWER_LOST,
    HALF_SENT,
    REQUEST_LOST,
    TRUNCATED,
    Fault,
    Request,
    always,
    nth,
    status,
)
from dibs.testing.servers import Server
from tests.conftest import S3StoreMaker

NAME = "values/abc"


def content_of(store: S3Store) -> bytes:
    with store.download(NAME) as file:
        return file.read()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_download, "BACKOFF_MAX_S", 0.01)


@pytest.mark.parametrize("size", [0, 1, 100_000, s3_blobs.PART_SIZE + 1, 2 * s3_blobs.PART_SIZE])
def test_a_blob_comes_back_as_it_was_sent(direct: S3Store, size: int) -> None:
    content = random.Random(size).randbytes(size)
    source = io.BytesIO(content)
    direct.upload(NAME, source)
    assert not source.closed, "the file is the caller's"
    assert content_of(direct) == content


def test_a_blob_may_come_from_a_pipe(direct: S3Store) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    direct.upload(NAME, Pipe(b"abc" * 1000))
    assert content_of(direct) == b"abc" * 1000


def test_a_blob_that_is_not_there_is_not_found(direct: S3Store) -> None:
    with pytest.raises(FileNotFoundError), direct.download(NAME):
        pass


def test_removing_a_blob_twice_is_no_error(direct: S3Store) -> None:
    direct.upload(NAME, io.BytesIO(b"abc"))
    direct.remove(NAME)
    direct.remove(NAME)
    with pytest.raises(FileNotFoundError), direct.download(NAME):
        pass


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy
) -> None:
    content = random.Random(1).randbytes(3_000_000)
    direct.upload(NAME, io.BytesIO(content))
    proxy.plan = nth(TRUNCATED, "GET")
    assert content_of(proxied) == content
    assert len(proxy.fired) == 1
    assert proxy.headers("GET", f"{proxied.prefix}/blobs/{NAME}")["range"].startswith("bytes=")


def test_a_download_that_always_breaks_off_ends_as_unavailable(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy
) -> None:
    direct.upload(NAME, io.BytesIO(b"x" * 1_000_000))
    proxy.plan = always(TRUNCATED, "GET")
    with pytest.raises(StoreUnavailable):
        content_of(proxied)
    assert len(proxy.fired) == s3_download.ATTEMPTS_MAX


@pytest.mark.parametrize("fault", [REQUEST_LOST, status(500), status(503)], ids=lambda f: f"{f.kind} {f.status}")
def test_an_upload_is_sent_again_after_a_passing_fault(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, fault: object
) -> None:
    proxy.plan = nth(fault, "PUT")  # type: ignore[arg-type]
    proxied.upload(NAME, io.BytesIO(b"abc"))
    assert content_of(direct) == b"abc"
    assert len(proxy.fired) == 1


def test_a_short_read_is_not_the_end(direct: S3Store) -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 1000))

    content = bytes(range(256)) * 40
    direct.upload(NAME, Dripping(content))
    assert content_of(direct) == content


class BreaksOff(io.BytesIO):
    """Fails after one part."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= s3_blobs.PART_SIZE:
            raise ZeroDivisionError("the source failed")
        return super().read(size)


def test_an_upload_whose_source_fails_leaves_nothing_behind(direct: S3Store, ministack_server: Server) -> None:
    with pytest.raises(ZeroDivisionError):
        direct.upload(NAME, BreaksOff(b"x" * (2 * s3_blobs.PART_SIZE)))
    with pytest.raises(FileNotFoundError), direct.download(NAME):
        pass
    pending = ministack_server.client().list_multipart_uploads(Bucket="dibs-tests")
    assert not [upload for upload in pending.get("Uploads", ()) if upload["Key"].startswith(direct.prefix)]


def test_a_completion_whose_answer_is_lost_is_found_to_have_happened(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy
) -> None:
    content = b"x" * (s3_blobs.PART_SIZE + 1)
    proxy.plan = nth(ANSWER_LOST, "POST", 2)  # the first begins the upload, the second completes it
    proxied.upload(NAME, io.BytesIO(content))
    assert len(proxy.fired) == 1
    assert content_of(direct) == content


def test_a_lost_part_is_sent_again_by_itself(proxied: S3Store, direct: S3Store, proxy: FaultProxy) -> None:
    content = random.Random(2).randbytes(2 * s3_blobs.PART_SIZE + 1)
    proxy.plan = nth(REQUEST_LOST, "PUT", 2)
    proxied.upload(NAME, io.BytesIO(content))
    assert proxy.count("PUT") == 4
    assert content_of(direct) == content


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of the smallest size that S3 takes, and ranges of a fifth of that."""
    monkeypatch.setattr(s3_blobs, "PART_SIZE", 5 << 20)
    monkeypatch.setattr(s3_download, "RANGE_SIZE", 1 << 20)
    return 5 << 20


def some(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("fault", [HALF_SENT, ANSWER_LOST, status(503)], ids=lambda fault: fault.kind)
def test_a_part_that_breaks_off_is_sent_again_and_no_other(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, small_parts: int, fault: Fault
) -> None:
    content = some(4 * small_parts + 1)
    proxy.plan = nth(fault, "PUT", 3)
    proxied.upload(NAME, io.BytesIO(content))
    assert len(proxy.fired) == 1
    assert proxy.count("PUT") == 6
    assert content_of(direct) == content


def test_an_upload_that_always_breaks_off_ends_as_unavailable_and_leaves_nothing(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "BULK_ATTEMPTS_MAX", 2)
    proxy.plan = always(HALF_SENT, "PUT")
    with pytest.raises(StoreUnavailable):
        proxied.upload(NAME, io.BytesIO(some(3 * small_parts)))
    assert list(direct.scan_blobs("values/")) == []
    assert list(direct.clear_leftovers(lambda name: True)) == []


def test_a_completion_of_which_no_answer_ever_arrives_is_looked_for(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "BULK_ATTEMPTS_MAX", 2)
    begun = []

    def plan(request: Request) -> Fault | None:
        if request.method != "POST":
            return None
        begun.append(request)
        return ANSWER_LOST if len(begun) > 1 else None

    proxy.plan = plan
    content = some(small_parts + 1)
    proxied.upload(NAME, io.BytesIO(content))
    assert len(proxy.fired) == 2
    assert content_of(direct) == content


def test_no_more_than_four_parts_and_one_that_is_read_are_in_memory(
    direct: S3Store, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending, most, lock = [0], [0], threading.Lock()
    upload_part = direct._clients.bulk().upload_part

    def counted(**named: object) -> object:
        with lock:
            sending[0] += 1
            most[0] = max(most[0], sending[0])
        try:
            return upload_part(**named)
        finally:
            with lock:
                sending[0] -= 1

    monkeypatch.setattr(direct._clients.bulk(), "upload_part", counted)

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert sending[0] < s3_blobs.PARTS_AT_ONCE, "it is read ahead of what can be sent"
            return super().read(size)

    content = some(9 * small_parts)
    direct.upload(NAME, Watched(content))
    assert 1 < most[0] <= s3_blobs.PARTS_AT_ONCE
    assert content_of(direct) == content


def test_a_large_download_fills_pages_of_its_own_by_ranges_of_one_object(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, small_parts: int
) -> None:
    content = some(3_500_000)
    direct.upload(NAME, io.BytesIO(content))
    seen: list[Request] = []
    proxy.plan = seen.append
    with proxied.download(NAME) as file:
        assert isinstance(file, mmap.mmap)
        pages = memoryview(file)
        assert pages == content
        pages[0] = 1 - pages[0] % 2  # they belong to whoever downloaded them
    assert len(seen) == 4
    assert [request.conditions.get("if-match") is None for request in seen].count(True) == 1
    assert content_of(direct) == content


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_range_that_breaks_off_goes_on_where_it_stopped(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, small_parts: int, number: int
) -> None:
    content = some(3_500_000)
    direct.upload(NAME, io.BytesIO(content))
    proxy.plan = nth(TRUNCATED, "GET", number)
    assert content_of(proxied) == content
    assert len(proxy.fired) == 1
    assert proxy.count("GET") == 5


def test_ranges_that_break_off_again_and_again_still_arrive(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, small_parts: int
) -> None:
    content = some(6_500_000)
    direct.upload(NAME, io.BytesIO(content))
    chance, lock = random.Random(1), threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            return chance.choice([TRUNCATED, status(503), REQUEST_LOST, None, None, None, None, None, None])

    proxy.plan = plan
    assert content_of(proxied) == content
    assert len(proxy.fired) > 1


def test_ranges_of_two_objects_are_never_mixed(
    proxied: S3Store, direct: S3Store, proxy: FaultProxy, small_parts: int
) -> None:
    """Nobody replaces a blob; but a server's operator might, from a backup."""
    direct.upload(NAME, io.BytesIO(b"a" * 3_500_000))
    seen: list[Request] = []
    replaced = threading.Event()

    def plan(request: Request) -> None:
        seen.append(request)
        if len(seen) == 1:
            return
        if not replaced.is_set():
            direct.upload(NAME, io.BytesIO(b"b" * 3_500_000))
            replaced.set()

    proxy.plan = plan
    try:
        content = content_of(proxied)
    except FileNotFoundError:
        return
    assert content in (b"a" * 3_500_000, b"b" * 3_500_000)


KILLED = """
import io, os, signal, sys
from dibs.runtime.system import system
from dibs.stores import open_store

class Killing(io.BytesIO):
    def read(self, size=-1):
        if self.tell() >= 2 << 24:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(size)

open_store(sys.argv[1], system()).upload(sys.argv[2], Killing(b"x" * (3 << 24)))
"""


@pytest.mark.parametrize("kind", ["ministack", "moto", pytest.param("ceph", marks=[pytest.mark.ceph, pytest.mark.s3])])
def test_what_a_killed_upload_leaves_is_ended_once_its_cell_is_past_it(
    kind: str, s3_store: S3StoreMaker, request: pytest.FixtureRequest
) -> None:
    store = s3_store(request.getfixturevalue(f"{kind}_server"))
    killed = subprocess.run([sys.executable, "-c", KILLED, store.url, NAME], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert list(store.scan_blobs("values/")) == []
    assert list(store.clear_leftovers(lambda name: False)) == [], "an upload was ended that may be living"
    for dry_run in (True, False):
        (left,) = store.clear_leftovers(lambda name: name == NAME, dry_run)
        assert left.name == NAME
        assert left.size_bytes in (0, 1 << 24, 2 << 24)  # as many parts as had arrived
        assert kind == "moto" or left.age_s is None or left.age_s < 60  # moto says 2010 of all of them
    assert list(store.clear_leftovers(lambda name: True)) == []


def test_uploads_of_other_prefixes_are_none_of_our_business(direct: S3Store, ministack_server: Server) -> None:
    other = ministack_server.client().create_multipart_upload(Bucket="dibs-tests", Key=f"{direct.prefix}-other/blobs/x")
    assert list(direct.clear_leftovers(lambda name: True)) == []
    ministack_server.client().abort_multipart_upload(
        Bucket="dibs-tests", Key=f"{direct.prefix}-other/blobs/x", UploadId=other["UploadId"]
    )


def test_a_server_that_cannot_list_uploads_is_said_to_keep_what_killed_ones_left(
    proxied: S3Store, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.plan = always(status(501), "GET")
    with caplog.at_level(logging.WARNING, "dibs"):
        assert list(proxied.clear_leftovers(lambda name: True)) == []
    assert "AbortIncompleteMultipartUpload" in caplog.text


def test_a_missing_permission_to_list_uploads_is_named(proxied: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = always(status(403), "GET")
    with pytest.raises(StoreUnsuitable, match="ListBucketMultipartUploads"):
        list(proxied.clear_leftovers(lambda name: True))
