"""The judge: what must be true at every moment, and what must be true in the end.

`Watch` hears of every object that becomes durable and of every position that is confirmed. `judge_archive` reads the
archive with the real code, as a restore would, and compares it with the ledger, transaction by transaction.
"""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from archiver.archive import OpenArchive
from archiver.errors import TargetUnreachable
from archiver.format import layout, segment
from archiver.format.manifest import Changes, Entry, Gap
from archiver.format.seal import inflate
from archiver.lsn import Lsn
from archiver.policy.history import History
from archiver.policy.sequence_log import SequenceStates
from archiver.policy.target import Plan, Target, ToLatest, ToTime
from archiver.policy.transactions import SourceTransaction, TransactionAssembler
from archiver.recovery_plan import fetch_segment, make_plan
from archiver.snapshots import read_index
from archiver.verify import verify
from tests.simulation.clock import Process
from tests.simulation.regions import Region
from tests.simulation.wal import Committed, Wal


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Holding:
    """What one region holds of the log, read from what is durable there and from nothing else."""

    manifests: dict[int, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    next: int = 1
    began: bool = False
    covered: Lsn = field(default_factory=lambda: Lsn(0))

    def advance(self) -> None:
        while (stored := self.manifests.get(self.next)) is not None:
            entry = stored["entry"]
            reached = {"changes": "end_lsn", "gap": "before_lsn", "snapshot": "lsn"}.get(entry["kind"])
            self.began |= entry["kind"] in {"changes", "gap"}
            if reached and (entry["kind"] != "snapshot" or not self.began):  # changes are wanted from the first one on
                self.covered = max(self.covered, Lsn.parse(entry[reached]))
            self.next += 1


class Watch:
    """Looks on. `policy` is "all", "any" or "degrade"; `start`: where the slot began, all before needs no archive."""

    def __init__(self, wal: Wal, regions: Sequence[Region], policy: str, start: Lsn) -> None:
        self._wal = wal
        self._regions = regions
        self._policy = policy
        self._start = start
        self._commits = 0
        self._ends: list[Lsn] = []
        self.holdings = {region.name: Holding(covered=start) for region in regions}
        self.violations: list[str] = []
        self.interrupted = False
        """Whether a daemon ever ended or was frozen: then a sound region may lack the end of the log for a while."""
        for region in regions:
            region.on_put = self._on_put

    def complain(self, what: str) -> None:
        self.violations.append(what)

    def last_commit(self, upto: Lsn | None = None) -> Lsn:
        """The end of the last commit at or before a position."""
        self._ends += [commit.end for commit in self._wal.ledger[len(self._ends) :]]
        count = len(self._ends) if upto is None else bisect_right(self._ends, upto)
        return self._ends[count - 1] if count else Lsn(0)

    def confirmed(self, flushed: Lsn, process: Process | None) -> None:
        """Called before a confirmation counts: all at or below it must be durable as the policy says."""
        needed = self.last_commit(flushed)
        lacking = [region for region in self._regions if self.holdings[region.name].covered < needed]
        if needed <= self._start or not lacking:
            return
        harmed = self.interrupted or all(region.touched for region in lacking)
        excused = self._policy == "any" or (self._policy == "degrade" and harmed)
        if len(lacking) == len(self._regions) or not excused:
            who = process.name if process else "somebody"
            names = ", ".join(region.name for region in lacking)
            self.complain(f"{who} confirmed {flushed}, but a commit at {needed} is not durable in {names}")

    def _on_put(self, region: Region, key: str, data: bytes) -> None:
        seq = layout.manifest_seq(key)
        if seq is None:
            return
        holding = self.holdings[region.name]
        stored = json.loads(data)
        for ref in _refs(stored["entry"]):
            if len(region.objects.get(ref["key"], b"")) != ref["size"]:
                self.complain(f"{region.name}: manifest {seq} names {ref['key']}, which is not there")
            if layout.key(ref["key_id"]) not in region.objects:
                self.complain(f"{region.name}: manifest {seq} names {ref['key']}, but its key is not there")
        if seq > 1 and seq - 1 not in holding.manifests:
            self.complain(f"{region.name}: manifest {seq} stands behind a hole")
        replaced = seq in holding.manifests
        holding.manifests[seq] = stored
        holding.hashes[seq] = hashlib.sha256(data).hexdigest()
        if replaced:
            holding.next, holding.began, holding.covered = 1, False, self._start
        holding.advance()


def _refs(entry: dict[str, Any]) -> list[dict[str, Any]]:
    found = list(entry.get("parts", ()))
    return [*found, entry["object"]] if entry.get("object") else found


# --- in the end ---


@dataclass
class Verdict:
    commits: int = 0
    segments: int = 0
    manifests: int = 0
    gaps: int = 0
    lost_commits: int = 0


async def judge_archive(archive: OpenArchive, wal: Wal, moment: datetime, losses: int) -> Verdict:
    """Raise Violation unless the archive holds exactly the ledger. `losses`: how often the slot was really lost."""
    report = await verify(archive, read_data=True)
    require(report.ok, f"verify: {report.findings}")
    entries = [signed.entry async for signed in archive.log.scan()]
    history = History(entries)
    gaps = [entry for entry in entries if isinstance(entry, Gap)]
    require(len(gaps) <= losses, f"{len(gaps)} gaps, but the slot was lost {losses} times")
    _require_contiguous(entries)
    changes = [entry for entry in entries if isinstance(entry, Changes)]
    _require_covered_until(changes, wal.ledger)
    got = await _replay_all(archive, entries)
    start = changes[0].start_lsn if changes else wal.end
    missing = [commit for commit in wal.ledger if any(gap.after_lsn < commit.end <= gap.before_lsn for gap in gaps)]
    wanted = [commit for commit in wal.ledger if commit.end > start and commit not in missing]
    require(got == wanted, _difference(got, wanted))
    await _judge_restore(archive, history, ToLatest(), wal.ledger)
    await _judge_moment(archive, history, wal, moment, bool(gaps))
    return Verdict(len(got), len(changes), len(entries), len(gaps), len(missing))


def require(condition: object, what: str) -> None:
    if not condition:
        raise Violation(what)


def _require_contiguous(entries: Sequence[Entry]) -> None:
    position, ordinal = None, 1
    for entry in entries:
        if isinstance(entry, Gap):
            require(
                position in {None, entry.after_lsn} or entry.after_lsn == Lsn(0),
                f"a gap that is not at the end: {entry}",
            )
            position = entry.before_lsn
        elif isinstance(entry, Changes):
            require(entry.ordinal == ordinal, f"segment {ordinal} is called {entry.ordinal}")
            require(
                position in {None, entry.start_lsn}, f"segment {ordinal} starts at {entry.start_lsn}, not {position}"
            )
            position, ordinal = entry.end_lsn, ordinal + 1


def _require_covered_until(changes: Sequence[Changes], ledger: Sequence[Committed]) -> None:
    """No commit of a later segment is of an earlier time, or of that very time."""
    earliest, number = datetime.max.replace(tzinfo=ledger[0].time.tzinfo) if ledger else None, len(ledger)
    for entry in reversed(changes):
        while number and ledger[number - 1].end > entry.end_lsn:
            number -= 1
            earliest = min(earliest, ledger[number].time)  # type: ignore[type-var]
        if entry.covered_until and earliest and number < len(ledger):
            require(
                entry.covered_until < earliest, f"{entry.ordinal} claims {entry.covered_until}, but {earliest} follows"
            )


class _Reader:
    """Reads change segments as a restore does."""

    def __init__(self, archive: OpenArchive, after: Lsn, stop: Lsn | None = None) -> None:
        self._archive = archive
        self._session: object = None
        self._assembler = TransactionAssembler(after=after, stop=stop, spool=io.BytesIO)
        self.sequences = SequenceStates()

    async def read(self, changes: Changes) -> list[Committed]:
        if changes.object is None:
            return []
        session = (changes.object.writer, changes.connection)
        if self._session not in {None, session}:
            self._assembler.start_session()
        self._session = session
        self._assembler.begin_segment(changes.ordinal)
        body, raw_bytes = await fetch_segment(self._archive, changes)
        found = [self._take(record) for record in segment.read_records(inflate(body, raw_bytes))]
        return [_committed(transaction) for transaction in found if transaction is not None]

    def _take(self, record: segment.Record) -> SourceTransaction | None:
        match record:
            case segment.Relation(xid, message):
                self._assembler.preamble(xid, message)
            case segment.Context(xid):
                self._assembler.context(xid)
            case segment.Sequences(states):
                self.sequences.fold(states)
            case message:
                return self._assembler.feed(message)
        return None


def _committed(transaction: SourceTransaction) -> Committed:
    ids = tuple(int(row.new[0]) for _, row in transaction.changes())  # type: ignore[union-attr, arg-type]
    return Committed(transaction.xid, transaction.commit_lsn, transaction.end_lsn, transaction.time, ids)


async def _replay_all(archive: OpenArchive, entries: Sequence[Entry]) -> list[Committed]:
    """Every transaction of the whole log; behind a gap reading begins anew."""
    got: list[Committed] = []
    reader: _Reader | None = None
    for entry in entries:
        if isinstance(entry, Gap):
            reader = _Reader(archive, entry.before_lsn)
        elif isinstance(entry, Changes):
            reader = reader or _Reader(archive, entry.start_lsn)
            got += await reader.read(entry)
    return got


async def _restore(archive: OpenArchive, plan: Plan) -> tuple[list[int], int]:
    """What a restore would hold: the ids of all rows, and where the sequence stands."""
    index = await read_index(archive, plan.snapshot)
    ids: list[int] = json.loads(index.schema)
    reader = _Reader(archive, plan.snapshot.lsn, plan.stop)
    reader.sequences = SequenceStates(index.sequences)
    for changes in plan.segments:
        for commit in await reader.read(changes):
            ids += commit.ids
    return ids, max((int(state["last_value"]) for state in reader.sequences.all()), default=0)


async def _judge_restore(archive: OpenArchive, history: History, target: Target, wanted: Sequence[Committed]) -> None:
    ids, sequence = await _restore(archive, await make_plan(archive, target, history))
    expected = [number for commit in wanted for number in commit.ids]
    require(ids == expected, f"a restore to {target}: {_difference(ids, expected)}")
    require(
        sequence >= max(ids, default=0), f"a restore to {target}: the sequence stands at {sequence}, below its rows"
    )


async def _judge_moment(
    archive: OpenArchive, history: History, wal: Wal, moment: datetime, may_be_unreachable: bool
) -> None:
    """A time inside the window: all up to the first commit that is later, in the order of commits."""
    window = history.window
    if window.earliest is None or window.latest is None or not window.earliest <= moment <= window.latest:
        return
    later = next((n for n, commit in enumerate(wal.ledger) if commit.time > moment), len(wal.ledger))
    try:
        await _judge_restore(archive, history, ToTime(moment), wal.ledger[:later])
    except TargetUnreachable as exc:
        require(may_be_unreachable, f"{moment} cannot be reached: {exc}")


def _difference(got: Sequence[Any], wanted: Sequence[Any]) -> str:
    lacking = [item for item in wanted if item not in got]
    surplus = [item for item in got if item not in wanted]
    at = next((n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    return f"{len(lacking)} missing {lacking[:3]}, {len(surplus)} too many {surplus[:3]}, different from number {at} on, {len(got)} of {len(wanted)}"
