"""The SQL that captures what a rewrite computed: rows that the stream does not hold, and replay could not compute.

A part of archiver.postgres.ddl_triggers: `note_rewrite` remembers the tables while a statement runs, and
`record_rewritten` writes their rows into the stream, as `archiver.rows`, when it has ended.
"""

from __future__ import annotations

from typing import Final, LiteralString

ROWS_LIMIT: Final = 64 << 20
"""Bytes of a table up to which its rewritten rows travel in the stream: past that a base snapshot is cheaper."""

# Reasons: 1 persistence, 2 a default that is not kept in the catalog, 4 a column's type, 8 access method (tablecmds.h).
# A USING, or the default of a new column, that calls nothing but immutable functions gives the same rows when it is
# replayed. That of a column which was there before is not evaluated.
_NOTE_REWRITE: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.note_rewrite(rewritten oid, reason int, source text) RETURNS void LANGUAGE plpgsql
__CANONICAL__ AS $note$
DECLARE
    needed bool := reason & 1 <> 0;
BEGIN
    IF (SELECT relpersistence = 't' OR relkind <> 'r' FROM pg_class WHERE oid = rewritten) THEN
        RETURN;
    END IF;
    IF reason & 2 <> 0 OR source ~* E'\\\\madd\\\\M' THEN
        needed := needed OR archiver.has_unstable_default(rewritten);
    END IF;
    IF reason & 4 <> 0 THEN
        needed := needed OR source ~* E'\\\\musing\\\\M' AND archiver.calls_volatile(source);
    END IF;
    IF needed THEN
        PERFORM set_config('archiver.rewritten',
            concat_ws(',', nullif(current_setting('archiver.rewritten', true), ''), rewritten), false);
    END IF;
END
$note$;
"""

# A snapshot does not list one's own transaction, nor its subtransactions, as in progress: as soon as a later one of
# somebody else has ended, they look as if they had, too. Of visible rows, though, only one's own are in progress.
_IS_OURS: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.is_ours(written xid) RETURNS bool LANGUAGE plpgsql STABLE __CANONICAL__ AS $ours$
DECLARE
    top bigint := pg_current_xact_id()::text::bigint;
    ahead bigint := (written::text::bigint - top) & 4294967295;
BEGIN
    RETURN ahead < 2147483648 AND pg_xact_status((top + ahead)::text::xid8) = 'in progress';
EXCEPTION WHEN invalid_parameter_value THEN  -- a frozen row's, of before the numbers wrapped around
    RETURN false;
END
$ours$;
"""

# Of the columns that this very transaction wrote.
_UNSTABLE_DEFAULT: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.has_unstable_default(rewritten oid) RETURNS bool LANGUAGE sql STABLE __CANONICAL__
AS $unstable$
    SELECT EXISTS (
        SELECT FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          LEFT JOIN pg_type t ON t.oid = a.atttypid
         WHERE a.attrelid = rewritten AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
           AND archiver.is_ours(a.xmin)
           AND (a.attidentity <> '' OR t.typdefaultbin IS NOT NULL OR EXISTS (
               SELECT FROM regexp_matches(d.adbin::text, ':(?:op)?funcid ([0-9]+)', 'g') AS f
                 JOIN pg_proc p ON p.oid = f[1]::oid WHERE p.provolatile <> 'i')
            OR d.adbin::text ~ 'NEXTVALUEEXPR|SQLVALUEFUNCTION'))
$unstable$;
"""

_CALLS_VOLATILE: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.calls_volatile(source text) RETURNS bool LANGUAGE sql STABLE __CANONICAL__
AS $calls$
    SELECT source ~* E'\\\\m(current_|localtime|session_user|user\\\\M|reg[a-z]+\\\\M)' OR EXISTS (
        SELECT FROM regexp_matches(source, E'([[:alnum:]_$]+)"?\\\\s*\\\\(', 'g') AS f
          JOIN pg_proc p ON p.proname IN (f[1], lower(f[1])) WHERE p.provolatile <> 'i')
$calls$;
"""

_REWRITTEN: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.record_rewritten() RETURNS void LANGUAGE plpgsql __CANONICAL__ AS $rewritten$
DECLARE
    noted text := nullif(current_setting('archiver.rewritten', true), '');
    rel oid;
BEGIN
    IF noted IS NULL THEN
        RETURN;
    END IF;
    PERFORM set_config('archiver.rewritten', '', false);
    FOREACH rel IN ARRAY string_to_array(noted, ',')::oid[] LOOP
        IF archiver.is_excluded(rel) THEN
            CONTINUE;  -- its rows are not archived
        ELSIF pg_relation_size(rel) > __LIMIT__ THEN
            PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', format(
                '%s was rewritten with values that replay cannot compute, and it is large', rel::regclass));
        ELSE
            PERFORM archiver.record_rows(rel);
        END IF;
    END LOOP;
END
$rewritten$;
"""

_ROWS: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.record_rows(rel oid) RETURNS void LANGUAGE plpgsql __CANONICAL__ AS $rows$
DECLARE
    message jsonb := (SELECT jsonb_build_object('schema', n.nspname, 'name', c.relname,
                                                  'subxact', archiver.subxact())
                        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = rel);
    rows text[] := '{}';
    size int := 0;
    first bool := true;
    line text;
BEGIN
    FOR line IN EXECUTE format('SELECT archiver_row::text FROM ONLY %s AS archiver_row WHERE NOT %L::bool',
                               rel::regclass, (SELECT relpersistence = 'u' FROM pg_class WHERE oid = rel)) LOOP
        rows := rows || line;
        size := size + length(line);
        IF size > 1000000 THEN
            PERFORM pg_logical_emit_message(true, 'archiver.rows',
                convert_to((message || jsonb_build_object('first', first, 'rows', rows))::text, 'UTF8'));
            rows := '{}';
            size := 0;
            first := false;
        END IF;
    END LOOP;
    IF first OR size > 0 THEN
        PERFORM pg_logical_emit_message(true, 'archiver.rows',
            convert_to((message || jsonb_build_object('first', first, 'rows', rows))::text, 'UTF8'));
    END IF;
END
$rows$;
"""

FUNCTIONS: Final = (_IS_OURS, _UNSTABLE_DEFAULT, _CALLS_VOLATILE, _NOTE_REWRITE, _ROWS, _REWRITTEN)
