"""Blobs in a bucket: written under names of their own, so that any request may be sent again.

A large blob goes up in parts, one of them in memory at a time, and can be seen when the last one has arrived;
a download that breaks off goes on where it stopped.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, BinaryIO, Final, cast

from dibs.errors import StoreUnavailable, StoreUnsuitable
from dibs.events import log
from dibs.runtime import Runtime
from dibs.store import Listed, Source
from dibs.stores.s3_client import Clients
from dibs.stores.s3_errors import Doing, answer_of, code_of, headers_of, seconds_since_1970, status_of, unknown

PART_SIZE: Final = 16 * 1024 * 1024
PARTS_PER_SIZE: Final = 2000
"""So many parts of one size, then twice the size: S3 takes 10,000 parts, which makes 970 GiB."""
PARTS_MAX: Final = 10_000
SPOOL_SIZE: Final = 8 * 1024 * 1024
CHUNK_SIZE: Final = 1024 * 1024
DOWNLOAD_ATTEMPTS_MAX: Final = 5
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 5.0


def upload(clients: Clients, doing: Doing, source: Source) -> None:
    """Store all of `source`; what `source` raises goes through unchanged, and nothing can be seen then."""
    first = _read_fully(source, PART_SIZE)
    if len(first) < PART_SIZE:
        with clients.talking(doing):
            clients.ask(clients.bulk().put_object, doing, Body=first)
        return
    with clients.talking(doing):
        begun = doing._replace(operation="CreateMultipartUpload")
        upload_id = clients.ask(clients.bulk().create_multipart_upload, begun)["UploadId"]
    try:
        _upload_parts(clients, doing, upload_id, first, source)
    except BaseException:
        with suppress(Exception), clients.talking(doing):  # the first error is the one to tell
            ended = doing._replace(operation="AbortMultipartUpload")
            clients.ask(clients.bulk().abort_multipart_upload, ended, UploadId=upload_id)
        raise


def _upload_parts(clients: Clients, doing: Doing, upload_id: str, part: bytes, source: Source) -> None:
    parts: list[dict[str, Any]] = []
    size_bytes = 0
    while part:
        number = len(parts) + 1
        if number > PARTS_MAX:
            raise StoreUnsuitable(f"{doing}: more than {size_bytes >> 30} GiB are too much for one blob; split it")
        sending = doing._replace(operation="UploadPart")
        named: dict[str, Any] = {"UploadId": upload_id, "PartNumber": number}
        with clients.talking(sending):
            answer = clients.ask(clients.bulk().upload_part, sending, Body=part, **named)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        size_bytes += len(part)
        part = _read_fully(source, PART_SIZE << (number // PARTS_PER_SIZE))
    completing = doing._replace(operation="CompleteMultipartUpload")
    finished = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
    with clients.talking(completing):
        answer = clients.ask(clients.bulk().complete_multipart_upload, completing, {404}, **finished)
    if status_of(answer) == 404 and not _is_there(clients, doing, size_bytes):
        raise unknown(doing, "the upload of parts is gone")


def _is_there(clients: Clients, doing: Doing, size_bytes: int) -> bool:
    """Whether the blob is there: after a resend, some servers say 404 to a completion that has happened."""
    asking = doing._replace(operation="HeadObject")
    with clients.talking(asking):
        answer = clients.ask(clients.bulk().head_object, asking, {404})
    return bool(answer.get("ContentLength") == size_bytes)


def _read_fully(source: Source, size: int) -> bytes:
    """Read `size` bytes, fewer at the end only: a pipe gives what it has, which says nothing about its end."""
    pieces = []
    while size and (piece := source.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@contextmanager
def downloaded(clients: Clients, doing: Doing, runtime: Runtime) -> Iterator[BinaryIO]:
    """A file with the whole blob: in memory while it is small, else in the directory for temporary files."""
    import tenacity

    def backoff_s(attempts: Any) -> float:
        ceiling_s: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**attempts.attempt_number)
        return ceiling_s * (0.5 + runtime.jitter() / 2)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(DOWNLOAD_ATTEMPTS_MAX),
        wait=backoff_s,
        retry=tenacity.retry_if_exception_type(StoreUnavailable),
        sleep=runtime.sleep,
        reraise=True,
    )
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_SIZE) as spool:
        into = cast(BinaryIO, spool)
        retrying(_fetch_the_rest, clients, doing, into)
        into.seek(0)
        yield into


def _fetch_the_rest(clients: Clients, doing: Doing, into: BinaryIO) -> None:
    have = into.tell()
    asked = {"Range": f"bytes={have}-"} if have else {}
    with clients.talking(doing):
        answer = clients.ask(clients.bulk().get_object, doing, {404, 416}, **asked)
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


def cleared(
    clients: Clients, asking: Doing, below: str, gone: Callable[[str], bool], dry_run: bool
) -> Iterator[Listed]:
    """End the uploads in parts below a prefix that `gone` says so of, and tell of each."""
    where = {"Bucket": asking.bucket, "Prefix": below}
    while True:  # ends with the listing
        with clients.talking(asking):
            try:
                page = clients.bulk().list_multipart_uploads(**where)
            except Exception as error:
                refusal = answer_of(error)
                if refusal is None or (status_of(refusal) not in (405, 501) and code_of(refusal) != "NotImplemented"):
                    raise
                log.warning(
                    "%s: this server can't list uploads in parts, so what killed ones left stays; give the bucket a "
                    "lifecycle rule (AbortIncompleteMultipartUpload)", asking,
                )  # fmt: skip
                return
        now_s = seconds_since_1970(headers_of(page).get("date"))
        for pending in page.get("Uploads", ()):
            name = pending["Key"].removeprefix(below)
            if name == pending["Key"] or not gone(name):
                continue
            ending = Doing("end of an upload", "AbortMultipartUpload", asking.bucket, pending["Key"], asking.root, True)
            age_s = None if now_s is None else max(now_s - pending["Initiated"].timestamp(), 0.0)
            listed = Listed(name, _size_of_parts(clients, ending, pending["UploadId"]), age_s)
            if not dry_run:
                with clients.talking(ending):
                    abort = clients.bulk().abort_multipart_upload
                    clients.ask(abort, ending, {404}, UploadId=pending["UploadId"])
            yield listed
        if not page.get("IsTruncated"):
            return
        where |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _size_of_parts(clients: Clients, ending: Doing, upload_id: str) -> int:
    """Bytes of the first thousand parts, which is nearly all that anybody leaves."""
    asking = ending._replace(operation="ListParts", writes=False)
    with clients.talking(asking):
        answer = clients.ask(clients.bulk().list_parts, asking, {404}, UploadId=upload_id)
    return sum(part["Size"] for part in answer.get("Parts", ()))
