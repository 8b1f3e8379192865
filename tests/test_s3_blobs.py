"""Blobs in a bucket arrive whole or not at all, and may be sent again, because nobody else writes their names."""

from __future__ import annotations

import io
import random

import pytest

from dibs.errors import StoreUnavailable
from dibs.stores import s3_blobs, s3_download
from dibs.stores.s3 import S3Store
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import ANSWER_LOST, REQUEST_LOST, TRUNCATED, always, nth, status
from dibs.testing.servers import Server

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
