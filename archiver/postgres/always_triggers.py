"""What would act during a replay, and must not: triggers, rules, event triggers, foreign keys, row security.

What they did at the source is in the stream: while rows are replayed they are disabled, and what was disabled is kept
in the target, in the same transaction, so that an interrupted restore gives everything back. Under
session_replication_role = replica that concerns what is ENABLE ALWAYS or REPLICA; where the role may not set that, all.
Event triggers would fire for what the restore itself does, too: they stay disabled from their making,
by an extension for one, to its very end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg

from archiver.format.dump_roles import Skipped
from archiver.postgres import closed, foreign_keys, load, stand_ins
from archiver.postgres.foreign_keys import ForeignKeys
from archiver.postgres.session import postgres_error

Conn = psycopg.AsyncConnection[Any]

# A publication of the users' for all tables would refuse what deletes from a table without a replica identity.
_CREATE: Final[LiteralString] = (
    """
CREATE SCHEMA IF NOT EXISTS archiver;
CREATE TABLE IF NOT EXISTS archiver.silenced (kind text, rel oid, name text, state "char");
ALTER TABLE archiver.silenced REPLICA IDENTITY FULL;
"""
    + foreign_keys.CREATE
)
# Objects of the system have OIDs below 16384 (FirstNormalObjectId, transam.h). Those of views cannot be disabled, and
# no row is written into a view. Before 15 the triggers of partitions were internal, and followed their parent's.
_IMPOSE: Final[LiteralString] = """
WITH tables AS (
    SELECT oid, relforcerowsecurity FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384
), firing AS (
    SELECT 'TRIGGER' AS kind, tgrelid AS rel, tgname::text AS name, tgenabled AS state
      FROM pg_catalog.pg_trigger WHERE tgenabled = ANY (%(firing)s) AND NOT tgisinternal
       AND (tgparentid = 0 OR %(single)s) AND tgrelid IN (SELECT oid FROM tables)
    UNION ALL SELECT 'RULE', ev_class, rulename::text, ev_enabled FROM pg_catalog.pg_rewrite
     WHERE ev_enabled = ANY (%(firing)s) AND rulename <> '_RETURN' AND ev_class IN (SELECT oid FROM tables)
    UNION ALL SELECT 'ROW SECURITY', oid, '', 'F' FROM tables
     WHERE relforcerowsecurity AND pg_catalog.row_security_active(oid)
) INSERT INTO archiver.silenced SELECT * FROM firing
RETURNING kind, rel::regclass::text, pg_catalog.quote_ident(name), 'D'
"""
_LIFT: Final[LiteralString] = """
DELETE FROM archiver.silenced WHERE kind <> 'EVENT TRIGGER'
RETURNING kind, rel::regclass::text, pg_catalog.quote_ident(name), state
"""
# Those of another owner, a provider's pgaudit for one, are of the target: they may not be disabled, and need not be.
_HUSH: Final[LiteralString] = """
INSERT INTO archiver.silenced SELECT 'EVENT TRIGGER', 0, evtname::text, evtenabled
  FROM pg_catalog.pg_event_trigger
 WHERE evtenabled <> 'D' AND pg_catalog.pg_has_role(evtowner, 'USAGE')
RETURNING kind, '', pg_catalog.quote_ident(name), 'D'
"""
# DROP FUNCTION … CASCADE in the stream may have taken one along.
_HUSHED: Final[LiteralString] = """
SELECT kind, '', pg_catalog.quote_ident(name), state FROM archiver.silenced
  JOIN pg_catalog.pg_event_trigger ON evtname = name WHERE kind = 'EVENT TRIGGER'
"""
_STATES: Final = {"D": "DISABLE", "O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}
_ROW_SECURITY: Final = {"D": "NO FORCE ROW LEVEL SECURITY", "F": "FORCE ROW LEVEL SECURITY"}
_TRIGGERS_OF_PARTITIONS: Final = 150000
"""server_version_num from which each partition's trigger is enabled and disabled by itself."""


