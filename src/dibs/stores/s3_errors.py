"""What an answer of S3, or its absence, means for dibs: passing (unknown) or unsuitable, with the remedy.

Nobody above a store sees an error of the SDK.  The rule for writes: only an answer that proves that nothing
was written may become anything else than `StoreUnavailable`.

Sources: the S3 API reference, "Error responses"; the S3 user guide, "How to prevent object overwrites with
conditional writes" (404, 409 and 412, and the permissions that If-Match needs).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

from dibs.errors import DibsError, StoreUnavailable, StoreUnsuitable


class Doing(NamedTuple):
    """What a request is for, as the messages name it."""

    what: str
    operation: str
    """The S3 operation, for example `PutObject`."""
    bucket: str
    key: str
    root: str
    """The prefix of all keys of this store, with its slash."""
    writes: bool = False

    def __str__(self) -> str:
        return f"{self.what} of s3://{self.bucket}/{self.key}"


PASSING_STATUS: Final = frozenset({307, 408, 409, 425, 429})
PASSING_CODES: Final = frozenset(
    {
        "BadDigest", "BandwidthLimitExceeded", "ConditionalRequestConflict", "IncompleteBody",
        "InternalError", "OperationAborted", "PriorRequestNotComplete", "RequestLimitExceeded",
        "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable", "SlowDown", "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)  # fmt: skip
REGION_CODES: Final = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
)

_EXPIRED = (
    "the temporary credentials have expired: get new ones (`aws sso login`, or assume the role again). "
    "Those of a pod or an instance renew themselves; then this passes, and trying again is worth it"
)
CREDENTIAL_REMEDIES: Final = {
    "InvalidAccessKeyId": "the server doesn't know this access key: check AWS_ACCESS_KEY_ID or the profile, "
    "and that endpoint_url is the server that gave it out",
    "SignatureDoesNotMatch": "the secret key doesn't belong to the access key (AWS_SECRET_ACCESS_KEY or the "
    "profile), or a proxy on the way changes the requests",
    "InvalidToken": "the session token is not valid: check AWS_SESSION_TOKEN; it belongs to one access key",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
}

SDK_REMEDIES: Final = {
    "NoCredentialsError": "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run "
    "`aws configure`, name a profile in the URL (?profile=NAME), or give the pod or instance a role",
    "NoAuthTokenError": "no token was found: run `aws sso login`",
    "PartialCredentialsError": "the credentials are incomplete: an access key needs its secret key",
    "ProfileNotFound": "the AWS configuration has no such profile: `aws configure list-profiles` shows them",
    "UnauthorizedSSOTokenError": "the SSO session has expired: run `aws sso login`",
    "SSOTokenLoadError": "there is no SSO session: run `aws sso login`",
    "TokenRetrievalError": "the SSO session can't be renewed: run `aws sso login`",
    "LoginRefreshRequired": "the login session has expired: run `aws login`",
    "LoginTokenLoadError": "there is no login session: run `aws login`",
    "ConfigParseError": "the AWS configuration file can't be read",
    "ParamValidationError": "boto3 is too old for this request: pip install 'boto3>=1.35.70'",
    "InvalidRegionError": "the region is no valid name: check ?region= in the URL and AWS_REGION",
    "UnknownRegionError": "the region is not known: check ?region= in the URL and AWS_REGION",
}
"""SDK errors that are raised before anything is sent, by the names of their classes."""

SDK_PACKAGES: Final = frozenset({"boto3", "botocore", "urllib3"})
SERVER_TEXT_MAX: Final = 300

PERMISSIONS: Final = {
    "GetObject": "s3:GetObject on {objects}, and s3:ListBucket on {bucket}: without the latter S3 answers "
    "403 where it means 'there is no such key'",
    "PutObject": "s3:PutObject and s3:GetObject on {objects} (a write with If-Match needs both)",
    "ListObjectsV2": "s3:ListBucket on {bucket}",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads on {bucket}",
    "ListParts": "s3:ListMultipartUploadParts on {objects}",
    "AbortMultipartUpload": "s3:AbortMultipartUpload on {objects}",
    "DeleteObject": "s3:DeleteObject on {objects}",
}


@contextmanager
def translated(doing: Doing, wall_s: float) -> Iterator[None]:
    """Turn whatever the SDK raises inside into an error of dibs; `wall_s` is for a message only."""
    try:
        yield
    except DibsError:
        raise
    except Exception as error:
        ours = translation(error, doing, wall_s)
        if ours is None:
            raise
        raise ours from error


def translation(error: Exception, doing: Doing, wall_s: float) -> DibsError | None:
    """The error of dibs that `error` stands for; None when it has nothing to do with the server."""
    answer = answer_of(error)
    if answer is not None:
        asked = getattr(error, "operation_name", doing.operation)
        if asked != doing.operation:
            return _credential_service(answer, asked, doing)
        return _refusal(answer, doing, wall_s)
    name = type(error).__name__
    if type(error).__module__.partition(".")[0] in SDK_PACKAGES:
        if name in SDK_REMEDIES:
            return StoreUnsuitable(f"{doing}: {SDK_REMEDIES[name]} ({error})")
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return StoreUnsuitable(
                f"{doing}: the server's certificate can't be verified; if it is your own, "
                f"set AWS_CA_BUNDLE to the file of its authority ({error})"
            )
    elif not isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
        return None
    return unknown(doing, f"no complete answer ({name}: {error})")


def answer_of(error: BaseException) -> Mapping[str, Any] | None:
    """The parsed answer behind a ClientError, or None when there was none."""
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, Mapping) and "ResponseMetadata" in answer else None


def status_of(answer: Mapping[str, Any]) -> int:
    return int(answer["ResponseMetadata"].get("HTTPStatusCode", 0))


def code_of(answer: Mapping[str, Any]) -> str:
    return str(answer.get("Error", {}).get("Code", ""))


def headers_of(answer: Mapping[str, Any]) -> Mapping[str, str]:
    headers: Mapping[str, str] = answer["ResponseMetadata"].get("HTTPHeaders", {})
    return headers


def seconds_since_1970(http_date: str | None) -> float | None:
    """The time that a `Date` or `Last-Modified` header tells, or None when it tells none."""
    try:
        return parsedate_to_datetime(http_date).timestamp() if http_date else None
    except (TypeError, ValueError):
        return None


def unknown(doing: Doing, why: str) -> StoreUnavailable:
    outcome = "; the write may or may not have happened, and may still happen" if doing.writes else ""
    return StoreUnavailable(f"{doing}: {why}{outcome}")


def _said(answer: Mapping[str, Any]) -> str:
    text = " ".join(str(answer.get("Error", {}).get("Message", "")).split())[:SERVER_TEXT_MAX]
    return f"HTTP {status_of(answer)} {code_of(answer)}" + (f": {text}" if text else "")


def _refusal(answer: Mapping[str, Any], doing: Doing, wall_s: float) -> DibsError:
    status, code, said = status_of(answer), code_of(answer), _said(answer)
    if status == 501 or code == "NotImplemented":
        return StoreUnsuitable(
            f"{doing}: this server doesn't know the request ({said}). dibs needs conditional writes "
            "(If-Match and If-None-Match on PutObject): use a newer version, or another store for the records"
        )
    if status >= 500 or status in PASSING_STATUS or code in PASSING_CODES or "Throttl" in code:
        return unknown(doing, said)
    if code in CREDENTIAL_REMEDIES:
        return StoreUnsuitable(f"{doing}: {CREDENTIAL_REMEDIES[code]} ({said})")
    if code == "RequestTimeTooSkewed":
        return StoreUnsuitable(f"{doing}: {_clock_remedy(answer, wall_s)} ({said})")
    if code in REGION_CODES or status in (301, 302, 308):
        return StoreUnsuitable(f"{doing}: {_region_remedy(answer)} ({said})")
    if code == "NoSuchBucket":
        return StoreUnsuitable(
            f"{doing}: there is no bucket {doing.bucket!r}: create it with `aws s3 mb s3://{doing.bucket}`, "
            f"or check the spelling, endpoint_url and region ({said})"
        )
    if code == "InvalidObjectState":
        return StoreUnsuitable(f"{doing}: the object was archived; exempt the prefix from that ({said})")
    if status in (401, 403):
        return StoreUnsuitable(f"{doing}: permission is missing: grant {_permission(doing)} ({said})")
    if status in (404, 405):
        return StoreUnsuitable(f"{doing}: this doesn't look like an S3 server; check endpoint_url ({said})")
    return StoreUnsuitable(f"{doing}: the server refuses the request ({said})")


def _permission(doing: Doing) -> str:
    bucket = f"arn:aws:s3:::{doing.bucket}"
    text = PERMISSIONS.get(doing.operation, PERMISSIONS["PutObject"])  # the steps of an upload need just that
    return text.format(bucket=bucket, objects=f"{bucket}/{doing.root}*")


def _clock_remedy(answer: Mapping[str, Any], wall_s: float) -> str:
    server_s = seconds_since_1970(headers_of(answer).get("date"))
    if server_s is None:
        distance = "differs too much from the server's"
    else:
        side = "ahead of" if wall_s > server_s else "behind"
        distance = f"is {abs(wall_s - server_s):.0f} s {side} the server's"
    return f"this machine's clock {distance}, so it refuses the signature: set this machine's clock (NTP)"


def _region_remedy(answer: Mapping[str, Any]) -> str:
    region = answer.get("Error", {}).get("Region") or headers_of(answer).get("x-amz-bucket-region")
    if region:
        return f"the bucket is in region {region}: add region={region} to the query of the URL"
    return "the bucket is in another region or behind another endpoint: check region and endpoint_url"


def _credential_service(answer: Mapping[str, Any], asked: str, doing: Doing) -> DibsError:
    if status_of(answer) >= 500 or "Throttl" in code_of(answer):
        return unknown(doing, f"the credential service didn't answer {asked} ({_said(answer)})")
    return StoreUnsuitable(
        f"{doing}: no credentials: {asked} was refused ({_said(answer)}); check the role and its trust "
        "policy, or run `aws sso login`"
    )
