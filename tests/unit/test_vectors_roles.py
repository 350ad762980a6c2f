"""The frozen archive with roles in its base snapshot; as tests.unit.test_vectors does with the one without."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from archiver.archive import open_archive
from archiver.format.wrap import parse_kek
from archiver.keys import LocalKek
from archiver.recovery_plan import missing_roles, read_history
from archiver.snapshots import read_index
from archiver.store.file import FileStore
from archiver.store.mirror import Mirror
from archiver.verify import verify
from tests.vectors import make_roles, reader

EXPECTED: dict[str, Any] = json.loads(make_roles.EXPECTED.read_text(encoding="utf-8"))


def test_the_frozen_archive_with_roles_is_what_it_was() -> None:
    files = {path: path.read_bytes() for path in make_roles.TARGET.rglob("*") if path.is_file()}
    found = {str(path.relative_to(make_roles.TARGET)): hashlib.sha256(data).hexdigest() for path, data in files.items()}
    assert found == EXPECTED["objects"]


async def test_the_package_reads_the_frozen_roles() -> None:
    store = Mirror([FileStore("frozen", make_roles.TARGET)])
    archive = await open_archive(store, "shop", [LocalKek(parse_kek(EXPECTED["kek"], "the vectors"))])
    (snapshot,) = (await read_history(archive)).snapshots
    index = await read_index(archive, snapshot)
    assert index.roles == make_roles.ROLES
    assert index.encode().hex() == EXPECTED["plaintexts"][snapshot.parts[0].key]
    wanted, kept = missing_roles(index, {"clerk", "pg_monitor"})
    assert ([role.name for role in wanted.roles], kept) == (['Owner "it"'], ["clerk"])
    assert (await verify(archive, read_data=True)).findings == []
    await store.close()


def test_the_other_reader_finds_the_same_roles() -> None:
    independent = reader.Reader(make_roles.TARGET, EXPECTED["kek"])
    entry = next(fields["entry"] for fields, _ in independent.log() if fields["entry"]["kind"] == "snapshot")
    index = json.loads(independent.part(entry, 0))
    assert reader.roles(index) == EXPECTED["roles"]
    assert reader.memberships(index) == EXPECTED["memberships"]


def test_the_package_still_writes_roles_as_it_did() -> None:
    made = make_roles.make_roles()
    assert made.keys() == EXPECTED["objects"].keys()
    assert {key: data.hex() for key, data in made.plain.items()} == EXPECTED["plaintexts"]


def test_the_frozen_roles_are_not_written_again() -> None:
    with pytest.raises(SystemExit, match="frozen"):
        make_roles.write(make_roles.make_roles())
