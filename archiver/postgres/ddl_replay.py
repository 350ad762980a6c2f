"""DDL of the stream, executed at the target: each statement at its place, with its session's settings and role.

It gets entries of the journal from an Applier, in the target transaction that the rows are written in. Whatever fails
is an error that names the statement, but for privileges and owners that the target has no role for: those are reported.
Triggers, rules and foreign keys that would act are held silent, since what they did is in the stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, Literal, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from archiver.errors import PostgresError
from archiver.format import ddl
from archiver.format.ddl import Event
from archiver.format.ddl_renames import rename_of
from archiver.format.ddl_rewrite import Replay, TargetFacts, for_target, without_checks
from archiver.format.dump_roles import Skipped
from archiver.format.journal import DDL, LOST, ROWS, TEXT, Entry, computed_rows, reason_of, words_for
from archiver.lsn import Lsn
from archiver.policy.source_transaction import SourceTransaction
from archiver.postgres import always_triggers, ddl_indexes, relations, rewritten_rows, unchecked_keys
from archiver.postgres.apply import Applier, EntryHandler
from archiver.postgres.renames import Renames
from archiver.postgres.session import fetch, postgres_error

MAX_STATEMENTS: Final = 100
"""DDL statements, and foreign keys dropped for them, in one target transaction: each keeps locks, of which
max_locks_per_transaction allows few."""

Conn = psycopg.AsyncConnection[Any]
Powers = Literal["own", "lent", "restorer's"]
"""With whose rights a statement is run: its role's own, its role's as a superuser, or the restoring role's."""

_ALWAYS: Final = {
    "check_function_bodies": "off",
    "default_tablespace": "",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
}
"""Bodies were checked at the source, perhaps with temporary tables; tablespaces are the source's own. Of texts that
were written otherwise literals have been rewritten, and what the triggers describe is spelled so."""
_PERMITTED_TO_FAIL: Final = frozenset(
    {
        "GRANT",
        "REVOKE",
        "ALTER DEFAULT PRIVILEGES",
        "COMMENT",
        "SECURITY LABEL",
        "CREATE USER MAPPING",
        "CREATE PUBLICATION",
    }
)
"""As with a base snapshot: all rows and rules of the data are there without them, and some need a superuser."""
_BEARABLE: Final = (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)
_OF_LEFT_OUT: Final = frozenset({"ALTER POLICY", "COMMENT"})
"""What may speak of a policy that was left out, because none of its roles is at the target."""


_ROLES: Final[LiteralString] = """
SELECT rolname::text, pg_catalog.pg_has_role(oid, 'MEMBER'), rolsuper, rolname = current_user FROM pg_catalog.pg_roles
"""


class Roles(NamedTuple):
    """Those that the restoring role may become, and whether it is a superuser."""

    settable: frozenset[str]
    superuser: bool


