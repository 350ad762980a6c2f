"""What a restore to a recovery target needs: which base snapshot, which change segments, and where it stops.

In: the entries of a verified manifest log, a target, and the commits of the one change segment in which the target
lies. Out: a `Plan`, or TargetUnreachable. A target that cannot be reached exactly is never rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from archiver.errors import IntegrityError, TargetUnreachable, UsageError
from archiver.format.journal import words_for
from archiver.format.manifest import Changes, CommitRef, Entry, Gap, Lost, Snapshot, format_time
from archiver.lsn import Lsn
from archiver.policy.points import NamedPoint, ambiguous

LOAD_BYTES_PER_SECOND = 20e6  # bench/restore.py; coarse on purpose: hardware differs more than archives do
REPLAY_MESSAGES_PER_SECOND = 50e3


@dataclass(frozen=True, slots=True)
class ToTime:
    time: datetime

    def __str__(self) -> str:
        return f"time {format_time(self.time)}"


@dataclass(frozen=True, slots=True)
class ToLsn:
    lsn: Lsn

    def __str__(self) -> str:
        return f"LSN {self.lsn}"


@dataclass(frozen=True, slots=True)
class ToName:
    name: str

    def __str__(self) -> str:
        return f"restore point {self.name!r}"


@dataclass(frozen=True, slots=True)
class ToLatest:
    def __str__(self) -> str:
        return "latest"


Target = ToTime | ToLsn | ToName | ToLatest


def parse_time(text: str) -> datetime:
    """ISO 8601 with an offset. Raises UsageError: without an offset nobody knows which night is meant."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        what = "is not an ISO 8601 time" if time is None else "has no offset from UTC"
        raise UsageError(
            f"the target time {text!r} {what}",
            hint="Write for example 2026-11-22T03:00:00Z or 2026-11-22T04:00:00+01:00.",
        )
    return time


@dataclass(frozen=True, slots=True)
class Plan:
    """A restore, decided: load `snapshot`, replay from `segments` every commit that ends at or before `stop`."""

    target: Target
    snapshot: Snapshot
    segments: tuple[Changes, ...]
    stop: Lsn
    last_commit: CommitRef | None

    @property
    def stored_bytes(self) -> int:
        return sum(part.size for part in self.snapshot.parts) + sum(s.object.size for s in self.segments if s.object)

    @property
    def messages(self) -> int:
        return sum(segment.messages for segment in self.segments)

    @property
    def commits(self) -> int:
        """Commits in the segments: an upper bound, the first and the last segment may be needed in part."""
        return sum(segment.commits for segment in self.segments)

    @property
    def unarchived(self) -> int:
        """How many tables nobody archived when the last segment was written."""
        return self.segments[-1].unarchived if self.segments else 0

    @property
    def estimate(self) -> timedelta:
        """A guess at the duration, from LOAD_BYTES_PER_SECOND and REPLAY_MESSAGES_PER_SECOND."""
        load = sum(part.raw_bytes for part in self.snapshot.parts) / LOAD_BYTES_PER_SECOND
        return timedelta(seconds=round(1 + load + self.messages / REPLAY_MESSAGES_PER_SECOND))


@dataclass(frozen=True, slots=True)
class Window:
    """What can be restored: any time from `earliest` to `latest`, but for the gaps."""

    earliest: datetime | None
    latest: datetime | None
    end: Lsn


