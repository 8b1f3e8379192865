"""The words of the fault proxy: what a plan sees, what it can answer, and what goes through the proxy.

A fault happens to one request: networks and servers do such things.  A lie is what a server does always,
because it promises less than S3; a store must notice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

CODES: Final = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    405: "MethodNotAllowed",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}


class Request(NamedTuple):
    """A request as a plan sees it."""

    method: str
    key: str
    """Without the bucket; empty for requests about the bucket itself, such as listings."""
    conditions: Mapping[str, str]
    """`if-match` and `if-none-match`, in lower case."""
    number: int
    """1 for the first request with this method and key, then counting up."""


@dataclass(frozen=True)
class Fault:
    """What happens to one request; see the names below."""

    kind: str
    applied: bool = True
    """Whether the request reaches the server."""
    hang: bool = False
    """The client hears nothing until it gives up, instead of being cut off."""
    seconds: float = 0.0
    status: int = 0
    code: str = ""
    message: str = "injected"
    elements: str = ""
    """More XML inside the error."""
    headers: tuple[tuple[str, str], ...] = ()


REQUEST_LOST: Final = Fault("request lost", applied=False)
REQUEST_HANGS: Final = Fault("request hangs", applied=False, hang=True)
ANSWER_LOST: Final = Fault("answer lost")
ANSWER_HANGS: Final = Fault("answer hangs", hang=True)
TWICE: Final = Fault("twice")
"""The same request arrives twice, as after a resend below dibs; the client gets the second answer."""
HALF_SENT: Final = Fault("half sent", applied=False)
"""The connection ends in the middle of the request's body."""
TRUNCATED: Final = Fault("truncated")
"""Half of the answer's body arrives, then the connection ends."""


def delayed(seconds: float) -> Fault:
    """The request arrives so much later, and so does its answer, if anybody still waits for it."""
    return Fault("delayed", seconds=seconds)


def ghost(seconds: float) -> Fault:
    """The client is cut off at once; its request lands so much later all the same (`FaultProxy.settle`)."""
    return Fault("ghost", seconds=seconds)


def status(
    number: int,
    code: str = "",
    *,
    applied: bool = False,
    elements: str = "",
    headers: Iterable[tuple[str, str]] = (),
) -> Fault:
    """An S3 error instead of the real answer, before or after the request was applied."""
    code = code or CODES.get(number, "Unknown")
    return Fault("status", applied, status=number, code=code, elements=elements, headers=tuple(headers))


class Lie(Enum):
    """What servers that are only nearly S3 do."""

    IGNORE_IF_NONE_MATCH = "overwrites although If-None-Match forbids it"
    IGNORE_IF_MATCH = "overwrites whatever If-Match says"
    CREATES_ON_IF_MATCH_MISSING = "creates the object that If-Match did not find"
    CONSTANT_ETAG = "gives all objects the same ETag"
    STALE_READS = "each read shows what the read before should have shown"
    ALWAYS_409 = "answers 409 to every conditional write"
    WEAK_ETAG = "answers with weak ETags"
    DROP_304 = "answers conditional reads with the whole object"


Plan = Callable[[Request], Fault | Lie | None]


class Fired(NamedTuple):
    fault: Fault | Lie
    method: str
    key: str


def nth(fault: Fault | Lie, method: str, number: int = 1, key: str | None = None) -> Plan:
    """A plan that lets `fault` happen to the nth request with that method (and key), and to no other."""
    seen, counting = 0, threading.Lock()

    def plan(request: Request) -> Fault | Lie | None:
        nonlocal seen
        if request.method != method or key not in (None, request.key):
            return None
        with counting:
            seen += 1
            return fault if seen == number else None

    return plan


def always(fault: Fault | Lie, *methods: str) -> Plan:
    """A plan that lets `fault` happen to every request with one of these methods."""
    return lambda request: fault if request.method in methods else None


class Call(NamedTuple):
    """A request with all that is handed on."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def header(self, name: str) -> str | None:
        return next((value for other, value in self.headers if other.lower() == name), None)

    def without(self, name: str) -> Call:
        return self._replace(headers=tuple(pair for pair in self.headers if pair[0].lower() != name))


class Answer(NamedTuple):
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for other, value in self.headers if other.lower() == name), None)

    def with_header(self, name: str, value: str) -> Answer:
        others = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return self._replace(headers=(*others, (name, value)))

    def not_modified(self) -> Answer:
        return self._replace(status=304, body=b"")


def error_answer(fault: Fault) -> Answer:
    """The answer of S3 with that status and error code."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message>{fault.elements}</Error>"
    )
    answer = Answer(fault.status, (("Content-Type", "application/xml"),), body.encode())
    for name, value in (("Date", formatdate(time.time(), usegmt=True)), *fault.headers):
        answer = answer.with_header(name, value)
    return answer
