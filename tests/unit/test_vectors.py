"""The format does not drift: an archive frozen in tests/vectors is read by the package and by a reader of its own.

The second reader knows docs/format.md and nothing of the package. If one of these tests fails, archives that are
out there can no longer be read: mend the code, or give the format a new version.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from archiver.archive import OpenArchive, Place, drill_place, open_archive
from archiver.drill import read_record
from archiver.errors import IntegrityError
from archiver.format import manifest, segment
from archiver.format.manifest import Changes, CommitRef, Drill, Fence, Gap, ObjectRef, Snapshot
from archiver.format.seal import CHUNK_BYTES, Identity, Kind, Sealer, inflate
from archiver.format.wrap import parse_kek
from archiver.keys import LocalKek
from archiver.lsn import Lsn
from archiver.policy.target import ToLatest, ToLsn
from archiver.recovery_plan import make_plan, read_history
from archiver.snapshots import part_place, read_index
from archiver.store.file import FileStore
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.verify import verify
from tests.vectors import make, reader

VECTORS = Path(make.__file__).parent
EXPECTED: dict[str, Any] = json.loads((VECTORS / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def independent() -> reader.Reader:
    return reader.Reader(VECTORS / "archive", EXPECTED["kek"])


@pytest.fixture
async def archive() -> AsyncIterator[OpenArchive]:
    store = Mirror([FileStore("frozen", VECTORS / "archive")])
    yield await open_archive(store, "shop", [LocalKek(parse_kek(EXPECTED["kek"], "the vectors"))])
    await store.close()


def test_the_frozen_archive_is_what_it_was() -> None:
    files = [path for path in (VECTORS / "archive").rglob("*") if path.is_file()]
    found = {
        str(path.relative_to(VECTORS / "archive")): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    assert found == EXPECTED["objects"]


# --- the package ---


async def test_the_package_reads_the_log(archive: OpenArchive) -> None:
    log = [signed async for signed in archive.log.scan()]
    assert [[signed.seq, signed.entry.kind, signed.hash] for signed in log] == EXPECTED["log"]
    assert {type(signed.entry) for signed in log} == {Changes, Drill, Fence, Gap, Snapshot}


async def test_the_package_unwraps_every_key(archive: OpenArchive) -> None:
    assert {key: (await archive.keys.secret(key)).hex() for key in EXPECTED["secrets"]} == EXPECTED["secrets"]


async def test_the_package_opens_every_object(archive: OpenArchive) -> None:
    found = {}
    async for signed in archive.log.scan():
        entry = signed.entry
        if isinstance(entry, Changes) and entry.object:
            place = Place(Kind.CHANGES, entry.ordinal, entry.start_lsn, entry.end_lsn)
            found[entry.object.key] = await opened(archive, entry.object, place)
        elif isinstance(entry, Snapshot):
            for number, ref in enumerate(entry.parts):
                found[ref.key] = await opened(archive, ref, part_place(entry.lsn, number))
        elif isinstance(entry, Drill):
            place = drill_place(entry.snapshot_lsn, entry.target_lsn)
            found[entry.object.key] = await opened(archive, entry.object, place)
    assert {key: data.hex() for key, data in found.items()} == EXPECTED["plaintexts"]


async def opened(archive: OpenArchive, ref: ObjectRef, place: Place) -> bytes:
    return b"".join(inflate(await archive.fetch(ref, place), ref.raw_bytes))


async def test_the_package_reads_the_index_of_the_base_snapshot(archive: OpenArchive) -> None:
    (snapshot,) = (await read_history(archive)).snapshots
    index = await read_index(archive, snapshot)
    assert index.encode().hex() == EXPECTED["plaintexts"][snapshot.parts[0].key]
    assert index.tables[0].info.columns == ("id", "mood")
    assert index.database.database == "shöp"


async def test_the_package_plans_a_restore_that_ends_before_the_gap(archive: OpenArchive) -> None:
    plan = await make_plan(archive, ToLatest())
    assert (plan.snapshot.lsn, plan.stop, [s.ordinal for s in plan.segments]) == (0x1080, 0x1600, [1, 2])
    assert (await make_plan(archive, ToLsn(Lsn(0x1312)))).last_commit == CommitRef(
        xid=800, lsn=Lsn(0x1300), end_lsn=Lsn(0x1310), time=datetime.fromisoformat("2026-11-22T03:00:13Z")
    )


async def test_the_package_reads_the_record_of_the_drill(archive: OpenArchive) -> None:
    (entry,) = [signed.entry async for signed in archive.log.scan() if isinstance(signed.entry, Drill)]
    record = await read_record(archive, entry)
    assert record.encode().hex() == EXPECTED["plaintexts"][entry.object.key]
    found = {"verdict": record.verdict, "failed": [each.name for each in record.failed]}
    assert found | {"recovery_time": record.recovery_time} == EXPECTED["drill"]


async def test_the_package_finds_nothing_wrong_with_it(archive: OpenArchive) -> None:
    report = await verify(archive, read_data=True)
    assert report.findings == []
    assert (report.manifests, report.objects) == (7, 5)


def test_the_package_still_writes_what_it_wrote() -> None:
    """All but the compressed bodies, which a newer zstd may spell otherwise, and what names their hashes."""
    made = make.make()
    assert made.keys() == EXPECTED["objects"].keys()
    assert {key: data.hex() for key, data in made.plain.items()} == EXPECTED["plaintexts"]
    small = [key for key in made if key.startswith(("archive.json", "keys/"))]
    assert len(small) == 4
    for key in [*small, "manifests/00000000000000000001.json"]:
        assert made[key] == (VECTORS / "archive" / key).read_bytes()
    for key in made.plain:
        assert made[key][:176] == (VECTORS / "archive" / key).read_bytes()[:176]


def test_a_manifest_signed_again_is_the_same_manifest() -> None:
    for path in sorted((VECTORS / "archive" / "manifests").iterdir()):
        signed = manifest.parse(path.read_bytes(), make.SIGNER.public_key())
        assert manifest.sign(signed.manifest, make.SIGNER).data == path.read_bytes()


def test_records_encoded_again_are_the_same_segment() -> None:
    for key, plaintext in EXPECTED["plaintexts"].items():
        if key.startswith("segments/"):
            data = bytes.fromhex(plaintext)
            assert b"".join(map(segment.encode, segment.read_records([data]))) == data


def test_the_frozen_segments_show_every_kind_of_record() -> None:
    texts = [bytes.fromhex(text) for key, text in EXPECTED["plaintexts"].items() if key.startswith("segments/")]
    kinds = {type(record) for text in texts for record in segment.read_records([text])}
    assert kinds == {bytes, segment.Relation, segment.Sequences, segment.Context}


# --- the independent reader ---


def test_the_other_reader_shares_nothing_with_the_package() -> None:
    source = Path(reader.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) (archiver|tests)\b", source, re.MULTILINE)


def test_the_other_reader_follows_the_log(independent: reader.Reader) -> None:
    log = independent.log()
    assert [[fields["seq"], fields["entry"]["kind"], digest] for fields, digest in log] == EXPECTED["log"]


def test_the_other_reader_finds_the_same_transactions(independent: reader.Reader) -> None:
    rows, replay = reader.read_all(independent)
    assert [row.decode().rstrip("\n") for row in rows] == EXPECTED["rows"]
    assert replay.transactions == EXPECTED["transactions"]
    assert replay.sequences == EXPECTED["sequences"]
    assert not replay.open


def test_the_other_reader_computes_the_same_digest(independent: reader.Reader) -> None:
    rows, _ = reader.read_all(independent)
    snapshot = next(fields["entry"] for fields, _ in independent.log() if fields["entry"]["kind"] == "snapshot")
    index = json.loads(independent.part(snapshot, 0))
    assert index["tables"][0]["digest"] == reader.row_digest(rows)


def test_the_other_reader_reads_the_record_of_the_drill(independent: reader.Reader) -> None:
    entry = next(fields["entry"] for fields, _ in independent.log() if fields["entry"]["kind"] == "drill")
    record = independent.drill(entry)
    failed = [check["name"] for check in record["checks"] if not check["passed"]]
    found = {"verdict": entry["verdict"], "failed": failed, "recovery_time": record["recovery_time"]}
    assert found == EXPECTED["drill"]


def test_the_other_reader_opens_an_object_of_several_chunks() -> None:
    noise = b"".join(hashlib.sha512(b"%d" % i).digest() for i in range(5 * CHUNK_BYTES // 128))
    identity = Identity(
        make.ARCHIVE, make.SYSTEM, Kind.SNAPSHOT, 3, make.WRITER, Lsn(1), Lsn(1), "snapshots-2026-11-22"
    )
    sealer = Sealer(identity, make.SECRETS["snapshots-2026-11-22"])
    sealer.write(noise)
    data = sealer.finish()
    assert len(data) > 2 * CHUNK_BYTES
    body = reader.open_object(data, identity.encode(), make.SECRETS["snapshots-2026-11-22"])
    assert b"".join(inflate(body, len(noise))) == noise


# --- the generator ---


def test_the_generator_refuses_to_overwrite_what_is_frozen() -> None:
    altered = make.Objects()
    altered["archive.json"] = b"altered"
    with pytest.raises(SystemExit, match="frozen"):
        make.write(make.Objects())
    with pytest.raises(SystemExit, match="would change"):
        make.extend(altered)


async def test_an_altered_byte_of_any_frozen_object_is_found() -> None:
    for key in EXPECTED["objects"]:
        if key.startswith("catalog/"):
            continue
        store = MemoryStore("altered")
        store.objects = {name: (VECTORS / "archive" / name).read_bytes() for name in EXPECTED["objects"]}
        data = store.objects[key]
        store.objects[key] = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        store.objects = {name: data for name, data in store.objects.items() if not name.startswith("catalog/")}
        assert await is_refused(Mirror([store])), key


async def is_refused(store: Mirror) -> bool:
    try:
        archive = await open_archive(store, "shop", [LocalKek(parse_kek(EXPECTED["kek"], "the vectors"))])
        return not (await verify(archive, read_data=True)).ok
    except IntegrityError:
        return True
