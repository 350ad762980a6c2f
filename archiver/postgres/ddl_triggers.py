"""The SQL that archiver puts into a source so that DDL travels in the stream: event triggers and their functions.

Every statement that fires event triggers becomes one logical message `archiver.ddl` (JSON, read by
archiver.format.ddl) in its own transaction; rows that a rewrite computed become `archiver.rows`. Nothing here fails
the application's statement: what cannot be captured becomes a message `archiver.ddl_lost` and a warning.

`capture_ddl` has no SET clause, for that would hide the session's settings, and it runs as whoever runs the
statement. All that needs a safe search_path and canonical output is in the functions that it calls.
Patterns are E'' strings: whether a backslash escapes in plain ones is the session's choice, and so it must be for
expressions that are described, since they are replayed under the same settings.
"""

from __future__ import annotations

from typing import Final, LiteralString

from archiver.postgres import ddl_indexes, ddl_likes, ddl_moments, ddl_rewrites, table_triggers
from archiver.postgres.ddl_rewrites import ROWS_LIMIT
from archiver.postgres.table_triggers import ListedPublication

CAPTURING: Final = tuple(f"archiver_capture_{event}" for event in ("start", "end", "drop", "rewrite"))
"""The event triggers that write DDL into the stream: without any of them it is not captured."""

_CANONICAL: Final[LiteralString] = """
    SET search_path = pg_catalog, pg_temp SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC'
    SET extra_float_digits = 3 SET bytea_output = 'hex' SET lc_monetary = 'C' SET xmloption = 'content'
    SET row_security = off SET quote_all_identifiers = off
"""

_SCHEMA: Final[LiteralString] = """
CREATE SCHEMA IF NOT EXISTS archiver;
GRANT USAGE ON SCHEMA archiver TO PUBLIC;
"""

# Translated context lines could not be read again. Only a superuser's function may set lc_messages.
_STACK: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.stack() RETURNS text LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lc_messages = 'C' AS $stack$
DECLARE
    stack text;
BEGIN
    GET DIAGNOSTICS stack = PG_CONTEXT;
    RETURN stack;
END
$stack$;
"""

# A block with EXCEPTION is a subtransaction. Decoding merges those by LSN, where a message counts as standing at its
# end, which is where the next record begins: without a record between them, a row may come out before its table.
_CAPTURE: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.capture_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $capture$
DECLARE
    rewritten pg_catalog.oid;
    reason pg_catalog.int4;
BEGIN
    IF tg_event = 'table_rewrite' THEN
        rewritten := pg_catalog.pg_event_trigger_table_rewrite_oid();
        reason := pg_catalog.pg_event_trigger_table_rewrite_reason();
    END IF;
    PERFORM archiver.record_ddl(tg_event, tg_tag, archiver.stack(), pg_catalog.current_query(), rewritten, reason, (
        SELECT pg_catalog.json_build_object(
            'settings', pg_catalog.json_object_agg(name, pg_catalog.current_setting(name, true)),
            'schemas', (SELECT pg_catalog.json_agg(schema)
                          FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS schema))
          FROM pg_catalog.unnest(ARRAY[
            'search_path', 'DateStyle', 'IntervalStyle', 'TimeZone', 'standard_conforming_strings', 'backslash_quote',
            'array_nulls', 'transform_null_equals', 'xmloption', 'bytea_output', 'extra_float_digits', 'lc_monetary',
            'lc_numeric', 'lc_time', 'default_table_access_method', 'default_toast_compression',
            'default_text_search_config', 'createrole_self_grant', 'quote_all_identifiers']) AS name)::pg_catalog.text);
    PERFORM pg_catalog.pg_logical_emit_message(true, 'archiver.pad', '');
EXCEPTION WHEN OTHERS THEN
    BEGIN
        PERFORM pg_catalog.set_config('archiver.script', '', false);
        PERFORM pg_catalog.pg_logical_emit_message(true, 'archiver.ddl_lost',
            pg_catalog.concat(tg_tag, ': ', SQLERRM));
        RAISE WARNING 'archiver: % was not captured, a base snapshot follows: %', tg_tag, SQLERRM;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'archiver: % was not captured: %', tg_tag, SQLERRM;
    END;
END
$capture$;
"""

# In a streamed transaction a message comes with the xid of the whole transaction (pgoutput_message), where a row
# comes with its subtransaction's: without this, what a ROLLBACK TO undid would be replayed. The caller's block
# with EXCEPTION is a subtransaction; writing makes it take its xid, and the youngest xid that one holds is its.
_SUBXACT: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.subxact() RETURNS bigint LANGUAGE plpgsql __CANONICAL__ AS $subxact$
DECLARE
    top bigint := pg_current_xact_id()::text::bigint;
