"""A bucket as a store: `If-None-Match: *` creates, `If-Match: <etag>` swaps, and a read is one GET.

Versions are ETags.  For a record that is the MD5 of its bytes, or as good as that; and no two writes of
dibs are ever equal (each carries an attempt of its own), so a version never comes back.

A request that got no clear answer raises `StoreUnavailable` and is never sent again from here: whoever asked
reads the record and finds out.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, BinaryIO, Final, Literal, cast

from dibs.errors import Conflict, StoreUnavailable, StoreUnsuitable
from dibs.runtime import Runtime
from dibs.store import RECORD_SIZE_MAX, UNCHANGED, Listed, Record, Unchanged, Version, checked_name
from dibs.stores.s3_client import Clients, S3Settings, parse_s3_url
from dibs.stores.s3_errors import (
    Doing,
    answer_of,
    code_of,
    headers_of,
    seconds_since_1970,
    status_of,
    translated,
    unknown,
)

DAMAGED_SIZE_MIN: Final = RECORD_SIZE_MAX + 1
"""Bytes.  Nobody wrote so large a record; it is handed out as damaged, without being read."""

PART_SIZE: Final = 16 * 1024 * 1024
SPOOL_SIZE: Final = 8 * 1024 * 1024
CHUNK_SIZE: Final = 1024 * 1024
DOWNLOAD_ATTEMPTS_MAX: Final = 5
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 5.0


def open_s3(url: str, runtime: Runtime) -> S3Store:
    """Open `s3://bucket/prefix?endpoint_url=…&region=…&profile=…&addressing=…&checksums=…`; sends no request.

    Raises SettingsError for an unknown or impossible setting.
    """
    return S3Store(parse_s3_url(url), runtime)


class S3Store:
    """Records and blobs under one prefix of one bucket."""

    def __init__(self, settings: S3Settings, runtime: Runtime, request_timeout_s: float = 10.0) -> None:
        self._settings, self._runtime = settings, runtime
        self._clients = Clients(settings, runtime, self._answered)
        self._clients.request_timeout_s = request_timeout_s
        self._root = f"{settings.prefix}/" if settings.prefix else ""
        self._last_date: tuple[float, str] | None = None
        self.quoted_etags = True
        """False for Ceph's gateway before 2025, which takes the ETag of If-Match without its quotes only."""

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    @property
    def url(self) -> str:
        return self._settings.url

    @property
    def prefix(self) -> str:
        return self._settings.prefix

    @property
    def remote(self) -> bool:
        return True

    @property
    def request_timeout_s(self) -> float:
        return self._clients.request_timeout_s

    def set_request_timeout(self, seconds: float) -> None:
        """Let a `read` or `swap` take at most so long: connecting, sending and waiting for the answer."""
        self._clients.request_timeout_s = seconds

    @property
    def requests(self) -> dict[str, int]:
        """How many requests this process has sent, by S3 operation, resends of blobs included."""
        return self._clients.requests()

    def server_date_distance_s(self) -> float | None:
        """By how much this machine's clock was ahead of the server's at the last answer, to about a second.

        None before the first answer.  For people; no decision depends on it.
        """
        if self._last_date is None:
            return None
        here_s, date = self._last_date
        there_s = seconds_since_1970(date)
        return None if there_s is None else here_s - (there_s + 0.5)  # a Date is cut to whole seconds

    def close(self) -> None:
        self._clients.close()

    # --- records ----------------------------------------------------------------------------------------

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        doing = self._doing("read", "GetObject", name)
        condition = {} if unless is None else {"IfNoneMatch": self._quoted(unless)}
        with self._translated(doing):
            answer = self._ask(self._clients.records().get_object, doing, {304, 404}, **condition)
            status = status_of(answer)
            if status == 304:
                return UNCHANGED
            if status == 404:
                return None
            with closing(answer["Body"]) as body:
                damaged = answer.get("ContentLength", 0) >= DAMAGED_SIZE_MIN
                data = b"" if damaged else body.read()
        version = _version(answer, doing)
        if version == unless:  # a server that ignores the condition of a GET
            return UNCHANGED
        return Record(data if len(data) < DAMAGED_SIZE_MIN else b"", version, _age_s(answer))

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        assert len(new) <= RECORD_SIZE_MAX, f"a record of {len(new)} bytes"
        doing = self._doing("write", "PutObject", name, writes=True)
        if old is None:
            condition, refused = {"IfNoneMatch": "*"}, {412}
        else:
            condition, refused = {"IfMatch": self._quoted(old)}, {404, 412}
        with self._translated(doing):
            answer = self._ask(self._clients.records().put_object, doing, refused, Body=new, **condition)
            if status_of(answer) in refused:
                said = f"HTTP {status_of(answer)} {code_of(answer)}"
                raise Conflict(f"{doing}: it is not at version {old} ({said})")
        return _version(answer, doing)

    def scan(self, prefix: str) -> Iterator[Listed]:
        assert not prefix or prefix.endswith("/"), prefix
        if prefix:
            checked_name(prefix[:-1])
        doing = self._doing("list", "ListObjectsV2", prefix)
        where = {"Bucket": doing.bucket, "Prefix": doing.key}
        while True:  # ends with the listing
            with self._translated(doing):
                page = self._clients.bulk().list_objects_v2(**where)
            now_s = seconds_since_1970(headers_of(page).get("date"))
            for entry in page.get("Contents", ()):
                age_s = _between(int(entry["LastModified"].timestamp()), now_s)
                yield Listed(entry["Key"].removeprefix(self._root), entry["Size"], age_s)
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def files_of(self, name: str) -> tuple[str, ...]:
        return ()

    # --- blobs ------------------------------------------------------------------------------------------

    def upload(self, name: str, source: BinaryIO) -> None:
        """Store all of `source`, in parts of 16 MiB when it is large, a few of them in memory.

        An upload that was killed leaves its parts behind, invisible but paid for: give the bucket a lifecycle
        rule (AbortIncompleteMultipartUpload).
        """
        doing = self._doing("upload", "PutObject", name, writes=True)
        with self._translated(doing):
            from boto3.s3.transfer import TransferConfig

            parts = TransferConfig(
                multipart_threshold=PART_SIZE, multipart_chunksize=PART_SIZE, use_threads=False
            )
            self._clients.bulk().upload_fileobj(_KeptOpen(source), doing.bucket, doing.key, Config=parts)

    @contextmanager
    def download(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_SIZE) as spool:
            into = cast(BinaryIO, spool)
            self._fetch(self._doing("download", "GetObject", name), into)
            into.seek(0)
            yield into

    def remove(self, name: str) -> None:
        doing = self._doing("removal", "DeleteObject", name, writes=True)
        with self._translated(doing):
            self._ask(self._clients.bulk().delete_object, doing, {404})

    def _fetch(self, doing: Doing, into: BinaryIO) -> None:
        import tenacity

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(DOWNLOAD_ATTEMPTS_MAX),
            wait=self._backoff_s,
            retry=tenacity.retry_if_exception_type(StoreUnavailable),
            sleep=self._runtime.sleep,
            reraise=True,
        )
        retrying(self._fetch_the_rest, doing, into)

    def _backoff_s(self, attempts: Any) -> float:
        ceiling_s: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**attempts.attempt_number)
        return ceiling_s * (0.5 + self._runtime.jitter() / 2)

    def _fetch_the_rest(self, doing: Doing, into: BinaryIO) -> None:
        have = into.tell()
        asked = {"Range": f"bytes={have}-"} if have else {}
        with self._translated(doing):
            answer = self._ask(self._clients.bulk().get_object, doing, {404, 416}, **asked)
            if status_of(answer) == 404:
                where = f"s3://{doing.bucket}/{doing.key}"
                raise FileNotFoundError(errno.ENOENT, "there is no such blob", where)
            if have and status_of(answer) != 206:  # the server ignores Range, or has nothing behind `have`
                into.seek(0)
                into.truncate()
                have = 0
            if status_of(answer) == 416:
                raise unknown(doing, "the server has less than it has already sent")
            with closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(CHUNK_SIZE):
                    into.write(chunk)
        if into.tell() != have + answer["ContentLength"]:
            raise unknown(doing, f"{into.tell() - have} of {answer['ContentLength']} bytes arrived")

    # --- requests ---------------------------------------------------------------------------------------

    def _doing(self, what: str, operation: str, name: str, writes: bool = False) -> Doing:
        key = self._root + (name if operation == "ListObjectsV2" else checked_name(name))
        return Doing(what, operation, self._settings.bucket, key, self._root, writes)

    def _ask(self, method: Any, doing: Doing, expected: set[int], **arguments: Any) -> Mapping[str, Any]:
        """Send one request; an answer whose status is `expected` is returned instead of raised."""
        try:
            answer: Mapping[str, Any] = method(Bucket=doing.bucket, Key=doing.key, **arguments)
        except Exception as error:
            refusal = answer_of(error)
            if refusal is None or status_of(refusal) not in expected or code_of(refusal) == "NoSuchBucket":
                raise
            return refusal
        return answer

    @contextmanager
    def _translated(self, doing: Doing) -> Iterator[None]:
        with translated(doing, self._runtime.wall()):
            yield

    def _quoted(self, version: Version) -> str:
        return f'"{version}"' if self.quoted_etags else version

    def _answered(self, headers: Mapping[str, str]) -> None:
        if "date" in headers:
            self._last_date = (self._runtime.wall(), headers["date"])


class _KeptOpen:
    """A file that the SDK may read but not close: it belongs to the caller."""

    def __init__(self, source: BinaryIO) -> None:
        self.read, self.seekable = source.read, source.seekable
        self.seek, self.tell = source.seek, source.tell

    def close(self) -> None:
        pass


def _version(answer: Mapping[str, Any], doing: Doing) -> Version:
    etag = str(answer.get("ETag", ""))
    if etag.startswith("W/"):
        raise StoreUnsuitable(
            f"{doing}: the server answers with weak ETags ({etag}), which don't name the exact bytes; "
            "a proxy that compresses answers does that: go around it, or switch it off"
        )
    if not etag.strip('"'):
        raise StoreUnsuitable(f"{doing}: the server answers without an ETag, so nothing can be swapped there")
    return etag.strip('"')


def _age_s(answer: Mapping[str, Any]) -> float | None:
    headers = headers_of(answer)
    return _between(seconds_since_1970(headers.get("last-modified")), seconds_since_1970(headers.get("date")))


def _between(then_s: float | None, now_s: float | None) -> float | None:
    """The age of something by the server's clock at both ends; None when it doesn't say, or says nonsense."""
    return None if then_s is None or now_s is None or now_s < then_s else now_s - then_s
