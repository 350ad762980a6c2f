"""Keys that a statement takes along: no UPDATE of the application fails for them, and nobody waits for a lock."""

from __future__ import annotations

import pytest

from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup
from tests.integration.test_attacks_source import as_role, give_schema, roles

__all__ = ["roles"]

# What an owner makes, the key of another's table that stands on it, and what he drops.
KEYS = {
    "function": ("CREATE FUNCTION app.f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
                 "int GENERATED ALWAYS AS (app.f(v)) STORED", "DROP FUNCTION app.f CASCADE"),
    "routine": ("CREATE FUNCTION app.f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
                "int GENERATED ALWAYS AS (app.f(v)) STORED", "DROP ROUTINE app.f CASCADE"),
    "table": ("CREATE TABLE app.f (a int)", "app.f", "DROP TABLE app.f CASCADE"),
    "view": ("CREATE VIEW app.f AS SELECT 1 AS a", "app.f", "DROP VIEW app.f CASCADE"),
    "collation": ('CREATE COLLATION app.f FROM "C"', "text COLLATE app.f", "DROP COLLATION app.f CASCADE"),
    "domain": ("CREATE DOMAIN app.f AS int", "app.f", "DROP DOMAIN app.f CASCADE"),
    "type": ("CREATE TYPE app.f AS ENUM ('a')", "app.f", "DROP TYPE app.f CASCADE"),
    "schema": ("CREATE DOMAIN app.f AS int", "app.f", "DROP SCHEMA app CASCADE"),
    "owned": ("CREATE DOMAIN app.f AS int", "app.f", "DROP OWNED BY CURRENT_USER CASCADE"),
}  # fmt: skip


@pytest.mark.parametrize("what", KEYS)
async def test_a_key_that_goes_with_what_it_stood_on_leaves_no_table_that_refuses_updates(
    make_setup: MakeSetup, roles: tuple[str, str], what: str
) -> None:
    """The table is the DBA's, who had nothing to do with it."""
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    make, column, drop = KEYS[what]
    with as_role(source.dsn, owner) as conn, source.connect() as dba:
        conn.execute(make.encode())
        dba.execute(f"CREATE TABLE bank (v int, k {column} PRIMARY KEY)".encode())
        dba.execute(f"CREATE TABLE parted (v int, k {column}, PRIMARY KEY (v, k)) PARTITION BY RANGE (v)".encode())
        dba.execute("CREATE TABLE leaf PARTITION OF parted FOR VALUES FROM (0) TO (9)")
        conn.execute(drop.encode())
        dba.execute("INSERT INTO parted VALUES (1)")
        dba.execute("UPDATE bank SET v = 2; UPDATE parted SET v = 2")


async def test_a_key_that_the_owner_of_a_parent_drops_leaves_no_partition_of_anothers_that_refuses_updates(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    with as_role(source.dsn, owner) as conn, source.connect() as dba:
        conn.execute("CREATE TABLE app.p (id int, k int, v int, PRIMARY KEY (id, k)) PARTITION BY RANGE (id)")
        dba.execute("CREATE TABLE app.p1 PARTITION OF app.p FOR VALUES FROM (0) TO (9)")  # a partition manager's
        dba.execute("INSERT INTO app.p VALUES (1, 1, 1)")
        conn.execute("ALTER TABLE app.p DROP CONSTRAINT p_pkey")
        dba.execute("UPDATE app.p1 SET v = 2; DELETE FROM app.p")


async def test_a_drop_of_an_index_that_is_the_replica_identity_leaves_no_table_that_refuses_updates(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    with as_role(source.dsn, owner) as conn:
        conn.execute("""
            CREATE TABLE app.p (id int NOT NULL, v int) PARTITION BY RANGE (id);
            CREATE TABLE app.leaf PARTITION OF app.p FOR VALUES FROM (0) TO (10);
            CREATE UNIQUE INDEX i ON app.p (id)
        """)
        conn.execute("ALTER TABLE app.leaf REPLICA IDENTITY USING INDEX leaf_id_idx")
        conn.execute("INSERT INTO app.p VALUES (1, 1)")
        conn.execute("DROP INDEX app.i")
        conn.execute("UPDATE app.p SET v = 2")


async def test_a_drop_waits_for_no_lock_of_a_table_that_it_does_not_name(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    with source.connect() as dba:
        dba.execute("CREATE TABLE mine (id int); CREATE INDEX i ON mine (id); CREATE TYPE kind AS ENUM ('a')")
        await source.init()
        # A keyless table that the guard has not seen.
        dba.execute("ALTER TABLE app.t DROP CONSTRAINT t_pkey")
        dba.execute("UPDATE pg_class SET relreplident = 'd' WHERE oid = 'app.t'::regclass")
        with as_role(source.dsn, owner) as conn, conn.transaction():
            conn.execute("LOCK TABLE app.t IN ACCESS SHARE MODE")
            dba.execute("SET statement_timeout = '5s'")
            dba.execute("DROP INDEX i; DROP TYPE kind")


async def test_what_was_done_for_a_table_that_lost_its_key_comes_back(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    await source.init()
    async with source.daemon():
        await source.archived()
        with as_role(source.dsn, owner) as conn, source.connect() as dba:
            conn.execute("CREATE DOMAIN app.d AS int; CREATE TABLE app.u (v int, k app.d PRIMARY KEY)")
            dba.execute("CREATE TABLE bank (v int, k app.d PRIMARY KEY); INSERT INTO bank VALUES (1, 1)")
            conn.execute("INSERT INTO app.u VALUES (1, 1); DROP DOMAIN app.d CASCADE; UPDATE app.u SET v = 2")
            dba.execute("UPDATE bank SET v = 2")
        await source.archived()
    restored, _ = await source.restore()
    assert difference(pg_dump(restored), pg_dump(source.dsn)) == ""


async def test_a_listed_table_that_loses_its_key_to_a_drop_leaves_the_publication(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    with source.connect() as dba:
        dba.execute("CREATE TABLE log (v int)")
        await source.init(keyless="exclude")
        with as_role(source.dsn, owner) as conn:
            conn.execute("CREATE DOMAIN app.d AS int")
            dba.execute("CREATE TABLE bank (v int, k app.d PRIMARY KEY); INSERT INTO bank VALUES (1, 1)")
            conn.execute("DROP DOMAIN app.d CASCADE")
        dba.execute("UPDATE bank SET v = 2")
        tables = dba.execute("SELECT tablename FROM pg_publication_tables WHERE schemaname <> 'archiver'").fetchall()
        assert tables == [("t",)]
