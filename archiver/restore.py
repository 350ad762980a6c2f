"""Restore: a plan, then an empty database becomes the source as it was at the recovery target.

In: an archive, a plan (archiver.recovery_plan), and a connection string. Each step is recorded in the target in its
own transaction, so that an interrupted restore goes on where it stopped. Nothing of an object is used before all of
it is verified. What cannot be reached exactly is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import pairwise
from time import monotonic
from typing import Any, Final

import psycopg
import structlog

from archiver.archive import OpenArchive
from archiver.base_rows import BaseRows
from archiver.format import dump, dump_code, dump_roles
from archiver.format.ddl import qualified
from archiver.format.dump_not_null import means_names, with_not_null_names
from archiver.format.dump_roles import Skipped
from archiver.format.manifest import CommitRef
from archiver.names import TableName
from archiver.policy.builds import builds_of
from archiver.policy.sequence_log import SequenceState, SequenceStates
from archiver.policy.target import Plan
from archiver.postgres import (
    always_triggers,
    calling,
    closed,
    default_objects,
    extensions,
    load,
    not_null_names,
    relations,
    stand_ins,
)
from archiver.postgres.build import build_all
from archiver.postgres.no_input import empty_columns
from archiver.postgres.roles import create_roles
from archiver.postgres.sequences import raise_to_columns, set_sequences
from archiver.postgres.session import connect, postgres_error
from archiver.postgres.stand_ins import StandIns
from archiver.recovery_plan import identity, missing_roles, settle
from archiver.replay import Replay
from archiver.snapshots import Index, read_index

Progress = Callable[[str, int, int], None]
"""Called with the phase, and what of it is done and to be done: bytes when loading, segments when replaying."""

_LATE_ROLES: Final = (
    "roles made after the base snapshot are not in it: {}; create them and restore anew to keep what is theirs"
)

log = structlog.get_logger()


@dataclass(slots=True)
class Summary:
    """What a restore did; `warnings` are things that the operator must know and may want to mend."""

    last_commit: CommitRef | None = None
    tables: int = 0
    rows_loaded: int = 0
    transactions_replayed: int = 0
    resumed: bool = False
    roles_created: list[str] = field(default_factory=list)
    roles_kept: list[str] = field(default_factory=list)
    phases: dict[str, timedelta] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


async def run_restore(
    archive: OpenArchive,
    plan: Plan,
    dsn: str,
    *,
    jobs: int = 2,
    with_globals: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Carry the plan out in an empty database, or go on with one that was interrupted.

    `with_globals`: the roles that the target lacks are made first, for its whole server.
    """
    report = progress or (lambda _phase, _done, _total: None)
    work = _Restore(archive, plan, dsn, jobs=jobs, with_globals=with_globals, progress=report)
    return await work.run()


