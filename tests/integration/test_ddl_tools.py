"""DDL as tools run it: partition managers, migrations that repeat themselves, helpers with a search_path of their own."""

from __future__ import annotations

import pytest

from tests.fix_archive import MakeSetup
from tests.integration.test_ddl import POINT, check

MANAGER = """
CREATE SCHEMA partman; CREATE SCHEMA "Odd ""Schema";
CREATE TABLE partman.config (parent text PRIMARY KEY, step int NOT NULL, premake int NOT NULL);
CREATE TABLE partman.template (LIKE partman.config);
CREATE FUNCTION partman.create_partition(p_parent text, p_from int) RETURNS boolean LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_config partman.config;
    v_name text;
    v_schema text;
BEGIN
    SELECT * INTO STRICT v_config FROM partman.config WHERE parent = p_parent;
    SELECT nspname INTO v_schema FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
     WHERE c.oid = p_parent::regclass;
    v_name := (SELECT relname FROM pg_class WHERE oid = p_parent::regclass) || '_p' || p_from;
    IF to_regclass(format('%I.%I', v_schema, v_name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I.%I (LIKE %s INCLUDING ALL)', v_schema, v_name, p_parent);
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)',
                   p_parent, v_schema, v_name, p_from, p_from + v_config.step);
    EXECUTE 'COMMENT ON TABLE ' || format('%I.%I', v_schema, v_name) || ' IS ' || quote_literal('made; by "partman"');
    EXECUTE format('GRANT SELECT ON %I.%I TO PUBLIC; ALTER TABLE %1$I.%2$I SET (fillfactor = 90)', v_schema, v_name);
    RETURN true;
END $$;
CREATE PROCEDURE partman.run_maintenance() LANGUAGE plpgsql AS $$
DECLARE
    v_row record;
    v_last int;
BEGIN
    FOR v_row IN SELECT * FROM partman.config ORDER BY parent LOOP
        EXECUTE format('SELECT coalesce(max(id), 0) FROM %s', v_row.parent) INTO v_last;
        v_last := v_last - v_last % v_row.step;
        FOR i IN 0..v_row.premake LOOP
            PERFORM partman.create_partition(v_row.parent, v_last + i * v_row.step);
        END LOOP;
        COMMIT;
    END LOOP;
END $$;
CREATE PROCEDURE partman.retire(p_parent text, p_below int) LANGUAGE plpgsql SET search_path = partman AS $$
DECLARE
    v_child regclass;
BEGIN
    FOR v_child IN SELECT inhrelid FROM pg_inherits WHERE inhparent = p_parent::regclass LOOP
        IF substring(v_child::text FROM '_p(\\d+)"?$')::int < p_below THEN
            EXECUTE 'ALTER TABLE ' || p_parent || ' DETACH PARTITION ' || v_child;
            BEGIN
                EXECUTE 'DROP TABLE ' || v_child || '; CREATE TABLE retired (gone int); SELECT 1 / 0';
            EXCEPTION WHEN division_by_zero THEN
                EXECUTE format('ALTER TABLE %s SET SCHEMA "Odd ""Schema"', v_child);
            END;
        END IF;
    END LOOP;
END $$;
CREATE TABLE public.event (id int NOT NULL, at timestamptz DEFAULT now(), v text CHECK (v <> ''), PRIMARY KEY (id))
    PARTITION BY RANGE (id);
CREATE TABLE "Odd ""Schema"."Log's" (id int NOT NULL, line text) PARTITION BY RANGE (id);
CREATE INDEX ON "Odd ""Schema"."Log's" (line);
INSERT INTO partman.config VALUES ('public.event', 100, 3), ('"Odd ""Schema"."Log''s"', 10, 2);
"""
MAINTAINED = [
    "CALL partman.run_maintenance()",
    "INSERT INTO event (id, v) SELECT i, 'v' FROM generate_series(1, 350) i",
    """INSERT INTO "Odd ""Schema"."Log's" SELECT i, 'l' FROM generate_series(0, 29) i""",
    "CALL partman.run_maintenance()",
    POINT,
    "UPDATE event SET id = id + 200 WHERE id % 7 = 0 AND id < 300 AND id + 200 NOT IN (SELECT id FROM event)",
    "BEGIN; SELECT partman.create_partition('public.event', 900); INSERT INTO event (id, v) VALUES (901, 'x');"
    " SAVEPOINT a; SELECT partman.create_partition('public.event', 1000); ROLLBACK TO a;"
    " SELECT partman.create_partition('public.event', 1000); INSERT INTO event (id, v) VALUES (1001, 'y'); COMMIT",
    "ALTER TABLE event ADD n int NOT NULL DEFAULT 5; CREATE INDEX ON event (n)",
    "CALL partman.retire('public.event', 200)",
    "DELETE FROM event WHERE n = 5 AND id < 260",
    "CALL partman.run_maintenance()",
]
MIGRATIONS = """
CREATE TABLE version (n int PRIMARY KEY); CREATE SCHEMA app;
CREATE FUNCTION app.each_tenant(statement text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE tenant text;
BEGIN
    FOREACH tenant IN ARRAY ARRAY['tenant_1', 'Tenant 2'] LOOP
        PERFORM set_config('search_path', quote_ident(tenant) || ', public', true);
        EXECUTE statement;
    END LOOP;
END $$;
"""
MIGRATED = [
    'CREATE SCHEMA tenant_1; CREATE SCHEMA "Tenant 2"',
    "SELECT app.each_tenant('CREATE TABLE account (id int PRIMARY KEY, owner text)')",
    "SELECT app.each_tenant('INSERT INTO account VALUES (1, current_schema)')",
    "SELECT app.each_tenant('CREATE TABLE t AS SELECT * FROM account; ALTER TABLE t ADD r float DEFAULT random()')",
    "SELECT app.each_tenant('CREATE TYPE kind AS ENUM (''a''); ALTER TABLE account ADD kind kind DEFAULT ''a'', ADD at timestamptz DEFAULT now()')",
    POINT,
    "SELECT app.each_tenant('ALTER TABLE account ALTER owner TYPE varchar USING upper(owner); DROP TABLE t')",
    "DO $$ DECLARE s text; BEGIN FOR s IN SELECT nspname FROM pg_namespace WHERE nspname ILIKE 'tenant%' LOOP"
    " EXECUTE format('SET LOCAL search_path = %I', s); CREATE TABLE plain (id int PRIMARY KEY);"
    " INSERT INTO plain VALUES (1); ALTER TABLE plain ADD v text DEFAULT 'x'; END LOOP; END $$",
    "DO $$ BEGIN PERFORM set_config('search_path', '\"Tenant 2\"', true); DROP TABLE plain; END $$",
    "INSERT INTO version VALUES (1); DO LANGUAGE plpgsql 'BEGIN CREATE TABLE IF NOT EXISTS version (); CREATE TABLE IF NOT EXISTS w (); END'",
]
SCENARIOS = {"a partition manager": (MANAGER, MAINTAINED), "migrations of many schemas": (MIGRATIONS, MIGRATED)}


@pytest.mark.parametrize("tool", SCENARIOS)
async def test_what_tools_run_comes_back(make_setup: MakeSetup, tool: str) -> None:
    before, statements = SCENARIOS[tool]
    assert await check(make_setup(), statements, before) == []
