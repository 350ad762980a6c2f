"""Runs the statements of DDL events at a target, each as the role that ran it at the source and as nobody else.

In: an event and the statements to run in its place. What fails is an error that names the statement, but for
privileges and owners that the target has no role for, and for keys that rows violate: those are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, LiteralString

import psycopg
from pglast.parser import ParseError

from archiver.errors import IntegrityError
from archiver.format import ddl, ddl_drops
from archiver.format.ddl import Event
from archiver.format.ddl_rewrite import Replay, TargetFacts, for_target, without_checks
from archiver.format.dump_roles import Skipped
from archiver.lsn import Lsn
from archiver.postgres import dispensable, extensions, lending, run_as, unchecked_keys
from archiver.postgres.lending import OF_RIGHTS
from archiver.postgres.session import fetch, postgres_error
from archiver.postgres.stand_ins import REAL, StandIns

Conn = psycopg.AsyncConnection[Any]

_ALWAYS: Final = {
    "check_function_bodies": "off",
    "default_tablespace": "",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
}
"""Bodies were checked at the source, perhaps with temporary tables; tablespaces are the source's own. Of texts that
were written otherwise literals have been rewritten, and what the triggers describe is spelled so."""
_OF_EXTENSIONS: Final = ddl.RUNS_SCRIPTS | {"DROP EXTENSION"}
_BESIDE_IT: Final = (
    "Mend what it needs at the target; or choose one before it, or one behind a later base snapshot (archiver info)."
)
_ROLES: Final[LiteralString] = """
SELECT rolname::pg_catalog.text, pg_catalog.pg_has_role(oid, 'MEMBER') FROM pg_catalog.pg_roles WHERE __REAL__
""".replace("__REAL__", REAL)


@dataclass(frozen=True, slots=True)
class _Who:
    """Whose rights a statement has: its role's, or the restoring role's, for which `"$user"` would be another."""

    role: str
    own: bool


class Runner:
    """For one replay. `left_out` is for the report, and so are the roles that were `missing`."""

    def __init__(self, conn: Conn, target: TargetFacts, settable: frozenset[str], stand_ins: StandIns) -> None:
        self.left_out: list[Skipped] = []
        self.missing: set[str] = set()
        self._conn = conn
        self._target = target
        self._settable = settable
        self._stand_ins = stand_ins
        self._silenced = False

    @classmethod
    async def open(cls, conn: Conn, publication: str, *, system_triggers: bool) -> Runner:
        """Raises PostgresError."""
        rows = await fetch(conn, _ROLES, "listing the roles")
        facts = TargetFacts(frozenset(name for name, _ in rows), publication, system_triggers=system_triggers)
        settable = frozenset(name for name, member in rows if member)
        return cls(conn, facts, settable, await StandIns.open(conn))

    async def fit(self, statement: str, event: Event) -> Replay:
        """What does the same at the target. Roles that it lacks are reported; they get their stand-ins."""
        replay = for_target(statement, event, self._target)
        if not self._stand_ins.possible or not (replay.left_out or replay.missing):
            return self._reported(replay, event)
        try:
            await self._stand_ins.make(self._conn, replay.missing)
        except psycopg.Error as exc:
            raise postgres_error(exc, f"stand-ins for {', '.join(sorted(replay.missing))}") from exc
        whole = for_target(statement, event, replace(self._target, roles=self._target.roles | self._stand_ins.names))
        self._reported(replay if replay.missing else whole, event)
        return whole

    def _reported(self, replay: Replay, event: Event) -> Replay:
        self.left_out += [Skipped(event.tag, reason, event.source) for reason in replay.left_out]
        self.missing |= replay.missing
        return replay

    # --- running

    async def run(self, event: Event, statement: str, lsn: Lsn, *, guarded: bool, silenced: bool) -> None:
        """`guarded`: in a savepoint, without which nothing can be tried again. `silenced`: see run_as."""
        _require_one(statement)
        self._silenced = silenced
        if event.tag in _OF_EXTENSIONS and await self._is_there(statement):
            return
        try:
            who = await self._who(event)  # a stand-in that it makes outlives what fails
            if guarded:
                await self._conn.execute("SAVEPOINT archiver_ddl")
            await self._execute(event, statement, who)
            if guarded:
                await self._conn.execute("RELEASE SAVEPOINT archiver_ddl")
        except psycopg.Error as exc:
            if not (guarded and await self._get_along(event, statement, exc)):
                error = postgres_error(exc, f"DDL at {lsn}")
                error.message = f"{error.message}, in: {ddl.first_line(statement)}"
                error.hint = error.hint or _BESIDE_IT
                raise error from exc

    async def _is_there(self, statement: str) -> bool:
        """Whether an extension need not be made or updated. The last word on each is what counts."""
        if (name := extensions.named(statement)) is None:
            return False
        self.left_out = [item for item in self.left_out if item.entry != f"EXTENSION {name}"]
        differs = await extensions.already(self._conn, statement)
        if differs:
            self.left_out.append(Skipped(f"EXTENSION {name}", differs, statement))
        return differs is not None

    async def _who(self, event: Event) -> _Who:
        if event.role in self._settable:
            return _Who(event.role, own=True)
        if event.role not in self._target.roles:
            await self._stand_ins.make(self._conn, [event.role])
        self._note_role(event)
        if event.role in self._stand_ins.names:
            return _Who(event.role, own=True)
        return self._restorer()

    def _restorer(self) -> _Who:
        return _Who(self._stand_ins.me, own=False)

    async def _execute(self, event: Event, statement: str, who: _Who) -> None:
        given = {name: value for name, value in event.settings.items() if value is not None}
        if not who.own:
            given["search_path"] = ", ".join(map(ddl.quote, event.schemas))
        await run_as.run(self._conn, who.role, statement, given | _ALWAYS, silenced=self._silenced)

    # --- what fails

    async def _get_along(self, event: Event, statement: str, exc: psycopg.Error) -> bool:
        """Whether the restore can go on though this statement failed: it could be run otherwise, or be left out."""
        if self._conn.broken:
            return False
        if isinstance(exc, psycopg.errors.InsufficientPrivilege) and await self._with_rights(event, statement):
            return True
        if dispensable.may_be_left_out(event.tag, statement, exc):
            await self._again(event, "")
            said = event.tag if "USER MAPPING" in event.tag else statement  # whose options hold a password
            self.left_out.append(Skipped(event.tag, postgres_error(exc).message, said))
            return True
        if event.tag in _OF_EXTENSIONS and (name := extensions.named(statement)) is not None:
            return await self._may_stay(event, name, statement, exc)
        if not isinstance(exc, psycopg.errors.ForeignKeyViolation) or (unchecked := without_checks(statement)) is None:
            return False
        if there := await self._again(event, unchecked):
            self.left_out.append(await unchecked_keys.left_unchecked(self._conn, exc, statement))
        return there

    async def _may_stay(self, event: Event, name: str, statement: str, exc: psycopg.Error) -> bool:
        if not await self._again(event, "") or (why := await extensions.stays(self._conn, statement, exc)) is None:
            return False
        self.left_out.append(Skipped(f"EXTENSION {name}", why, statement))
        return True

    async def _with_rights(self, event: Event, statement: str) -> bool:
        """What a role had at the source it may lack here. It gets that much, or the restoring role does it."""
        if event.role not in self._settable | self._stand_ins.names:
            return False
        if await self._again(event, statement, lend=True):
            return True
        if not (event.rights.superuser or (event.rights.owner and event.tag in OF_RIGHTS)):
            return False  # what it meant then is not what it would mean now, with our rights
        if there := await self._again(event, statement, who=self._restorer()):
            await self._give_away(event)
        return there

    async def _give_away(self, event: Event) -> None:
        """What the restoring role made goes to the role whose statement it was, where that may own it."""
        made = event.objects if event.tag.startswith("CREATE ") else ()
        if made and event.role in self._settable | self._stand_ins.names:
            statements = [f"ALTER {_kind(each)} {each['identity']} OWNER TO {ddl.quote(event.role)}" for each in made]
            if all([await self._quietly(statement) for statement in statements]):
                return
        self._note_role(event)

    async def _quietly(self, statement: str) -> bool:
        try:
            _require_one(statement)
            async with self._conn.transaction():
                await self._conn.execute(statement.encode())
        except (psycopg.Error, IntegrityError):
            return False
        return True

    async def _again(self, event: Event, statement: str, *, lend: bool = False, who: _Who | None = None) -> bool:
        """Undo what failed, and run another statement in its place, if any; whether that was possible."""
        try:
            await self._conn.execute("ROLLBACK TO SAVEPOINT archiver_ddl")
            if statement:
                await self._lend(event, statement, who or await self._who(event), lend=lend)
            await self._conn.execute("RELEASE SAVEPOINT archiver_ddl")
        except psycopg.Error:  # why it was run a second time is told
            return False
        return True

    async def _lend(self, event: Event, statement: str, who: _Who, *, lend: bool) -> None:
        give, take = await lending.lent_for(self._conn, event) if lend else ([], [])
        for each in give:
            await self._conn.execute(each)
        await self._execute(event, statement, who)
        for each in take:
            await self._conn.execute(each)

    def _note_role(self, event: Event) -> None:
        there = event.role in self._target.roles
        self.missing |= set() if there else {event.role}
        what = "ownership of what it made"
        reason = f"role {event.role} may not do here what it did" if there else f"no role {event.role}"
        if not any((item.entry, item.reason) == (what, reason) for item in self.left_out):
            self.left_out.append(Skipped(what, reason, event.tag))


def _require_one(statement: str) -> None:
    """Raises IntegrityError for a text of several statements."""
    try:
        count = len(ddl.parse(statement))
    except ParseError:
        count = 0
    if count != 1:
        raise IntegrityError(f"this is not one statement: {ddl.first_line(statement)}")


def _kind(described: Mapping[str, Any]) -> str:
    return ddl_drops.DROPPED_AS.get(str(described["type"]), str(described["type"]).upper())