class _Restore:
    def __init__(
        self, archive: OpenArchive, plan: Plan, dsn: str, *, jobs: int, with_globals: bool, progress: Progress
    ) -> None:
        self._archive = archive
        self._plan = plan
        self._dsn = dsn
        self._jobs = jobs
        self._with_globals = with_globals
        self._progress = progress
        self._summary = Summary(last_commit=plan.last_commit)
        self._sequences = SequenceStates()
        self._path: str | None = None
        self._lacking: set[str] = set()
        self._stand_ins: StandIns
        self._rows: BaseRows

    async def run(self) -> Summary:
        conn = await connect(self._dsn, purpose="restore")
        try:
            await load.claim(conn)
            self._plan, self._summary.resumed = await settle(self._archive, self._plan, conn)
            self._rows = BaseRows(self._archive, self._plan.snapshot, self._worker)
            index = await read_index(self._archive, self._plan.snapshot)
            self._summary.last_commit = self._plan.last_commit
            self._summary.tables = len(index.tables)
            self._summary.rows_loaded = self._plan.snapshot.rows
            for recorded in (await self._done(conn)).values():
                self._summary.warnings += recorded if isinstance(recorded, list) else []
            self._path = index.database.search_path
            await load.expect_path(conn, self._path)
            self._stand_ins = await StandIns.open(conn)
            if self._with_globals:
                await self._create_roles(conn, index)
            script = await self._script(conn, index)
            await self._phases(conn, index, script)
            self._warn(index, script, await load.unlogged_tables(conn), await empty_columns(conn))
            await self._hand_over(conn)
            self._skip(await always_triggers.lift_all(conn))
        finally:
            await conn.close()
        self._summary.warnings = list(dict.fromkeys(self._summary.warnings))
        return self._summary

    async def _phases(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        phases = {
            "schema": self._create_schema,
            "rows": self._load_rows,
            "keys": self._create_keys,
            "constraints": self._create_late,
            "replay": self._replay,
            "sequences": self._set_sequences,
            "finish": self._finish,
        }
        handed_over = "over" in await self._done(conn)
        for name, phase in phases.items():
            started = monotonic()
            if not handed_over or name == "replay":
                await phase(conn, index, script)
            self._summary.phases[name] = timedelta(seconds=monotonic() - started)

    async def _hand_over(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """What is the stand-ins' becomes the restoring role's: from here on no code of theirs may run."""
        async with load.transaction(conn, "handing over"):
            await self._record(conn, over=self._summary.warnings)
        try:
            await stand_ins.hand_over(conn)
        except psycopg.Error as exc:
            raise postgres_error(exc, "handing over what was a missing role's") from exc

    async def _create_roles(self, conn: psycopg.AsyncConnection[Any], index: Index) -> None:
        wanted, kept = missing_roles(index, await load.existing_roles(conn) | self._stand_ins.names)
        self._skip(await create_roles(conn, wanted))
        self._summary.roles_created = [role.name for role in wanted.roles]
        self._summary.roles_kept = kept
        if wanted.roles and not wanted.passwords:
            self._summary.warnings.append("roles were created without passwords, which the archive does not hold")

    async def _script(self, conn: psycopg.AsyncConnection[Any], index: Index) -> dump.Script:
        """The archived schema, fitted to the target's version and roles."""
        entries = dump.split(index.schema)
        settings = await load.known_settings(conn)
        script = dump.for_restore(entries, publication=index.publication, settings=settings)
        script, temporary = _without_temporary(script)
        self._skip([Skipped(entry.label, "it stands on a temporary object", entry.text) for entry in temporary])
        roles, owners = await load.existing_roles(conn), await load.possible_owners(conn)
        if self._stand_ins.possible:
            self._lacking = dump_roles.lacking([*script.pre, *script.keys, *script.late], roles)
        steps: dict[str, list[dump.Entry]] = {}
        for step in ("pre", "keys", "late"):
            _, skipped = dump_roles.for_target(getattr(script, step), roles, owners=owners)
            self._skip(skipped)
            steps[step], _ = dump_roles.for_target(
                getattr(script, step), roles | self._lacking, owners=owners | self._lacking
            )
        if means_names(script.preamble):
            steps["pre"] = [with_not_null_names(entry) for entry in steps["pre"]]
        return dump.Script(script.preamble, **steps)

    async def _done(self, conn: psycopg.AsyncConnection[Any]) -> dict[str, Any]:
        return await load.read_progress(conn) or {}

    # --- base snapshot ---

    async def _create_schema(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        if await load.read_progress(conn) is not None:
            return
        async with load.transaction(conn, "schema"):
            if not index.database.has_public_schema:
                await load.drop_public_schema(conn)
            await load.create_progress(conn)
            await self._stand_ins.make(conn, self._lacking)
            await always_triggers.create(conn)
            await conn.execute(relations.CREATE)
            for entries in _up_to_extensions(script.pre):
                self._skip(await load.run_script(conn, script.preamble, entries))
                await always_triggers.hush_event_triggers(conn)
            self._skip(await default_objects.set_comments(conn, index.database.comments))
            self._summary.warnings += await extensions.deviations(conn, index.database.extensions)
            await relations.note(conn, _names(index, published=True))
            await self._record(
                conn,
                restore=identity(self._plan, self._archive),
                unarchived=await relations.oids_of(conn, _names(index, published=False)),
                schema=self._summary.warnings,
                limit=await closed.close(conn),
            )

    async def _load_rows(self, conn: psycopg.AsyncConnection[Any], index: Index, _script: dump.Script) -> None:
        done = await self._done(conn)
        if done.get("limit") is not None:
            await closed.end_others(conn)
        tables = [table for table in index.tables if table.info.published]
        await self._rows.load(conn, tables, done, jobs=self._jobs, progress=partial(self._progress, "rows"))

    async def _create_keys(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        await self._build(conn, "keys", index, script.preamble, script.keys)

    async def _create_late(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        """Before replay, whose DDL may concern them; what would act on rows is held silent meanwhile."""
        await self._build(conn, "late", index, script.preamble, script.late)
        if "views" not in await self._done(conn):  # a REFRESH in the stream has its own moment
            views = [(schema, name) for schema, name, populated in index.database.materialized_views if populated]
            await self._record(conn, views=self._skip(await load.refresh_views(conn, views)))

    async def _finish(self, conn: psycopg.AsyncConnection[Any], index: Index, script: dump.Script) -> None:
        self._skip(await always_triggers.give_keys_back(conn))
        if not means_names(script.preamble):
            await not_null_names.give_names(conn)
        self._skip(await load.apply_settings(conn, index.database.settings, await load.existing_roles(conn)))
        self._skip(await calling.analyze(conn))

    async def _build(
        self,
        conn: psycopg.AsyncConnection[Any],
        step: str,
        index: Index,
        preamble: dump.Entry,
        entries: Sequence[dump.Entry],
    ) -> None:
        """Indexes and constraints side by side, then the rest in its order."""
        done = await self._done(conn)
        if step in done:
            return
        self._progress(step, 0, 1)
        builds = builds_of(entries, self._sizes(index))
        self._skip(
            await build_all(
                self._worker,
                builds,
                preamble=preamble,
                jobs=self._jobs,
                done=frozenset(done),
                on_built=partial(self._progress, step),
            )
        )
        built = {build.entry for build in builds}
        async with load.transaction(conn, f"step {step}"):
            rest = await load.run_script(conn, preamble, [entry for entry in entries if entry not in built])
            await always_triggers.hush_event_triggers(conn)
            await self._record(conn, **{step: self._skip(rest)})
        self._progress(step, 1, 1)

    def _sizes(self, index: Index) -> dict[TableName, int]:
        """Bytes of rows of each table, compressed."""
        refs = self._plan.snapshot.parts
        return {table.info.table: sum(refs[number].size for number in table.parts) for table in index.tables}

    # --- replay ---

    async def _replay(self, conn: psycopg.AsyncConnection[Any], index: Index, _script: dump.Script) -> None:
        done = (await self._done(conn)).get("replay")
        replay = Replay(self._archive, self._plan, index, done)
        if "over" not in await self._done(conn):
            async with self._worker("replay") as worker:
                await replay.run(worker, partial(self._progress, "replay"))
            await self._load_unarchived(conn, index)
        self._sequences = replay.sequences
        self._summary.transactions_replayed = replay.transactions
        self._skip(replay.left_out)
        if late := sorted(replay.missing.difference(index.database.roles)):
            self._summary.warnings.append(_LATE_ROLES.format(", ".join(late)))

    async def _load_unarchived(self, conn: psycopg.AsyncConnection[Any], index: Index) -> None:
        done = await self._done(conn)
        tables = [table for table in index.tables if not table.info.published]
        self._summary.warnings += await self._rows.load_unarchived(tables, done.get("unarchived", {}), done)

    async def _set_sequences(self, conn: psycopg.AsyncConnection[Any], _index: Index, _script: dump.Script) -> None:
        states = [SequenceState.from_json(state) for state in self._sequences.all()]
        await set_sequences(conn, states)
        await raise_to_columns(conn)

    # --- reporting ---

    def _worker(self, purpose: str = "restore") -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        return load.worker(self._dsn, purpose=purpose, path=self._path)

    async def _record(self, conn: psycopg.AsyncConnection[Any], **values: Any) -> None:
        """What is done: a step's value is the list of its warnings, so that a restore that goes on has them too."""
        async with conn.cursor() as cursor:
            await load.write_progress(cursor, **values)

    def _skip(self, skipped: Sequence[Skipped]) -> list[str]:
        """Warn of what was left out. Returns the warnings."""
        warnings = [item.warning for item in skipped]
        self._summary.warnings += warnings
        return warnings

    def _warn(self, index: Index, script: dump.Script, unlogged: Sequence[str], empty: Sequence[str]) -> None:
        archived = {table.info.table for table in index.tables}
        for entry in script.pre:
            table = TableName(entry.schema, entry.name)
            if dump.holds_rows(entry) and table not in archived:
                self._summary.warnings.append(f"table {table} is not archived: it was restored without rows")
        for label in empty:
            self._summary.warnings.append(f"column {label} is empty: PostgreSQL reads no value of its type back")
        for label in unlogged:
            self._summary.warnings.append(f"unlogged table {label} is empty: its rows are never archived")
        if index.database.large_objects:
            self._summary.warnings.append(f"{index.database.large_objects} large objects are not archived")


def _without_temporary(script: dump.Script) -> tuple[dump.Script, list[dump.Entry]]:
    kept, gone = zip(*map(dump_code.without_temporary, (script.pre, script.keys, script.late)), strict=True)
    return dump.Script(script.preamble, *kept), [entry for entries in gone for entry in entries]


def _names(index: Index, *, published: bool) -> dict[int, str]:
    """The tables whose changes are archived, or are not: their names, quoted, by their OIDs at the source."""
    infos = [table.info for table in index.tables if table.info.published == published]
    return {info.oid: qualified(info.schema, info.name) for info in infos}


def _up_to_extensions(entries: Sequence[dump.Entry]) -> Iterator[Sequence[dump.Entry]]:
    """The entries in pieces that end behind an extension each: it may have brought event triggers."""
    borders = [number for number, entry in enumerate(entries, 1) if entry.type == "EXTENSION"]
    for begin, end in pairwise([0, *borders, len(entries)]):
        yield entries[begin:end]
