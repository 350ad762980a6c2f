"""A region in an S3 bucket, or in a server that speaks S3.

In: keys and whole objects. Out: the same, or an error of archiver.errors. One request an operation, a SHA-256
checksum with each upload, TLS 1.3 at least. Never retries (see retry.py), never sends anything in the clear
beyond this machine unless told to in so many words.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.loaders import Loader

from archiver.endpoints import guard, is_loopback, is_plain, require_private
from archiver.errors import ConfigError, ObjectNotFound, StoreError
from archiver.store.base import Entry, Limit, no_limit, require_within
from archiver.store.s3_errors import CAUGHT, classify
from archiver.store.s3_rules import lifecycle_hazards, retention_hazards

CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=30)
POOL = 32
# Hashing 1 MiB takes about a millisecond; above that the event loop should not wait for it.
INLINE_HASH = 1 << 20
READ_CHUNK = 1 << 20
# No socket timeout covers a peer that stops reading, so a transfer is also bounded as a whole: slower than
# this, in bytes a second, counts as unavailable.
SLOWEST = 128 << 10


class S3Store:
    """A Store in `bucket` under `prefix`; `name` is the region's name in the configuration.

    Without `endpoint` it is AWS in `aws_region`. Credentials that are None come as botocore finds them. `ca_bundle`
    is a file of certificates to trust instead of botocore's (or AWS_CA_BUNDLE). Plain http is refused except to
    loopback, or with `allow_plaintext`. Raises ConfigError for an endpoint that cannot be used.

    With `allowed_regions` nothing is read or written before AWS has said that the bucket is in one of them; a
    ConfigError says that it is not.
    """

    def __init__(
        self,
        name: str,
        bucket: str,
        prefix: str,
        *,
        aws_region: str | None,
        endpoint: str | None,
        access_key: str | None,
        secret_key: str | None,
        ca_bundle: str | None = None,
        allow_plaintext: bool = False,
        allowed_regions: Collection[str] = (),
        read_timeout: timedelta = READ_TIMEOUT,
        page_size: int = 1000,
        limit: Limit = no_limit,
    ) -> None:
        if endpoint:
            require_private(endpoint, name, allow_plaintext=allow_plaintext)
        self._name = name
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._allow_plaintext = allow_plaintext
        self._read_timeout = read_timeout
        self._page_size = page_size
        self._limit = limit
        # What a server with an endpoint of its own says of its region is rarely a place.
        self._unconfirmed = () if endpoint else allowed_regions
        self._settings: dict[str, Any] = {
            # A server with an endpoint of its own rarely cares for the region, but the signature needs one.
            "region_name": aws_region or ("us-east-1" if endpoint else None),
            "endpoint_url": endpoint,
            "aws_access_key_id": access_key,
            "aws_secret_access_key": secret_key,
            "verify": ca_bundle,
            "config": _client_config(endpoint, read_timeout),
        }
        self._lock = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._client: Any = None

    @property
    def name(self) -> str:
        return self._name

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        checksum = await _sha256(data)
        await self._call(
            "put_object",
            key,
            seconds=self._patience(len(data)),
            Key=self._prefix + key,
            Body=data,
            ChecksumSHA256=checksum,
            **condition,
        )

    async def get(self, key: str, *, most: int | None = None) -> bytes:
        response = await self._call("get_object", key, Key=self._prefix + key, ChecksumMode="ENABLED")
        patience = self._patience(response["ContentLength"])
        async with self._boundary(key, seconds=patience), response["Body"] as body:
            require_within(self._limit(key) if most is None else most, response["ContentLength"], self._where(key))
            # In pieces, because botocore checks the checksum as it reads, on the event loop.
            return b"".join([chunk async for chunk in body.iter_chunks(READ_CHUNK)])

    async def size(self, key: str) -> int | None:
        try:
            response = await self._call("head_object", key, Key=self._prefix + key)
        except ObjectNotFound:
            # A HEAD does not say what is missing, and "no such object" must not hide a missing bucket.
            await self.check()
            return None
        return int(response["ContentLength"])

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Entry]:
        if start_after > prefix and not start_after.startswith(prefix):
            return  # all keys with this prefix sort before it
        page: dict[str, Any] = {"Prefix": self._prefix + prefix, "MaxKeys": self._page_size}
        if start_after > prefix:
            page["StartAfter"] = self._prefix + start_after
        last = start_after
        while page:
            response = await self._call("list_objects_v2", prefix, **page)
            for item in response.get("Contents", ()):
                entry = Entry(item["Key"].removeprefix(self._prefix), int(item["Size"]))
                if not entry.key:
                    continue  # what a console makes to show a folder
                last = self._in_order(entry.key, after=last)
                yield entry
            token = response.get("NextContinuationToken") if response.get("IsTruncated") else None
            page = {**page, "ContinuationToken": token} if token else {}

    async def delete(self, key: str) -> None:
        await self._call("delete_object", key, Key=self._prefix + key)

    async def check(self) -> None:
        await self._call("head_bucket", "", bucket=True)

    async def hazards(self) -> Sequence[str]:
        """What the bucket's own rules would do to what is under the prefix. Raises StoreError if it does not tell."""
        lifecycle = await self._ask_rules("get_bucket_lifecycle_configuration")
        lock = await self._ask_rules("get_object_lock_configuration")
        return [*lifecycle_hazards(lifecycle, self._prefix), *retention_hazards(lock)]

    async def _ask_rules(self, operation: str) -> Any:
        try:
            return await self._call(operation, "")
        except ObjectNotFound:  # S3's answer where there are none
            return {}

    async def close(self) -> None:
        async with self._lock:
            self._client = None
            await self._stack.aclose()

    async def _call(
        self, operation: str, key: str, *, bucket: bool = False, seconds: float | None = None, **parameters: Any
    ) -> Any:
        async with self._boundary(key, bucket=bucket, seconds=seconds or self._patience(0)):
            client = await self._connected()
            return await getattr(client, operation)(Bucket=self._bucket, **parameters)

    async def _connected(self) -> Any:
        async with self._lock:
            if self._client is None:
                self._client = await self._connect()
            if self._unconfirmed:
                await self._confirm_region(self._unconfirmed)
                self._unconfirmed = ()
            return self._client

    async def _connect(self) -> Any:
        session = AioSession()
        session.register_component("data_loader", _data_loader())
        guard(session, self._name, plaintext_for="s3" if self._allow_plaintext else None)
        client = await self._stack.enter_async_context(session.create_client("s3", **self._settings))
        # Without an endpoint of ours botocore may have found one in the environment or in AWS's files.
        require_private(client.meta.endpoint_url, self._name, allow_plaintext=self._allow_plaintext)
        if is_plain(client.meta.endpoint_url) and self._settings["config"].proxies is None:
            config = self._settings["config"].merge(AioConfig(proxies={}))
            client = await self._stack.enter_async_context(
                session.create_client("s3", **self._settings | {"config": config})
            )
        return client

    async def _confirm_region(self, allowed: Collection[str]) -> None:
        """botocore follows a bucket to whatever region it is in."""
        async with self._boundary("", bucket=True, seconds=self._patience(0)):
            response = await self._client.head_bucket(Bucket=self._bucket)
        region = response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        if region is not None and region not in allowed:
            raise ConfigError(
                f"the bucket is in {region}, which residency.allowed does not list",
                where=self._where(""),
                hint=f"Allowed are: {', '.join(sorted(allowed))}. Use a bucket there, or allow {region}.",
            )

    @asynccontextmanager
    async def _boundary(self, key: str, *, seconds: float, bucket: bool = False) -> AsyncIterator[None]:
        """Bounds the time of what runs inside, and lets only errors of archiver.errors out."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except CAUGHT as exc:
            raise classify(exc, self._where(key), bucket=bucket) from exc

    def _patience(self, size: int) -> float:
        """How many seconds a transfer of `size` bytes may take in all."""
        return (CONNECT_TIMEOUT + self._read_timeout).total_seconds() + size / SLOWEST

    def _in_order(self, key: str, *, after: str) -> str:
        """Refuse a listing out of order: who resumes after a key, or stops at one, would miss objects."""
        if key <= after:
            raise StoreError(f"the store lists keys out of byte order, after {after!r}", where=self._where(key))
        return key

    def _where(self, key: str) -> str:
        return f"{self._name}: {key}" if key else f"{self._name}: bucket {self._bucket}"


class _Tls13Session(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """aiobotocore's HTTP session, refusing anything older than TLS 1.3.

    It overrides the one method that makes the context, before verification is set on it, because a context given
    through `connector_args` clashes with the one that aiobotocore always builds.
    """

    def _get_ssl_context(self) -> ssl.SSLContext:
        context: ssl.SSLContext = super()._get_ssl_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


@cache
def _data_loader() -> Loader:
    """botocore's descriptions of services and endpoints, parsed once a process: it takes longer than most requests."""
    return AioSession().get_component("data_loader")


def _client_config(endpoint: str | None, read_timeout: timedelta) -> AioConfig:
    return AioConfig(
        http_session_cls=_Tls13Session,
        connect_timeout=CONNECT_TIMEOUT.total_seconds(),
        read_timeout=read_timeout.total_seconds(),
        max_pool_connections=POOL,
        retries={"mode": "standard", "total_max_attempts": 1},
        # The body is not hashed a second time for the signature: it signs the header with our checksum.
        s3={"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # What may go in the clear to loopback must not pass through a proxy from the environment.
        proxies={} if endpoint and is_loopback(endpoint) else None,
    )


async def _sha256(data: bytes) -> str:
    """The checksum as S3 wants it. A large one is made in a thread: hashlib lets go of the GIL."""
    make = hashlib.sha256
    digest = make(data) if len(data) <= INLINE_HASH else await asyncio.to_thread(make, data)
    return base64.b64encode(digest.digest()).decode("ascii")
