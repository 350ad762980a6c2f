"""How a restore reaches its target: the plan, and whether a target database fits it.

In: an archive, a target and, for `settle_plan`, a connection string. Out: a plan. Nothing is ever written here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg

from archiver.archive import OpenArchive, Place
from archiver.errors import PostgresError, UsageError
from archiver.format import pgoutput, segment
from archiver.format.manifest import Changes, CommitRef
from archiver.format.roles import Globals
from archiver.format.seal import Kind, inflate
from archiver.lsn import Lsn
from archiver.policy.history import History
from archiver.policy.target import Plan, Target, ToLsn
from archiver.postgres import load
from archiver.postgres.session import connect
from archiver.snapshots import Index
from archiver.survey import survey


async def read_history(archive: OpenArchive) -> History:
    """The whole verified log, as what can be restored from it."""
    return (await survey(archive)).history


async def make_plan(
    archive: OpenArchive, target: Target, history: History | None = None, *, snapshot_id: UUID | None = None
) -> Plan:
    """Decide how to reach a target, by default from the newest base snapshot that can.

    Raises TargetUnreachable, IntegrityError; writes nothing.
    """
    history = history or await read_history(archive)
    boundary = history.boundary(target, snapshot_id)
    commits = await _commits_of(archive, boundary) if boundary and boundary.object else []
    return history.plan(target, commits, datetime.now(UTC), snapshot_id)


async def _commits_of(archive: OpenArchive, changes: Changes) -> list[CommitRef]:
    body, raw_bytes = await fetch_segment(archive, changes)
    begun: set[int] = set()
    found = await asyncio.to_thread(lambda: list(_find_commits(body, raw_bytes, begun)))
    if sum(commit.foreign for commit in found) == changes.foreign:
        return found
    # Of a transaction that began in an earlier segment, its origin is told there.
    return [commit if commit.xid in begun else commit.model_copy(update={"foreign": True}) for commit in found]


def _find_commits(body: bytes, raw_bytes: int, begun: set[int]) -> Iterator[CommitRef]:
    """An Origin message says of which transaction the time is another server's. `begun`: those that begin here."""
    xid = 0
    foreign: set[int] = set()
    for record in segment.read_records(inflate(body, raw_bytes)):
        if not isinstance(record, bytes):
            continue
        match record[0]:
            case pgoutput.Tag.BEGIN:
                xid = pgoutput.parse_begin(record).xid
                begun.add(xid)
            case pgoutput.Tag.STREAM_START:
                xid = int.from_bytes(record[1:5], "big")
                begun |= {xid} if record[5] else set()
            case pgoutput.Tag.ORIGIN:
                foreign.add(xid)
            case pgoutput.Tag.COMMIT:
                yield _ref(xid, pgoutput.parse_commit(record), foreign)
            case pgoutput.Tag.STREAM_COMMIT:
                streamed = pgoutput.decode(record)
                assert isinstance(streamed, pgoutput.StreamCommit)
                yield _ref(streamed.xid, streamed, foreign)


def _ref(xid: int, commit: pgoutput.Commit | pgoutput.StreamCommit, foreign: Collection[int]) -> CommitRef:
    lsn, end_lsn, time = commit.commit_lsn, commit.end_lsn, commit.time
    return CommitRef(xid=xid, lsn=lsn, end_lsn=end_lsn, time=time, foreign=xid in foreign)


async def fetch_segment(archive: OpenArchive, changes: Changes) -> tuple[bytes, int]:
    ref = changes.object
    assert ref is not None
    place = Place(Kind.CHANGES, changes.ordinal, changes.start_lsn, changes.end_lsn)
    return await archive.fetch(ref, place), ref.raw_bytes


async def settle_plan(archive: OpenArchive, plan: Plan, dsn: str) -> tuple[Plan, bool]:
    """The plan that fits the target, and whether it goes on with this very restore, interrupted.

    An interrupted `--latest` goes on to what was the latest then. Raises PostgresError if the target holds
    anything else.
    """
    conn = await connect(dsn, purpose="restore")
    try:
        return await settle(archive, plan, conn)
    finally:
        await conn.close()


async def settle(archive: OpenArchive, plan: Plan, conn: psycopg.AsyncConnection[Any]) -> tuple[Plan, bool]:
    progress = await load.read_progress(conn)
    if progress is None:
        await load.ensure_empty(conn)
        return plan, False
    begun = progress.get("restore")
    mine = identity(plan, archive)
    if begun is None or any(begun[key] != mine[key] for key in ("archive", "target")):
        raise PostgresError(
            "the target holds another restore that was interrupted",
            where=f"{conn.info.dbname}, {begun['target'] if begun else 'unknown'}",
            hint="Finish that one by repeating its command, or restore into a new database.",
        )
    return (plan if begun == mine else await _plan_again(archive, plan, begun)), True


def missing_roles(index: Index, there: Collection[str]) -> tuple[Globals, list[str]]:
    """What of the archived roles a target with these lacks, and the names of those it has.

    Raises UsageError for a base snapshot from before roles were archived.
    """
    if index.roles is None:
        raise UsageError(
            "the base snapshot holds no roles: it was taken by an older archiver",
            hint="Restore without --globals, and make the roles by hand.",
        )
    return index.roles.missing(there), [role.name for role in index.roles.roles if role.name in there]


def identity(plan: Plan, archive: OpenArchive) -> dict[str, str]:
    return {
        "archive": str(archive.identity.archive),
        "target": str(plan.target),
        "snapshot": str(plan.snapshot.snapshot_id),
        "stop": str(plan.stop),
    }


async def _plan_again(archive: OpenArchive, plan: Plan, begun: dict[str, str]) -> Plan:
    """The plan of a restore that began when the archive was shorter."""
    stop = ToLsn(Lsn.parse(begun["stop"]))
    again = await make_plan(archive, stop, snapshot_id=UUID(begun["snapshot"]))
    return replace(again, target=plan.target)