BEGIN
    PERFORM pg_logical_emit_message(true, 'archiver.pad', '');
    RETURN (SELECT transactionid::text::bigint FROM pg_locks
             WHERE locktype = 'transactionid' AND pid = pg_backend_pid() AND mode = 'ExclusiveLock' AND granted
             ORDER BY (transactionid::text::bigint - top) & 4294967295 DESC LIMIT 1);
END
$subxact$;
"""

_RECORD: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.record_ddl(
    event text, tag text, stack text, query text, rewritten oid, reason int, session text
) RETURNS void LANGUAGE plpgsql __CANONICAL__ AS $record$
DECLARE
    message jsonb := session::jsonb || jsonb_build_object('event', event, 'tag', tag, 'role', current_user,
                                                          'session_role', session_user);
    -- a signature is kept as the settings were when its function was first called
    below text := substring(stack FROM E'PL/pgSQL function (?:"?archiver"?\\\\.)?"?capture_ddl"?\\\\(\\\\).*');
    line_end int := position(E'\\n' IN below);
    origin text := CASE WHEN line_end = 0 THEN '' ELSE substr(below, line_end + 1) END;
    nested bool := origin ~ '^SQL (statement|function) "';
    source text := CASE WHEN nested THEN origin ELSE query END;
    place int;
BEGIN
    IF event <> 'table_rewrite' THEN
        message := message || jsonb_build_object('subxact', archiver.subxact());
    END IF;
    IF archiver.is_in_script(event, tag) THEN
        RETURN;
    END IF;
    IF event = 'ddl_command_start' THEN
        PERFORM pg_logical_emit_message(true, 'archiver.ddl', convert_to(message::text, 'UTF8'));
    ELSIF event = 'table_rewrite' THEN
        PERFORM archiver.note_rewrite(rewritten, reason, concat_ws(' ', source,
            (SELECT string_agg(body, ' ') FROM jsonb_array_elements_text(archiver.bodies_of(source)) AS body)));
    ELSIF event = 'sql_drop' THEN
        PERFORM archiver.record_drop(message);
    ELSIF tag <> 'REINDEX' THEN  -- which fires from 17 on only
        place := archiver.count_statement(source, nested);
        IF tag NOT LIKE 'DROP %' OR tag = 'DROP OWNED' THEN
            PERFORM archiver.record_end(message || jsonb_build_object('place', place, 'source', source,
                'bodies', archiver.bodies_of(source)));
        END IF;
    END IF;
END
$record$;
"""

# What an extension's script does belongs to the extension. Before 18 its statements look like those of the client, and
# must not be counted among them; it may hold ALTER EXTENSION itself. A failure takes the depth back with all else.
_IN_SCRIPT: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.is_in_script(event text, tag text) RETURNS bool LANGUAGE plpgsql __CANONICAL__
AS $script$
DECLARE
    now text := extract(epoch FROM statement_timestamp())::text;
    kept text[] := string_to_array(current_setting('archiver.script', true), ' ');
    depth int := CASE WHEN kept[1] = now THEN kept[2]::int ELSE 0 END;
    outermost int := 0;
BEGIN
    IF tag IN ('CREATE EXTENSION', 'ALTER EXTENSION') AND event IN ('ddl_command_start', 'ddl_command_end') THEN
        outermost := CASE event WHEN 'ddl_command_start' THEN 1 ELSE 0 END;
        depth := greatest(depth + CASE outermost WHEN 1 THEN 1 ELSE -1 END, 0);
        PERFORM set_config('archiver.script', now || ' ' || depth, false);
    END IF;
    RETURN depth > outermost AND event <> 'table_rewrite';
END
$script$;
"""

# A text of the client may hold several statements, and roll some of them back: only what no rollback undoes can
# count them, and of a session's state that is a prepared statement. A text that a function runs cannot contain
# ROLLBACK, but may fail half-way and be run again: there the count must go back with it, as a setting does.
_COUNT: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.count_statement(source text, nested bool) RETURNS int
LANGUAGE plpgsql __CANONICAL__ AS $count$
DECLARE
    now text := extract(epoch FROM statement_timestamp())::text;
    key text := md5(source);
    prepared text;
    kept jsonb;
    place int;
BEGIN
    IF source !~ E';\\\\s*\\\\S' THEN
        RETURN 1;
    END IF;
    IF nested THEN
        kept := nullif(current_setting('archiver.counts', true), '')::jsonb;
    ELSE
        SELECT statement INTO prepared FROM pg_prepared_statements WHERE name = 'archiver_count';
        kept := substring(prepared FROM E'\\\\{[^}]*\\\\}')::jsonb;
    END IF;
    IF kept IS NULL OR kept ->> 'at' <> now THEN
        kept := jsonb_build_object('at', now);
    END IF;
    place := coalesce((kept ->> key)::int, 0) + 1;
    kept := kept || jsonb_build_object(key, place);
    IF nested THEN
        PERFORM set_config('archiver.counts', kept::text, false);
        RETURN place;
    END IF;
    IF prepared IS NOT NULL THEN
        DEALLOCATE archiver_count;
    END IF;
    EXECUTE format('PREPARE archiver_count AS SELECT %L', kept);
    RETURN place;
END
$count$;
"""

