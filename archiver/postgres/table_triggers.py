"""The SQL that archiver puts into a source to look after its tables: replica identities, and what is published.

A table that is created, or loses its key, must neither be published without a replica identity (its UPDATEs would
fail) nor be left out unnoticed. As with archiver.postgres.ddl_triggers, nothing here fails the application's statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from archiver.format.ddl import literal
from archiver.postgres import exclusion

GUARD: Final = "archiver_guard_keyless"
PUBLISH: Final = "archiver_publish_new"
NAMES: Final = (GUARD, PUBLISH)
"""Event triggers on one event fire in the order of their names: a CREATE TABLE is captured (archiver_capture_end)
before the guard's ALTER TABLE, and that is done before the table is published."""


@dataclass(frozen=True, slots=True)
class ListedPublication:
    """A publication that lists its tables: not the `excluded` nor, without `guard`, keyless ones."""

    name: str
    excluded: Sequence[str]
    guard: bool


# The tables that a statement may have changed: those it names, with their partitions and children. What a DROP took
# along, an index or a column of a key, belongs to tables that nobody names: then all published ones are looked at.
_TOUCHED: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.touched_tables(tag text) RETURNS SETOF oid LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp AS $touched$
    WITH RECURSIVE named AS (
        SELECT coalesce(k.conrelid, d.objid) AS oid FROM pg_event_trigger_ddl_commands() d
          LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
         WHERE d.classid IN ('pg_constraint'::regclass, 'pg_class'::regclass)
        UNION
        SELECT i.inhrelid FROM named JOIN pg_inherits i ON i.inhparent = named.oid
    ), touched AS (
        SELECT oid FROM named UNION SELECT oid FROM (__PUBLISHED__) AS published (oid) WHERE tag LIKE 'DROP %'
    )
    SELECT c.oid FROM touched JOIN pg_class c ON c.oid = touched.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^(pg_|archiver$|information_schema$)'
$touched$;
"""
_ALL_TABLES: Final[LiteralString] = "SELECT oid FROM pg_class"
_LISTED_TABLES: Final[LiteralString] = """
    SELECT prrelid FROM pg_publication_rel WHERE prpubid = (SELECT oid FROM pg_publication WHERE pubname = __NAME__)
"""
_TAGS: Final = (
    *("CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "CREATE SCHEMA", "ALTER TABLE", "DROP INDEX", "DROP TYPE"),
    *("DROP DOMAIN", "DROP EXTENSION", "DROP SCHEMA", "DROP OWNED", "DROP OPERATOR CLASS", "DROP OPERATOR FAMILY"),
)
"""What can make a table, or take its key away. DROP TABLE cannot, and is common for temporary ones."""

# Runs as whoever creates the table, who owns it. It never fails their statement: without this a table
# without a key would be published and every UPDATE of it refused.
_GUARD: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.guard_keyless() RETURNS event_trigger LANGUAGE plpgsql AS $guard$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT c.oid::pg_catalog.regclass AS name
          FROM archiver.touched_tables(tg_tag) AS touched JOIN pg_catalog.pg_class c ON c.oid = touched
         WHERE c.relreplident IN ('d', 'i', 'n') AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indimmediate
                  AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)
    LOOP
        BEGIN
            EXECUTE pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY FULL', one.name);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'archiver: cannot set the replica identity of %: %', one.name, SQLERRM;
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
    one record;
    reason text;
BEGIN
    FOR one IN
        SELECT c.oid, c.oid::regclass AS name, p.oid IS NOT NULL AS published, archiver.is_excluded(c.oid) AS excluded,
               c.relreplident = 'f' OR c.relreplident IN ('d', 'i') AND EXISTS (
                   SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate
                      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END) AS keyed
          FROM archiver.touched_tables(tg_tag) AS touched JOIN pg_class c ON c.oid = touched
          LEFT JOIN pg_publication_rel p ON p.prrelid = c.oid
           AND p.prpubid = (SELECT oid FROM pg_publication WHERE pubname = __NAME__)
    LOOP
        IF one.published AND (one.excluded OR NOT one.keyed) THEN
            reason := CASE WHEN one.excluded THEN 'became an excluded table' ELSE 'lost its key' END;
            EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', __NAME__, one.name);
            PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', concat_ws(' ', one.name, reason));
            RAISE WARNING 'archiver: % % and is not archived any more', one.name, reason;
        ELSIF one.keyed AND NOT one.published AND NOT one.excluded THEN
            EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %s', __NAME__, one.name);
            IF pg_relation_size(one.oid) > __LIMIT__ THEN
                PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', format('%s was filled already', one.name));
            ELSIF pg_relation_size(one.oid) > 0 THEN
                PERFORM archiver.record_rows(one.oid);
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
    published = _ALL_TABLES if listed is None else _LISTED_TABLES.replace("__NAME__", literal(listed.name))
    text = _TOUCHED.replace("__PUBLISHED__", published) + exclusion.function(listed.excluded if listed else ())
    if listed is None or listed.guard:
        text += _GUARD + _trigger(GUARD, "guard_keyless")
    if listed is not None:
        body = _PUBLISH.replace("__NAME__", literal(listed.name))
        text += body.replace("__LIMIT__", str(rows_limit)) + _trigger(PUBLISH, "publish_new")
    return text


def _trigger(name: str, function: str) -> str:
    return f"""
CREATE EVENT TRIGGER {name} ON ddl_command_end
    WHEN TAG IN ({", ".join(map(literal, _TAGS))})
    EXECUTE FUNCTION archiver.{function}();
ALTER EVENT TRIGGER {name} ENABLE ALWAYS;
"""
