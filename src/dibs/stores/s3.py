"""A bucket as a store: `If-None-Match: *` creates, `If-Match: <etag>` swaps, and a read is one GET.

Versions are ETags.  For a record that is the MD5 of its bytes, or as good as that; and no two writes of
dibs are ever equal (each carries an attempt of its own), so a version never comes back.

A request that got no clear answer raises `StoreUnavailable` and is never sent again from here: whoever asked
reads the record and finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from typing import Any, BinaryIO, Final, Literal
from urllib.parse import urlsplit

from dibs.errors import Conflict, StoreUnsuitable
from dibs.runtime import Runtime
from dibs.store import RECORD_SIZE_MAX, UNCHANGED, Listed, Record, Source, Unchanged, Version, checked_name
from dibs.stores.s3_blobs import cleared, upload
from dibs.stores.s3_client import Clients, S3Settings, parse_s3_url
from dibs.stores.s3_download import downloaded
from dibs.stores.s3_errors import Doing, code_of, headers_of, seconds_since_1970, status_of

RECORDS, BLOBS = "records/", "blobs/"

QUOTED, UNQUOTED = "quoted-etags", "unquoted-etags"
"""How If-Match carries its ETag: as HTTP says, or as Ceph's gateway before 2025 wants it."""

DAMAGED_SIZE_MIN: Final = RECORD_SIZE_MAX + 1
"""Bytes.  Nobody wrote so large a record; it is handed out as damaged, without being read."""


def open_s3(url: str, runtime: Runtime) -> S3Store:
    """Open `s3://bucket/prefix?endpoint_url=…&region=…&profile=…&addressing=…&checksums=…`; sends no request.

    Raises SettingsError for an unknown or impossible setting.
    """
    return S3Store(parse_s3_url(url), runtime)


class S3Store:
    """Records and blobs under one prefix of one bucket."""

    def __init__(self, settings: S3Settings, runtime: Runtime, request_timeout_s: float = 10.0) -> None:
        self._settings, self._runtime = settings, runtime
        self._clients = Clients(settings, runtime, request_timeout_s, self._answered)
        self._root = f"{settings.prefix}/" if settings.prefix else ""
        self._last_date: tuple[float, str] | None = None
        self.dialect = QUOTED

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
    def server(self) -> str:
        """The address of the endpoint, which may come from the environment."""
        doing = self._doing("use", "GetObject", RECORDS, "card")
        with self._clients.talking(doing):
            return urlsplit(str(self._clients.records().meta.endpoint_url)).netloc.rpartition("@")[2]

    @property
    def dialects(self) -> tuple[str, ...]:
        return (QUOTED, UNQUOTED)

    @property
    def request_timeout_s(self) -> float:
        return self._clients.request_timeout_s

    def limit_requests(self, seconds: float) -> None:
        """Let a `read` or `swap` take at most so long: connecting, sending and waiting for the answer."""
        self._clients.limit_requests(seconds)

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
        doing = self._doing("read", "GetObject", RECORDS, name)
        condition = {} if unless is None else {"IfNoneMatch": self._etag(unless)}
        with self._clients.talking(doing):
            answer = self._clients.ask(self._clients.records().get_object, doing, {304, 404}, **condition)
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
        doing = self._doing("write", "PutObject", RECORDS, name, writes=True)
        if old is None:
            condition, refused = {"IfNoneMatch": "*"}, {412}
        else:
            condition, refused = {"IfMatch": self._etag(old)}, {404, 412}
        with self._clients.talking(doing):
            put = self._clients.records().put_object
            answer = self._clients.ask(put, doing, refused, Body=new, **condition)
            if status_of(answer) in refused:
                said = f"HTTP {status_of(answer)} {code_of(answer)}"
                raise Conflict(f"{doing}: it is not at version {old} ({said})")
        return _version(answer, doing)

    def scan(self, prefix: str) -> Iterator[Listed]:
        return self._listed(RECORDS, prefix)

    def _listed(self, below: str, prefix: str) -> Iterator[Listed]:
        assert prefix.endswith("/"), prefix
        doing = self._doing("list", "ListObjectsV2", below, prefix[:-1])
        where = {"Bucket": doing.bucket, "Prefix": f"{doing.key}/"}
        root = len(f"{self._root}{below}")
        while True:  # ends with the listing
            with self._clients.talking(doing):
                page = self._clients.bulk().list_objects_v2(**where)
            now_s = seconds_since_1970(headers_of(page).get("date"))
            for entry in page.get("Contents", ()):
                age_s = _between(int(entry["LastModified"].timestamp()), now_s)
                yield Listed(entry["Key"][root:], entry["Size"], age_s)
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def files_of(self, name: str) -> tuple[str, ...]:
        return ()

    # --- blobs ------------------------------------------------------------------------------------------

    def upload(self, name: str, source: Source) -> None:
        """Store all of `source`, in parts when it is large; what `source` raises goes through.

        A killed upload leaves its parts behind, invisible but paid for, until they are cleared; a lifecycle rule of
        the bucket (AbortIncompleteMultipartUpload) does that too.
        """
        upload(self._clients, self._doing("upload", "PutObject", BLOBS, name, writes=True), source, self._runtime)

    def download(self, name: str) -> AbstractContextManager[BinaryIO]:
        doing = self._doing("download", "GetObject", BLOBS, name)
        return downloaded(self._clients, doing, self._runtime, self._etag)

    def remove(self, name: str) -> None:
        doing = self._doing("removal", "DeleteObject", BLOBS, name, writes=True)
        with self._clients.talking(doing):
            self._clients.ask(self._clients.bulk().delete_object, doing, {404})

    def scan_blobs(self, prefix: str) -> Iterator[Listed]:
        return self._listed(BLOBS, prefix)

    def clear_leftovers(self, gone: Callable[[str], bool], dry_run: bool = False) -> Iterator[Listed]:
        """End the uploads in parts that `gone` says nothing can come of; they can't be told from living ones here."""
        asking = Doing("list of uploads", "ListMultipartUploads", self._settings.bucket, "", self._root)
        return cleared(self._clients, asking, f"{self._root}{BLOBS}", gone, dry_run)

    def erase(self, name: str) -> None:
        doing = self._doing("removal", "DeleteObject", RECORDS, name, writes=True)
        with self._clients.talking(doing):
            self._clients.ask(self._clients.bulk().delete_object, doing, {404})

    # --- requests ---------------------------------------------------------------------------------------

    def _doing(self, what: str, operation: str, below: str, name: str, writes: bool = False) -> Doing:
        key = f"{self._root}{below}{checked_name(name)}"
        return Doing(what, operation, self._settings.bucket, key, self._root, writes)

    def _etag(self, version: Version) -> str:
        return f'"{version}"' if self.dialect == QUOTED else version

    def _answered(self, headers: Mapping[str, str]) -> None:
        if "date" in headers:
            self._last_date = (self._runtime.wall(), headers["date"])


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
