"""A log written by hand. Time and LSN run together: at second s the source stands at LSN s, unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from archiver.format.manifest import Changes, CommitRef, Entry, Gap, ObjectRef, Snapshot
from archiver.lsn import Lsn
from archiver.policy.history import History
from archiver.policy.target import Plan, Target

MORNING = datetime(2026, 11, 22, 3, tzinfo=UTC)
NOW = MORNING + timedelta(hours=1)


def at(second: float) -> datetime:
    return MORNING + timedelta(seconds=second)


def commit(lsn: int, time: float | None = None) -> CommitRef:
    """Its record starts two bytes before it ends at `lsn`."""
    return CommitRef(xid=lsn, lsn=Lsn(lsn - 2), end_lsn=Lsn(lsn), time=at(lsn if time is None else time))


def ref(raw_bytes: int = 1000, size: int = 100) -> ObjectRef:
    return ObjectRef(key="k", writer=UUID(int=1), size=size, sha256="0" * 64, key_id="d", raw_bytes=raw_bytes)


def changes(
    ordinal: int, start: int, end: int, *commits: CommitRef, covered: float | None = -1, **more: object
) -> Changes:
    """A change segment; without commits a proof that nothing was committed. Covered until its end unless told."""
    covered_until = None if covered is None else at(end if covered == -1 else covered)
    return Changes(
        ordinal=ordinal,
        connection=1,
        start_lsn=Lsn(start),
        end_lsn=Lsn(end),
        covered_until=covered_until,
        messages=3 * len(commits),
        commits=len(commits),
        first_commit_time=commits[0].time if commits else None,
        max_commit_time=max((c.time for c in commits), default=None),
        last_commit=commits[-1] if commits else None,
        **{"object": ref() if commits else None} | more,  # type: ignore[arg-type]
    )


def snapshot(lsn: int, time: float | None = None) -> Snapshot:
    taken = at(lsn if time is None else time)
    return Snapshot(
        snapshot_id=UUID(int=lsn),
        lsn=Lsn(lsn),
        consistent_at=taken,
        finished_at=taken + timedelta(seconds=5),
        server_version=180000,
        tables=1,
        rows=2,
        parts=(ref(), ref()),
    )


def gap(after: int, before: int) -> Gap:
    return Gap(after_lsn=Lsn(after), before_lsn=Lsn(before), reason="the replication slot was dropped")


COMMITS = {1: (commit(110), commit(130)), 2: (commit(210), commit(250), commit(290)), 4: (commit(450),)}
LOG: tuple[Entry, ...] = (
    changes(1, 100, 200, *COMMITS[1]),
    snapshot(150),
    changes(2, 200, 300, *COMMITS[2]),
    changes(3, 300, 400),
    changes(4, 400, 500, *COMMITS[4]),
)
"""Ordinal 3 is a proof that nothing was committed."""


def plan(target: Target, log: Sequence[Entry] = LOG, commits: dict[int, tuple[CommitRef, ...]] = COMMITS) -> Plan:
    history = History(log)
    boundary = history.boundary(target)
    return history.plan(target, commits.get(boundary.ordinal, ()) if boundary else (), NOW)


def ordinals(planned: Plan) -> list[int]:
    return [segment.ordinal for segment in planned.segments]
