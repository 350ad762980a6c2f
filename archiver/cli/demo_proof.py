"""The demo's proof: what every table of the source held at a moment, and whether another database holds the same.

In: connection strings. Out: counts and digests. It reads both databases itself and knows nothing of the archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from archiver.cli import demo_shop
from archiver.format.digest import RowDigest
from archiver.policy.sequence_log import SequenceState
from archiver.postgres.sequences import read_sequences
from archiver.postgres.session import fetch
from archiver.postgres.snapshot import digest_table, snapshot_connection
from archiver.postgres.snapshot_tables import TableInfo, list_tables


@dataclass(frozen=True, slots=True)
class Truth:
    """The source at `time` by its own clock; nobody wrote while this was read."""

    time: datetime
    tables: Sequence[tuple[TableInfo, RowDigest]]
    sequences: Sequence[SequenceState]
    money: object


@dataclass(frozen=True, slots=True)
class Verdict:
    """One table, or sequence: `source` and `restored` are its rows, or where it stands."""

    name: str
    source: int
    restored: int
    equal: bool
    is_sequence: bool = False

    @property
    def result(self) -> str:
        """In words; a sequence is not in the stream, and is right when it is not behind."""
        if self.is_sequence and self.equal and self.source != self.restored:
            return "ahead"
        return "yes" if self.equal else "NO"


async def take_truth(dsn: str) -> Truth:
    """Read everything while the traffic is held."""
    async with snapshot_connection(dsn, None, purpose="demo") as conn:
        tables = [(info, await digest_table(conn, info)) for info in await list_tables(conn)]
        sequences = (await read_sequences(conn)).states
        [(time,)] = await fetch(conn, "SELECT pg_catalog.clock_timestamp()")
    return Truth(time, tables, sequences, await demo_shop.money(dsn))


async def compare(truth: Truth, dsn: str) -> list[Verdict]:
    """Table by table; and sequences, of which a restored one may stand further but never behind."""
    async with snapshot_connection(dsn, None, purpose="demo") as conn:
        there = {table.table for table in await list_tables(conn)}
        verdicts = []
        for info, source in truth.tables:
            restored = await digest_table(conn, info) if info.table in there else RowDigest()
            verdicts.append(Verdict(info.label, source.count, restored.count, restored == source))
        states = {(state.schema, state.name): state for state in (await read_sequences(conn)).states}
    return verdicts + [_compare_sequence(state, states.get((state.schema, state.name))) for state in truth.sequences]


def _compare_sequence(source: SequenceState, restored: SequenceState | None) -> Verdict:
    name = f"sequence {source.schema}.{source.name}"
    if restored is None:
        return Verdict(name, source.last_value, 0, equal=False, is_sequence=True)
    return Verdict(name, source.last_value, restored.last_value, not source.is_past(restored), is_sequence=True)
