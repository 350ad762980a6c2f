"""Makes a second frozen archive, whose base snapshot holds roles, once: python -m tests.vectors.make_roles

Like the first one it is never made again; the first one has none, as archives of before roles were archived.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from archiver.format import layout, manifest
from archiver.format.manifest import Fence, Snapshot
from archiver.format.roles import Globals, Membership, Role
from archiver.lsn import Lsn
from archiver.postgres.snapshot import DatabaseInfo
from archiver.snapshots import Index, part_place
from tests.vectors import make

TARGET = make.HERE / "archive_roles"
EXPECTED = make.HERE / "expected_roles.json"
LSN = Lsn(0x1080)
ROLES = Globals(
    passwords=True,
    roles=(
        Role('Owner "it"', ("NOINHERIT", "CREATEROLE"), 7, "2031-01-02 03:04:05+00", None, "it's ö", ()),
        Role("clerk", ("INHERIT", "LOGIN"), -1, None, "SCRAM-SHA-256$4096:c2FsdA==$a2V5:a2V5", None, ("work_mem=7MB", "my.own=a=b")),
    ),
    memberships=(
        Membership('Owner "it"', "clerk", admin=True, inherit=False, set=True),
        Membership("pg_monitor", "clerk", admin=False),
    ),
)  # fmt: skip


def index() -> Index:
    database = DatabaseInfo(
        180000, "shöp", "UTF8", "C", "C", "c", None, True, 0, [], [], [], [("clerk", "search_path=shop")],
        ['Owner "it"', "clerk"],
    )  # fmt: skip
    return Index(database, "archiver_shop", "", (), [], ROLES)


def make_roles() -> make.Objects:
    objects = make.Objects()
    make.wrap_keys(objects)
    objects[layout.ARCHIVE] = manifest.sign_archive(make.identity(), make.SIGNER)
    objects.append(Fence(host="db-1", pid=4711, version="0.1.0"))
    part = objects.seal(layout.snapshot_part(LSN, make.SNAPSHOT, 0), part_place(LSN, 0), index().encode())
    objects.append(
        Snapshot(
            snapshot_id=make.SNAPSHOT,
            lsn=LSN,
            consistent_at=make.at(8),
            finished_at=make.at(9),
            server_version=180000,
            tables=0,
            rows=0,
            parts=(part,),
        )
    )
    return objects


def expected(objects: make.Objects) -> dict[str, Any]:
    """What a reader must find, told without this package's types."""
    told = make.expected(objects)
    return {key: told[key] for key in ("kek", "objects", "plaintexts", "log")} | {
        "roles": {
            'Owner "it"': "NOINHERIT CREATEROLE, limit 7, until 2031-01-02 03:04:05+00, without password: it's ö",
            "clerk": "INHERIT LOGIN, limit -1, until null, with password, work_mem=7MB my.own=a=b",
        },
        "memberships": [['Owner "it"', "clerk", "admin", "no inherit", "set"], ["pg_monitor", "clerk"]],
    }


def write(objects: make.Objects) -> None:
    if TARGET.exists():
        sys.exit(f"{TARGET} is there already: it is frozen")
    for key, data in objects.items():
        path = TARGET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    EXPECTED.write_text(json.dumps(expected(objects), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(make_roles())
