"""What evil's code tries: ways to another's rights, and after each of them what it would do with those.

None of it succeeds at the source. What would succeed at a restore leaves a trace that the judge finds: a role, a file
in the marker folder, OWNED in a victim's row, LOOT in one of evil's own, an object of another's.
"""

from __future__ import annotations

import random
from typing import Final

from tests.hostile.names import literal, quote

EFFECTS: Final = [
    "ALTER ROLE {evil} SUPERUSER", "ALTER ROLE {evil} CREATEROLE REPLICATION BYPASSRLS", "CREATE ROLE backdoor SUPERUSER LOGIN",
    "GRANT pg_execute_server_program TO {evil}", "GRANT {victim} TO {evil}", "ALTER ROLE ALL SET search_path = {s}",
    "ALTER ROLE {victim} SET search_path = {s}", "ALTER ROLE {victim} PASSWORD 'x'",
    "UPDATE vault.gold SET v = 'OWNED by ' || current_user", "INSERT INTO vault.gold VALUES (-1, 'OWNED')",
    "DELETE FROM vault.gold", "TRUNCATE vault.gold CASCADE", "ALTER TABLE vault.gold OWNER TO {evil}",
    "GRANT ALL ON vault.gold TO {evil}", "GRANT ALL ON SCHEMA vault TO PUBLIC", "ALTER TABLE vault.gold ADD COLUMN owned int",
    "DROP TABLE vault.gold", "CREATE FUNCTION vault.trap() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    "CREATE TRIGGER trap BEFORE INSERT ON vault.gold FOR EACH ROW EXECUTE FUNCTION {s}.nothing()",
    "CREATE OR REPLACE FUNCTION ops.maintain(name) RETURNS void LANGUAGE sql AS 'SELECT 1'",
    "ALTER FUNCTION ops.maintain(name) OWNER TO {evil}", "CREATE TABLE ops.mine (v text)", "CREATE SCHEMA mine",
    "CREATE TABLE public.mine (v text)", "CREATE TABLE archiver.mine (v text)", "DROP SCHEMA archiver CASCADE",
    "INSERT INTO archiver.journal (kind, content) VALUES ('ddl', '{{}}')", "UPDATE archiver.restore SET step = 'x'",
    "INSERT INTO {s}.loot SELECT 'LOOT ' || v FROM vault.gold", "INSERT INTO {s}.loot SELECT 'LOOT ' || rolpassword FROM pg_authid",
    "INSERT INTO {s}.loot VALUES ('LOOT ' || pg_read_file('PG_VERSION'))",
    "COPY {s}.loot FROM PROGRAM 'echo LOOT'", "COPY {s}.loot FROM '/etc/passwd'", "COPY (SELECT 1) TO '{marker}/copied'",
    "COPY (SELECT 1) TO PROGRAM 'touch {marker}/program'", "SELECT lo_export(lo_from_bytea(0, 'x'), '{marker}/exported')",
    "SELECT lo_import('/etc/passwd')", "ALTER SYSTEM SET work_mem = '65MB'", "ALTER DATABASE postgres OWNER TO {evil}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {victim} GRANT ALL ON TABLES TO PUBLIC", "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {evil}",
    "CREATE EVENT TRIGGER trap ON ddl_command_end EXECUTE FUNCTION {s}.evt()", "REASSIGN OWNED BY {victim} TO {evil}",
    "DROP OWNED BY {victim}", "ALTER TABLE {s}.loot OWNER TO {victim}", "ALTER FUNCTION {s}.escalate() OWNER TO {victim}",
    "ALTER FUNCTION {s}.nothing() OWNER TO postgres", "SELECT pg_create_physical_replication_slot('trap')",
    "CREATE PUBLICATION trap FOR ALL TABLES", "SELECT pg_replication_origin_create('trap')", "LOAD 'auto_explain'",
    "CREATE FUNCTION {s}.c() RETURNS int LANGUAGE c AS 'libc', 'getpid'", "CREATE EXTENSION adminpack",
    "CREATE TABLESPACE trap LOCATION '{marker}'", "ALTER SCHEMA vault OWNER TO {evil}", "DROP DATABASE template1",
    "UPDATE pg_catalog.pg_authid SET rolsuper = true WHERE rolname = {evil_text}", "SECURITY LABEL ON ROLE {victim} IS 'x'",
    "GRANT SET ON PARAMETER session_preload_libraries TO {evil}", "COMMENT ON TABLE vault.gold IS 'OWNED'",
    "CREATE RULE trap AS ON SELECT TO vault.gold DO INSTEAD SELECT 1", "CREATE POLICY trap ON vault.gold",
]  # fmt: skip
"""Each succeeds for nobody but a superuser, the victim or the restoring role."""

