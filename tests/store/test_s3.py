"""How the S3 adapter fails: every way a server, a network or a setting can be wrong has one name."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore import exceptions as boto

from archiver.embedded import S3Server, Tls
from archiver.errors import (
    AccessDenied,
    ArchiverError,
    BucketNotFound,
    ConfigError,
    IntegrityError,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
)
from archiver.store import s3
from archiver.store.retry import Retry
from archiver.store.s3 import S3Store
from archiver.store.s3_errors import classify
from tests.fix_servers import MakeBucket, s3_store


def store_at(endpoint: str | None, **options: Any) -> S3Store:
    settings = {"aws_region": None, "access_key": "key", "secret_key": "secret", **options}
    return S3Store("primary", "bucket", "archive", endpoint=endpoint, **settings)


async def every_call_says(error: type[ArchiverError], store: S3Store) -> ArchiverError:
    async def listing() -> list[object]:
        return [entry async for entry in store.list("")]

    calls: list[Callable[[], Awaitable[object]]] = [
        store.check,
        lambda: store.put("k", b"x"),
        lambda: store.put("k", b"x", if_absent=True),
        lambda: store.get("k"),
        lambda: store.size("k"),
        lambda: store.delete("k"),
        listing,
    ]
    for call in calls:
        with pytest.raises(error) as caught:
            await call()
        assert type(caught.value) is error
        assert store.name in (caught.value.where or "")
    await store.close()
    return caught.value


async def test_a_wrong_secret_is_access_denied(s3_servers: tuple[S3Server, S3Server], make_bucket: MakeBucket) -> None:
    server = SimpleNamespace(
        endpoint=s3_servers[0].endpoint, access_key=s3_servers[0].access_key, secret_key="wrong", tls=None
    )
    error = await every_call_says(AccessDenied, s3_store(server, make_bucket()))  # type: ignore[arg-type]
    assert error.hint


async def test_an_unknown_access_key_is_access_denied(
    s3_servers: tuple[S3Server, S3Server], make_bucket: MakeBucket
) -> None:
    server = SimpleNamespace(endpoint=s3_servers[0].endpoint, access_key="nobody", secret_key="x", tls=None)
    await every_call_says(AccessDenied, s3_store(server, make_bucket()))  # type: ignore[arg-type]


async def test_a_missing_bucket_is_told_from_a_missing_object(s3_servers: tuple[S3Server, S3Server]) -> None:
    store = s3_store(s3_servers[0], "no-such-bucket")
    for call in (store.check(), store.put("k", b"x"), store.get("k"), store.size("k")):
        with pytest.raises(BucketNotFound) as caught:
            await call
        assert "Create the bucket" in (caught.value.hint or "")
    await store.close()


async def test_a_server_that_stopped_is_unavailable_and_serves_again(own_s3_server: S3Server) -> None:
    store = s3_store(own_s3_server, "archive")
    await store.put("k", b"kept")
    own_s3_server.kill()
    error = await every_call_says(StoreUnavailable, store)
    assert error.transient
    own_s3_server.start()
    again = Retry(s3_store(own_s3_server, "archive"), deadline=timedelta(seconds=30))  # its volumes come a little later
    assert await again.get("k") == b"kept"
    await again.close()


async def test_a_server_that_hangs_is_unavailable(own_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CONNECT_TIMEOUT", timedelta(seconds=0.2))
    store = store_at(own_s3_server.endpoint, read_timeout=timedelta(seconds=0.3))
    own_s3_server.freeze()
    try:
        with pytest.raises(StoreUnavailable):
            await store.get("k")
        # A peer that stops reading: the body does not fit into socket buffers, and no socket timeout covers writing.
        monkeypatch.setattr(s3, "SLOWEST", 1 << 30)
        with pytest.raises(StoreUnavailable):
            await store.put("k", bytes(32 << 20))
    finally:
        own_s3_server.thaw()
        await store.close()


async def test_keys_are_kept_below_the_prefix_and_nothing_beside_it_is_listed(
    s3_servers: tuple[S3Server, S3Server], make_bucket: MakeBucket
) -> None:
    bucket = make_bucket()
    ours, theirs = s3_store(s3_servers[0], bucket, "shop"), s3_store(s3_servers[0], bucket, "shop2")
    await ours.put("k", b"ours")
    await theirs.put("k", b"theirs")
    assert s3_servers[0].client().get_object(Bucket=bucket, Key="shop/k")["Body"].read() == b"ours"
    assert [entry.key async for entry in ours.list("")] == ["k"]
    await ours.close()
    await theirs.close()


async def test_an_upload_damaged_on_its_way_is_refused_by_the_server(
    s3_servers: tuple[S3Server, S3Server], make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_store(s3_servers[0], make_bucket())

    async def checksum_of_something_else(_: bytes) -> str:
        return "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="

    monkeypatch.setattr(s3, "_sha256", checksum_of_something_else)
    with pytest.raises(StoreUnavailable):
        await store.put("k", b"data")
    assert await store.size("k") is None
    await store.close()


async def test_a_listing_out_of_byte_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """SeaweedFS lists a/1 before a-1; who resumed after a/1 would never see a-1."""

    class Client:
        async def list_objects_v2(self, **_: object) -> dict[str, object]:
            return {"Contents": [{"Key": "archive/a/1", "Size": 1}, {"Key": "archive/a-1", "Size": 1}]}

    async def connected(_: S3Store) -> Client:
        return Client()

    monkeypatch.setattr(S3Store, "_connected", connected)
    with pytest.raises(StoreError, match="byte order"):
        [entry async for entry in store_at("http://127.0.0.1:1").list("")]


async def test_a_listing_follows_every_page(s3_servers: tuple[S3Server, S3Server], make_bucket: MakeBucket) -> None:
    server = s3_servers[0]
    store = S3Store(
        "primary",
        make_bucket(),
        "",
        aws_region=None,
        endpoint=server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        page_size=3,
    )
    names = [f"k{number}" for number in range(10)]
    for name in names:
        await store.put(name, b"x")
    assert [entry.key async for entry in store.list("k")] == names
    assert [entry.key async for entry in store.list("k", start_after="k4")] == names[5:]
    await store.close()


@pytest.mark.parametrize("endpoint", ["http://192.0.2.1:9000", "http://store.internal", "http://127.0.0.1.evil.test"])
def test_plain_http_beyond_this_machine_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="in the clear"):
        store_at(endpoint)
    store_at(endpoint, allow_plaintext=True)


async def test_plain_http_from_the_environment_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://203.0.113.1:9000")  # an address that is nobody's
    store = store_at(None, aws_region="eu-west-1")
    for _ in range(2):
        with pytest.raises(ConfigError, match="in the clear"):
            await store.put("k", b"x")
    await store.close()


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9000", "http://127.9.9.9", "http://[::1]:9000", "http://localhost"]
)
def test_plain_http_to_this_machine_is_allowed(endpoint: str) -> None:
    store_at(endpoint)


@pytest.mark.parametrize("endpoint", ["ftp://127.0.0.1", "127.0.0.1:9000"])
def test_an_endpoint_that_is_no_http_url_is_a_configuration_error(endpoint: str) -> None:
    with pytest.raises(ConfigError):
        store_at(endpoint)


@pytest.mark.parametrize(("place", "refused"), [("us-east-1", True), ("eu-west-1", False)])
async def test_a_bucket_that_aws_says_is_elsewhere_is_neither_read_nor_written(
    monkeypatch: pytest.MonkeyPatch, place: str, refused: bool
) -> None:
    """AWS cannot run here: a bare HTTP answer stands in for it, reached as botocore lets one replace it."""
    answer = f"HTTP/1.1 200 OK\r\nx-amz-bucket-region: {place}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    answers: list[bytes] = []

    def reply(connection: socket.socket) -> None:
        answers.append(answer.encode())
        connection.sendall(answers[-1])

    with tcp_server(reply) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        store = store_at(None, aws_region="eu-west-1", allowed_regions=["eu-central-1", "eu-west-1"])
        if refused:
            for _ in range(2):
                with pytest.raises(ConfigError, match="bucket is in us-east-1, which residency"):
                    await store.put("k", b"x")
            assert len(answers) == 2  # the HEAD, each time
        else:
            await store.put("k", b"x")
            await store.put("k", b"x")
            assert len(answers) == 3
        await store.close()


async def test_a_bucket_that_is_missing_is_so_where_its_region_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with tcp_server(
        lambda connection: connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    ) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        store = store_at(None, aws_region="eu-west-1", allowed_regions=["eu-west-1"])
        await every_call_says(BucketNotFound, store)


async def test_a_server_below_tls_1_3_is_refused(tls: Tls) -> None:
    with tls_server(tls, ssl.TLSVersion.TLSv1_2) as port:
        store = store_at(f"https://127.0.0.1:{port}", ca_bundle=str(tls.ca))
        with pytest.raises(StoreError, match="secure connection") as caught:
            await store.check()
        assert not caught.value.transient
        assert "TLS 1.3" in (caught.value.hint or "")
        await store.close()


async def test_the_same_server_at_tls_1_3_is_spoken_to(tls: Tls) -> None:
    with tls_server(tls, ssl.TLSVersion.TLSv1_3) as port:
        store = store_at(f"https://127.0.0.1:{port}", ca_bundle=str(tls.ca))
        await store.check()
        await store.close()


async def test_a_certificate_of_an_unknown_authority_is_refused(s3_tls_server: S3Server) -> None:
    store = store_at(s3_tls_server.endpoint)
    with pytest.raises(StoreError, match="secure connection") as caught:
        await store.check()
    assert not caught.value.transient
    await store.close()


async def test_the_ca_bundle_of_the_environment_counts(
    s3_tls_server: S3Server, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.ca))
    store = store_at(s3_tls_server.endpoint, access_key=s3_tls_server.access_key)
    with pytest.raises(AccessDenied):  # that is: TLS was fine
        await store.get("k")
    await store.close()


async def test_no_credentials_anywhere_is_access_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    store = store_at("http://127.0.0.1:1", access_key=None, secret_key=None)
    with pytest.raises(AccessDenied) as caught:
        await store.check()
    assert caught.value.hint
    await store.close()


async def test_a_missing_ca_bundle_is_a_configuration_error() -> None:
    store = store_at("https://127.0.0.1:1", ca_bundle="/no/such/file.pem")
    with pytest.raises(ConfigError):
        await store.check()
    await store.close()


async def test_a_body_that_breaks_off_is_unavailable() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"
    with tcp_server(lambda connection: connection.sendall(answer)) as port:
        store = store_at(f"http://127.0.0.1:{port}")
        with pytest.raises(StoreUnavailable):
            await store.get("k")
        await store.close()


async def test_a_body_that_does_not_match_its_checksum_is_altered() -> None:
    checksum = b"x-amz-checksum-sha256: 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\r\n"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n" + checksum + b"\r\nbody"
    with tcp_server(lambda connection: connection.sendall(answer)) as port:
        store = store_at(f"http://127.0.0.1:{port}")
        with pytest.raises(IntegrityError, match="checksum"):
            await store.get("k")
        await store.close()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "NoSuchKey", ObjectNotFound),
        (404, "404", ObjectNotFound),
        (404, "NoSuchBucket", BucketNotFound),
        (403, "403", AccessDenied),
        (400, "ExpiredToken", AccessDenied),
        (403, "SomethingNew", AccessDenied),
        (409, "ConditionalRequestConflict", StoreUnavailable),
        (503, "SlowDown", StoreUnavailable),
        (500, "", StoreUnavailable),
        (599, "SomethingNew", StoreUnavailable),
        (400, "RequestTimeout", StoreUnavailable),
        (400, "SomethingNew", StoreError),
    ],
)
def test_each_answer_of_a_server_has_one_error(status: int, code: str, expected: type[StoreError]) -> None:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(classify(boto.ClientError(response, "GetObject"), "primary: k")) is expected


def test_a_bare_404_about_a_bucket_is_a_missing_bucket() -> None:
    response = {"Error": {"Code": "404"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    assert type(classify(boto.ClientError(response, "HeadBucket"), "primary", bucket=True)) is BucketNotFound


def test_a_handshake_that_was_cut_may_work_again_but_one_refused_will_not() -> None:
    def error(cause: Exception) -> ArchiverError:
        return classify(boto.SSLError(endpoint_url="https://x", error=cause), "primary")

    assert error(ssl.SSLEOFError()).transient
    assert not error(ssl.SSLCertVerificationError()).transient


@contextmanager
def tcp_server(answer: Callable[[socket.socket], None], wrap: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on loopback that reads one request and answers with whatever `answer` sends."""
    listener = socket.create_server((str(ipaddress.IPv4Address("127.0.0.1")), 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with wrap.wrap_socket(connection, server_side=True) if wrap else connection as stream:
                    stream.recv(65536)
                    answer(stream)
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@contextmanager
def tls_server(tls: Tls, version: ssl.TLSVersion) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert, tls.key)
    context.minimum_version = context.maximum_version = version
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with tcp_server(lambda connection: connection.sendall(answer), context) as port:
        yield port
