"""Blobs in a bucket: written under names of their own, so that any request may be sent again.

A large blob goes up in parts, a few at once and no more in memory, and can be seen when the last one has arrived.
What a killed upload leaves can be listed and ended (`cleared`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from dibs.errors import StoreUnavailable, StoreUnsuitable
from dibs.events import log
from dibs.runtime import Runtime
from dibs.store import Listed, Source
from dibs.stores.crew import Crew
from dibs.stores.s3_client import Clients
from dibs.stores.s3_errors import Doing, answer_of, code_of, headers_of, seconds_since_1970, status_of, unknown

PART_SIZE: Final = 16 * 1024 * 1024
PARTS_PER_SIZE: Final = 2000
"""So many parts of one size, then twice the size: S3 takes 10,000 parts, which makes 970 GiB."""
PARTS_MAX: Final = 10_000
PARTS_AT_ONCE: Final = 4


def upload(clients: Clients, doing: Doing, source: Source, runtime: Runtime) -> None:
    """Store all of `source`; what `source` raises goes through unchanged, and nothing can be seen then."""
    first = _read_fully(source, PART_SIZE)
    if len(first) < PART_SIZE:
        with clients.talking(doing):
            clients.ask(clients.bulk().put_object, doing, Body=first)
        return
    with clients.talking(doing):
        begun = doing._replace(operation="CreateMultipartUpload")
        upload_id = clients.ask(clients.bulk().create_multipart_upload, begun)["UploadId"]
    crew = Crew(runtime, PARTS_AT_ONCE, "dibs-upload")
    try:
        parts, size_bytes = _send_parts(clients, doing, upload_id, first, source, crew)
        _complete(clients, doing, upload_id, parts, size_bytes)
    except BaseException:
        crew.stop()  # a part that arrives after the end would stay
        with suppress(Exception), clients.talking(doing):  # the first error is the one to tell
            ended = doing._replace(operation="AbortMultipartUpload")
            clients.ask(clients.bulk().abort_multipart_upload, ended, {404}, UploadId=upload_id)
        raise


def _send_parts(
    clients: Clients, doing: Doing, upload_id: str, part: bytes, source: Source, crew: Crew
) -> tuple[list[dict[str, Any]], int]:
    """Send all parts, a few at once; what the completion has to say of them, and their size together."""
    sending = doing._replace(operation="UploadPart")
    etags: dict[int, str] = {}

    def send(number: int, part: bytes) -> None:
        named: dict[str, Any] = {"UploadId": upload_id, "PartNumber": number}
        with clients.talking(sending):
            etags[number] = clients.ask(clients.bulk().upload_part, sending, Body=part, **named)["ETag"]

    number, size_bytes = 0, 0
    while part:
        number += 1
        if number > PARTS_MAX:
            raise StoreUnsuitable(f"{doing}: more than {size_bytes >> 30} GiB are too much for one blob; split it")
        size_bytes += len(part)
        crew.start(partial(send, number, part))
        part = b""  # or it would stay in memory beside the next one
        crew.wait_for_room()
        part = _read_fully(source, PART_SIZE << (number // PARTS_PER_SIZE))
    crew.finish()
    return [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)], size_bytes


def _complete(
    clients: Clients, doing: Doing, upload_id: str, parts: list[dict[str, Any]], size_bytes: int
) -> None:
    completing = doing._replace(operation="CompleteMultipartUpload")
    finished = {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
    try:
        with clients.talking(completing):
            answer = clients.ask(clients.bulk().complete_multipart_upload, completing, {404}, **finished)
    except StoreUnavailable:
        if not _is_there(clients, doing, size_bytes):
            raise
        return
    # After a resend, some servers say 404 to a completion that has happened.
    if status_of(answer) == 404 and not _is_there(clients, doing, size_bytes):
        raise unknown(doing, "the upload of parts is gone")


def _is_there(clients: Clients, doing: Doing, size_bytes: int) -> bool:
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
    if len(pieces) == 1 and isinstance(pieces[0], bytes):
        return pieces[0]
    return b"".join(pieces)


def cleared(
    clients: Clients, asking: Doing, below: str, gone: Callable[[str], bool], dry_run: bool
) -> Iterator[Listed]:
    """End the uploads in parts below a prefix of which `gone` says so, and tell of each."""
    where = {"Bucket": asking.bucket, "Prefix": below}
    while True:  # ends with the listing
        page = _page_of_uploads(clients, asking, where)
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


def _page_of_uploads(clients: Clients, asking: Doing, where: dict[str, str]) -> Any:
    with clients.talking(asking):
        try:
            return clients.bulk().list_multipart_uploads(**where)
        except Exception as error:
            refusal = answer_of(error)
            if refusal is None or (status_of(refusal) not in (405, 501) and code_of(refusal) != "NotImplemented"):
                raise
            log.warning(
                "%s: this server can't list uploads in parts, so what killed ones left stays; give the bucket a "
                "lifecycle rule (AbortIncompleteMultipartUpload)",
                asking,
            )
            return refusal


def _size_of_parts(clients: Clients, ending: Doing, upload_id: str) -> int:
    """Bytes of the first thousand parts, which is nearly all that anybody leaves."""
    asking = ending._replace(operation="ListParts", writes=False)
    with clients.talking(asking):
        answer = clients.ask(clients.bulk().list_parts, asking, {404}, UploadId=upload_id)
    return sum(part["Size"] for part in answer.get("Parts", ()))