WAYS: Final = [
    "SELECT 1", "RESET ROLE", "SET ROLE NONE", "SET ROLE postgres", "SET LOCAL ROLE {victim}", "SET ROLE {victim}",
    "SELECT set_config('role', 'none', false)", "SELECT set_config('role', 'postgres', true)",
    "SET SESSION AUTHORIZATION DEFAULT", "SET SESSION AUTHORIZATION postgres", "RESET SESSION AUTHORIZATION", "RESET ALL",
    "SELECT set_config('session_authorization', 'postgres', false)", "DISCARD ALL", "DISCARD TEMP", "DISCARD PLANS",
    "DECLARE held CURSOR WITH HOLD FOR SELECT {s}.escalate()", "DECLARE \"_pg3_0\" CURSOR WITH HOLD FOR SELECT {s}.escalate()",
    "FETCH ALL FROM held", "CLOSE ALL", "DEALLOCATE ALL", "DEALLOCATE \"_pg3_0\"", "DEALLOCATE \"_pg3_1\"",
    "PREPARE \"_pg3_0\" AS SELECT {s}.escalate()", "PREPARE \"_pg3_1\" AS SELECT {s}.escalate()",
    "PREPARE run_as AS SELECT {s}.escalate()", "LISTEN archiver", "SELECT pg_advisory_unlock_all()", "NOTIFY archiver, 'x'", "UNLISTEN *",
    "CREATE DOMAIN pg_temp.regclass AS text CHECK ({s}.escalate() > 0)",
    "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK ({s}.escalate() > 0)",
    "CREATE DOMAIN pg_temp.oid AS pg_catalog.oid CHECK ({s}.escalate() > 0)",
    "CREATE DOMAIN pg_temp.int8 AS pg_catalog.int8 CHECK ({s}.escalate() > 0)",
    "CREATE DOMAIN pg_temp.name AS pg_catalog.name CHECK ({s}.escalate() > 0)",
    "CREATE FUNCTION pg_temp.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT {s_text}.escalate()::text'",
    "CREATE FUNCTION pg_temp.quote_ident(text) RETURNS text LANGUAGE sql AS 'SELECT {s_text}.escalate()::text'",
    "CREATE OPERATOR pg_temp.= (LEFTARG = name, RIGHTARG = text, FUNCTION = {s}.same)",
    "CREATE OPERATOR pg_temp.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = {s}.alike)",
    "CREATE TEMP TABLE pg_class AS SELECT {s}.escalate() AS oid", "CREATE TEMP TABLE archiver_answer (answer text DEFAULT {s}.escalate()::text)",
    "CREATE TEMP VIEW pg_roles AS SELECT {s}.escalate() AS oid, 'postgres'::name AS rolname, true AS rolsuper",
    "CREATE TEMP VIEW pg_trigger AS SELECT {s}.escalate() AS tgrelid",
    "SET search_path = {s}, pg_catalog", "SELECT set_config('search_path', {s_literal}, false)", "SET archiver.search_path = {s}",
    "SET session_replication_role = origin", "SET session_replication_role = replica", "SET row_security = off",
    "SET check_function_bodies = off", "SET standard_conforming_strings = off", "SET default_transaction_read_only = on",
    "SET default_with_oids = off", "SET default_table_access_method = heap", "SET DateStyle = 'German'", "SET IntervalStyle = 'iso_8601'",
    "SET bytea_output = 'escape'", "SET client_encoding = 'LATIN1'", "SET extra_float_digits = -10", "SET quote_all_identifiers = on",
    "SET client_min_messages = debug5", "SET work_mem = 64", "SET enable_seqscan = off", "SET plan_cache_mode = force_generic_plan",
    "SET local_preload_libraries = 'x'", "SET session_preload_libraries = 'x'", "SET createrole_self_grant = 'set, inherit'",
    "SET event_triggers = off", "SET allow_system_table_mods = on", "SET log_statement = 'none'", "SET xmloption = document",
    "SET lock_timeout = 1000", "SET transaction_isolation = 'serializable'", "SET backtrace_functions = 'x'", "SET TimeZone = 'Asia/Tokyo'",
    "INSERT INTO {s}.deferred VALUES (1)", "SET CONSTRAINTS ALL IMMEDIATE", "SET CONSTRAINTS ALL DEFERRED", "SELECT {s}.definer()",
    "SELECT count(*) FROM archiver.journal", "SELECT ops.maintain('gold')",
    "DO $d$ BEGIN EXECUTE 'RESET ROLE'; PERFORM {s}.escalate(); END $d$", "COMMIT", "ROLLBACK", "SAVEPOINT s",
    "ALTER FUNCTION {s}.escalate() SET role = 'postgres'", "LOCK TABLE vault.gold", "COPY {s}.deferred FROM STDIN",
]  # fmt: skip