class Epoch:
    """A part of a manifest log in which positions rise, seen as what can be restored from it.

    `before` and `after`: the gaps at which the source's history began anew, where there are such.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        before: Gap | None = None,
        after: Gap | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.before = before
        self.after = after
        self.entries = entries
        self.changes = [entry for entry in entries if isinstance(entry, Changes)]
        self.snapshots = sorted((e for e in entries if isinstance(e, Snapshot)), key=lambda e: (e.lsn, e.consistent_at))
        self.gaps = [entry for entry in entries if isinstance(entry, Gap)]
        self.restore_points = [
            NamedPoint((names or {}).get(point.sealed), point.lsn, point.time)
            for segment in self.changes
            for point in segment.restore_points
        ]

    @property
    def window(self) -> Window:
        times = [e.covered_until for e in self.changes if e.covered_until]
        # Up to just before a commit everything is known; at its own time another one may follow.
        times += [e.max_commit_time - timedelta(microseconds=1) for e in self.changes if e.max_commit_time]
        earliest = min((snapshot.consistent_at for snapshot in self.snapshots), default=None)
        return Window(earliest, max(times, default=None), self.end)

    @property
    def end(self) -> Lsn:
        """The last position that can be restored to; 0/0 in an empty archive."""
        return max([s.lsn for s in self.snapshots] + [s.end_lsn for s in self.changes[-1:]], default=Lsn(0))

    def boundary(self, target: Target) -> Changes | None:
        """The change segment in which the target lies, whose commits `plan` wants to know; None if in none."""
        if isinstance(target, ToTime):
            segment = self._settles(target.time)
            return segment if segment and segment.object and _is_later(segment, target.time) else None
        stop = self._stop_lsn(target)
        return next((s for s in self.changes if s.start_lsn < stop < s.end_lsn and s.object), None)

    def _settles(self, time: datetime) -> Changes | None:
        """The first segment that says what was committed by `time`: it holds a later commit, or covers the time."""
        settled = (s for s in self.changes if _is_later(s, time) or (s.covered_until and s.covered_until >= time))
        return next(settled, None)

    def plan(
        self,
        target: Target,
        boundary_commits: Sequence[CommitRef],
        now: datetime,
        snapshot_id: UUID | None = None,
    ) -> Plan:
        """Decide. `boundary_commits`: the commits of `boundary(target)` in order. Raises TargetUnreachable.

        `snapshot_id` names the base snapshot to start from, where a restore has started already.
        """
        stop = self._stop(target, boundary_commits, now)
        snapshot = self._snapshot(target, stop, snapshot_id)
        segments = self._segments(target, snapshot.lsn, stop)
        return Plan(target, snapshot, segments, stop, self._last_commit(boundary_commits, stop))

    def find_restore_points(self, name: str) -> list[NamedPoint]:
        """Those of that name."""
        return [point for point in self.restore_points if point.name == name]

    def _stop(self, target: Target, commits: Sequence[CommitRef], now: datetime) -> Lsn:
        return self._stop_time(target, commits, now) if isinstance(target, ToTime) else self._stop_lsn(target)

    def _stop_lsn(self, target: Target) -> Lsn:
        end = self.end
        match target:
            case ToLsn(lsn):
                if lsn > end:
                    raise TargetUnreachable(
                        f"the archive ends before LSN {lsn}",
                        where=f"it ends at {end}",
                        hint="Use --latest for all of it.",
                    )
                return lsn
            case ToName(name):
                return self._the_one(name).lsn
            case _:
                return end

    def _the_one(self, name: str) -> NamedPoint:
        points = self.find_restore_points(name)
        if not points:
            known = ", ".join(sorted({point.name for point in self.restore_points if point.name})) or "none"
            raise TargetUnreachable(
                f"there is no restore point {name!r} in the archive", hint=f"Restore points: {known}."
            )
        if len(points) > 1:
            raise ambiguous(name, points)
        return points[0]

    def _stop_time(self, target: ToTime, commits: Sequence[CommitRef], now: datetime) -> Lsn:
        if target.time > now:
            raise TargetUnreachable(f"the target {target} is in the future", hint=self._window_hint())
        segment = self._settles(target.time)
        doubtful = self._doubtful_before(segment, target.time)
        for commit in commits:
            if commit.foreign:
                doubtful.append((commit.lsn, commit.end_lsn))
            elif commit.time > target.time:
                return self._certain(target, commit.lsn, doubtful)
            else:
                doubtful.clear()  # what comes before a commit in the stream was committed before it
        if segment is None and self.after is not None:
            raise _in_gap(target, self.after)
        if segment is None:
            raise TargetUnreachable(f"the archive does not reach the target {target} yet", hint=self._window_hint())
        return self._certain(target, segment.end_lsn, doubtful)

    def _doubtful_before(self, settling: Changes | None, time: datetime) -> list[tuple[Lsn, Lsn]]:
        """Spans of foreign commits in the segments before, which may be later than `time`: nobody knows when they came.

        What lies before a segment that is covered until a moment at or before `time` was committed by then.
        """
        doubtful: list[tuple[Lsn, Lsn]] = []
        covered: datetime | None = None
        for segment in self.changes:
            if settling is None or segment.ordinal >= settling.ordinal:
                break
            if segment.covered_until is not None and segment.covered_until <= time:
                if covered is None or segment.covered_until > covered:
                    doubtful.clear()
                covered = segment.covered_until
            last = segment.last_commit
            if last is not None and not last.foreign:
                doubtful.clear()
            elif last is not None and segment.foreign:
                doubtful.append((segment.start_lsn, last.end_lsn))
        return doubtful

    def _certain(self, target: ToTime, stop: Lsn, doubtful: Sequence[tuple[Lsn, Lsn]]) -> Lsn:
        """Where to stop, unless there are commits before it that may be later than the target."""
        if not doubtful:
            return stop
        raise TargetUnreachable(
            f"the target {target} is not certain: commits around it bear the time of another server",
            where=f"between {doubtful[0][0]} and {doubtful[-1][1]}",
            hint=f"Say it by position: --target-lsn {doubtful[0][0]} stops before them, {doubtful[-1][1]} after them.",
        )

    def _snapshot(self, target: Target, stop: Lsn, snapshot_id: UUID | None) -> Snapshot:
        """The newest one at or before the target with no gap in between."""
        wanted = [s for s in self.snapshots if snapshot_id in {None, s.snapshot_id}]
        before = [s for s in wanted if s.lsn <= stop and not _is_after(s, target)]
        if not self.snapshots and self.before is not None:
            raise _in_gap(target, self.before)
        if not before:
            raise TargetUnreachable(f"the target {target} is before the recovery window", hint=self._window_hint())
        whole = [s for s in before if self._gap_between(s.lsn, stop) is None]
        if carried := [s for s in whole if self._lost_between(s.lsn, stop) is None]:
            return carried[-1]
        if whole and (lost := self._lost_between(whole[-1].lsn, stop)) is not None:
            raise self._behind(lost, target)
        raise _in_gap(target, self._gap_between(before[-1].lsn, stop) or self.gaps[-1])

    def _lost_between(self, start: Lsn, stop: Lsn) -> Lost | None:
        return next((lost for s in self.changes for lost in s.lost if _hides(lost, start, stop)), None)

    def _behind(self, lost: Lost, target: Target) -> TargetUnreachable:
        """The refusal, with what can be reached: the last moment before it, and the first one after it."""
        where = f"at {lost.lsn}" if lost.since is None else f"after {lost.since}, at or before {lost.lsn}"
        before = lost.since if lost.since is not None else Lsn(lost.lsn - 1)
        after = next((s for s in self.snapshots if s.lsn >= lost.lsn), None)
        then = (
            f"from {after.lsn} on ({format_time(after.consistent_at)}), where a base snapshot was taken"
            if after
            else "from the base snapshot on that archiver run takes after it"
        )
        return TargetUnreachable(
            f"the target {target} is after a schema change that was not captured: {words_for(lost.reason)}",
            where=f"it was committed {where}",
            hint=f"What can be reached: up to --target-lsn {before}, and {then}.",
        )

    def _gap_between(self, start: Lsn, stop: Lsn) -> Gap | None:
        return next((g for g in self.gaps if g.before_lsn > start and g.after_lsn < stop), None)

    def _segments(self, target: Target, start: Lsn, stop: Lsn) -> tuple[Changes, ...]:
        """What is needed from `start` to `stop`, and on to where the sequences at the target are told of."""
        if start < stop:
            needed = self._holding_rows(start, stop)
            first, last = self._begin(needed[0]), needed[-1].ordinal
        elif needed := self._at_or_after(stop)[:1]:
            first, last = needed[0].ordinal, -1  # no rows: sequences alone
        else:
            return ()
        told = next((s.ordinal for s in self._behind_target(target, stop) if s.sequences), last)
        return tuple(s for s in self.changes if first <= s.ordinal <= max(last, told) and s.object)

    def _holding_rows(self, start: Lsn, stop: Lsn) -> list[Changes]:
        needed = [s for s in self.changes if s.end_lsn > start and s.start_lsn < stop]
        if not needed or needed[-1].end_lsn < stop:
            end = needed[-1].end_lsn if needed else start
            raise TargetUnreachable(
                f"the archive does not hold all changes up to {stop} yet", where=f"it ends at {end}"
            )
        self._check_contiguous(needed, start)
        return needed

    def _begin(self, first: Changes) -> int:
        """The ordinal of `first`, or where a transaction was open at its start, of that one's beginning."""
        before = next((s for s in reversed(self.changes) if s.ordinal < first.ordinal), None)
        begin = self._begin_or_first(before, first)
        if begin < self.changes[0].ordinal or (before is None and self.before is None and first.ordinal > 1):
            raise IntegrityError(
                "the log begins too late for this base snapshot: what was under way then is missing",
                where=f"change segment {self.changes[0].ordinal} is the first that the log names",
                hint="Take a target behind a later base snapshot (archiver info), or take one: archiver snapshot",
            )
        return begin

    def _begin_or_first(self, before: Changes | None, first: Changes) -> int:
        return before.open_from if before and before.open_from is not None else first.ordinal

    def _behind_target(self, target: Target, stop: Lsn) -> list[Changes]:
        """Segments that were cut when the source was past the target, sequences included; failing that, the last one.

        A sequence gives up to 32 values for one record in the WAL (SEQ_LOG_VALS, sequence.c): it moves within an LSN.
        """
        if isinstance(target, ToTime) and (settling := self._settles(target.time)) is not None:
            return [s for s in self.changes if s.ordinal >= settling.ordinal]
        gap = next((gap.before_lsn for gap in self.gaps if gap.after_lsn >= stop), None)
        reaching = [s for s in self._at_or_after(stop) if gap is None or s.start_lsn < gap]
        return [s for s in reaching if s.end_lsn > stop and s.sequences] or reaching[::-1]

    def _at_or_after(self, stop: Lsn) -> list[Changes]:
        return [s for s in self.changes if s.end_lsn >= stop]

    def _check_contiguous(self, needed: Sequence[Changes], start: Lsn) -> None:
        position = start
        for segment in needed:
            if segment.start_lsn > position:
                raise IntegrityError(
                    f"the archive holds nothing between {position} and {segment.start_lsn}", hint="Run archiver verify."
                )
            position = segment.end_lsn

    def _last_commit(self, boundary_commits: Sequence[CommitRef], stop: Lsn) -> CommitRef | None:
        candidates = [s.last_commit for s in self.changes if s.last_commit] + list(boundary_commits)
        return max((c for c in candidates if c.end_lsn <= stop), key=lambda c: c.end_lsn, default=None)

    def _window_hint(self) -> str:
        window = self.window
        if window.earliest is None:
            return "There is no base snapshot yet; archiver run takes the first one, or archiver snapshot."
        latest = format_time(window.latest) if window.latest else "its base snapshot"
        return f"The archive can be restored to any time from {format_time(window.earliest)} to {latest}."


def _hides(lost: Lost, start: Lsn, stop: Lsn) -> bool:
    """Whether a replay from `start` to `stop` may lack what was lost. A base snapshot itself never does."""
    if lost.since is None:
        return start < lost.lsn <= stop
    return start < lost.lsn and stop > max(start, lost.since)


def _is_later(segment: Changes, time: datetime) -> bool:
    return segment.max_commit_time is not None and segment.max_commit_time > time


def _is_after(snapshot: Snapshot, target: Target) -> bool:
    return isinstance(target, ToTime) and snapshot.consistent_at > target.time


def _in_gap(target: Target, gap: Gap) -> TargetUnreachable:
    return TargetUnreachable(
        f"the target {target} is inside or behind a gap: {gap.reason}",
        where=f"nothing is archived between {gap.after_lsn} and {gap.before_lsn}",
        hint="Choose a target before the gap, or after the base snapshot that followed it (archiver info).",
    )
