"""A KEK inside AWS KMS: it never leaves there, and wraps and unwraps data keys for whoever its policy lets.

In: a key's ARN, with credentials where botocore finds them. Out: wraps. What KMS answers is told apart: it may be
asked again, it does not let us in, or the key is the wrong one. Nothing goes in the clear beyond this machine.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any, Final

from archiver.endpoints import guard, is_plain, require_private
from archiver.errors import AccessDenied, ArchiverError, IntegrityError, StoreUnavailable, WrongKey
from archiver.format import wrap as wrapping

_WRONG_KEY: Final = frozenset(
    {"IncorrectKeyException", "InvalidCiphertextException", "InvalidKeyUsageException", "NotFoundException"}
)
_PASSING: Final = frozenset(
    {"DependencyTimeoutException", "KeyUnavailableException", "KMSInternalException", "LimitExceededException",
     "ThrottlingException"}
)  # fmt: skip


class KmsKek:
    """The encryption context binds each wrap to its archive and key."""

    def __init__(self, arn: str) -> None:
        self._arn = arn
        self._client: Any = None

    def owns(self, record: wrapping.Wrap) -> bool:
        return record.kek == f"aws-kms:{self._arn}"

    async def wrap(self, secret: bytes, context: bytes) -> wrapping.Wrap:
        answer = await asyncio.to_thread(self._call, "encrypt", context, Plaintext=secret)
        return wrapping.Wrap(kek=f"aws-kms:{self._arn}", ciphertext=base64.b64encode(answer["CiphertextBlob"]).decode())

    async def unwrap(self, record: wrapping.Wrap, context: bytes) -> bytes:
        try:
            blob = base64.b64decode(record.ciphertext, validate=True)
        except binascii.Error:
            raise IntegrityError("the wrapped key was altered", where=record.kek) from None
        answer = await asyncio.to_thread(self._call, "decrypt", context, CiphertextBlob=blob)
        return bytes(answer["Plaintext"])

    def _call(self, operation: str, context: bytes, **arguments: bytes) -> dict[str, Any]:
        import botocore.exceptions as failures  # noqa: PLC0415 - as below

        try:
            if self._client is None:
                self._client = self._connect()
            call = getattr(self._client, operation)
            return dict(call(KeyId=self._arn, EncryptionContext={"archiver": context.decode()}, **arguments))
        except _silences(failures) as exc:
            raise StoreUnavailable(f"AWS KMS does not answer: {exc}", where=self._arn) from exc
        except failures.ClientError as exc:
            raise self._refusal(exc) from exc
        except failures.BotoCoreError as exc:
            hint = "Give credentials where botocore looks for them: the environment, a profile, the instance's role."
            raise AccessDenied(f"AWS KMS cannot be asked: {exc}", where=self._arn, hint=hint) from exc

    def _connect(self) -> Any:
        """Nothing is asked before it is known where the questions would go: `encrypt` carries a key in the clear."""
        import botocore.session  # noqa: PLC0415 - slow to import, and only wanted with KMS
        from botocore.config import Config  # noqa: PLC0415

        parts = self._arn.split(":")
        session = botocore.session.Session()
        guard(session, self._arn)
        region = parts[3] if len(parts) > 3 else None
        options = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
        client = session.create_client("kms", region_name=region, config=options)
        require_private(client.meta.endpoint_url, self._arn)
        if is_plain(client.meta.endpoint_url):  # to this machine, and not by way of a proxy elsewhere
            client = session.create_client("kms", region_name=region, config=options.merge(Config(proxies={})))
        return client

    def _refusal(self, error: Any) -> ArchiverError:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if code in _PASSING or status >= 500:
            return StoreUnavailable(f"AWS KMS does not answer: {error}", where=self._arn)
        if code in _WRONG_KEY:
            return WrongKey(
                f"AWS KMS refuses: {error}", where=self._arn, hint="Give the key that wrapped the archive's."
            )
        return AccessDenied(f"AWS KMS refuses: {error}", where=self._arn, hint="Check the key's policy and its state.")


def _silences(failures: Any) -> tuple[type[Exception], ...]:
    """What passes: a network that is down, and a metadata service that serves credentials again."""
    return (
        failures.HTTPClientError,
        failures.ConnectionError,
        failures.CredentialRetrievalError,
        failures.MetadataRetrievalError,
    )