_SUPPORT: Final = """
CREATE TABLE {s}.loot (v text); ALTER TABLE {s}.loot REPLICA IDENTITY FULL;
CREATE TABLE {s}.deferred (id int); ALTER TABLE {s}.deferred REPLICA IDENTITY FULL;
CREATE FUNCTION {s}.nothing() RETURNS trigger LANGUAGE plpgsql AS $b$ BEGIN RETURN NEW; END $b$;
CREATE FUNCTION {s}.evt() RETURNS event_trigger LANGUAGE plpgsql AS $b$ BEGIN END $b$;
CREATE FUNCTION {s}.escalate() RETURNS int LANGUAGE plpgsql AS $b$ DECLARE effect text; BEGIN
  FOREACH effect IN ARRAY ARRAY[{effects}] LOOP
    BEGIN EXECUTE effect; EXCEPTION WHEN OTHERS THEN NULL; END;
  END LOOP; RETURN 1; END $b$;
CREATE FUNCTION {s}.pay() RETURNS int LANGUAGE plpgsql AS $b$
DECLARE way text; done int := coalesce(nullif(current_setting('hostile.done', true), ''), '0')::int; BEGIN
  IF done > 2 THEN RETURN 1; END IF;
  PERFORM set_config('hostile.done', (done + 1)::text, false);
  FOREACH way IN ARRAY ARRAY[{ways}] LOOP
    CONTINUE WHEN way ~ '^(SET|RESET|DISCARD ALL|SELECT set)' AND current_database() = '<SOURCE>';  -- it would be a loss
    BEGIN EXECUTE way; EXCEPTION WHEN OTHERS THEN NULL; END;
    PERFORM {s}.escalate();
  END LOOP; RETURN 1; END $b$;
CREATE FUNCTION {s}.definer() RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS $b$ BEGIN
  BEGIN EXECUTE 'RESET ROLE'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN {s}.escalate(); END $b$;
CREATE FUNCTION {s}.pure(anyelement) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $b$ BEGIN RETURN {s}.pay(); END $b$;
CREATE FUNCTION {s}.same(name, text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $b$ BEGIN RETURN {s}.pay() > 0; END $b$;
CREATE FUNCTION {s}.alike(text, text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $b$ BEGIN RETURN {s}.pay() > 0; END $b$;
CREATE FUNCTION {s}.diff(float8, float8) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS $b$ BEGIN PERFORM {s}.pay(); RETURN $1 - $2; END $b$;
CREATE FUNCTION {s}.fired() RETURNS trigger LANGUAGE plpgsql AS $b$ BEGIN PERFORM {s}.pay(); RETURN NEW; END $b$;
CREATE FUNCTION {s}.late() RETURNS trigger LANGUAGE plpgsql AS $b$ BEGIN
  BEGIN EXECUTE 'DECLARE later CURSOR WITH HOLD FOR SELECT {s_text}.escalate()'; EXCEPTION WHEN OTHERS THEN NULL; END;
  PERFORM {s}.escalate(); RETURN NEW; END $b$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {s}.deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {s}.late();
"""


def support(rng: random.Random, schema: str, evil: str, victim: str) -> str:
    """Evil's functions in one of his schemas: some ways, in any order, and some effects."""
    words = {
        "s": quote(schema), "s_text": quote(schema).replace("'", "''"), "s_literal": literal(quote(schema)),
        "evil": quote(evil), "victim": quote(victim), "evil_text": literal(evil), "marker": "<MARKER>",
    }  # fmt: skip
    # Every body has the two that show more rights best.
    effects = [EFFECTS[0], EFFECTS[8], *rng.sample(EFFECTS, 8)]
    ways = rng.sample(WAYS, 12)
    listed = {"effects": _array(effects, words), "ways": _array(ways, words)}
    return _SUPPORT.format(**words, **listed)


def _array(statements: list[str], words: dict[str, str]) -> str:
    return ", ".join(f"$w${statement.format(**words)}$w$" for statement in statements)
