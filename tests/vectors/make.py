"""Makes the frozen archive beside this file, once, with keys and salts that are fixed: python -m tests.vectors.make

It refuses to overwrite: what is frozen changes only with the format's version, and then beside the old one. A new kind
of entry is appended, and `python -m tests.vectors.make --extend` writes the files that are not there yet.
"""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from archiver.archive import Place, drill_place
from archiver.format import layout, manifest, segment
from archiver.format import pgoutput as p
from archiver.format import wrap as w
from archiver.format.digest import RowDigest
from archiver.format.drill import Check, Copy, Phase, Record
from archiver.format.journal import Point
from archiver.format.manifest import (
    Archive,
    CommitRef,
    Drill,
    Entry,
    Fence,
    Gap,
    Manifest,
    ObjectRef,
    RestorePoint,
    Signed,
    Snapshot,
)
from archiver.format.names import seal_name
from archiver.format.seal import Identity, Kind, Sealer, derive
from archiver.lsn import Lsn
from archiver.policy import catalog
from archiver.policy.cut import Cut
from archiver.policy.sequence_log import SequenceLog
from archiver.policy.stream import ChangeStream
from archiver.postgres.snapshot import DatabaseInfo
from archiver.postgres.snapshot_tables import TableInfo
from archiver.snapshots import Index, IndexedTable, part_place
from tests.pgoutput_encoder import encode
from tests.unit.frames import JOURNAL, entry

HERE = Path(__file__).parent
ARCHIVE = UUID("5f9d4e5e-52a1-4d0b-9c57-3a8b7d1f0c11")
WRITER = UUID("0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d")
SNAPSHOT = UUID("c0ffee00-1234-4abc-8def-0123456789ab")
DRILL = UUID("d2177000-5678-4abc-8def-0123456789ab")
SYSTEM = 7559847612340000001
KEK = bytes(range(32))
SECRETS = {
    "signing": bytes(range(32, 64)),
    "changes-2026-11-22": bytes(range(64, 96)),
    "snapshots-2026-11-22": bytes(range(96, 128)),
}
PURPOSES: dict[str, w.Purpose] = {
    "signing": "signing", "changes-2026-11-22": "changes", "snapshots-2026-11-22": "snapshots",
}  # fmt: skip
SIGNER = Ed25519PrivateKey.from_private_bytes(SECRETS["signing"])
MORNING = datetime(2026, 11, 22, 3, tzinfo=UTC)

TABLE = p.Relation(
    16390, "shop", "item", "d", (p.Column("id", 23, -1, True), p.Column("mood", 16400, -1, False))
)  # fmt: skip
MOOD = p.Type(16400, "shop", "mood")


def salt(name: str) -> bytes:
    """What is random in an archive, made from a name here."""
    return hashlib.sha256(f"archiver vectors {name}".encode()).digest()


def at(seconds: float) -> datetime:
    return MORNING + timedelta(seconds=seconds)


