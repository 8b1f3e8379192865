"""A blob from a bucket: small ones in one answer, large ones in ranges, a few at once, straight into their memory.

Each range that breaks off goes on where it stopped.  All of them ask for the very object of the first answer
(`If-Match`), so that parts of two can't mix.
"""

from __future__ import annotations

import errno
import io
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar, cast

from dibs.errors import StoreUnavailable
from dibs.runtime import Runtime, memory
from dibs.stores.crew import Crew
from dibs.stores.s3_client import Clients
from dibs.stores.s3_errors import Doing, status_of, unknown

RANGE_SIZE: Final = 16 * 1024 * 1024
RANGES_AT_ONCE: Final = 4
CHUNK_SIZE: Final = 1024 * 1024
ATTEMPTS_MAX: Final = 5
"""In a row, with less than a chunk of progress."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 5.0

T = TypeVar("T")

_TOTAL: Final = re.compile(r"bytes \d+-\d+/(\d+)\Z")


@contextmanager
def downloaded(
    clients: Clients, doing: Doing, runtime: Runtime, condition: Callable[[str], str]
) -> Iterator[BinaryIO]:
    """A file with the whole blob: `BytesIO`, or for a large one an anonymous `mmap` that belongs to the caller.

    `condition` makes of an ETag what this server wants to see in If-Match.
    """
    content = Download(clients, doing, runtime, condition).all()
    yield cast(BinaryIO, content) if isinstance(content, mmap.mmap) else io.BytesIO(content)


class Download:
    """One blob on its way here."""

    def __init__(self, clients: Clients, doing: Doing, runtime: Runtime, condition: Callable[[str], str]) -> None:
        self._clients, self._doing, self._runtime, self._condition = clients, doing, runtime, condition
        self._etag = ""
        self._crew = Crew(runtime, RANGES_AT_ONCE, "dibs-download")

    def all(self) -> mmap.mmap | bytearray:
        answer = self._retried(lambda: self._ask(f"bytes=0-{RANGE_SIZE - 1}"))
        if status_of(answer) == 416:  # there is nothing in it
            return bytearray()
        self._etag = str(answer.get("ETag", ""))
        total = _total(answer)
        content = memory.anonymous(total) if total >= memory.PAGES_SIZE_MIN else bytearray(total)
        whole = memoryview(content)
        # A server that ignores Range sends all in its first answer.
        first = min(RANGE_SIZE, total) if status_of(answer) == 206 else total
        if first == total:
            self._fill(whole, 0, total, answer)
            return content
        try:
            self._crew.start(partial(self._fill, whole, 0, first, answer))
            for start in range(first, total, RANGE_SIZE):
                self._crew.start(partial(self._fill, whole, start, min(start + RANGE_SIZE, total)))
            self._crew.finish()
        except BaseException:
            self._crew.stop()
            raise
        return content

    def _fill(self, whole: memoryview, start: int, end: int, answer: Mapping[str, Any] | None = None) -> None:
        """Bring one range; `answer` is the first that was asked for, and has begun already."""
        at = start

        def go_on() -> None:
            nonlocal at, answer
            got, answer = answer or self._ask(f"bytes={at}-{end - 1}"), None
            if at and status_of(got) != 206:
                raise unknown(self._doing, f"the server answers {status_of(got)} to a range")
            with self._clients.talking(self._doing), closing(got["Body"]) as body:
                for chunk in body.iter_chunks(CHUNK_SIZE):
                    if self._crew.stopped or at + len(chunk) > end:
                        break
                    whole[at : at + len(chunk)] = chunk
                    at += len(chunk)
            if at < end:
                raise unknown(self._doing, f"{at - start} of {end - start} bytes of a range arrived")

        self._retried(go_on, lambda: at)

    def _ask(self, byte_range: str) -> Mapping[str, Any]:
        condition = {"IfMatch": self._condition(self._etag.strip('"'))} if self._etag else {}
        with self._clients.talking(self._doing):
            get = self._clients.bulk().get_object
            answer = self._clients.ask(get, self._doing, {404, 412, 416}, Range=byte_range, **condition)
        if status_of(answer) in (404, 412):  # also when it was replaced: blobs never are
            where = f"s3://{self._doing.bucket}/{self._doing.key}"
            raise FileNotFoundError(errno.ENOENT, "there is no such blob", where)
        return answer

    def _retried(self, what: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Do it again after passing errors, a few times, counted anew whenever a fair amount has arrived."""
        failures, before = 0, progress()
        while True:  # ends with success, another error, or so many failures in a row
            try:
                return what()
            except StoreUnavailable:
                failures += 1
                if progress() - before >= CHUNK_SIZE:
                    failures, before = 1, progress()
                if failures >= ATTEMPTS_MAX or self._crew.stopped:
                    raise
            ceiling_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**failures)
            self._runtime.sleep(ceiling_s * (0.5 + self._runtime.jitter() / 2))


def _total(answer: Mapping[str, Any]) -> int:
    """Bytes of the whole object, of which this answer may bring the beginning only."""
    if status_of(answer) == 206 and (found := _TOTAL.match(str(answer.get("ContentRange", "")))):
        return int(found[1])
    return int(answer["ContentLength"])
