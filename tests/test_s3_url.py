"""An s3:// URL says where the store is; what is missing, unknown or secret in it is an error."""

from __future__ import annotations

import pytest

from dibs.errors import SettingsError
from dibs.runtime import Runtime
from dibs.stores.s3 import open_s3
from dibs.stores.s3_client import S3Settings, parse_s3_url


def test_all_settings_are_read() -> None:
    url = (
        "s3://bucket/team/a%20b?endpoint_url=https%3A%2F%2Fs3.example%3A9000&region=eu-west-1&profile=me"
        "&addressing=virtual&checksums=when_supported"
    )
    assert parse_s3_url(url) == S3Settings(
        "bucket", "team/a b", "https://s3.example:9000", "eu-west-1", "me", "virtual", "when_supported"
    )


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket//"])
def test_the_prefix_may_be_empty(url: str) -> None:
    assert parse_s3_url(url) == S3Settings("bucket")


@pytest.mark.parametrize(
    "url", ["s3://b/p", "s3://b", "s3://b/a%20b/%23?endpoint_url=http://127.0.0.1:9/&addressing=auto&profile=a%26b"]
)
def test_the_url_of_a_store_opens_the_same_store(url: str, runtime: Runtime) -> None:
    store = open_s3(url, runtime)
    assert parse_s3_url(store.url) == parse_s3_url(url)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://b/p?endpoint=http://x", "'endpoint' .* known are endpoint_url, region, profile, addressing, checksums"),
        ("s3://b/p?region=a&region=b", "given twice"),
        ("s3://b/p?region=", "empty"),
        ("s3://b/p?addressing=dns", "path, virtual, auto"),
        ("s3://b/p?checksums=never", "when_required, when_supported"),
        ("s3://b/p?endpoint_url=localhost:9000", "no http"),
        ("s3://b/p#x", "%23"),
        ("s3://b:9000/p", "no bucket name"),
        ("s3://b/../c", "no prefix"),
        ("s3://b/a//c", "no prefix"),
        ("s3://b/" + "x" * 401, "no prefix"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(url: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        parse_s3_url(url)


@pytest.mark.parametrize("url", ["s3://me:hunter2@b/p", "s3://b/p?endpoint_url=https://me:hunter2@s3.example"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="credentials") as caught:
        parse_s3_url(url)
    assert "hunter2" not in str(caught.value)


def test_names_cannot_leave_the_prefix(runtime: Runtime) -> None:
    store = open_s3("s3://bucket/p", runtime)
    for name in ("../x", "a/../../x", "", "/x", "a//b"):
        with pytest.raises(SettingsError):
            store.read(name)
        with pytest.raises(SettingsError):
            store.swap(name, None, b"")
        with pytest.raises(SettingsError):
            store.remove(name)
