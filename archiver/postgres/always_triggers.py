"""Triggers, rules and event triggers that would fire during a replay, in spite of session_replication_role = replica.

What they did at the source is in the stream: while rows are replayed they are disabled, and what was disabled is kept
in the target, in the same transaction, so that an interrupted restore gives everything back. Event triggers would fire
for what the restore itself does, too: they stay disabled from their making to its very end.
"""

from __future__ import annotations

from typing import Any, Final, LiteralString

import psycopg

from archiver.postgres import load
from archiver.postgres.session import postgres_error

Conn = psycopg.AsyncConnection[Any]

_CREATE: Final[LiteralString] = """
CREATE SCHEMA IF NOT EXISTS archiver;
CREATE TABLE IF NOT EXISTS archiver.silenced (kind text, rel oid, name text, state "char");
"""
# Objects of the system have OIDs below 16384 (FirstNormalObjectId, transam.h).
_IMPOSE: Final[LiteralString] = """
WITH firing AS (
    SELECT 'TRIGGER' AS kind, tgrelid AS rel, tgname::text AS name, tgenabled AS state
      FROM pg_catalog.pg_trigger WHERE tgenabled = ANY (%(firing)s) AND tgparentid = 0 AND NOT tgisinternal
       AND tgrelid >= 16384
    UNION ALL SELECT 'RULE', ev_class, rulename::text, ev_enabled FROM pg_catalog.pg_rewrite
     WHERE ev_enabled = ANY (%(firing)s) AND rulename <> '_RETURN' AND ev_class >= 16384
) INSERT INTO archiver.silenced SELECT * FROM firing
RETURNING kind, rel::regclass::text, pg_catalog.quote_ident(name), 'D'
"""
_LIFT: Final[LiteralString] = """
DELETE FROM archiver.silenced WHERE kind <> 'EVENT TRIGGER'
RETURNING kind, rel::regclass::text, pg_catalog.quote_ident(name), state
"""
_HUSH: Final[LiteralString] = """
INSERT INTO archiver.silenced SELECT 'EVENT TRIGGER', 0, evtname::text, evtenabled
  FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D'
RETURNING kind, '', pg_catalog.quote_ident(name), 'D'
"""
# DROP FUNCTION … CASCADE in the stream may have taken one along.
_HUSHED: Final[LiteralString] = """
SELECT kind, '', pg_catalog.quote_ident(name), state FROM archiver.silenced
  JOIN pg_catalog.pg_event_trigger ON evtname = name WHERE kind = 'EVENT TRIGGER'
"""
_STATES: Final = {"D": "DISABLE", "O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}


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
    """`lift` before a statement that may concern them, `impose` before rows are written."""

    def __init__(self, firing: str, *, imposed: bool) -> None:
        self._firing = list(firing)
        self._imposed = imposed

    @classmethod
    async def open(cls, conn: Conn) -> Silence:
        """Disable what is there; `create` came before. What an interrupted restore disabled is still known.

        Raises PostgresError.
        """
        # pg_trigger.tgenabled: O origin, A always, R replica
        firing = "AR" if await may_silence(conn) else "OA"
        try:
            async with conn.transaction():
                row = await (await conn.execute("SELECT EXISTS (SELECT FROM archiver.silenced)")).fetchone()
                silence = cls(firing, imposed=bool(row and row[0]))
                await silence.impose(conn)
        except psycopg.Error as exc:
            raise postgres_error(exc, "preparing the replay") from exc
        return silence

    async def impose(self, conn: Conn) -> None:
        self._imposed = await _switch(conn, _IMPOSE, {"firing": self._firing}) or self._imposed

    async def lift(self, conn: Conn) -> None:
        if self._imposed:
            await _switch(conn, _LIFT, {})
        self._imposed = False


async def _switch(conn: Conn, query: LiteralString, values: dict[str, list[str]]) -> bool:
    try:
        found = await (await conn.execute(query, values)).fetchall()
        for switched in found:
            await conn.execute(_switch_one(*switched).encode())
    except psycopg.Error as exc:
        raise postgres_error(exc, "holding triggers silent") from exc
    return bool(found)


def _switch_one(kind: str, rel: str, name: str, state: str | bytes) -> str:
    word = _STATES[state if isinstance(state, str) else state.decode()]
    return f"ALTER {kind} {name} {word}" if kind == "EVENT TRIGGER" else f"ALTER TABLE {rel} {word} {kind} {name}"


async def create(conn: Conn) -> None:
    """Make room for what is disabled, before there is any event trigger that could fire for it."""
    try:
        await conn.execute(_CREATE)
    except psycopg.Error as exc:
        raise postgres_error(exc, "creating the progress table") from exc


async def hush_event_triggers(conn: Conn) -> None:
    """Disable those that were made, in the caller's transaction with their making."""
    await _switch(conn, _HUSH, {})


async def lift_all(conn: Conn) -> None:
    """Give everything back, and leave nothing of archiver's: the very last step of a restore."""
    try:
        async with conn.transaction():
            await _switch(conn, _LIFT, {})
            hushed = await (await conn.execute(_HUSHED)).fetchall()
            await conn.execute("DROP TABLE archiver.silenced")
            await load.drop_progress(conn)
            for event_trigger in hushed:
                await conn.execute(_switch_one(*event_trigger).encode())
    except psycopg.Error as exc:
        raise postgres_error(exc, "dropping the progress") from exc
