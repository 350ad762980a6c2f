"""A change segment before it is sealed, and what its manifest says of it.

In: what a ChangeStream notes of the messages that it passes on. Out: an entry of the manifest log. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from archiver.format.journal import Point
from archiver.format.manifest import Catalog, Changes, CommitRef, Lost, ObjectRef, RestorePoint
from archiver.format.pgoutput import from_pg_time
from archiver.lsn import Lsn


@dataclass(slots=True)
class Cut:
    """A finished change segment before sealing: `body` is its plaintext, empty if nothing was sent."""

    ordinal: int
    start: Lsn
    end: Lsn
    body: bytearray = field(default_factory=bytearray)
    messages: int = 0
    commits: int = 0
    first_time: int | None = None
    max_time: int | None = None
    last: tuple[int, int, int, int, bool] | None = None  # xid, commit LSN, end LSN, commit time, foreign
    foreign: int = 0
    open_from: int | None = None
    points: list[tuple[Point, datetime]] = field(default_factory=list)
    """The restore points named, each with the time of its commit."""
    lost: list[Lost] = field(default_factory=list)
    described: set[bytes] = field(default_factory=set)
    """The Relation messages of committed transactions, as they are outside of streamed ones."""
    announced: set[int] = field(default_factory=set)
    """The OIDs of tables that DDL said that it made, committed or not."""
    named: dict[int, str] = field(default_factory=dict)
    """The tables that DDL said that it changed, by OID."""

    def note(self, xid: int, lsn: int, end: int, time: int, *, foreign: bool) -> None:
        """Count a commit. Plain numbers: a million of these come in a few seconds."""
        self.commits += 1
        self.last = (xid, lsn, end, time, foreign)
        if foreign:
            self.foreign += 1
        elif self.first_time is None or self.max_time is None:
            self.first_time = self.max_time = time
        elif time > self.max_time:
            self.max_time = time

    def entry(
        self,
        connection: int,
        timeline: int | None,
        *,
        covered_until: datetime | None,
        sequences: bool,
        stored: ObjectRef | None,
        catalog: Catalog | None = None,
        unarchived: int = 0,
        restore_points: Sequence[RestorePoint] = (),
    ) -> Changes:
        """What the manifest log says of this segment."""
        return Changes(
            ordinal=self.ordinal,
            connection=connection,
            timeline=timeline,
            start_lsn=self.start,
            end_lsn=self.end,
            covered_until=covered_until,
            messages=self.messages,
            commits=self.commits,
            foreign=self.foreign,
            first_commit_time=self.first_commit_time,
            max_commit_time=self.max_commit_time,
            last_commit=self.last_commit,
            open_from=self.open_from,
            restore_points=tuple(restore_points),
            lost=tuple(self.lost),
            catalog=catalog,
            unarchived=unarchived,
            sequences=sequences,
            object=stored,
        )

    @property
    def first_commit_time(self) -> datetime | None:
        return None if self.first_time is None else from_pg_time(self.first_time)

    @property
    def max_commit_time(self) -> datetime | None:
        return None if self.max_time is None else from_pg_time(self.max_time)

    @property
    def last_commit(self) -> CommitRef | None:
        if self.last is None:
            return None
        xid, lsn, end, time, foreign = self.last
        return CommitRef(xid=xid, lsn=Lsn(lsn), end_lsn=Lsn(end), time=from_pg_time(time), foreign=foreign)
