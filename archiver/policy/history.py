"""A whole manifest log, seen as what can be restored from it: one epoch after the other.

In: the entries of a verified log. Out: plans, from the epoch in which a target lies. An epoch ends where the source's
history began anew (another server, a standby that took over without all that is archived): LSNs are compared only
inside of one. Nearly every archive has just one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from archiver.format.manifest import Changes, CommitRef, Entry, Gap, Snapshot
from archiver.lsn import Lsn
from archiver.policy.points import NamedPoint, ambiguous
from archiver.policy.target import Epoch, Plan, Target, ToLsn, ToName, ToTime, Window


class History:
    """The entries of a manifest log; the lists hold those of all epochs, in their order.

    `names` are those of restore points, by how they are sealed.
    """

    def __init__(self, entries: Sequence[Entry], names: Mapping[str, str] | None = None) -> None:
        self.epochs = list(_epochs(entries, names))
        self.changes: list[Changes] = [changes for epoch in self.epochs for changes in epoch.changes]
        self.snapshots: list[Snapshot] = [snapshot for epoch in self.epochs for snapshot in epoch.snapshots]
        self.gaps = [entry for entry in entries if isinstance(entry, Gap)]
        self.restore_points: list[NamedPoint] = [point for epoch in self.epochs for point in epoch.restore_points]

    @property
    def system_identifier(self) -> str | None:
        """The source's where it has changed since the archive was made."""
        return next((gap.system_identifier for gap in reversed(self.gaps) if gap.system_identifier), None)

    @property
    def window(self) -> Window:
        windows = [epoch.window for epoch in self.epochs]
        restorable = [window for window in windows if window.earliest is not None] or windows
        return Window(restorable[0].earliest, restorable[-1].latest, self.end)

    @property
    def end(self) -> Lsn:
        """The last position that can be restored to; 0/0 in an empty archive."""
        return self.epochs[-1].end

    def boundary(self, target: Target, snapshot_id: UUID | None = None) -> Changes | None:
        """The change segment in which the target lies, whose commits `plan` wants to know; None if in none."""
        return self._epoch(target, snapshot_id).boundary(target)

    def plan(
        self, target: Target, boundary_commits: Sequence[CommitRef], now: datetime, snapshot_id: UUID | None = None
    ) -> Plan:
        """Decide; see Epoch.plan. Raises TargetUnreachable."""
        return self._epoch(target, snapshot_id).plan(target, boundary_commits, now, snapshot_id)

    def find_restore_points(self, name: str) -> list[NamedPoint]:
        """Those of that name, in all epochs."""
        return [point for point in self.restore_points if point.name == name]

    def _epoch(self, target: Target, snapshot_id: UUID | None) -> Epoch:
        """The newest epoch that holds the target, by default the last: what is wrong with the target it says best."""
        if isinstance(target, ToName) and len(points := self.find_restore_points(target.name)) > 1:
            raise ambiguous(target.name, points)
        holding = (epoch for epoch in reversed(self.epochs) if _holds(epoch, target, snapshot_id))
        return next(holding, self.epochs[0] if isinstance(target, ToTime) else self.epochs[-1])


def _epochs(entries: Sequence[Entry], names: Mapping[str, str] | None) -> Iterator[Epoch]:
    part: list[Entry] = []
    before: Gap | None = None
    for entry in entries:
        if isinstance(entry, Gap) and entry.new_history:
            yield Epoch(part, before, entry, names)
            part, before = [], entry
        else:
            part.append(entry)
    yield Epoch(part, before, names=names)


def _holds(epoch: Epoch, target: Target, snapshot_id: UUID | None) -> bool:
    if snapshot_id is not None:
        return any(snapshot.snapshot_id == snapshot_id for snapshot in epoch.snapshots)
    match target:
        case ToTime(time):
            earliest = epoch.window.earliest
            return earliest is not None and earliest <= time
        case ToLsn(lsn):
            return bool(epoch.snapshots) and epoch.snapshots[0].lsn <= lsn <= epoch.end
        case ToName(name):
            return bool(epoch.find_restore_points(name))
        case _:
            return True
