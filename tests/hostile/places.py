"""Where PostgreSQL runs an owner's code: what makes such a place, and what touches it afterwards.

`{s}` is evil's schema with his payload functions, `{t}` and `{u}` new names in it, `{c}` and `{n}` names of what
belongs to them, `{i}` a number that is new each time. A text that begins with `dba: ` is the superuser's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Place:
    make: str
    touch: tuple[str, ...]


_ROWS = ("INSERT INTO {t} (id) VALUES ({i})", "INSERT INTO {t} (id) SELECT generate_series({i} + 1, {i} + 9)",
         "DELETE FROM {t} WHERE id > 1 AND id % 3 = 0", "UPDATE {t} SET id = -id", "COMMENT ON TABLE {t} IS 'touched {i}'",
         "ALTER TABLE {t} ADD COLUMN c{i} int", "TRUNCATE {t}", "ALTER TABLE {t} ADD COLUMN r{i} float DEFAULT random()",
         "dba: SELECT ops.maintain({t_text})", "dba: ALTER TABLE {t} SET (fillfactor = 70)", "ALTER TABLE {t} RENAME id TO {n}; ALTER TABLE {t} RENAME {n} TO id",
         "MERGE INTO {t} USING (VALUES ({i})) AS v (id) ON {t}.id = v.id WHEN NOT MATCHED THEN INSERT (id) VALUES (v.id)",
         "GRANT SELECT ON {t} TO PUBLIC", "ALTER TABLE {t} REPLICA IDENTITY FULL", "CREATE INDEX {n} ON {t} (id)",
         "CREATE INDEX ON {t} (id) WHERE {s}.pure(1) = 1")  # fmt: skip


def _table(columns: str, after: str = "INSERT INTO {t} (id) VALUES (0)") -> str:
    return f"CREATE TABLE {{t}} (id int PRIMARY KEY, {columns}); {after}"


PLACES: Final[dict[str, Place]] = {
    "default": Place(_table("{c} int DEFAULT {s}.pay()"), (*_ROWS, "ALTER TABLE {t} ADD d{i} int DEFAULT {s}.pay()")),
    "check": Place(_table("{c} int CHECK ({s}.pay() > 0)"), (*_ROWS, "ALTER TABLE {t} ADD CONSTRAINT {n} CHECK ({s}.pay() > 0) NOT VALID",
        "ALTER TABLE {t} ADD CONSTRAINT {n} CHECK ({s}.pay() > 0) NOT VALID; ALTER TABLE {t} VALIDATE CONSTRAINT {n}")),
    "keyless": Place("CREATE TABLE {t} (id int, {c} text, CHECK ({s}.pay() > 0)); ALTER TABLE {t} REPLICA IDENTITY FULL; INSERT INTO {t} VALUES (1, NULL), (1, NULL)", _ROWS),
    "domain": Place("CREATE DOMAIN {u} AS int CHECK ({s}.pay() > 0); CREATE TABLE {t} (id int PRIMARY KEY, {c} {u} DEFAULT 1, a {u}[]); INSERT INTO {t} VALUES (0, 1, '{{1,2}}')",
        (*_ROWS, "ALTER DOMAIN {u} ADD CONSTRAINT {n} CHECK ({s}.pay() > 0)", "ALTER TABLE {t} ADD d{i} {u} DEFAULT 2")),
    "domain in a composite type": Place("CREATE DOMAIN {u} AS text CHECK ({s}.pay() > 0); CREATE TYPE {v} AS ({c} {u}, b int); CREATE TABLE {t} (id int PRIMARY KEY, p {v}); INSERT INTO {t} VALUES (0, '(a,1)')",
        (*_ROWS, "UPDATE {t} SET p = '(\"x,y\",2)'", "ALTER TYPE {v} ADD ATTRIBUTE x{i} int")),
    "domain of a key": Place("CREATE DOMAIN {u} AS int CHECK ({s}.pay() > 0); CREATE TABLE {t} (id {u} PRIMARY KEY); INSERT INTO {t} VALUES (0);"
        "CREATE TABLE {v} (id int REFERENCES {t} ON UPDATE CASCADE); ALTER TABLE {v} REPLICA IDENTITY FULL; INSERT INTO {v} VALUES (0)", _ROWS),
    "generated": Place(_table("g int GENERATED ALWAYS AS (id + {s}.pure(id)) STORED"), (*_ROWS, "ALTER TABLE {t} ADD g{i} int GENERATED ALWAYS AS ({s}.pure(1)) STORED")),
    "index": Place(_table("v int DEFAULT 1", "CREATE INDEX ON {t} ({s}.pure(v)); INSERT INTO {t} VALUES (0)"), (*_ROWS, "CREATE UNIQUE INDEX {n} ON {t} ((id + {s}.pure(v)))", "DROP INDEX IF EXISTS {s}.{n}", "REINDEX TABLE {t}")),
    "predicate": Place("CREATE TABLE {t} (id serial PRIMARY KEY); CREATE INDEX ON {t} (id) WHERE {s}.pure(1) = 1; INSERT INTO {t} DEFAULT VALUES", (*_ROWS, "INSERT INTO {t} DEFAULT VALUES")),
    "statistics": Place(_table("v int", "CREATE STATISTICS {u} ON ({s}.pure(v)), id FROM {t}; INSERT INTO {t} VALUES (0, 1), (-1, 2)"), (*_ROWS, "ANALYZE {t}", "dba: ANALYZE {t}")),
    "partition key": Place("CREATE TABLE {t} (id int, {c} int) PARTITION BY LIST (({s}.pure(id))); CREATE TABLE {u} PARTITION OF {t} DEFAULT; INSERT INTO {t} VALUES (1); ALTER TABLE {u} REPLICA IDENTITY FULL",
        ("INSERT INTO {t} (id) VALUES ({i})", "CREATE TABLE {s}.part_{i} PARTITION OF {t} FOR VALUES IN ({i})", "DELETE FROM {u}", "COMMENT ON TABLE {t} IS '{i}'")),
    "constant in a partition key": Place("CREATE TABLE {t} (id int, {c} int) PARTITION BY LIST (({s}.pure(1) + id)); CREATE TABLE {u} PARTITION OF {t} DEFAULT; INSERT INTO {t} VALUES (1); ALTER TABLE {u} REPLICA IDENTITY FULL",
        ("INSERT INTO {t} (id) VALUES ({i})", "CREATE TABLE {s}.part_{i} PARTITION OF {t} FOR VALUES IN ({i} + 1000)", "DELETE FROM {u}", "COMMENT ON TABLE {t} IS '{i}'")),
    "text that runs": Place(_table("v int CHECK (ts_rewrite('a'::tsquery, $b$SELECT 'a'::tsquery, 'b'::tsquery WHERE {s}.pay() > 0$b$) IS NOT NULL)"), _ROWS),
    "domain over a text that runs": Place("CREATE DOMAIN {u} AS int CHECK (ts_rewrite('a'::tsquery, $b$SELECT 'a'::tsquery, 'b'::tsquery WHERE {s}.pay() > 0$b$) IS NOT NULL); CREATE TABLE {t} (id int PRIMARY KEY, v {u} DEFAULT 1); INSERT INTO {t} VALUES (0)", _ROWS),
    "exclusion": Place(_table("EXCLUDE USING btree ((id + {s}.pure(id)) WITH =)"), _ROWS),
    "cast": Place("CREATE TABLE {t} (id int PRIMARY KEY, v text); INSERT INTO {t} VALUES (0, E'a,\"b\\\\) '); CREATE FUNCTION {u}(text) RETURNS {t} LANGUAGE plpgsql AS $b$ BEGIN PERFORM {s}.pay(); RETURN NULL; END $b$;"
        "CREATE CAST (text AS {t}) WITH FUNCTION {u}(text) AS IMPLICIT", _ROWS),
    "cast of a row": Place("CREATE TABLE {t} (id int PRIMARY KEY); CREATE FUNCTION {u}({t}) RETURNS text LANGUAGE plpgsql AS $b$ BEGIN PERFORM {s}.pay(); RETURN 'x'; END $b$;"
        "CREATE CAST ({t} AS text) WITH FUNCTION {u}({t}) AS IMPLICIT; INSERT INTO {t} VALUES (0)", _ROWS),
    "operator": Place("CREATE TYPE {u} AS (a int); CREATE FUNCTION {s}.{n}({u}, {u}) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $b$ BEGIN RETURN {s}.pay() > 0; END $b$;"
        "CREATE OPERATOR {s}.= (LEFTARG = {u}, RIGHTARG = {u}, FUNCTION = {s}.{n}); CREATE TABLE {t} (id int PRIMARY KEY, v {u}, CHECK (v OPERATOR({s}.=) v)); INSERT INTO {t} VALUES (0, '(1)')", _ROWS),
    "range": Place("CREATE TYPE {u} AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = {s}.diff, MULTIRANGE_TYPE_NAME = {v}); CREATE TABLE {t} (id int PRIMARY KEY, r {u} DEFAULT '[1,2)'); CREATE INDEX ON {t} USING gist (r); INSERT INTO {t} VALUES (0)",
        (*_ROWS, "INSERT INTO {t} SELECT -i, {u}(i, i + 2) FROM generate_series(10 * {i}, 10 * {i} + 8) i")),
    "aggregate": Place("CREATE FUNCTION {u}(int, int) RETURNS int LANGUAGE plpgsql AS $b$ BEGIN RETURN {s}.pay(); END $b$; CREATE AGGREGATE {v}(int) (SFUNC = {u}, STYPE = int, INITCOND = '1'); CREATE TABLE {t} (id int PRIMARY KEY)",
        (*_ROWS, "CREATE TABLE {s}.agg_{i} AS SELECT {v}(x) FROM generate_series(1, 3) x")),
    "view": Place(_table("v int", "CREATE VIEW {u} AS SELECT id, {s}.pay() AS p FROM {t}; CREATE TRIGGER {n} INSTEAD OF INSERT ON {u} FOR EACH ROW EXECUTE FUNCTION {s}.fired()"),
        (*_ROWS, "INSERT INTO {u} (id) VALUES ({i})", "CREATE OR REPLACE VIEW {u} AS SELECT id, {s}.pay() AS p FROM {t} WHERE id <> {i}", "CREATE TABLE {s}.seen_{i} AS SELECT * FROM {u}")),
    "rule": Place(_table("v int", "CREATE RULE {n} AS ON INSERT TO {t} DO ALSO SELECT {s}.pay(); INSERT INTO {t} VALUES (0)"), (*_ROWS, "ALTER TABLE {t} ENABLE ALWAYS RULE {n}")),
    "rule over a victim": Place(_table("v int", "CREATE RULE {n} AS ON INSERT TO {t} DO ALSO UPDATE vault.gold SET v = 'OWNED'; ALTER TABLE {t} ENABLE ALWAYS RULE {n}"), ("COMMENT ON TABLE {t} IS '{i}'", "ALTER TABLE {t} ADD c{i} int")),
    "materialized view": Place("CREATE MATERIALIZED VIEW {u} AS SELECT {s}.pay() AS a; CREATE TABLE {t} (id int PRIMARY KEY)", (*_ROWS, "REFRESH MATERIALIZED VIEW {u}", "dba: REFRESH MATERIALIZED VIEW {u}")),
    "always trigger": Place(_table("v int", "CREATE TRIGGER {n} AFTER INSERT OR UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.fired(); ALTER TABLE {t} ENABLE ALWAYS TRIGGER {n}; INSERT INTO {t} VALUES (0)"), _ROWS),
    "replica trigger": Place(_table("v int", "CREATE TRIGGER {n} BEFORE INSERT ON {t} FOR EACH ROW EXECUTE FUNCTION {s}.fired(); ALTER TABLE {t} ENABLE REPLICA TRIGGER {n}; INSERT INTO {t} VALUES (0)"), _ROWS),
    "deferred trigger": Place(_table("v int", "CREATE CONSTRAINT TRIGGER {n} AFTER INSERT ON {t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {s}.late(); ALTER TABLE {t} ENABLE ALWAYS TRIGGER {n}; INSERT INTO {t} VALUES (0)"), _ROWS),
    "deferred, planted": Place(_table("v int", "ALTER TABLE {s}.deferred ENABLE ALWAYS TRIGGER late"), ("ALTER TABLE {t} ADD c{i} int DEFAULT {s}.pay()", *_ROWS)),
    "row security": Place(_table("v int", "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY {n} ON {t} USING ({s}.pay() > 0) WITH CHECK ({s}.pay() > 0); INSERT INTO {t} VALUES (0)"), _ROWS),
    "using": Place(_table("v int", "INSERT INTO {t} VALUES (0, 1)"), ("ALTER TABLE {t} ALTER v TYPE bigint USING {s}.pay()", "ALTER TABLE {t} ALTER v TYPE text USING v::text || {s}.pay()", *_ROWS)),
    "create table as": Place("CREATE TABLE {t} AS SELECT {s}.pay() AS id; SELECT {s}.pay() AS a INTO {u}", (*_ROWS, "CREATE TABLE {s}.made_{i} AS SELECT {s}.pay() AS a",
        "PREPARE p{i} AS SELECT {s}.pay() AS a; CREATE TABLE {s}.run_{i} AS EXECUTE p{i}", "EXPLAIN ANALYZE CREATE TABLE {s}.explained_{i} AS SELECT {s}.pay()")),
    "function of the superuser's name": Place("CREATE TABLE {t} (id int PRIMARY KEY); CREATE FUNCTION {s}.maintain(name) RETURNS void LANGUAGE sql AS $b$ COMMENT ON SCHEMA {s} IS 'x'; SELECT {s}.pay(); CREATE TABLE IF NOT EXISTS {u} (id int PRIMARY KEY) $b$",
        (*_ROWS, "SELECT {s}.maintain('x')", "dba: SELECT ops.maintain('{i}')", "SET search_path = {s}; SELECT maintain('x'); RESET search_path")),
    "procedure": Place("CREATE TABLE {t} (id int PRIMARY KEY); CREATE PROCEDURE {u}(n int) LANGUAGE plpgsql AS $b$ BEGIN EXECUTE format('ALTER TABLE %s ADD x%s int DEFAULT {s_text}.pay()', {t_text}, n); COMMIT; PERFORM {s}.pay(); END $b$",
        ("CALL {u}({i})", *_ROWS)),
    "definer": Place("CREATE TABLE {t} (id int PRIMARY KEY, v int DEFAULT {s}.definer()); INSERT INTO {t} VALUES (0)", ("ALTER TABLE {t} ADD c{i} int DEFAULT {s}.definer()", *_ROWS)),
    "inheritance": Place("CREATE TABLE {t} (id int, CHECK ({s}.pay() > 0)); ALTER TABLE {t} REPLICA IDENTITY FULL; CREATE TABLE {u} () INHERITS ({t}); ALTER TABLE {u} REPLICA IDENTITY FULL; INSERT INTO {u} VALUES (1)", (*_ROWS, "INSERT INTO {u} VALUES ({i})")),
    "attached": Place("CREATE TABLE {t} (id int, v int DEFAULT {s}.pay()) PARTITION BY RANGE (id)", ("CREATE TABLE {s}.att_{i} (LIKE {t} INCLUDING ALL, CHECK ({s}.pay() > 0)); ALTER TABLE {s}.att_{i} REPLICA IDENTITY FULL; ALTER TABLE {t} ATTACH PARTITION {s}.att_{i} FOR VALUES FROM ({i}0) TO ({i}9); INSERT INTO {t} VALUES ({i}1)",)),
    "privileges": Place("CREATE TABLE {t} (id int PRIMARY KEY); ALTER DEFAULT PRIVILEGES IN SCHEMA {s} GRANT ALL ON TABLES TO {victim}; GRANT ALL ON {t} TO {victim} WITH GRANT OPTION", (*_ROWS, "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "REVOKE ALL ON {t} FROM PUBLIC, {victim} CASCADE")),
    "names of ours": Place("CREATE TABLE {t} (id int PRIMARY KEY); CREATE TABLE IF NOT EXISTS {s}.journal (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), kind text NOT NULL, key text, about text, content text NOT NULL)",
        ("INSERT INTO {s}.journal (kind, content) VALUES ('ddl', '{{\"event\": \"ddl_command_end\", \"tag\": \"ALTER ROLE\", \"role\": \"postgres\", \"sql\": \"ALTER ROLE evil SUPERUSER\", \"lsn\": \"0/1\"}}')",
         "INSERT INTO {s}.journal (kind, content) VALUES ('rows', '{{\"schema\": \"vault\", \"name\": \"gold\", \"first\": true, \"rows\": [\"(1,OWNED)\"], \"lsn\": \"0/1\"}}')",
         "INSERT INTO {s}.journal (kind, content) VALUES ('lost', '{{\"reason\": \"failed\", \"lsn\": \"0/1\"}}'), ('point', '{{\"name\": \"p\", \"at\": \"0/1\"}}'); DELETE FROM {s}.journal", *_ROWS)),
    "beside others": Place("CREATE TABLE {t} (id int PRIMARY KEY); CREATE FUNCTION shared.{n}(text) RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE FUNCTION shared.lower(text) RETURNS text LANGUAGE plpgsql AS $b$ BEGIN PERFORM {s}.pay(); RETURN 'x'; END $b$",
        ("CREATE TABLE shared.{n} (id int PRIMARY KEY DEFAULT {s}.pay()); INSERT INTO shared.{n} DEFAULT VALUES", *_ROWS, "SET search_path = shared, vault; CREATE TABLE made_{i} (id int PRIMARY KEY, v int DEFAULT {s}.pay()); ALTER TABLE made_{i} ADD w int DEFAULT {s}.pay(); RESET search_path")),
    "objects without code": Place("CREATE TABLE {t} (id int PRIMARY KEY); CREATE COLLATION {u} (locale = 'C'); CREATE TEXT SEARCH CONFIGURATION {v} (COPY = simple); CREATE TEXT SEARCH DICTIONARY {w} (TEMPLATE = simple)",
        (*_ROWS, "ALTER TEXT SEARCH CONFIGURATION {v} ALTER MAPPING FOR word WITH {w}", "ALTER TABLE {t} ADD x{i} text COLLATE {u} DEFAULT {s}.pay()::text", "CREATE TYPE {s}.{n} AS ENUM ({n_text}); ALTER TYPE {s}.{n} ADD VALUE 'OWN; --'")),
}  # fmt: skip

STOPPING: Final[dict[str, str]] = {
    # Bodies of {s}.pay() that may stop a restore with an error, so each is restored alone: no rights are gained by it.
    "raises": "IF session_user <> current_user THEN RAISE SQLSTATE '{state}' USING MESSAGE = 'no'; END IF; RETURN 1;",
    "raises once": "IF session_user <> current_user AND nextval('{s_text}.tries') < 3 THEN RAISE SQLSTATE '{state}'; END IF; RETURN 1;",
    "replaces itself": "EXECUTE 'CREATE OR REPLACE FUNCTION {s_text}.pay() RETURNS int LANGUAGE sql AS ''SELECT 2'''; RETURN 1;",
    "drops itself": "EXECUTE 'DROP FUNCTION IF EXISTS {s_text}.pay() CASCADE'; RETURN 1;",
    "drops its table": "BEGIN EXECUTE 'DROP TABLE IF EXISTS {t_text} CASCADE'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1;",
    "makes a table": "BEGIN EXECUTE 'CREATE TABLE {s_text}.made (id int)'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1;",
    "makes a table at the restore": "IF session_user <> current_user THEN EXECUTE 'CREATE TABLE IF NOT EXISTS {s_text}.made (id int)'; END IF; RETURN 1;",
    "takes itself away": "EXECUTE 'ALTER FUNCTION {s_text}.pay() OWNER TO CURRENT_USER; REVOKE ALL ON FUNCTION {s_text}.pay() FROM PUBLIC, CURRENT_USER'; RETURN 1;",
    "recurses": "IF session_user <> current_user THEN RETURN {s}.pay(); END IF; RETURN 1;",
    "drops what he owns": "IF session_user <> current_user THEN EXECUTE 'DROP OWNED BY CURRENT_USER CASCADE'; END IF; RETURN 1;",
    "fills a table": "INSERT INTO {s}.loot VALUES ('x'); RETURN 1;",
    "triggers at each commit": "IF session_user <> current_user THEN INSERT INTO {s}.deferred VALUES (1); END IF; RETURN 1;",
}  # fmt: skip
STATES: Final = ("42501", "25001", "25006", "40001", "40P01", "55P03", "57014", "57P01", "08006", "XX000", "0A000", "23505", "42P01", "42P07", "53200", "P0001", "28000", "3D000", "42704")  # fmt: skip
