"""The SQL that archiver puts into a source to look after its tables: replica identities, and what is published.

A table that is created, or loses its key, must neither be published without a replica identity (its UPDATEs would
fail) nor be left out unnoticed. As with archiver.postgres.ddl_triggers, nothing here fails the application's statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from archiver.format.ddl import literal, quote

GUARD: Final = "archiver_guard_keyless"
PUBLISH: Final = "archiver_publish_new"
NAMES: Final = (GUARD, PUBLISH)
"""Event triggers on one event fire in the order of their names: a CREATE TABLE is captured (archiver_capture_end)
before the guard's ALTER TABLE, and that is done before the table is published."""


@dataclass(frozen=True, slots=True)
class ListedPublication:
    """A publication that lists its tables: not the `excluded` (schema.table) nor, without `guard`, keyless ones."""

    name: str
    excluded: Sequence[str]
    guard: bool


# Runs as whoever creates the table, who owns it. It never fails their statement: without this a table
# without a key would be published and every UPDATE of it refused.
_GUARD: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.guard_keyless() RETURNS event_trigger LANGUAGE plpgsql AS $guard$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT DISTINCT c.oid::pg_catalog.regclass AS name
          FROM pg_catalog.pg_event_trigger_ddl_commands() d
          JOIN pg_catalog.pg_class c ON c.oid = d.objid OR c.oid = (
               SELECT k.conrelid FROM pg_catalog.pg_constraint k WHERE k.oid = d.objid)
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.relreplident IN ('d', 'n')
           AND NOT (c.relreplident = 'd' AND EXISTS (
               SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate))
    LOOP
        BEGIN
            EXECUTE pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY FULL', found.name);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'archiver: cannot set the replica identity of %: %', found.name, SQLERRM;
        END;
    END LOOP;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'archiver: guard failed: %', SQLERRM;
END
$guard$;
"""

# Runs as its owner, for only the publication's owner can add to it. Rows that are there already, of a CREATE TABLE AS
# or of a table that just got its key, are written into the stream.
_PUBLISH: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.publish_new() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $publish$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT DISTINCT c.oid, c.oid::regclass AS name, p.oid IS NOT NULL AS published,
               c.relreplident = 'f' OR c.relreplident IN ('d', 'i') AND EXISTS (
                   SELECT FROM pg_index i WHERE i.indrelid = c.oid
                      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
                                              ELSE i.indisreplident END) AS keyed
          FROM pg_event_trigger_ddl_commands() d
          JOIN pg_class c ON c.oid = d.objid OR c.oid = (
               SELECT k.conrelid FROM pg_constraint k WHERE k.oid = d.objid)
          JOIN pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN pg_publication_rel p ON p.prrelid = c.oid
           AND p.prpubid = (SELECT oid FROM pg_publication WHERE pubname = __NAME__)
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^(pg_|archiver$|information_schema$)'
           AND n.nspname || '.' || c.relname <> ALL (__EXCLUDED__::text[])
    LOOP
        IF found.published AND NOT found.keyed THEN
            EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', __NAME__, found.name);
            PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', format('%s lost its key', found.name));
            RAISE WARNING 'archiver: % has no key and is not archived any more', found.name;
        ELSIF found.keyed AND NOT found.published THEN
            EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %s', __NAME__, found.name);
            IF pg_relation_size(found.oid) > __LIMIT__ THEN
                PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', format('%s was filled already', found.name));
            ELSIF pg_relation_size(found.oid) > 0 THEN
                PERFORM archiver.record_rows(found.oid);
            END IF;
        END IF;
    END LOOP;
    PERFORM pg_logical_emit_message(true, 'archiver.pad', '');
EXCEPTION WHEN OTHERS THEN
    BEGIN
        PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', concat(tg_tag, ': not published: ', SQLERRM));
        RAISE WARNING 'archiver: the tables of % were not published: %', tg_tag, SQLERRM;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'archiver: the tables of % were not published: %', tg_tag, SQLERRM;
    END;
END
$publish$;
"""


def install_statements(listed: ListedPublication | None, *, rows_limit: int) -> str:
    """The guard, where keyless tables are published, and with `listed` what publishes new tables."""
    text = ""
    if listed is None or listed.guard:
        text += _GUARD + _trigger(GUARD, "guard_keyless")
    if listed is not None:
        excluded = literal("{" + ",".join(map(_array_element, listed.excluded)) + "}")
        body = _PUBLISH.replace("__NAME__", literal(listed.name)).replace("__EXCLUDED__", excluded)
        text += body.replace("__LIMIT__", str(rows_limit)) + _trigger(PUBLISH, "publish_new")
    return text


def _array_element(text: str) -> str:
    return quote(text.replace("\\", "\\\\")).replace('""', '\\"')


def _trigger(name: str, function: str) -> str:
    return f"""
CREATE EVENT TRIGGER {name} ON ddl_command_end
    WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE')
    EXECUTE FUNCTION archiver.{function}();
ALTER EVENT TRIGGER {name} ENABLE ALWAYS;
"""
