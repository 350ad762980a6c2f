"""The SQL that captures literals which are a moment: 'now', 'today' and the like become constants when DDL is run.

A part of archiver.postgres.ddl_triggers. Where such a word may stand in a statement, the defaults that it made are
described; what else it may have become (a CHECK, a partition's bounds, a view) is marked as lost.
Of what a function's body does, nothing is evaluated when it is made, unless it is BEGIN ATOMIC.
"""

from __future__ import annotations

from typing import Final, LiteralString

# postgresql.org/docs/18/datatype-datetime.html, "Special Values"; a literal may hold more words than one. Comments and
# quoted names are matched so that an apostrophe in them begins no literal.
_NAMES_MOMENT: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.names_moment(source text) RETURNS bool LANGUAGE sql IMMUTABLE __CANONICAL__
AS $names$
    SELECT source ~* E'\\\\m(now|today|tomorrow|yesterday)\\\\M' AND EXISTS (
        SELECT FROM regexp_matches(regexp_replace(source, '^SQL (statement|function) "', ''),
                    E'(--[^\\n]*|/[*]([^*]|[*]+[^*/])*[*]+/|"[^"]*"|[$][a-z_]*[$][^$]*[$][a-z_]*[$]'
                    '|e\\'([^\\'\\\\\\\\]|\\\\\\\\.|\\'\\')*\\'|\\'([^\\']|\\'\\')*\\')', 'gi') AS token
         WHERE token[1] !~ '^[-/"]' AND token[1] ~* E'\\\\m(now|today|tomorrow|yesterday)\\\\M')
$names$;
"""

# Of partitions and children, too: each has a default of its own.
_DEFAULTS: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.defaults_of(tables oid[]) RETURNS jsonb LANGUAGE sql STABLE __CANONICAL__
AS $defaults$
    WITH RECURSIVE meant AS (
        SELECT unnest(tables) AS rel
        UNION SELECT i.inhrelid FROM meant m JOIN pg_inherits i ON i.inhparent = m.rel
    )
    SELECT jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname, 'column', a.attname,
                                        'default', pg_get_expr(d.adbin, d.adrelid)))
      FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
      JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid IN (SELECT rel FROM meant) AND a.attgenerated = '' AND NOT a.attisdropped
$defaults$;
"""

_RECORD: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION archiver.record_moments(tag text, source text) RETURNS void LANGUAGE plpgsql __CANONICAL__
AS $record$
BEGIN
    IF tag ~ E'^(CREATE|ALTER) (FOREIGN )?TABLE$'
       AND source !~* E'\\\\m(check|for\\\\s+values|exclude|using)\\\\M'
       AND source !~* E'\\\\mas\\\\s*[(][^,]*\\\\m(now|today|tomorrow|yesterday)\\\\M' THEN
        RETURN;  -- described
    END IF;
    IF tag ~ E'^(CREATE TABLE AS|SELECT INTO|DROP |COMMENT|SECURITY LABEL|GRANT|REVOKE|REFRESH|ALTER DEFAULT)' THEN
        RETURN;
    END IF;
    IF tag ~ E'^(CREATE|ALTER) (FUNCTION|PROCEDURE|ROUTINE|EXTENSION)' AND source !~* E'\\\\matomic\\\\M' THEN
        RETURN;
    END IF;
    PERFORM pg_logical_emit_message(true, 'archiver.ddl_lost', format(
        '%s with a literal that means the moment it ran at (now, today, tomorrow or yesterday)', tag));
END
$record$;
"""

FUNCTIONS: Final = (_NAMES_MOMENT, _DEFAULTS, _RECORD)