class DdlReplay:
    """Runs the DDL messages of one replay. `left_out` is for the report, and so are the roles that were `missing`.

    `renames` are to be known again where an interrupted replay goes on.
    """

    def __init__(self, conn: Conn, target: TargetFacts, roles: Roles, silence: always_triggers.Silence) -> None:
        self.left_out: list[Skipped] = []
        self.missing: set[str] = set()
        self.renames = Renames()
        self._conn = conn
        self._target = target
        self._roles = roles
        self._silence = silence
        self._statements = 0
        self._must_commit = False
        self._makes_enums: Lsn | None = None
        self._applier: Applier | None = None
        self._texts: dict[str, ddl.Text] = {}
        self._texts_until = Lsn(0)

    @classmethod
    async def open(cls, conn: Conn, publication: str) -> DdlReplay:
        """For a connection that an Applier will own. Raises PostgresError."""
        rows = await fetch(conn, _ROLES, "listing the roles")
        silence = await always_triggers.Silence.open(conn)
        facts = TargetFacts(frozenset(name for name, *_ in rows), publication, system_triggers=silence.by_role)
        settable = frozenset(name for name, member, _, _ in rows if member)
        superuser = any(own and powerful for _, _, powerful, own in rows)
        return cls(conn, facts, Roles(settable, superuser), silence)

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
        if applier.skip_rows and not (event.kind == "ddl_command_end" and event.tag in ddl.RUNS_SCRIPTS):
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

    async def _on_event(self, event: Event, message: Entry, applier: Applier) -> None:
        if event.kind == "sql_drop":
            await self._run(event, list(ddl.drop_statements(event)), message.lsn)
        elif event.kind == "ddl_command_start" and event.tag in ddl.RUNS_SCRIPTS:
            applier.skip_rows = True
        elif event.kind == "ddl_command_start":
            await self._create_filled(event, message.lsn)
        else:
            applier.skip_rows = False
            await self._replay_statement(event, message.lsn)

    async def _replay_statement(self, event: Event, lsn: Lsn) -> None:
        if event.tag == "IMPORT FOREIGN SCHEMA":
            await self._run(event, [ddl.create_table(table) for table in event.created], lsn)
            return
        if not event.objects and event.tag in ddl.RUNS_SCRIPTS:
            return  # IF NOT EXISTS, and it did
        statement = ddl.statement_of(event)
        replay = for_target(statement, event, self._target)
        self._report(event, replay)
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
            await self._run(start, [ddl.create_table(table) for table in end.created], lsn)
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
            try:
                if guarded:
                    await self._conn.execute("SAVEPOINT archiver_ddl")
                await self._execute(event, statement)
                if guarded:
                    await self._conn.execute("RELEASE SAVEPOINT archiver_ddl")
            except psycopg.Error as exc:
                if not (guarded and await self._get_along(event, statement, exc)):
                    error = postgres_error(exc, f"DDL at {lsn}")
                    error.message = f"{error.message}, in: {ddl.first_line(statement)}"
                    raise error from exc

    def _is_of_a_new_enum(self, event: Event, lsn: Lsn) -> bool:
        """An enum may use a value that its own transaction adds if no subtransaction made either (17 and later)."""
        until = self._attached().until
        if event.tag == "CREATE TYPE" and self._attached().last_tagged("ALTER TYPE") > lsn:
            self._makes_enums = until
        return event.tag in {"CREATE TYPE", "ALTER TYPE"} and self._makes_enums == until

    async def _execute(self, event: Event, statement: str, powers: Powers = "own") -> None:
        await self._enter(event, powers)
        await self._conn.execute(statement.encode(), prepare=False)
        await self._leave(event, powers)

    async def _get_along(self, event: Event, statement: str, exc: psycopg.Error) -> bool:
        """Whether the restore can go on though this statement failed: it could be run otherwise, or be left out."""
        if self._conn.broken:
            return False
        denied = isinstance(exc, psycopg.errors.InsufficientPrivilege) and event.role in self._roles.settable
        if denied and await self._again(event, statement, "lent" if self._roles.superuser else "restorer's"):
            return True
        if _is_bearable(event.tag, exc):
            await self._again(event, "")
            self.left_out.append(Skipped(event.tag, postgres_error(exc).message, statement))
            return True
        if not isinstance(exc, psycopg.errors.ForeignKeyViolation) or (unchecked := without_checks(statement)) is None:
            return False
        if there := await self._again(event, unchecked):
            self.left_out.append(await unchecked_keys.left_unchecked(self._conn, exc, statement))
        return there

    async def _again(self, event: Event, statement: str, powers: Powers = "own") -> bool:
        """Undo what failed, and run another statement in its place, if any; whether that was possible.

        What a role had at the source, as the database's owner or by a GRANT that fires nothing, it may lack here. It
        has a superuser's rights for that long, which nobody else sees, or the restoring role does it.
        """
        try:
            await self._conn.execute("ROLLBACK TO SAVEPOINT archiver_ddl")
            if statement:
                await self._execute(event, statement, powers)
            await self._conn.execute("RELEASE SAVEPOINT archiver_ddl")
        except psycopg.Error:  # why it was run a second time is told
            return False
        return True

    async def _enter(self, event: Event, powers: Powers) -> None:
        known = event.role in self._roles.settable and powers != "restorer's"
        given = {name: value for name, value in event.settings.items() if value is not None}
        if not known:  # "$user" would be another one
            given["search_path"] = ", ".join(map(ddl.quote, event.schemas))
            self._note_role(event)
        await self._set(given | _ALWAYS)
        if powers == "lent":
            await self._conn.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(event.role)))
        if known:
            await self._conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(event.role)))

    async def _set(self, settings: dict[str, str]) -> None:
        """Settings that this server knows: another version may lack some."""
        await self._conn.execute(
            "SELECT pg_catalog.set_config(g.key, g.value, true) FROM pg_catalog.json_each_text(%s::json) AS g"
            " JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) = pg_catalog.lower(g.key)",
            [json.dumps(settings)],
        )

    async def _leave(self, event: Event, powers: Powers) -> None:
        await self._conn.execute("RESET ROLE")
        if powers == "lent":
            await self._conn.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(sql.Identifier(event.role)))
        names = {*event.settings, *_ALWAYS}
        await self._conn.execute(
            "SELECT pg_catalog.set_config(s.name, CASE s.name WHEN 'search_path' THEN '' ELSE s.reset_val END, true)"
            " FROM pg_catalog.pg_settings s WHERE pg_catalog.lower(s.name) = ANY (%s)",
            [[name.lower() for name in names]],
        )

    def _note_role(self, event: Event) -> None:
        there = event.role in self._target.roles
        self.missing |= set() if there else {event.role}
        what = "ownership of what it made"
        reason = f"role {event.role} may not do here what it did" if there else f"no role {event.role}"
        if not any((item.entry, item.reason) == (what, reason) for item in self.left_out):
            self.left_out.append(Skipped(what, reason, event.tag))

    def _report(self, event: Event, replay: Replay) -> None:
        self.left_out += [Skipped(event.tag, reason, event.source) for reason in replay.left_out]
        self.missing |= replay.missing

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


def _is_bearable(tag: str, exc: psycopg.Error) -> bool:
    if tag in _OF_LEFT_OUT and isinstance(exc, psycopg.errors.UndefinedObject):
        return True
    return tag in _PERMITTED_TO_FAIL and isinstance(exc, _BEARABLE)


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
