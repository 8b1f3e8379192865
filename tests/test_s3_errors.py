"""Each refusal of a bucket names the thing, the cause and the remedy; nobody sees an error of the SDK."""

from __future__ import annotations

import re
from collections.abc import Callable
from email.utils import formatdate

import pytest

from dibs.errors import StoreUnavailable, StoreUnsuitable
from dibs.runtime import Runtime
from dibs.stores.s3 import S3Store, open_s3
from dibs.stores.s3_errors import Doing, translation
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import Fault, always, status
from dibs.testing.servers import Server

NAME = "keys/f/abc"


def refused(store: S3Store, method: str) -> str:
    """What a read, a swap, a listing or a removal says when it is refused for good."""
    asks: dict[str, Callable[[], object]] = {
        "GET": lambda: store.read(NAME),
        "PUT": lambda: store.swap(NAME, "0" * 32, b"new"),
        "LIST": lambda: list(store.scan("keys/")),
        "DELETE": lambda: store.remove(NAME),
    }
    with pytest.raises(StoreUnsuitable) as caught:
        asks[method]()
    return str(caught.value)


ANSWERS = [
    ("GET", status(403), ["s3:GetObject on arn:aws:s3:::{bucket}/{prefix}/*"]),
    ("GET", status(403), ["s3:ListBucket on arn:aws:s3:::{bucket}"]),
    ("PUT", status(403), ["s3:PutObject and s3:GetObject on arn:aws:s3:::{bucket}/{prefix}/*"]),
    ("LIST", status(403), ["s3:ListBucket on arn:aws:s3:::{bucket}"]),
    ("DELETE", status(403), ["s3:DeleteObject on arn:aws:s3:::{bucket}/{prefix}/*"]),
    ("PUT", status(501), ["conditional writes", "another store"]),
    ("PUT", status(404, "NoSuchBucket"), ["no bucket '{bucket}'", "aws s3 mb s3://{bucket}", "spelling"]),
    ("GET", status(404, "NoSuchBucket"), ["no bucket '{bucket}'", "aws s3 mb s3://{bucket}"]),
    ("LIST", status(404, "NoSuchBucket"), ["no bucket '{bucket}'"]),
    ("GET", status(403, "InvalidAccessKeyId"), ["AWS_ACCESS_KEY_ID"]),
    ("PUT", status(403, "SignatureDoesNotMatch"), ["AWS_SECRET_ACCESS_KEY"]),
    ("PUT", status(400, "ExpiredToken"), ["aws sso login", "trying again"]),
    ("GET", status(400, "InvalidToken"), ["AWS_SESSION_TOKEN"]),
    ("GET", status(403, "InvalidObjectState"), ["archived"]),
    ("PUT", status(405), ["endpoint_url"]),
    ("PUT", status(400), ["HTTP 400 InvalidRequest: injected"]),
    (
        "PUT",
        status(301, "PermanentRedirect", headers=[("x-amz-bucket-region", "eu-west-1")]),
        ["region eu-west-1", "region=eu-west-1"],
    ),
    (
        "GET",
        status(400, "AuthorizationHeaderMalformed", elements="<Region>eu-north-1</Region>"),
        ["region=eu-north-1"],
    ),
    ("GET", status(301, "PermanentRedirect"), ["check region and endpoint_url"]),
    (
        "PUT",
        status(403, "RequestTimeTooSkewed", headers=[("Date", formatdate(1_000_000_000, usegmt=True))]),
        [r"is \d+ s ahead of the server's", "NTP"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "answer", "said"), ANSWERS, ids=[f"{method} {answer.code}" for method, answer, _ in ANSWERS]
)
def test_a_refusal_says_what_to_do(
    proxied: S3Store, proxy: FaultProxy, method: str, answer: Fault, said: list[str]
) -> None:
    proxy.plan = always(answer, "GET" if method == "LIST" else method)
    message = refused(proxied, method)
    for part in said:
        expected = part.format(bucket="dibs-tests", prefix=proxied.prefix) if "{" in part else part
        assert expected in message or re.search(expected, message), message
    assert {fired.fault for fired in proxy.fired} == {answer}
    assert "testsecret" not in message


def test_a_real_missing_bucket_is_named(ministack_server: Server, runtime: Runtime) -> None:
    for method in ("GET", "PUT", "LIST"):
        store = open_s3(ministack_server.url("no-such-bucket", "p"), runtime)
        assert "aws s3 mb s3://no-such-bucket" in refused(store, method)


def test_a_create_that_finds_no_bucket_or_server_is_not_a_conflict(proxied: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = always(status(404, "Not Found"), "PUT")
    with pytest.raises(StoreUnsuitable, match="endpoint_url"):
        proxied.swap(NAME, None, b"new")
    assert proxy.fired


def test_no_credentials_is_an_error_that_says_where_they_can_come_from(
    ministack_server: Server, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_s3(ministack_server.url("dibs-tests", "p"), runtime)
    with pytest.raises(StoreUnsuitable, match=r"AWS_ACCESS_KEY_ID.*profile"):
        store.read(NAME)


def test_half_of_the_credentials_is_an_error(
    ministack_server: Server, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_s3(ministack_server.url("dibs-tests", "p"), runtime)
    with pytest.raises(StoreUnsuitable, match="secret"):
        store.read(NAME)


def test_an_unknown_profile_is_an_error(aws_environment: None, runtime: Runtime) -> None:
    with pytest.raises(StoreUnsuitable, match="list-profiles"):
        open_s3("s3://dibs-tests/p?profile=nobody", runtime).read(NAME)


def test_nobody_listening_is_unavailable(aws_environment: None, runtime: Runtime) -> None:
    store = open_s3("s3://dibs-tests/p?endpoint_url=http://127.0.0.1:1&region=us-east-1", runtime)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        store.read(NAME)
    with pytest.raises(StoreUnavailable, match="may or may not have happened"):
        store.swap(NAME, None, b"new")


def test_an_error_that_has_nothing_to_do_with_the_server_stays_itself() -> None:
    doing = Doing("read", "GetObject", "b", "p/k", "p/")
    assert translation(ValueError("a bug"), doing, 0.0) is None
    assert translation(OSError(28, "No space left on device"), doing, 0.0) is None


def test_no_error_carries_the_secrets_of_the_environment(proxied: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = always(status(403, "SignatureDoesNotMatch"), "GET")
    with pytest.raises(StoreUnsuitable) as caught:
        proxied.read(NAME)
    text = f"{caught.value!r} {caught.value.__cause__!r} {proxied!r} {proxied.url}"
    assert "testsecret" not in text


# --- a server that verifies signatures ------------------------------------------------------------------


def test_a_wrong_secret_key_is_named(ceph_server: Server, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    store = open_s3(ceph_server.url("dibs-tests", "p"), runtime)
    assert "AWS_SECRET_ACCESS_KEY" in refused(store, "GET")
    assert "AWS_SECRET_ACCESS_KEY" in refused(store, "PUT")


def test_an_unknown_access_key_is_named(ceph_server: Server, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    store = open_s3(ceph_server.url("dibs-tests", "p"), runtime)
    assert "AWS_ACCESS_KEY_ID" in refused(store, "GET")


def test_a_bucket_that_a_real_gateway_does_not_have_is_named(ceph_server: Server, runtime: Runtime) -> None:
    store = open_s3(ceph_server.url("no-such-bucket", "p"), runtime)
    for method in ("GET", "PUT", "LIST"):
        assert "aws s3 mb s3://no-such-bucket" in refused(store, method)
