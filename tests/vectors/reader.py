"""A second reader of archives, written from docs/format.md alone: it imports nothing of archiver's.

In: a folder that holds what stands below an archive's prefix, and a KEK. Out: plain values. It raises ValueError for
whatever is not as the document says. It is here so that the format cannot drift unnoticed; it is not fast.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Json = dict[str, Any]
CHUNK = 1 << 20
TAG = 16


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def canonical(value: Json) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def number(lsn: str) -> int:
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def spelled(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def derive(secret: bytes, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    okm = HKDF(SHA512(), 64, salt, info).derive(secret)
    return okm[:32], okm[32:]


class Reader:
    """One archive. `kek_line` is the text of a key file."""

    def __init__(self, folder: Path, kek_line: str) -> None:
        self.folder = folder
        self.kek = base64.b64decode(kek_line.removeprefix("archiver-kek-1:"), validate=True)
        data = self.get("archive.json")
        self.identity = self._signed(data, b"archiver archive v2\0", bytes.fromhex(json.loads(data)["public_key"]))
        self.public_key = bytes.fromhex(self.identity["public_key"])
        signer = Ed25519PrivateKey.from_private_bytes(self.key("signing", "signing"))
        require(signer.public_key().public_bytes_raw() == self.public_key, "archive.json is somebody else's")

    def get(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    # --- keys ---

    def key(self, key_id: str, purpose: str) -> bytes:
        record = json.loads(self.get(f"keys/{key_id}.json"))
        context = {"archive": record["archive"], "key_id": record["key_id"], "purpose": record["purpose"]}
        wanted = {"archive": self.identity["archive"], "key_id": key_id, "purpose": purpose}
        require(record["format"] == 1 and context == wanted, "a wrapped key that belongs elsewhere")
        kek_id = hashlib.sha256(b"archiver kek id v1\0" + self.kek).hexdigest()[:16]
        wrap = next(each for each in record["wraps"] if each["kek"] == kek_id)
        info = b"archiver wrap v1\0" + canonical(context)
        key, commitment = derive(self.kek, bytes.fromhex(wrap["salt"]), info)
        require(hmac.compare_digest(commitment.hex(), wrap["commitment"]), "another KEK")
        return AESGCM(key).decrypt(bytes(12), bytes.fromhex(wrap["ciphertext"]), canonical(context))

    # --- the log ---

    def _signed(self, data: bytes, context: bytes, public_key: bytes) -> Json:
        fields: Json = json.loads(data)
        signature = fields.pop("signature")
        Ed25519PublicKey.from_public_bytes(public_key).verify(bytes.fromhex(signature), context + canonical(fields))
        require(canonical(fields | {"signature": signature}) == data, "not the canonical spelling")
        return fields

    def stored_log(self) -> Iterator[bytes]:
        """The stored manifests in order: roll-ups as far as they reach, then one by one."""
        last = 0
        for path in sorted((self.folder / "catalog").glob("*")):
            first, end = (int(part) for part in path.name.removesuffix(".json.zst").split("-"))
            if first == last + 1:
                yield from zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().split(b"\n")
                last = end
        for path in sorted((self.folder / "manifests").iterdir()):
            if int(path.stem) > last:
                yield path.read_bytes()

    def log(self) -> list[tuple[Json, str]]:
        """Every manifest, verified, with its hash."""
        found: list[tuple[Json, str]] = []
        for data in self.stored_log():
            fields = self._signed(data, b"archiver manifest v2\0", self.public_key)
            require(fields["archive"] == self.identity["archive"], "another archive's")
            require(fields["seq"] == len(found) + 1, "out of order")
            require(fields["prev"] == (found[-1][1] if found else None), "the chain is broken")
            found.append((fields, hashlib.sha256(data).hexdigest()))
        return found

    # --- sealed objects ---

    def unseal(self, ref: Json, kind: int, seq: int, start: int, end: int) -> bytes:
        """The plaintext of the object that a manifest names."""
        data = self.get(ref["key"])
        require(len(data) == ref["size"] and hashlib.sha256(data).hexdigest() == ref["sha256"], "altered")
        purpose = {1: "changes", 2: "snapshots", 3: "snapshots"}[kind]
        body = open_object(data, self.expected_header(ref, kind, seq, start, end), self.key(ref["key_id"], purpose))
        plaintext = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(body)).read()
        require(len(plaintext) == ref["raw_bytes"], "another length than the manifest says")
        return plaintext

    def expected_header(self, ref: Json, kind: int, seq: int, start: int, end: int) -> bytes:
        return (
            b"PGARCHIV"
            + bytes([1, 1, kind, 1])
            + struct.pack(">I", CHUNK)
            + bytes.fromhex(self.identity["archive"].replace("-", ""))
            + struct.pack(">QQ", int(self.identity["system_identifier"]), seq)
            + bytes.fromhex(ref["writer"].replace("-", ""))
            + struct.pack(">QQ", start, end)
            + ref["key_id"].encode().ljust(32, b"\0")
        )

    def restore_points(self, changes: Json) -> list[tuple[str, str]]:
        """Names and LSNs."""
        return [(self.name(point), point["lsn"]) for point in changes["restore_points"]]

    def name(self, point: Json) -> str:
        sealed = bytes.fromhex(point["sealed"])
        archive = bytes.fromhex(self.identity["archive"].replace("-", ""))
        info = b"archiver name v2\0" + archive + struct.pack(">Q", number(point["lsn"]))
        key = HKDF(SHA512(), 32, sealed[:32], info).derive(self.key(point["key_id"], "changes"))
        return AESGCM(key).decrypt(bytes(12), sealed[32:], None).rstrip(b"\0").decode()

    def segment(self, changes: Json) -> bytes:
        start, end = number(changes["start_lsn"]), number(changes["end_lsn"])
        return self.unseal(changes["object"], 1, changes["ordinal"], start, end)

    def part(self, snapshot: Json, seq: int) -> bytes:
        lsn = number(snapshot["lsn"])
        return self.unseal(snapshot["parts"][seq], 2, seq, lsn, lsn)

    def drill(self, entry: Json) -> Json:
        """The record that a drill's manifest names."""
        start, end = number(entry["snapshot_lsn"]), number(entry["target_lsn"])
        record: Json = json.loads(self.unseal(entry["object"], 3, 0, start, end))
        return record


