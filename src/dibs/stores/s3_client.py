"""The settings of an S3 store as its URL says them, and the SDK clients that they lead to.

Two clients, because their requests differ in what a resend may do: a conditional write that the SDK sends
again turns a success into a refusal, so the client for records never retries; blobs are written under names
of their own, so that a resend changes nothing.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from math import floor, log2
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from dibs.errors import SettingsError
from dibs.runtime import Runtime
from dibs.store import limited_s
from dibs.stores.s3_errors import Doing, answer_of, code_of, status_of, translated

QUERY_NAMES: Final = ("endpoint_url", "region", "profile", "addressing", "checksums")
ADDRESSING: Final = ("path", "virtual", "auto")
CHECKSUMS: Final = ("when_required", "when_supported")
PREFIX_LENGTH_MAX: Final = 400  # a key may have 1024 bytes, a record's name up to 512
CONNECTIONS_MAX: Final = 64

# Together less than the whole: looking up the server's address takes time too.
CONNECT_SHARE, READ_SHARE = 0.3, 0.65
BULK_CONNECT_TIMEOUT_S, BULK_READ_TIMEOUT_S, BULK_ATTEMPTS_MAX = 5.0, 60.0, 5

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")


class S3Settings(NamedTuple):
    """Where the store is and how to talk to it; credentials come from the SDK's ordinary chain."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing: str | None = None
    checksums: str = "when_required"

    @property
    def url(self) -> str:
        query = "&".join(
            f"{name}={quote(value, safe=':/')}"
            for name in QUERY_NAMES
            if (value := getattr(self, name)) is not None and value != self._field_defaults[name]
        )
        return f"s3://{self.bucket}/{quote(self.prefix)}" + (f"?{query}" if query else "")


def parse_s3_url(url: str) -> S3Settings:
    """Read `s3://bucket/prefix?endpoint_url=…&region=…&profile=…&addressing=…&checksums=…`.

    Raises SettingsError for what is missing, unknown, given twice or impossible.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:  # not repeated in the message: it may be a password
        raise SettingsError("an s3:// URL carries no credentials: use AWS_ACCESS_KEY_ID, a profile or a role")
    if parts.scheme != "s3" or not parts.netloc:
        raise SettingsError(f"{url!r} names no bucket: the form is s3://bucket/prefix")
    if not _BUCKET.match(parts.netloc):
        raise SettingsError(f"{parts.netloc!r} is no bucket name")
    if parts.fragment:
        raise SettingsError(f"{url!r}: '#' must be written %23 in a URL")
    prefix = unquote(parts.path).strip("/")
    segments = prefix.split("/") if prefix else []
    if len(prefix.encode()) > PREFIX_LENGTH_MAX or not {"", ".", ".."}.isdisjoint(segments):
        raise SettingsError(
            f"{prefix[:100]!r} is no prefix: at most {PREFIX_LENGTH_MAX} bytes, no empty, '.' or '..' segment"
        )
    given: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in QUERY_NAMES:
            raise SettingsError(f"{name!r} is no setting of an s3:// URL; known are {', '.join(QUERY_NAMES)}")
        if name in given or not value:
            raise SettingsError(f"{name!r} in an s3:// URL is {'given twice' if value else 'empty'}")
        given[name] = value
    _one_of("addressing", given.get("addressing", "auto"), ADDRESSING)
    _one_of("checksums", given.get("checksums", "when_required"), CHECKSUMS)
    if "endpoint_url" in given:
        endpoint = urlsplit(given["endpoint_url"])
        if "@" in endpoint.netloc:
            raise SettingsError("endpoint_url carries no credentials: use AWS_ACCESS_KEY_ID or a profile")
        if endpoint.scheme not in ("http", "https") or not endpoint.netloc:
            raise SettingsError(f"endpoint_url={given['endpoint_url']!r} is no http(s):// address")
    return S3Settings(parts.netloc, prefix, **given)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingsError(f"{name}={value!r} is not known; it is one of {', '.join(known)}")


@cache
def _sdk_models() -> Any:
    """The SDK's descriptions of its services, parsed once (40 ms) for all stores and forked children."""
    from botocore.loaders import create_loader

    return create_loader(os.environ.get("AWS_DATA_PATH"))


def _send_at_once(request: Any, **_: Any) -> None:
    # Waiting for "100 Continue" costs a round trip, and a second with servers that never say it.
    del request.headers["Expect"]


class _Made(NamedTuple):
    """The clients of one process: on inherited connections a forked child would get its parent's answers."""

    process: str
    session: Any
    clients: dict[tuple[str, float], Any]


