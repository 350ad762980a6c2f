"""What is said to each version of PostgreSQL about slots, and what is made of its answers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from archiver.lsn import Lsn
from archiver.postgres.replication_slot import Blocker, create_slot, create_statement, slot_error, slot_info_from


@pytest.mark.parametrize(
    ("version", "temporary", "export", "statement"),
    [
        (140005, False, True, 'CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput EXPORT_SNAPSHOT'),
        (140005, True, False, 'CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT'),
        (150000, False, True, "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'export')"),
        (180006, True, False, "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')"),
    ],
)
def test_each_version_gets_its_own_syntax(version: int, temporary: bool, export: bool, statement: str) -> None:
    conn = cast(Any, SimpleNamespace(info=SimpleNamespace(server_version=version)))
    assert create_statement(conn, "s", temporary=temporary, export=export).as_string(None) == statement


ROW: dict[str, Any] = {
    "slot_name": "s",
    "plugin": "pgoutput",
    "database": "shop",
    "active": False,
    "active_pid": None,
    "confirmed_flush_lsn": "0/10",
    "wal_status": "reserved",
}


@pytest.mark.parametrize(
    ("more", "invalidation"),
    [
        ({}, None),
        ({"wal_status": "lost"}, "wal_removed"),
        ({"conflicting": True}, "conflict with recovery"),
        ({"conflicting": False, "invalidation_reason": "idle_timeout"}, "idle_timeout"),
    ],
)
def test_why_a_slot_is_lost_is_told_as_far_as_the_version_knows(more: dict[str, Any], invalidation: str | None) -> None:
    info = slot_info_from({**ROW, **more})
    assert info.invalidation == invalidation
    assert info.is_lost is (invalidation is not None)
    assert info.confirmed_flush_lsn == Lsn(16)


def blocker(**fields: Any) -> Blocker:
    empty = dict.fromkeys(Blocker.__dataclass_fields__)
    return Blocker(**{**empty, "transaction": 7, "user": "bob", **fields})


def test_a_blocker_is_named_by_what_the_role_may_see() -> None:
    began = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    seen = blocker(pid=9, application="psql", state="idle in transaction", started=began)
    assert str(seen) == "pid 9 of bob (psql, idle in transaction, since 2026-01-02 03:04:05Z)"
    assert str(blocker(pid=9)) == "pid 9 of bob"
    assert str(blocker(gid="g")) == "prepared transaction 'g' of bob"


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (psycopg.errors.ConfigurationLimitExceeded, "max_replication_slots"),
        (psycopg.errors.InsufficientPrivilege, "rds_replication"),
        (psycopg.errors.ObjectNotInPrerequisiteState, "wal_level"),
        (psycopg.errors.DuplicateObject, "another name"),
        (psycopg.errors.InvalidName, "lower-case"),
    ],
)
def test_each_refusal_has_a_hint_that_fits_slots(error: type[psycopg.Error], hint: str) -> None:
    found = slot_error(error("x"), "s")
    assert hint in (found.hint or "")
    assert found.where == "slot s"


async def test_a_cancelled_attempt_stays_cancelled_though_the_source_has_gone_away_meanwhile() -> None:
    """Undoing it fails then. A daemon that is told to stop must not take that for a reason to try again."""
    asked = asyncio.Event()

    class Gone:
        info = SimpleNamespace(server_version=180000, backend_pid=1)
        calls = 0

        async def execute(self, *_: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise psycopg.OperationalError("the connection is lost")
            return SimpleNamespace(fetchone=self._nothing)

        async def _nothing(self) -> None:
            return None

        async def close(self) -> None:
            return

    class Waiting(Gone):
        async def execute(self, *_: Any) -> Any:
            asked.set()
            await asyncio.Event().wait()

    making = asyncio.create_task(create_slot(cast(Any, Waiting()), "s", watch=cast(Any, Gone())))
    await asked.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
