"""Wherever AWS's SDK has an endpoint from, nothing goes in the clear beyond this machine."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.errors import ConfigError
from archiver.keys import open_kek
from archiver.store.s3 import S3Store
from tests.fake_kms import ARN, Kms, fake_kms

ELSEWHERE = "http://203.0.113.1:9000"  # an address that is nobody's (RFC 5737)
SECRET = bytes(range(32))


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in os.environ if name.upper().startswith(("AWS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


@pytest.fixture(autouse=True)
def nothing_leaves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No attempt to connect beyond this machine, not even one that would fail."""
    tried: list[object] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: tuple[str, int]) -> None:
        if isinstance(address, tuple) and not address[0].startswith(("127.", "::1")):
            tried.append(address)
            raise OSError("not from a test")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    yield
    assert tried == []


@pytest.fixture(params=["AWS_ENDPOINT_URL", "service variable", "profile", "services section"])
def plain_elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param == "AWS_ENDPOINT_URL":
        monkeypatch.setenv("AWS_ENDPOINT_URL", ELSEWHERE)
    elif request.param == "service variable":
        for service in ("KMS", "S3"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", ELSEWHERE)
    else:
        section = (
            f"services = all\n[services all]\nkms =\n  endpoint_url = {ELSEWHERE}\ns3 =\n  endpoint_url = {ELSEWHERE}\n"
        )
        text = f"[default]\n{f'endpoint_url = {ELSEWHERE}' if request.param == 'profile' else section}\n"
        (tmp_path / "aws").write_text(text)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))


@pytest.mark.usefixtures("plain_elsewhere")
async def test_a_data_key_is_not_sent_to_kms_in_the_clear() -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="in the clear") as refused:
            await open_kek(f"aws-kms:{ARN}").wrap(SECRET, b"")
        assert "AWS_ENDPOINT_URL" in str(refused.value.hint)


@pytest.mark.usefixtures("plain_elsewhere")
async def test_nothing_is_sent_to_a_bucket_in_the_clear() -> None:
    store = bucket()
    with pytest.raises(ConfigError, match="in the clear"):
        await store.put("k", b"x")
    await store.close()


def bucket() -> S3Store:
    return S3Store("fra", "bucket", "", aws_region="eu-west-1", endpoint=None, access_key=None, secret_key=None)


@pytest.mark.parametrize("what", ["kms", "s3"])
async def test_nor_are_the_credentials_that_are_fetched_for_it(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """STS trades a token, which is as good as a password, for keys: a client that nobody but botocore makes."""
    (tmp_path / "token").write_text("token")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/archiver")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", ELSEWHERE)
    with pytest.raises(ConfigError, match="in the clear"):
        if what == "kms":
            await open_kek(f"aws-kms:{ARN}").wrap(SECRET, b"")
        else:
            store = bucket()
            try:
                await store.put("k", b"x")
            finally:
                await store.close()


@pytest.fixture
def kms() -> Iterator[Kms]:
    with fake_kms() as server:
        yield server


async def test_what_is_plain_to_this_machine_does_not_go_by_way_of_a_proxy(
    kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", kms.url)
    monkeypatch.setenv("HTTP_PROXY", ELSEWHERE)
    kek = open_kek(f"aws-kms:{ARN}")
    assert await kek.unwrap(await kek.wrap(SECRET, b""), b"") == SECRET
    asked = await asyncio.start_server(_answer, "127.0.0.1", 0)
    port = asked.sockets[0].getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    store = bucket()
    await store.put("k", b"x")
    await store.close()
    asked.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()