async def may_silence(conn: Conn) -> bool:
    """Whether the role may set session_replication_role, which keeps foreign keys and ordinary triggers from firing."""
    try:
        async with conn.transaction():
            await conn.execute("SET LOCAL session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.Error as exc:
        raise postgres_error(exc, "preparing the replay") from exc
    return True


class Silence:
    """`lift` before a statement that may concern them and `lifted_for` after it, `impose` before rows are written.

    Between two statements nothing is imposed: each foreign key that is dropped holds several locks until the commit.
    `lifted`: there are triggers that may fire meanwhile.
    """

    def __init__(self, firing: str, keys: ForeignKeys | None, *, imposed: bool) -> None:
        self._firing = list(firing)
        self._keys = keys
        self._imposed = imposed
        self._due = True
        self.lifted = False

    @property
    def by_role(self) -> bool:
        """Whether the role may keep the system's own triggers from firing."""
        return self._keys is None

    @classmethod
    async def open(cls, conn: Conn) -> Silence:
        """Disable what is there; `create` came before. What an interrupted restore disabled is still known.

        Raises PostgresError.
        """
        # pg_trigger.tgenabled: O origin, A always, R replica
        may = await may_silence(conn)
        try:
            async with conn.transaction():
                row = await (await conn.execute("SELECT EXISTS (SELECT FROM archiver.silenced)")).fetchone()
                silence = cls("AR" if may else "OA", None if may else ForeignKeys(), imposed=bool(row and row[0]))
                await silence.impose(conn)
        except psycopg.Error as exc:
            raise postgres_error(exc, "preparing the replay") from exc
        return silence

    async def impose(self, conn: Conn) -> None:
        """Nothing to do where no statement came since the last time."""
        if not self._due:
            return
        single = conn.info.server_version >= _TRIGGERS_OF_PARTITIONS
        self._imposed = await _switch(conn, _IMPOSE, {"firing": self._firing, "single": single}) or self._imposed
        if self._keys is not None:
            with _errors("taking foreign keys out"):
                await self._keys.drop(conn)
        self._due = self.lifted = False

    async def lift(self, conn: Conn, tag: str, source: str) -> int:
        """For a statement with this tag and text. Returns how many foreign keys are to be dropped again for it."""
        self._due, made = True, 0
        if self._keys is not None and foreign_keys.may_concern(tag):
            with _errors("putting foreign keys back"):
                made = await self._keys.make(conn, validated=foreign_keys.needs_valid(source))
        if self._imposed:
            await _switch(conn, _LIFT, {})
        self.lifted = self.lifted or self._imposed
        self._imposed = False
        return made

    async def lifted_for(self, conn: Conn) -> None:
        """The statement is done."""
        if self._keys is not None:
            with _errors("looking for foreign keys"):
                await self._keys.follow(conn)


async def _switch(conn: Conn, query: LiteralString, values: dict[str, Any]) -> bool:
    with _errors("holding triggers silent"):
        found = await (await conn.execute(query, values)).fetchall()
        for switched in found:
            await conn.execute(_switch_one(conn, *switched).encode())
    return bool(found)


def _switch_one(conn: Conn, kind: str, rel: str, name: str, state: str | bytes) -> str:
    letter = state if isinstance(state, str) else state.decode()
    if kind == "EVENT TRIGGER":
        return f"ALTER {kind} {name} {_STATES[letter]}"
    if kind == "ROW SECURITY":
        return f"ALTER TABLE {rel} {_ROW_SECURITY[letter]}"
    only = "ONLY " if conn.info.server_version >= _TRIGGERS_OF_PARTITIONS else ""
    return f"ALTER TABLE {only}{rel} {_STATES[letter]} {kind} {name}"


@contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as exc:
        raise postgres_error(exc, where) from exc


async def create(conn: Conn) -> None:
    """Make room for what is disabled, before there is any event trigger that could fire for it."""
    with _errors("creating the progress table"):
        await conn.execute(_CREATE)


async def hush_event_triggers(conn: Conn) -> None:
    """Disable those that were made, in the caller's transaction with their making."""
    await _switch(conn, _HUSH, {})


async def give_keys_back(conn: Conn) -> list[Skipped]:
    """When no more rows come. Returns what of them was left out. Raises PostgresError."""
    with _errors("putting foreign keys back"):
        async with conn.transaction():
            return await foreign_keys.make_all(conn)


async def lift_all(conn: Conn) -> list[Skipped]:
    """Give everything back, and leave nothing of archiver's: the very last step of a restore.

    `foreign_keys.make_all` came before: row security could hide rows from their checks. Returns what had to stay.
    """
    with _errors("dropping the progress"):
        async with conn.transaction():
            await _switch(conn, _LIFT, {})
            hushed = await (await conn.execute(_HUSHED)).fetchall()
            with _errors("dropping the stand-ins for roles"):
                skipped = await stand_ins.drop_all(conn)
            await conn.execute("DROP TABLE archiver.silenced, archiver.dropped_keys")
            if (limit := (await load.read_progress(conn) or {}).get("limit")) is not None:
                await closed.reopen(conn, limit)
            await load.drop_progress(conn)
            for event_trigger in hushed:
                await conn.execute(_switch_one(conn, *event_trigger).encode())
    return skipped