class Clients:
    """The SDK clients of one store, made when first used, and made anew in a forked child.

    `answered` is called with the headers of each answer.
    """

    def __init__(
        self,
        settings: S3Settings,
        runtime: Runtime,
        request_timeout_s: float,
        answered: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._settings, self._runtime, self._answered = settings, runtime, answered
        self._request_timeout_s = request_timeout_s
        self._requests: Counter[str] = Counter()
        self._made: _Made | None = None
        self._lock = runtime.lock()
        runtime.after_fork(self._forked)

    @property
    def request_timeout_s(self) -> float:
        return self._request_timeout_s

    def limit_requests(self, seconds: float) -> None:
        if not seconds > 0:
            raise SettingsError(f"a limit of {seconds} s for a request is impossible")
        if seconds < self._request_timeout_s:
            self._request_timeout_s = seconds
            self.close()

    def requests(self) -> dict[str, int]:
        """How many requests this process has sent, by S3 operation, resends included."""
        with self._lock:
            return dict(self._requests)

    def records(self) -> Any:
        """The client for records: one attempt, within `request_timeout_s`, or less for whoever is in a hurry."""
        limit_s = limited_s(self._request_timeout_s)
        if limit_s < self._request_timeout_s:
            # Rounded down, so that they stay few.
            return self._client("records", 2.0 ** floor(log2(limit_s)))
        return self._client("records", limit_s)

    def bulk(self) -> Any:
        """The client for blobs and listings, whose requests may be sent again."""
        return self._client("bulk", 0.0)

    @contextmanager
    def talking(self, doing: Doing) -> Iterator[None]:
        """Whatever the SDK raises inside comes out as an error of dibs."""
        with translated(doing, self._runtime.wall()):
            yield

    def ask(self, method: Any, doing: Doing, expected: Collection[int] = (), **arguments: Any) -> Mapping[str, Any]:
        """Send one request; an answer whose status is `expected` is returned instead of raised."""
        try:
            answer: Mapping[str, Any] = method(Bucket=doing.bucket, Key=doing.key, **arguments)
        except Exception as error:
            refusal = answer_of(error)
            if refusal is None or status_of(refusal) not in expected or code_of(refusal) == "NoSuchBucket":
                raise
            return refusal
        return answer

    def close(self) -> None:
        with self._lock:
            made, self._made = self._made, None
        if made is not None and made.process == self._runtime.process():
            for client in made.clients.values():
                client.close()

    def _forked(self) -> None:
        # Another thread of the parent may have held the lock; nobody in the child would ever let it go.
        self._lock = self._runtime.lock()
        self._requests = Counter()

    def _client(self, kind: str, timeout_s: float) -> Any:
        made, process = self._made, self._runtime.process()
        if made is not None and made.process == process and (kind, timeout_s) in made.clients:
            return made.clients[kind, timeout_s]
        with self._lock:
            if self._made is None or self._made.process != process:
                self._made = _Made(process, self._session(), {})
            if (kind, timeout_s) not in self._made.clients:
                self._made.clients[kind, timeout_s] = self._make(self._made.session, kind, timeout_s)
            return self._made.clients[kind, timeout_s]

    def _session(self) -> Any:
        import boto3
        import botocore.session

        core = botocore.session.Session()
        core.register_component("data_loader", _sdk_models())
        profile, region = self._settings.profile, self._settings.region
        return boto3.Session(botocore_session=core, profile_name=profile, region_name=region)

    def _make(self, session: Any, kind: str, timeout_s: float) -> Any:
        from botocore.config import Config

        if kind == "records":
            connect_s, read_s = CONNECT_SHARE * timeout_s, READ_SHARE * timeout_s
            attempts_max = 1
        else:
            connect_s, read_s = BULK_CONNECT_TIMEOUT_S, BULK_READ_TIMEOUT_S
            attempts_max = BULK_ATTEMPTS_MAX
        config = Config(
            connect_timeout=connect_s,
            read_timeout=read_s,
            retries={"mode": "standard", "total_max_attempts": attempts_max},
            # Newer SDKs add checksum trailers unasked, which many S3-compatible servers refuse.
            request_checksum_calculation=self._settings.checksums,
            response_checksum_validation=self._settings.checksums,
            max_pool_connections=CONNECTIONS_MAX,
            tcp_keepalive=True,
            s3={"addressing_style": self._addressing()},
        )
        client = session.client("s3", endpoint_url=self._settings.endpoint_url, config=config)
        client.meta.events.register("before-send.s3", self._on_send)
        if kind == "records":
            client.meta.events.register("before-send.s3.PutObject", _send_at_once)
        client.meta.events.register("after-call.s3", self._on_answer)
        return client

    def _addressing(self) -> str:
        if self._settings.addressing is not None:
            return self._settings.addressing
        # Servers of one's own rarely have a DNS name for each bucket.
        from_outside = {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}.intersection(os.environ)
        return "path" if self._settings.endpoint_url or from_outside else "auto"

    def _on_send(self, event_name: str, **_: Any) -> None:
        with self._lock:
            self._requests[event_name.rpartition(".")[2]] += 1

    def _on_answer(self, parsed: Mapping[str, Any], **_: Any) -> None:
        self._answered(parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
