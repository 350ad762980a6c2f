"""Wrapped keys: only the right KEK opens them, only in their own place, and a key never shows in a message."""

from __future__ import annotations

import base64
import json
from uuid import UUID

import pytest

from archiver.errors import ConfigError, IntegrityError, WrongKey
from archiver.format import wrap as w

ARCHIVE = UUID(int=5)
SECRET = bytes(range(32))
KEK = bytes(range(100, 132))
CONTEXT = w.wrap_context(ARCHIVE, "changes-2026-11-22", "changes")


def wrapped(**changed: str) -> w.Wrap:
    return w.wrap(SECRET, KEK, CONTEXT).model_copy(update=changed)


def test_the_kek_that_wrapped_a_key_opens_it() -> None:
    assert w.unwrap(wrapped(), KEK, CONTEXT) == SECRET


def test_the_same_key_is_never_wrapped_to_the_same_bytes() -> None:
    first, second = wrapped(), wrapped()
    assert first.kek == second.kek
    assert len({first.salt, second.salt, first.ciphertext, second.ciphertext, first.commitment, second.commitment}) == 6


def test_another_kek_is_told_apart_from_damage() -> None:
    with pytest.raises(WrongKey, match="does not open"):
        w.unwrap(wrapped(), bytes(32), CONTEXT)


def test_an_altered_ciphertext_is_damage_and_not_a_wrong_key() -> None:
    record = wrapped()
    altered = "00" + record.ciphertext[2:] if record.ciphertext[:2] != "00" else "01" + record.ciphertext[2:]
    with pytest.raises(IntegrityError, match="altered") as refused:
        w.unwrap(record.model_copy(update={"ciphertext": altered}), KEK, CONTEXT)
    assert not isinstance(refused.value, WrongKey)


@pytest.mark.parametrize("field", ["salt", "commitment", "ciphertext"])
def test_every_single_bit_change_is_refused(field: str) -> None:
    record = wrapped()
    value = bytes.fromhex(getattr(record, field))
    for position in range(len(value) * 8):
        changed = bytearray(value)
        changed[position // 8] ^= 1 << (position % 8)
        with pytest.raises(IntegrityError):
            w.unwrap(record.model_copy(update={field: changed.hex()}), KEK, CONTEXT)


@pytest.mark.parametrize("field", ["salt", "commitment", "ciphertext"])
@pytest.mark.parametrize("value", ["", "zz", "0"])
def test_a_field_that_is_cut_or_not_hexadecimal_is_refused(field: str, value: str) -> None:
    with pytest.raises(IntegrityError):
        w.unwrap(wrapped(**{field: value}), KEK, CONTEXT)


@pytest.mark.parametrize(
    "context",
    [
        w.wrap_context(UUID(int=6), "changes-2026-11-22", "changes"),
        w.wrap_context(ARCHIVE, "changes-2026-11-23", "changes"),
        w.wrap_context(ARCHIVE, "changes-2026-11-22", "snapshots"),
    ],
)
def test_a_wrapped_key_opens_only_in_its_own_place(context: bytes) -> None:
    with pytest.raises(IntegrityError):
        w.unwrap(wrapped(), KEK, context)


# --- keys/<key id>.json ---


def stored() -> bytes:
    return w.WrappedKey(archive=ARCHIVE, key_id="changes-2026-11-22", purpose="changes", wraps=(wrapped(),)).encode()


def test_a_record_is_read_as_it_was_written() -> None:
    record = w.parse_wrapped(stored(), ARCHIVE, "changes-2026-11-22")
    assert record.encode() == w.parse_wrapped(record.encode(), None, "changes-2026-11-22").encode()
    assert w.unwrap(record.wraps[0], KEK, record.context()) == SECRET


def test_a_record_of_another_archive_or_name_is_refused() -> None:
    for archive, key_id in [(UUID(int=6), "changes-2026-11-22"), (ARCHIVE, "changes-2026-11-23")]:
        with pytest.raises(IntegrityError, match="belongs elsewhere"):
            w.parse_wrapped(stored(), archive, key_id)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        stored()[:-1],
        json.dumps(json.loads(stored()) | {"format": 2}).encode(),
        json.dumps(json.loads(stored()) | {"purpose": "other"}).encode(),
        json.dumps(json.loads(stored()) | {"more": 1}).encode(),
    ],
)
def test_a_damaged_record_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        w.parse_wrapped(data, ARCHIVE, "changes-2026-11-22")


# --- the text form ---


def test_a_key_file_reads_back_with_comments_and_empty_lines() -> None:
    assert w.parse_kek(w.format_kek(KEK) + "\n", "file:x") == KEK
    assert w.parse_kek(f"# the shop's key\n\n{w.format_kek(KEK)}\n\n", "file:x") == KEK


def test_new_keys_differ() -> None:
    assert w.new_kek() != w.new_kek()
    assert len(w.new_kek()) == 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        w.format_kek(KEK)[:-4],
        w.format_kek(KEK + b"x"),
        w.format_kek(KEK) + "\n" + w.format_kek(KEK),
        w.format_kek(KEK).replace("kek-1", "kek-2"),
        w.format_kek(KEK).replace("=", "!"),
        "archiver-kek-1:" + KEK.hex(),
    ],
)
def test_what_is_no_key_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="not a key") as refused:
        w.parse_kek(text, "env:KEK")
    told = f"{refused.value} {refused.value.hint} {refused.value.__cause__} {refused.value.args}"
    secret = base64.b64encode(KEK).decode()
    assert not any(secret[at : at + 8] in told for at in range(0, 36, 4))
    assert KEK.hex()[:8] not in told
    assert refused.value.where == "env:KEK"


def test_a_kek_id_says_nothing_of_the_key() -> None:
    assert w.kek_id(KEK) == w.kek_id(bytes(KEK))
    assert w.kek_id(KEK) != w.kek_id(bytes(32))
    assert len(w.kek_id(KEK)) == 16
    assert w.kek_id(KEK) not in KEK.hex()