_BODIES: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.bodies_of(source text) RETURNS jsonb LANGUAGE sql STABLE __CANONICAL__ AS $bodies$
    SELECT jsonb_agg(p.prosrc) FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
     WHERE l.lanname = 'sql' AND p.proname = substring(source, E'^SQL function "([^\\\\n]*)" statement [0-9]+')
$bodies$;
"""

_DROP: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.record_drop(message jsonb) RETURNS void LANGUAGE plpgsql __CANONICAL__ AS $drop$
DECLARE
    dropped jsonb;
BEGIN
    IF message ->> 'tag' NOT LIKE 'DROP %' THEN
        RETURN;
    END IF;
    SELECT jsonb_agg(jsonb_build_object('type', object_type, 'identity', object_identity,
                                        'names', address_names, 'args', address_args))
      INTO dropped FROM pg_event_trigger_dropped_objects()
     WHERE original AND NOT is_temporary AND schema_name IS DISTINCT FROM 'archiver' AND object_identity <> 'archiver';
    IF dropped IS NOT NULL THEN
        PERFORM pg_logical_emit_message(true, 'archiver.ddl',
            convert_to((message || jsonb_build_object('objects', dropped))::text, 'UTF8'));
    END IF;
END
$drop$;
"""

_END: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.record_end(message jsonb) RETURNS void LANGUAGE plpgsql __CANONICAL__ AS $end$
DECLARE
    tag text := message ->> 'tag';
    objects jsonb;
    tables oid[];
BEGIN
    SELECT jsonb_agg(jsonb_build_object('type', object_type, 'schema', schema_name, 'identity', object_identity,
                                        'oid', objid::bigint)),
           array_agg(objid) FILTER (WHERE classid = 'pg_class'::regclass)
      INTO objects, tables FROM pg_event_trigger_ddl_commands()
     WHERE NOT in_extension AND schema_name IS DISTINCT FROM 'pg_temp' AND schema_name IS DISTINCT FROM 'archiver'
       AND coalesce(object_identity, '') !~ E'(^| on )(pg_temp|archiver)(\\\\.|$)';
    IF objects IS NULL AND tag NOT IN (
        'CREATE TABLE AS', 'SELECT INTO', 'DROP OWNED', 'CREATE EXTENSION', 'ALTER EXTENSION',
        'ALTER PUBLICATION'  -- which names no object where it only takes some out
    ) THEN
        PERFORM set_config('archiver.rewritten', '', false);
        RETURN;
    END IF;
    message := message || jsonb_build_object('objects', objects, 'temporary', (
        SELECT jsonb_agg(relname) FROM pg_class WHERE relnamespace = pg_my_temp_schema()));
    IF tag IN ('CREATE TABLE AS', 'SELECT INTO', 'IMPORT FOREIGN SCHEMA') THEN
        message := message || jsonb_build_object('created', archiver.describe_tables(tables));
    ELSIF tag = 'ALTER TABLE' THEN
        message := message || jsonb_build_object('missing', archiver.missing_values(tables));
    END IF;
    IF tag IN ('CREATE TABLE', 'ALTER TABLE') AND message ->> 'source' ~* E'\\\\m(like|partition)\\\\M' THEN
        message := message || jsonb_build_object('indexes', archiver.new_indexes(tables));
    END IF;
    IF tag IN ('CREATE TABLE', 'CREATE SCHEMA')
       AND archiver.likes_temporary(message ->> 'source', nullif(message -> 'bodies', 'null')) THEN
        PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', tag || ' like a temporary table');
    END IF;
    IF archiver.names_moment(message ->> 'source') THEN
        message := message || jsonb_build_object('defaults', archiver.defaults_of(tables));
        PERFORM archiver.record_moments(tag, message ->> 'source');
    END IF;
    PERFORM pg_logical_emit_message(true, 'archiver.ddl', convert_to(message::text, 'UTF8'));
    PERFORM archiver.record_rewritten();
