"""Keys that AWS KMS wraps: a real client over HTTP, against a stand-in for the service, which cannot run here."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from archiver.errors import AccessDenied, IntegrityError, StoreUnavailable, WrongKey
from archiver.format.wrap import Wrap
from archiver.keys import PatientKek, open_kek
from tests.fake_kms import ARN, Kms, fake_kms
from tests.fix_archive import MakeSetup

SECRET = bytes(range(32))


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kms]:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):  # the region is in the key's ARN
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with fake_kms() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", server.url)
        yield server


async def test_an_archive_whose_keys_are_in_kms_is_written_and_restored(kms: Kms, make_setup: MakeSetup) -> None:
    setup = make_setup(encryption={"keys": [f"aws-kms:{ARN}"]})
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)")
        await setup.init()
        kms.refusals = [(500, "KMSInternalException")] * 4  # more than the client asks again by itself
        async with setup.daemon():
            conn.execute("INSERT INTO item VALUES (2)")
            await setup.archived()
    dsn, _ = await setup.restore()
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT id FROM item ORDER BY id").fetchall() == [(1,), (2,)]
    assert {operation for operation, _ in kms.asked} == {"Encrypt", "Decrypt"}


async def test_each_wrap_is_bound_to_its_archive_and_key(kms: Kms) -> None:
    kek = open_kek(f"aws-kms:{ARN}")
    record = await kek.wrap(SECRET, b"archive 1, key 2026-11-22")
    assert await kek.unwrap(record, b"archive 1, key 2026-11-22") == SECRET
    with pytest.raises(WrongKey, match="InvalidCiphertext"):
        await kek.unwrap(record, b"archive 1, key 2026-11-23")
    with pytest.raises(IntegrityError, match="altered"):
        await kek.unwrap(Wrap(kek=record.kek, ciphertext="%"), b"archive 1, key 2026-11-22")


async def test_a_key_that_is_not_there_is_the_wrong_one(kms: Kms) -> None:
    with pytest.raises(WrongKey, match="NotFound"):
        await open_kek(f"aws-kms:{ARN}x").wrap(SECRET, b"")


@pytest.mark.parametrize("code", ["AccessDeniedException", "DisabledException", "ExpiredTokenException"])
async def test_a_refusal_may_be_mended_and_says_nothing_of_the_archive(kms: Kms, code: str) -> None:
    kms.refusals = [(400, code)]
    with pytest.raises(AccessDenied, match=code) as refused:
        await open_kek(f"aws-kms:{ARN}").wrap(SECRET, b"")
    assert refused.value.exit_code == 4


async def test_without_credentials_kms_cannot_be_asked(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(AccessDenied, match="credentials"):
        await open_kek(f"aws-kms:{ARN}").wrap(SECRET, b"")


@pytest.mark.parametrize("refusal", [(500, "KMSInternalException"), (400, "ThrottlingException")])
async def test_a_silent_kms_ends_a_command_and_not_a_daemon(kms: Kms, refusal: tuple[int, str]) -> None:
    kek = open_kek(f"aws-kms:{ARN}")
    kms.refusals = [refusal] * 3
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await kek.wrap(SECRET, b"")
    kms.refusals = [refusal] * 3
    record = await PatientKek(kek).wrap(SECRET, b"")
    assert await PatientKek(kek).unwrap(record, b"") == SECRET


async def test_a_kms_that_cannot_be_reached_is_silent(monkeypatch: pytest.MonkeyPatch, kms: Kms) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await open_kek(f"aws-kms:{ARN}").wrap(SECRET, b"")