class Objects(dict[str, bytes]):
    """An archive's objects as they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Signed] = []
        self.plain: dict[str, bytes] = {}

    def append(self, entry: Entry) -> None:
        head = self.log[-1] if self.log else None
        fields = Manifest(
            archive=ARCHIVE,
            seq=len(self.log) + 1,
            prev=head.hash if head else None,
            writer=WRITER,
            created=at(len(self.log)),
            entry=entry,
        )
        self.log.append(manifest.sign(fields, SIGNER))
        self[layout.manifest(self.log[-1].seq)] = self.log[-1].data

    def seal(self, key: str, place: Place, plaintext: bytes) -> ObjectRef:
        key_id = "changes-2026-11-22" if place.kind is Kind.CHANGES else "snapshots-2026-11-22"
        identity = Identity(ARCHIVE, SYSTEM, place.kind, place.seq, WRITER, place.start, place.end, key_id)
        sealer = Sealer(identity, SECRETS[key_id], salt=salt(key))
        sealer.write(plaintext)
        self[key] = data = sealer.finish()
        self.plain[key] = plaintext
        digest = hashlib.sha256(data).hexdigest()
        size, raw_bytes = len(data), len(plaintext)
        return ObjectRef(key=key, writer=WRITER, size=size, sha256=digest, key_id=key_id, raw_bytes=raw_bytes)


def wrap_keys(objects: Objects) -> None:
    for key_id, secret in SECRETS.items():
        context = w.wrap_context(ARCHIVE, key_id, PURPOSES[key_id])
        key, commitment = derive(KEK, salt(key_id), b"archiver wrap v1\0" + context)
        record = w.Wrap(
            kek=w.kek_id(KEK),
            salt=salt(key_id).hex(),
            commitment=commitment.hex(),
            ciphertext=AESGCM(key).encrypt(bytes(12), secret, context).hex(),
        )
        wrapped = w.WrappedKey(archive=ARCHIVE, key_id=key_id, purpose=PURPOSES[key_id], wraps=(record,))
        objects[layout.key(key_id)] = wrapped.encode()


def identity() -> Archive:
    return Archive(
        archive=ARCHIVE,
        name="shop",
        system_identifier=str(SYSTEM),
        database="shöp",
        public_key=SIGNER.public_key().public_bytes_raw().hex(),
        created=MORNING,
    )


# --- change segments ---


def wal(message: bytes) -> bytes:
    return b"w" + bytes(24) + message


def row(number: int, mood: bytes | None, xid: int | None = None) -> bytes:
    return wal(encode(p.Insert(TABLE.id, (b"%d" % number, mood), 0), xid=xid))


def cuts() -> list[Cut]:
    """Two segments, cut inside a block of transaction 800, which began in the first; then an idle span.

    Transaction 798 is in the base snapshot already; 802 is a subtransaction of 800 and aborts.
    """
    stream = ChangeStream(Lsn(0x1000), 1, JOURNAL.id)
    point = entry("point", {"name": "before öffnung", "at": "0/1180", "lsn": "0/1180"})
    stream.feed(
        [
            wal(encode(p.Begin(Lsn(0x1040), at(5), 798))),
            wal(encode(MOOD)),
            wal(encode(TABLE)),
            row(0, b"calm"),
            wal(encode(p.Commit(Lsn(0x1040), Lsn(0x1050), at(5)))),
            wal(encode(p.Begin(Lsn(0x10F0), at(10), 799))),
            row(1, b"calm"),
            row(2, None),
            wal(encode(p.Commit(Lsn(0x10F0), Lsn(0x1100), at(10)))),
            wal(encode(p.Begin(Lsn(0x1190), at(11), 801))),
            wal(encode(JOURNAL)),
            point,
            wal(encode(p.Commit(Lsn(0x1190), Lsn(0x11A0), at(11)))),
            wal(encode(p.StreamStart(800, True))),
            wal(encode(MOOD, xid=800)),
            wal(encode(TABLE, xid=800)),
            row(3, b"wild", xid=800),
        ]
    )
    first = stream.cut()
    stream.feed(
        [
            row(4, b"calm", xid=800),
            row(5, b"gone", xid=802),
            wal(encode(p.StreamStop())),
            wal(encode(p.StreamAbort(800, 802, None, None))),
            wal(encode(p.StreamCommit(800, Lsn(0x1300), Lsn(0x1310), at(13)))),
            wal(encode(p.Begin(Lsn(0x1400), at(14), 803))),
            row(6, b"calm"),
            wal(encode(p.Commit(Lsn(0x1400), Lsn(0x1410), at(14)))),
            b"k" + (0x1500).to_bytes(8, "big") + bytes(9),
        ]
    )
    states = [{"schema": "shop", "name": "item_id_seq", "last_value": 6, "is_called": True, "increment": 1}]
    second = stream.cut()
    second.body += segment.encode(segment.Sequences(SequenceLog().changed(states, Lsn(0), Lsn(0))))
    stream.feed([b"k" + (0x1600).to_bytes(8, "big") + bytes(9)])
    return [first, second, stream.cut()]


def append_changes(objects: Objects, cut: Cut, covered: float) -> None:
    key = layout.segment(cut.ordinal, cut.start, cut.end, WRITER)
    place = Place(Kind.CHANGES, cut.ordinal, cut.start, cut.end)
    ref = objects.seal(key, place, bytes(cut.body)) if cut.messages else None
    points = [sealed_point(point, time) for point, time in cut.points]
    covering = at(covered)
    objects.append(cut.entry(1, None, covered_until=covering, sequences=False, stored=ref, restore_points=points))


def sealed_point(point: Point, time: datetime) -> RestorePoint:
    key_id = "changes-2026-11-22"
    sealed = seal_name(SECRETS[key_id], ARCHIVE, point.lsn, point.name, salt=salt(point.name))
    return RestorePoint(lsn=point.lsn, time=time, key_id=key_id, sealed=sealed)


# --- a base snapshot ---

ROWS = [b"-1\t\\N\n", b"0\tcalm \\\\ \\t\n", b"0\tcalm \\\\ \\t\n"]


def append_snapshot(objects: Objects) -> None:
    lsn = Lsn(0x1080)
    digest = RowDigest()
    digest.update(ROWS)
    info = TableInfo("shop", "item", ("id", "mood"), 1, 8192, 3, 16390, 16390)
    database = DatabaseInfo(
        180000, "shöp", "UTF8", "C", "C", "c", None, True, 0, [("plpgsql", "1.0", "pg_catalog")],
        [("shop", "scratch")], [], [("", "search_path=shop, public")], ["postgres"],
    )  # fmt: skip
    sequences = [{"schema": "shop", "name": "item_id_seq", "last_value": 1, "is_called": False, "increment": 1}]
    schema = 'CREATE SCHEMA "shop";\n'
    index = Index(database, "archiver_shop", schema, (IndexedTable(info, digest, (1,)),), sequences)
    parts = [index.encode(), b"".join(ROWS)]
    refs = [
        objects.seal(layout.snapshot_part(lsn, SNAPSHOT, number), part_place(lsn, number), data)
        for number, data in enumerate(parts)
    ]
    objects.append(
        Snapshot(
            snapshot_id=SNAPSHOT,
            lsn=lsn,
            consistent_at=at(8),
            finished_at=at(9),
            server_version=180000,
            tables=1,
            rows=3,
            parts=tuple(refs),
        )
    )


# --- a drill ---


def record(objects: Objects) -> Record:
    """A drill without a second base snapshot, that found one thing wrong."""
    return Record(
        drill_id=DRILL,
        started_at=at(30),
        finished_at=at(34.5),
        by="ops@restore-1 pid 4712",
        tool_version="0.1.0",
        archive=ARCHIVE,
        archive_name="shop",
        database="shöp",
        system_identifier=str(SYSTEM),
        source_version=180000,
        head_seq=objects.log[-1].seq,
        head_hash=objects.log[-1].hash,
        regions={"primary": 2048},
        data_keys=("changes-2026-11-22", "snapshots-2026-11-22"),
        keks=(w.kek_id(KEK),),
        target="latest",
        target_lsn=Lsn(0x1600),
        last_commit=CommitRef(xid=803, lsn=Lsn(0x1400), end_lsn=Lsn(0x1410), time=at(14)),
        snapshot_id=SNAPSHOT,
        snapshot_lsn=Lsn(0x1080),
        compared_lsn=None,
        stored_bytes=1024,
        rows_loaded=3,
        transactions_replayed=4,
        recovery_time=2.25,
        recovery_time_objective=3600.0,
        recovery_point=10.0,
        recovery_point_objective=None,
        phases=(
            Phase(name="rows", purpose="recovery", started_at=at(31), finished_at=at(33.25)),
            Phase(name="digests", purpose="proof", started_at=at(33.25), finished_at=at(34)),
        ),
        checks=(
            Check(name="table shop.item", expected="can be read", found="8 rows, 3 in the base snapshot", passed=True),
            Check(name="query", expected="9", found="8", passed=False),
        ),
        deviations=("unlogged table shop.scratch is empty: its rows are never archived",),
        restored=Copy(where="disposable server", server_version=180001, destroyed=True, evidence="it is gone"),
        error=None,
    )


def append_drill(objects: Objects) -> None:
    made = record(objects)
    place = drill_place(made.snapshot_lsn, made.target_lsn)
    objects.append(
        Drill(
            drill_id=DRILL,
            started_at=made.started_at,
            finished_at=made.finished_at,
            verdict=made.verdict,
            target_lsn=made.target_lsn,
            snapshot_lsn=made.snapshot_lsn,
            compared_lsn=None,
            recovery_time_seconds=3,
            checks=2,
            failed_checks=1,
            object=objects.seal(layout.drill(DRILL), place, made.encode()),
        )
    )


def make() -> Objects:
    objects = Objects()
    wrap_keys(objects)
    objects[layout.ARCHIVE] = manifest.sign_archive(identity(), SIGNER)
    objects.append(Fence(host="db-1", pid=4711, version="0.1.0"))
    first, second, idle = cuts()
    append_changes(objects, first, 12)
    append_snapshot(objects)
    append_changes(objects, second, 15)
    append_changes(objects, idle, 20)
    objects.append(Gap(after_lsn=Lsn(0x1600), before_lsn=Lsn(0x2000), reason="the replication slot was dropped"))
    append_drill(objects)
    objects[layout.rollup(1, 4)] = catalog.pack([signed.data for signed in objects.log[:4]])
    return objects


def expected(objects: Objects) -> dict[str, Any]:
    """What a reader must find, told without this package's types."""
    return {
        "kek": w.format_kek(KEK),
        "secrets": {key_id: secret.hex() for key_id, secret in SECRETS.items()},
        "archive": str(ARCHIVE),
        "objects": {key: hashlib.sha256(data).hexdigest() for key, data in sorted(objects.items())},
        "plaintexts": {key: data.hex() for key, data in sorted(objects.plain.items())},
        "log": [[signed.seq, signed.entry.kind, signed.hash] for signed in objects.log],
        "rows": ["-1\t\\N", "0\tcalm \\\\ \\t", "0\tcalm \\\\ \\t"],
        "sequences": {"shop.item_id_seq": 6},
        "restore_points": [["before öffnung", "0/1180"]],
        "drill": {"verdict": "failed", "failed": ["query"], "recovery_time": 2.25},
        "transactions": [
            transaction(799, "0/1100", 10, ["1", "calm"], ["2", None]),
            transaction(801, "0/11A0", 11),
            transaction(800, "0/1310", 13, ["3", "wild"], ["4", "calm"]),
            transaction(803, "0/1410", 14, ["6", "calm"]),
        ],
    }


def transaction(xid: int, end_lsn: str, second: int, *rows: list[str | None]) -> dict[str, Any]:
    return {"xid": xid, "end_lsn": end_lsn, "time": f"2026-11-22T03:00:{second}.000000Z", "rows": list(rows)}


def write(objects: Objects) -> None:
    target = HERE / "archive"
    if target.exists():
        sys.exit(f"{target} is there already: it is frozen")
    extend(objects)


def extend(objects: Objects) -> None:
    """Write what is not there yet; what is there must be what would be written."""
    for key, data in objects.items():
        path = HERE / "archive" / key
        if path.exists() and path.read_bytes() != data:
            sys.exit(f"{path} would change: it is frozen")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    text = json.dumps(expected(objects), indent=1, ensure_ascii=False)
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    (extend if "--extend" in sys.argv else write)(make())