END
$end$;
"""

# CREATE TABLE AS may read temporary tables, call volatile functions or run a prepared statement, and IMPORT FOREIGN
# SCHEMA asks another server: neither can be repeated, so the tables that they made are described.
_DESCRIBE: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.describe_tables(tables oid[]) RETURNS jsonb LANGUAGE sql STABLE __CANONICAL__
AS $describe$
    SELECT jsonb_agg(jsonb_build_object(
               'schema', n.nspname, 'name', c.relname, 'persistence', c.relpersistence,
               'method', am.amname, 'options', c.reloptions, 'server', s.srvname,
               'server_options', (SELECT jsonb_agg(jsonb_build_array(o.option_name, o.option_value))
                                    FROM pg_options_to_table(f.ftoptions) o),
               'columns', (SELECT jsonb_agg(jsonb_build_object(
                        'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull,
                        'collation', CASE WHEN a.attcollation <> t.typcollation
                                          THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
                        'default', pg_get_expr(d.adbin, d.adrelid),
                        'options', (SELECT jsonb_agg(jsonb_build_array(o.option_name, o.option_value))
                                      FROM pg_options_to_table(a.attfdwoptions) o)) ORDER BY a.attnum)
                    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                    LEFT JOIN pg_collation co ON co.oid = a.attcollation
                    LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
                    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am am ON am.oid = c.relam
      LEFT JOIN pg_foreign_table f ON f.ftrelid = c.oid LEFT JOIN pg_foreign_server s ON s.oid = f.ftserver
     WHERE c.oid = ANY (tables) AND c.relkind IN ('r', 'f')
$describe$;
"""

# ADD COLUMN … DEFAULT now() is evaluated once and kept in the catalog, of each partition or child for itself.
_MISSING: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.missing_values(tables oid[]) RETURNS jsonb LANGUAGE sql STABLE __CANONICAL__
AS $missing$
    WITH RECURSIVE altered AS (
        SELECT root, root AS rel FROM unnest(tables) AS root
        UNION SELECT a.root, i.inhrelid FROM altered a JOIN pg_inherits i ON i.inhparent = a.rel
    ), found AS (
        SELECT DISTINCT ON (r.root, a.attname) a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
               a.attmissingval::text AS value, pg_get_expr(d.adbin, d.adrelid) AS expression
          FROM altered r JOIN pg_attribute a ON a.attrelid = r.rel
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.atthasmissing AND NOT a.attisdropped
    )
    SELECT jsonb_object_agg(name, jsonb_build_object('type', type, 'value', value, 'default', expression)) FROM found
$missing$;
"""

_TRIGGERS: Final[LiteralString] = """
CREATE EVENT TRIGGER archiver_capture_start ON ddl_command_start
    WHEN TAG IN ('CREATE TABLE AS', 'SELECT INTO', 'CREATE EXTENSION', 'ALTER EXTENSION')
    EXECUTE FUNCTION archiver.capture_ddl();
CREATE EVENT TRIGGER archiver_capture_end ON ddl_command_end EXECUTE FUNCTION archiver.capture_ddl();
CREATE EVENT TRIGGER archiver_capture_drop ON sql_drop EXECUTE FUNCTION archiver.capture_ddl();
CREATE EVENT TRIGGER archiver_capture_rewrite ON table_rewrite EXECUTE FUNCTION archiver.capture_ddl();
"""


def drop_statements() -> str:
    """Take all event triggers out; their functions go with schema archiver."""
    return "".join(f"DROP EVENT TRIGGER IF EXISTS {name};\n" for name in (*CAPTURING, *table_triggers.NAMES))


def install_statements(listed: ListedPublication | None, *, superuser: bool) -> str:
    """Put everything in, in place of what is there, for a role that may create event triggers.

    `listed`: the publication, where it is not for all tables. Only a superuser can make translated messages readable.
    """
    stack = _STACK if superuser else _STACK.replace("SET lc_messages = 'C'", "")
    text = "".join((stack, *_FUNCTIONS)).replace("__CANONICAL__", _CANONICAL).replace("__LIMIT__", str(ROWS_LIMIT))
    always = "".join(f"ALTER EVENT TRIGGER {name} ENABLE ALWAYS;\n" for name in CAPTURING)
    grant = "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA archiver TO PUBLIC;\n"
    tables = table_triggers.install_statements(listed, rows_limit=ROWS_LIMIT)
    return f"{_SCHEMA}{drop_statements()}{text}{_TRIGGERS}{always}{tables}{grant}"


_FUNCTIONS: Final = (
    _SUBXACT,
    _IN_SCRIPT,
    _COUNT,
    _BODIES,
    _DROP,
    _DESCRIBE,
    _MISSING,
    *ddl_moments.FUNCTIONS,
    *ddl_indexes.FUNCTIONS,
    *ddl_likes.FUNCTIONS,
    *ddl_rewrites.FUNCTIONS,
    _END,
    _RECORD,
    _CAPTURE,
)
