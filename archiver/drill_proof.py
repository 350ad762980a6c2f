"""The proof of a drill: what the restored copy holds, against what the base snapshots say that it must hold.

In: the copy's connection string and the indexes of one base snapshot or two. Out: checks. It only reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from archiver.config import DrillSection
from archiver.format import dump, dump_roles
from archiver.format.digest import RowDigest
from archiver.format.drill import Check
from archiver.names import ConstraintName, TableName
from archiver.policy import drill as policy
from archiver.policy.drill import SequenceFacts, TableState
from archiver.policy.sequence_log import SequenceState
from archiver.postgres import load, proof, unchecked_keys
from archiver.postgres.client_programs import dump_schema, find_pg_dump
from archiver.postgres.sequences import behind_columns, read_sequences
from archiver.postgres.session import connect
from archiver.postgres.snapshot_tables import TableInfo
from archiver.restore import Progress
from archiver.snapshots import Index


@dataclass
class Findings:
    """Checks, and what must be told although nothing failed."""

    checks: list[Check] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)


@dataclass
class Proof:
    """Looks at the copy, and adds a check to `found` for everything that it looked at.

    `base` is the base snapshot that was restored, `later` the one that the copy must equal, if there is one.
    """

    dsn: str
    base: Index
    later: Index | None
    settings: DrillSection
    jobs: int
    progress: Progress
    found: Findings

    async def check_tables(self) -> None:
        """Read every table of the copy. Raises PostgresError."""
        if self.later is not None:
            await self._compare_tables(self.later)
        else:
            await self._count_tables()

    async def check_others(self) -> None:
        """Schema, sequences, constraints, indexes, and the operator's query. Raises PostgresError."""
        if self.later is not None:
            await self._compare_schema(self.later)
        await self._check_sequences()
        await self._check_validity()
        unarchived = sorted({*self.base.unarchived, *(self.later.unarchived if self.later else ())})
        self.found.checks.append(policy.check_none("tables whose changes are not archived", unarchived))
        await self._ask()

    async def _compare_tables(self, later: Index) -> None:
        wanted = _infos(later)
        expected = {table.info.table: TableState(table.info.columns, table.digest) for table in later.tables}
        there = await self._read(wanted)
        strangers = [info for name, info in (await proof.tables_of(self.dsn)).items() if name not in wanted]
        self.found.checks += policy.check_tables(expected, there)
        self.found.checks.append(policy.check_nothing_else(await proof.with_rows(self.dsn, strangers)))

    async def _count_tables(self) -> None:
        there = await self._read(await proof.tables_of(self.dsn))
        base = {table.info.table: table.digest.count for table in self.base.tables}
        counts = {name: (state.digest or RowDigest()).count for name, state in there.items()}
        self.found.checks += policy.check_counts(base, counts)
        gone = [f"table {name} of the base snapshot is not there at the target" for name in base if name not in there]
        self.found.deviations += gone

    async def _read(self, wanted: Mapping[TableName, TableInfo]) -> dict[TableName, TableState]:
        def report(done: int, total: int) -> None:
            self.progress("digests", done, total)

        return await proof.read_tables(self.dsn, wanted, jobs=self.jobs, progress=report)

    async def _compare_schema(self, later: Index) -> None:
        async with await connect(self.dsn, purpose="drill") as conn:
            major, settings = conn.info.server_version // 10000, await load.known_settings(conn)
            roles, owners = await load.existing_roles(conn), await load.possible_owners(conn)
        schema = await dump_schema(self.dsn, await find_pg_dump(major), snapshot=None)
        if policy.dumped_by(schema) != policy.dumped_by(later.schema):
            self.found.deviations.append(
                "the schema was not compared: the copy's PostgreSQL or pg_dump is another version"
            )
            return

        def fitted(text: str) -> list[dump.Entry]:
            script = dump.for_restore(dump.split(text), publication=later.publication, settings=settings)
            return dump_roles.for_target([*script.pre, *script.keys, *script.late], roles, owners=owners)[0]

        self.found.checks.append(policy.check_schema(fitted(later.schema), fitted(schema), self.found.deviations))

    async def _check_sequences(self) -> None:
        async with await connect(self.dsn, purpose="drill") as conn:
            found = _by_name((await read_sequences(conn)).states)
            needed = _by_name(await behind_columns(conn))
        base = _by_name(map(SequenceState.from_json, self.base.sequences))
        later = _by_name(map(SequenceState.from_json, self.later.sequences)) if self.later else {}
        for name in later or found:
            self.found.checks.append(policy.check_sequence(_facts(name, base, later, found, needed)))

    async def _check_validity(self) -> None:
        allowed = _not_valid_at_the_source(self.later or self.base)
        async with await connect(self.dsn, purpose="drill") as conn:
            pending = [
                str(name)
                for name in await proof.not_validated(conn)
                if not (name in allowed or unchecked_keys.is_expected(name, self.found.deviations))
            ]
            invalid = await proof.invalid_indexes(conn)
            dangling = await proof.dangling(conn, _infos(self.later or self.base))
        self.found.checks.append(policy.check_none("constraints that are not validated", pending))
        self.found.checks.append(policy.check_none("invalid indexes", invalid))
        self.found.checks.append(policy.check_none("foreign keys that rows violate", dangling))

    async def _ask(self) -> None:
        query = self.settings.query
        if query is None:
            return
        async with await connect(self.dsn, purpose="drill") as conn:
            self.found.checks.append(policy.check_query(query, await proof.ask(conn, query), self.settings.expect))


def _infos(index: Index) -> dict[TableName, TableInfo]:
    return {table.info.table: table.info for table in index.tables}


States = Mapping[TableName, SequenceState]


def _by_name(states: Iterable[SequenceState]) -> dict[TableName, SequenceState]:
    return {TableName(state.schema, state.name): state for state in states}


def _facts(name: TableName, base: States, later: States, found: States, needed: States) -> SequenceFacts:
    def value(states: States) -> int | None:
        return states[name].last_value if name in states else None

    known = next(states[name] for states in (later, found, base) if name in states)
    return SequenceFacts(name, known.increment, value(base), value(found), value(later), value(needed))


def _not_valid_at_the_source(index: Index) -> set[ConstraintName | None]:
    """Constraints that the dump itself makes NOT VALID."""
    entries = dump.split(index.schema)
    return {dump.constraint_of(entry) for entry in entries if "CONSTRAINT" in entry.type and "NOT VALID" in entry.text}
