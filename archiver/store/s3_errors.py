"""What S3, botocore and the network say, told in the words of archiver.errors.

In: an exception caught at the edge of the S3 adapter. Out: the error to raise instead, with its place and a
hint. Tables, looked up from the most specific to the least: the code in the answer, the HTTP status (all that
a HEAD request gives), the class of exception. Nothing of botocore's passes.
"""

from __future__ import annotations

import ssl

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from archiver.errors import (
    AccessDenied,
    ArchiverError,
    BucketNotFound,
    ConfigError,
    IntegrityError,
    ObjectExists,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
)

CAUGHT: tuple[type[Exception], ...] = (
    boto.BotoCoreError,
    boto.ClientError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,  # TimeoutError is one
    ValueError,  # botocore's answer to an endpoint that is no URL
)

Answer = tuple[type[ArchiverError], str, str | None]

_CREDENTIALS = "Check the region's access key and secret, and that its policy allows this bucket."
_CLOCK = "Set this machine's clock: S3 refuses requests more than 15 minutes off."
_REGION = "Set aws_region to the region that the bucket is in."
_CREATE = "Create the bucket, or correct the region's url in the configuration."
_TLS = "The endpoint must speak TLS 1.3 with a certificate that the CA bundle (AWS_CA_BUNDLE) vouches for."

_MISSING: Answer = (ObjectNotFound, "no such object", None)
_NO_BUCKET: Answer = (BucketNotFound, "no such bucket", _CREATE)
_DENIED: Answer = (AccessDenied, "the store refuses these credentials", _CREDENTIALS)
_TAKEN: Answer = (ObjectExists, "the object is already there", None)
_ELSEWHERE: Answer = (StoreError, "the bucket is in another region", _REGION)
_BUSY: Answer = (StoreUnavailable, "the store asks to come back later", None)
_DOWN: Answer = (StoreUnavailable, "the store does not answer", None)
_CUT: Answer = (StoreUnavailable, "the store's answer broke off", None)
_NO_KEYS: Answer = (AccessDenied, "no credentials found for the store", _CREDENTIALS)
_SETTINGS: Answer = (ConfigError, "the region's settings cannot be used", "Check url, endpoint and aws_region.")
_REFUSED: Answer = (StoreError, "the store refuses the request", None)
_BAD_BUNDLE: Answer = (ConfigError, "the CA bundle cannot be read", "Check AWS_CA_BUNDLE.")

# docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BY_CODE: dict[str, Answer] = {
    "NoSuchKey": _MISSING,
    "NoSuchBucket": _NO_BUCKET,
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "ExpiredToken": _DENIED,
    "InvalidAccessKeyId": _DENIED,
    "InvalidToken": _DENIED,
    "SignatureDoesNotMatch": _DENIED,
    "RequestTimeTooSkewed": (AccessDenied, "the store refuses this machine's clock", _CLOCK),
    "PreconditionFailed": _TAKEN,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "PermanentRedirect": _ELSEWHERE,
    # Two conditional writes of one key at once: neither has won yet.
    "ConditionalRequestConflict": _BUSY,
    "OperationAborted": _BUSY,
    "InternalError": _BUSY,
    "RequestTimeout": _BUSY,
    "ServiceUnavailable": _BUSY,
    "SlowDown": _BUSY,
    "ThrottlingException": _BUSY,
    # The bytes changed on their way; the server kept none of them.
    "BadDigest": (StoreUnavailable, "the upload was damaged on its way", None),
    "XAmzContentChecksumMismatch": (StoreUnavailable, "the upload was damaged on its way", None),
    "IncompleteBody": (StoreUnavailable, "the upload broke off", None),
}

_BY_STATUS: dict[int, Answer] = {
    301: _ELSEWHERE,
    401: _DENIED,
    403: _DENIED,
    404: _MISSING,
    408: _BUSY,
    412: _TAKEN,
    429: _BUSY,
}

# The first match counts, so classes stand before their bases.
_BY_CLASS: tuple[tuple[type[Exception], Answer], ...] = (
    (boto.SSLError, (StoreError, "no secure connection to the store", _TLS)),
    (boto.FlexibleChecksumError, (IntegrityError, "the object does not match the checksum kept with it", None)),
    (boto.NoCredentialsError, _NO_KEYS),
    (boto.PartialCredentialsError, _NO_KEYS),
    (boto.NoAuthTokenError, _NO_KEYS),
    # A metadata or token service that fails today serves again: the daemon must outlive it.
    (boto.CredentialRetrievalError, (StoreUnavailable, "credentials could not be fetched", None)),
    (boto.MetadataRetrievalError, (StoreUnavailable, "credentials could not be fetched", None)),
    (boto.IncompleteReadError, _CUT),
    (boto.ResponseStreamingError, _CUT),
    (aiohttp.ClientPayloadError, _CUT),
    (ResponseParserError, _CUT),
    (boto.ConnectionError, _DOWN),
    (boto.HTTPClientError, _DOWN),
    (aiohttp.ClientError, _DOWN),
    (boto.BotoCoreError, _SETTINGS),
    (TimeoutError, _DOWN),
    (OSError, _DOWN),
    (ValueError, _SETTINGS),
)


# aiobotocore reads the CA bundle with the first request, and wraps what goes wrong as it does any surprise.
_UNREADABLE = (FileNotFoundError, IsADirectoryError, PermissionError, ssl.SSLError)


def classify(exc: Exception, where: str, *, bucket: bool = False) -> ArchiverError:
    """The error to raise for `exc`; with `bucket` a bare 404 is about the bucket, not an object."""
    cls, message, hint = _answer(exc)
    if bucket and cls is ObjectNotFound:
        cls, message, hint = _NO_BUCKET
    if cls in {StoreError, StoreUnavailable, ConfigError}:
        message = f"{message}: {_detail(exc)}"
    return cls(message, hint=hint, where=where)


def _answer(exc: Exception) -> Answer:
    if isinstance(exc, boto.ClientError):
        return _answer_of_server(exc)
    if isinstance(exc, boto.SSLError) and _broke_off(exc):
        return _DOWN
    if isinstance(exc, boto.HTTPClientError) and isinstance(exc.kwargs.get("error"), _UNREADABLE):
        return _BAD_BUNDLE
    return next((answer for cls, answer in _BY_CLASS if isinstance(exc, cls)), _REFUSED)


def _answer_of_server(exc: boto.ClientError) -> Answer:
    code = str(exc.response.get("Error", {}).get("Code", ""))
    status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if known := _BY_CODE.get(code) or _BY_STATUS.get(status):
        return known
    return _BUSY if status >= 500 else _REFUSED


def _broke_off(exc: boto.SSLError) -> bool:
    """Whether the handshake was cut (a server going down) rather than refused."""
    cause = exc.kwargs.get("error")
    error = getattr(cause, "os_error", cause)
    return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError)


def _detail(exc: Exception) -> str:
    text = str(exc)
    if isinstance(exc, boto.ClientError):
        error = exc.response.get("Error", {})
        text = f"{error.get('Code', '')} {error.get('Message', '')}"
    text = " ".join(text.split()) or type(exc).__name__
    return text.rstrip(".")
