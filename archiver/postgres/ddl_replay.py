"""DDL of the stream, executed at the target: each statement at its place, with its session's settings and role.

It gets entries of the journal from an Applier, in the target transaction that the rows are written in, and has its
statements run by archiver.postgres.ddl_running. Triggers, rules and foreign keys that would act are held silent, since
what they did is in the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg

from archiver.errors import PostgresError
from archiver.format import ddl, ddl_drops, ddl_told
from archiver.format.ddl import Event
from archiver.format.ddl_described import create_table
from archiver.format.ddl_renames import rename_of
from archiver.format.journal import DDL, LOST, ROWS, TEXT, Entry, computed_rows, reason_of, words_for
from archiver.lsn import Lsn
from archiver.policy.source_transaction import SourceTransaction
from archiver.postgres import always_triggers, ddl_indexes, relations, rewritten_rows
from archiver.postgres.apply import Applier, EntryHandler
from archiver.postgres.ddl_running import Runner
from archiver.postgres.renames import Renames
from archiver.postgres.session import postgres_error

MAX_STATEMENTS: Final = 100
"""DDL statements, and foreign keys dropped for them, in one target transaction: each keeps locks, of which
max_locks_per_transaction allows few."""

Conn = psycopg.AsyncConnection[Any]


class DdlReplay:
    """Runs the DDL messages of one replay, by its `runner`.

    `renames` are to be known again where an interrupted replay goes on.
    """

    def __init__(self, conn: Conn, runner: Runner, silence: always_triggers.Silence) -> None:
        self.renames = Renames()
        self.runner = runner
        self._conn = conn
        self._silence = silence
        self._statements = 0
        self._must_commit = False
        self._nested = 0
        self._makes_enums: Lsn | None = None
        self._applier: Applier | None = None
        self._texts: dict[str, ddl.Text] = {}
        self._texts_until = Lsn(0)

    @classmethod
    async def open(cls, conn: Conn, publication: str) -> DdlReplay:
        """For a connection that an Applier will own. Raises PostgresError."""
        silence = await always_triggers.Silence.open(conn)
        runner = await Runner.open(conn, publication, system_triggers=silence.by_role)
        return cls(conn, runner, silence)

    def attach(self, applier: Applier) -> None:
        self._applier = applier

    @property
    def handlers(self) -> dict[str, EntryHandler]:
        """What an Applier calls for each kind."""
        return {DDL: self._on_ddl, ROWS: self._on_rows, LOST: self._on_lost}

    async def before_rows(self) -> None:
        """What an Applier calls before it writes rows, truncates or commits, so that nothing acts on them."""
        await self._silence.impose(self._conn)

    def concerns(self, entry: Entry) -> bool:
        """Whether there is anything to do: sessions that fill temporary tables send many that there is nothing for."""
        if entry.kind == TEXT:
            self._keep_text(entry)
        if entry.kind != DDL:
            return entry.kind in self.handlers
        if entry.said.get("tag") not in ddl.CREATES_FILLED or entry.said.get("event") == "sql_drop":
            return True
        return entry.said.get("event") == "ddl_command_start" and self._made_by(entry.lsn) is not None

    def _keep_text(self, entry: Entry) -> None:
        """For the events of its transaction that follow."""
        until = self._attached().until
        if self._texts_until != until:
            self._texts, self._texts_until = {}, until
        self._texts[entry.id] = ddl.Text.from_json(entry.said)

    def _parse(self, entry: Entry) -> Event:
        return ddl.parse_event(entry.said, self._texts.get(str(entry.said.get("text"))))

    def changes_schema(self, transaction: SourceTransaction) -> bool:
        """Whether a source transaction holds DDL that does something at the target."""
        return any(_acts(entry) for entry in transaction.entries() if entry.kind == DDL)

    @property
    def commit_wanted(self) -> bool:
        """Whether the target transaction must be committed before the next source transaction."""
        return self._must_commit or self._statements >= MAX_STATEMENTS

    def committed(self) -> None:
        self._must_commit = False
        self._statements = 0

    # --- messages

    async def _on_ddl(self, conn: Conn, message: Entry) -> None:
        event = self._parse(message)
        applier = self._attached()
        if self._is_of_script(event, applier):
            return
        try:
            self._statements += await self._silence.lift(conn, event.tag, event.source)
            async with self.renames.as_of(conn, message.lsn, applier.until, _may_name(event)):
                await self._on_event(event, message, applier)
            await self._silence.lifted_for(conn)
        except PostgresError as exc:
            exc.hint = exc.hint or _HINT
            exc.where = exc.where or f"DDL at {message.lsn}"
            raise

    def _is_of_script(self, event: Event, applier: Applier) -> bool:
        """Whether it happened inside of an extension's script, which may hold ALTER EXTENSION itself."""
        if not applier.skip_rows:
            self._nested = 0
            return False
        if event.tag in ddl.RUNS_SCRIPTS:
            self._nested += {"ddl_command_start": 1, "ddl_command_end": -1}.get(event.kind, 0)
        return self._nested >= 0

    async def _on_event(self, event: Event, message: Entry, applier: Applier) -> None:
        if event.kind == "sql_drop":
            await self._run(event, list(ddl_drops.drop_statements(event)), message.lsn)
        elif event.kind == "ddl_command_start" and event.tag in ddl.RUNS_SCRIPTS:
            applier.skip_rows = True
        elif event.kind == "ddl_command_start":
            await self._create_filled(event, message.lsn)
        else:
            applier.skip_rows = False
            await self._replay_statement(event, message.lsn)

    async def _replay_statement(self, event: Event, lsn: Lsn) -> None:
        if event.tag == "IMPORT FOREIGN SCHEMA":
            await self._run(event, [create_table(table) for table in event.created], lsn)
            return
        if not event.objects and event.tag in ddl.RUNS_SCRIPTS:
            return  # IF NOT EXISTS, and it did
        statement = ddl_told.statement_of(event)
        replay = await self.runner.fit(statement, event)
        if replay.statements:
            await self._run(event, replay.statements, lsn)
            await self._know_again(event)
            if (rename := rename_of(statement, event)) is not None:
                self.renames.note(self._attached().until, rename)
        if event.tag in ddl.RUNS_SCRIPTS:
            await always_triggers.hush_event_triggers(self._conn)
        self._must_commit |= replay.commits

    async def _create_filled(self, start: Event, lsn: Lsn) -> None:
        """Make the table of a CREATE TABLE AS before its rows arrive, as its end event describes it."""
        if (made := self._made_by(lsn)) is not None:
            end = ddl.parse_event(made.said, ddl.Text())
            await self._run(start, [create_table(table) for table in end.created], lsn)
            await self._know_again(end)

    async def _know_again(self, event: Event) -> None:
        """Tables by their OIDs at the source, indexes by their names there."""
        try:
            await relations.note(self._conn, ddl.tables_of(event))
            await ddl_indexes.give_names(self._conn, event.indexes)
        except psycopg.Error as exc:
            raise postgres_error(exc, event.tag) from exc

    def _made_by(self, start: Lsn) -> Entry | None:
        """The end of what started at this LSN, where it made a table; its own start is where that is made."""
        end = next(_ends(self._attached(), start), None)
        return end if end is not None and end.said.get("created") else None

    async def _on_rows(self, conn: Conn, message: Entry) -> None:
        """The content of a table that the source computed anew. Triggers and foreign keys are silent."""
        if self._attached().skip_rows:
            return
        await self.before_rows()
        found = computed_rows(message)
        try:
            async with self.renames.as_of(conn, message.lsn, self._attached().until, found.schema):
                await rewritten_rows.write(conn, found)
        except psycopg.Error as exc:
            raise postgres_error(exc, f"rows of {found.schema}.{found.name} at {message.lsn}") from exc

    async def _on_lost(self, _conn: Conn, message: Entry) -> None:
        what = message.said.get("what")
        raise PostgresError(
            f"a schema change was not captured: {words_for(reason_of(message))}" + (f" ({what})" if what else ""),
            where=str(message.lsn),
            hint="Restore to a target before it, or from the base snapshot that the daemon took after it.",
        )

    # --- running

    async def _run(self, event: Event, statements: list[str], lsn: Lsn) -> None:
        self._statements += len(statements)
        guarded = not self._is_of_a_new_enum(event, lsn)
        for statement in statements:
            await self.runner.run(event, statement, lsn, guarded=guarded, silenced=not self._silence.lifted)

    def _is_of_a_new_enum(self, event: Event, lsn: Lsn) -> bool:
        """An enum may use a value that its own transaction adds if no subtransaction made either (17 and later)."""
        until = self._attached().until
        if event.tag == "CREATE TYPE" and self._attached().last_tagged("ALTER TYPE") > lsn:
            self._makes_enums = until
        return event.tag in {"CREATE TYPE", "ALTER TYPE"} and self._makes_enums == until

    def _attached(self) -> Applier:
        assert self._applier is not None
        return self._applier


def _acts(entry: Entry) -> bool:
    """The events of a CREATE TABLE AS that filled a temporary table do nothing."""
    said = entry.said
    return said.get("tag") not in ddl.CREATES_FILLED or said.get("event") == "sql_drop" or bool(said.get("created"))


def _may_name(event: Event) -> str:
    """All that a statement can mean names by: its text, the drops it did, and what stands in its search_path."""
    return " ".join([event.source, *event.schemas, *(str(each.get("identity")) for each in event.objects)])


_HINT: Final = "Restore to a target before it, or mend what the target lacks and restore into a new database."


def _ends(applier: Applier, start: Lsn) -> Iterator[Entry]:
    """The end of the CREATE TABLE AS that started at this LSN: they nest, when a query calls a function."""
    depth = 0
    for entry in applier.ddl_after(start):
        if entry.said.get("tag") not in ddl.CREATES_FILLED:
            continue
        if entry.said.get("event") == "ddl_command_end" and depth == 0:
            yield entry
            return
        depth += 1 if entry.said.get("event") == "ddl_command_start" else -1