def open_object(data: bytes, header: bytes, data_key: bytes) -> bytes:
    """The compressed body of a sealed object."""
    require(len(header) == 112 and data[:112] == header, "not the object that the manifest means")
    salt, commitment = data[112:144], data[144:176]
    key, expected = derive(data_key, salt, b"archiver object v1" + hashlib.sha512(header).digest())
    require(hmac.compare_digest(commitment, expected), "another key, or altered")
    chunks = [data[at : at + CHUNK + TAG] for at in range(176, len(data), CHUNK + TAG)]
    opened = [
        AESGCM(key).decrypt(index.to_bytes(11, "big") + bytes([index == len(chunks) - 1]), chunk, data[:176])
        for index, chunk in enumerate(chunks)
    ]
    return b"".join(opened)


# --- change segments ---


def records(plaintext: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(plaintext):
        (length,) = struct.unpack_from(">I", plaintext, at)
        require(0 < length <= len(plaintext) - at - 4, "a record that is cut")
        yield plaintext[at + 4 : at + 4 + length]
        at += 4 + length


class Replay:
    """Committed transactions of consecutive change segments. Only Inserts are decoded."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.transactions: list[Json] = []
        self.sequences: dict[str, int] = {}
        self.relations: dict[int, int] = {}
        self.own: set[int] = set()  # tables that are archiver's, and no part of the database
        self.session: tuple[str, int] | None = None
        self.open: dict[int, list[tuple[int, Json | None]]] = {}
        self.current: int | None = None
        self.plain_xid = 0

    def segment(self, session: tuple[str, int], plaintext: bytes) -> None:
        if session != self.session:
            self.session, self.current = session, None
            self.open.clear()
        for record in records(plaintext):
            if record[0] >= 0x20:
                self.message(record)
            elif record[0] == 0x02:
                for state in json.loads(record[1:]):
                    self.sequences[f"{state['schema']}.{state['name']}"] = state["last_value"]
            elif record[0] == 0x03:
                (self.current,) = struct.unpack_from(">I", record, 1)
            else:
                require(record[0] == 0x01, "an unknown record")
                self.describe(record[5:], streamed=record[1:5] != bytes(4))

    def describe(self, message: bytes, *, streamed: bool) -> None:
        at = 5 if streamed else 1
        (relation,) = struct.unpack_from(">I", message, at)
        if message[0] == ord("R"):
            names_end = message.index(0, message.index(0, at + 4) + 1) + 1
            (self.relations[relation],) = struct.unpack_from(">H", message, names_end + 1)
            if message[at + 4 :].startswith(b"archiver\0"):
                self.own.add(relation)

    def message(self, message: bytes) -> None:
        tag = chr(message[0])
        if tag == "B":
            (self.plain_xid,) = struct.unpack_from(">I", message, 17)
            self.current, self.open[0] = 0, []
        elif tag == "S":
            (self.current,) = struct.unpack_from(">I", message, 1)
            if message[5]:
                self.open[self.current] = []
        elif tag == "E":
            self.current = None
        elif tag == "A":
            xid, subxid = struct.unpack_from(">II", message, 1)
            self.open[xid] = [each for each in self.open[xid] if each[0] != subxid]
            if xid == subxid:
                del self.open[xid]
        elif tag in "Cc":
            xid = struct.unpack_from(">I", message, 1)[0] if tag == "c" else 0
            self.commit(xid, xid or self.plain_xid, *struct.unpack_from(">QQq", message, 6 if xid else 2))
            self.current = None
        elif tag in "RY":
            self.describe(message, streamed=bool(self.current))
        elif tag == "I":
            require(self.current is not None, "a row outside of a transaction")
            self.insert(message)

    def insert(self, message: bytes) -> None:
        current = self.current or 0
        subxid = struct.unpack_from(">I", message, 1)[0] if current else 0
        at = 5 if current else 1
        (relation,) = struct.unpack_from(">I", message, at)
        (count,) = struct.unpack_from(">H", message, at + 5)
        require(count == self.relations[relation], "a row of another shape")
        at += 7
        values: list[str | None] = []
        for _ in range(count):
            if message[at : at + 1] == b"n":
                values.append(None)
                at += 1
            else:
                (length,) = struct.unpack_from(">I", message, at + 1)
                values.append(message[at + 5 : at + 5 + length].decode())
                at += 5 + length
        if relation not in self.own:
            self.open[current].append((subxid, {"row": values}))

    def commit(self, key: int, xid: int, _lsn: int, end: int, time: int) -> None:
        found = self.open.pop(key)
        if end <= self.after:
            return
        moment = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)
        spelling = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        rows = [change["row"] for _, change in found if change]
        self.transactions.append({"xid": xid, "end_lsn": spelled(end), "time": spelling, "rows": rows})


def read_all(reader: Reader) -> tuple[list[bytes], Replay]:
    """The rows of the one base snapshot, and what is replayed on top of it."""
    entries = [fields["entry"] for fields, _ in reader.log()]
    snapshot = next(entry for entry in entries if entry["kind"] == "snapshot")
    index = json.loads(reader.part(snapshot, 0))
    rows = b"".join(reader.part(snapshot, part) for part in index["tables"][0]["parts"]).splitlines(keepends=True)
    replay = Replay(number(snapshot["lsn"]))
    for changes in (entry for entry in entries if entry["kind"] == "changes" and entry["object"]):
        replay.segment((changes["object"]["writer"], changes["connection"]), reader.segment(changes))
    return rows, replay


def row_digest(rows: list[bytes]) -> str:
    total = sum(int.from_bytes(hashlib.blake2b(row, digest_size=32).digest(), "little") for row in rows)
    return f"{len(rows)}:{total % (1 << 256):064x}"


def roles(index: Json) -> dict[str, str]:
    """Each role of a base snapshot in one line; the password itself stays unread."""
    return {role["name"]: _role(role) for role in index["globals"]["roles"]}


def _role(role: Json) -> str:
    known = {"name", "attributes", "connection_limit", "valid_until", "password", "comment", "settings"}
    require(role.keys() == known, "a role of another shape")
    password = "without password" if role["password"] is None else "with password"
    line = f"{' '.join(role['attributes'])}, limit {role['connection_limit']}, until {role['valid_until'] or 'null'}, {password}"
    line += f", {' '.join(role['settings'])}" if role["settings"] else ""
    return line + (f": {role['comment']}" if role["comment"] else "")


def memberships(index: Json) -> list[list[str]]:
    """Role, member, and the options that are known; `inherit` and `set` are null where the source had none."""
    return [[each["role"], each["member"], *_options(each)] for each in index["globals"]["memberships"]]


def _options(membership: Json) -> Iterator[str]:
    require(membership.keys() == {"role", "member", "admin", "inherit", "set"}, "a membership of another shape")
    if membership["admin"]:
        yield "admin"
    for option in ("inherit", "set"):
        if membership[option] is not None:
            yield option if membership[option] else f"no {option}"
