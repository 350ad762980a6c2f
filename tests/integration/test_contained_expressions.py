"""Expressions that reach an owner's code without a call of it: by PostgreSQL's own functions, types and keys.

What each such function may do is decided here, for every one that a server has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.postgres.trusted_functions import NOT_TRUSTED_IMMUTABLE, TRUSTED, TRUSTED_NAMES
from archiver.postgres.users_code import by_name
from tests.fix_servers import MakeDatabase
from tests.integration.test_containment import (  # noqa: F401
    World,
    assert_contained,
    elsewhere,
    restore_into,
    rights,
    rows,
    world,
)

# The servers of the tests have no libxml: query_to_xml is the same elsewhere.
RUN = "ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, ''b''::tsquery WHERE app.escalate() > 0') IS NOT NULL"
SCENARIOS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "a text that a check runs, loaded": (
        [f"CREATE TABLE app.t (id int PRIMARY KEY, CHECK ({RUN})); INSERT INTO app.t VALUES (1)"],
        ["COMMENT ON TABLE app.t IS 'x'"],
    ),
    "a text that a check runs, replayed": (
        [f"CREATE TABLE app.t (id int PRIMARY KEY, CHECK ({RUN}))"],
        ["INSERT INTO app.t VALUES (1)"],
    ),
    "a text that a domain runs": (
        [f"CREATE DOMAIN app.d AS int CHECK ({RUN}); CREATE TABLE app.t (id int PRIMARY KEY, d app.d)"],
        ["INSERT INTO app.t VALUES (1, 1)"],
    ),
    "a domain that JSON_VALUE gives": (
        ["CREATE DOMAIN app.d AS int CHECK (app.attack() > 0);"
         "CREATE TABLE app.t (id int PRIMARY KEY, j jsonb, CHECK (JSON_VALUE(j, '$' RETURNING app.d) > 0));"
         "INSERT INTO app.t VALUES (1, '1')"],
        ["INSERT INTO app.t VALUES (2, '2')"],
    ),
    "a domain that is named by its number": (
        ["CREATE DOMAIN app.d AS int CHECK (app.attack() > 0);"
         "CREATE TABLE app.t (id int PRIMARY KEY, CHECK (domain_in('1'::cstring, to_regtype('app.d')::pg_catalog.oid, -1) IS NULL OR id > 0));"
         "INSERT INTO app.t VALUES (1)"],
        ["INSERT INTO app.t VALUES (2)"],
    ),
    "a constant in the key of a partitioned table": (
        ["CREATE TABLE app.t (id int, v int) PARTITION BY LIST ((app.pure(1) + v));"
         "CREATE TABLE app.u PARTITION OF app.t FOR VALUES IN (2); ALTER TABLE app.u REPLICA IDENTITY FULL;"
         "INSERT INTO app.t VALUES (1, 1)"],
        ["COMMENT ON TABLE app.t IS 'x'; INSERT INTO app.t VALUES (2, 1)",
         "CREATE TABLE app.w PARTITION OF app.t FOR VALUES IN (3); ALTER TABLE app.w REPLICA IDENTITY FULL",
         "INSERT INTO app.t VALUES (3, 2)"],
    ),
    "a partitioned table that is named by its number": (
        ["CREATE TABLE app.p (v int) PARTITION BY HASH ((app.pure(1) + v));"
         "CREATE TABLE app.t (id int PRIMARY KEY, CHECK (satisfies_hash_partition(to_regclass('app.p')::pg_catalog.oid, 1, 0, id) OR id > 0));"
         "INSERT INTO app.t VALUES (1)"],
        ["INSERT INTO app.t VALUES (2)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_what_an_expression_reaches_gives_an_owner_no_rights(world: World, scenario: str) -> None:  # noqa: F811
    await world.archive(*SCENARIOS[scenario])
    before = rights(world.setup.dsn)
    for way in ("replayed", "loaded"):
        restored, _ = await world.setup.restore()
        assert_contained(restored, before)
        assert rows(restored) == rows(world.setup.dsn), way
        await world.archive_again()


@pytest.mark.parametrize(
    "scenario", ["a text that a check runs, loaded", "a constant in the key of a partitioned table"]
)
async def test_nor_where_the_role_is_missing(world: World, elsewhere: PostgresServer, scenario: str) -> None:  # noqa: F811
    await world.archive(*SCENARIOS[scenario])
    dsn = elsewhere.dsn("restored")
    before = rights(dsn)
    await restore_into(world.setup, dsn)
    assert_contained(dsn, before, staying=(world.evil,))


async def test_a_function_of_a_superusers_extension_is_trusted_as_long_as_nobody_comes_in_front_of_what_it_calls(
    make_database: MakeDatabase,
) -> None:
    async with await psycopg.AsyncConnection.connect(make_database(), autocommit=True) as conn:
        await conn.execute(
            "CREATE FUNCTION early(int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1;"
            "CREATE FUNCTION late(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT abs($1)';"
            "CREATE FUNCTION stable(int) RETURNS int STABLE LANGUAGE sql RETURN $1;"
            "CREATE OPERATOR ## (RIGHTARG = int, FUNCTION = stable);"
            "ALTER EXTENSION plpgsql ADD FUNCTION early(int); ALTER EXTENSION plpgsql ADD FUNCTION late(int);"
            "ALTER EXTENSION plpgsql ADD FUNCTION stable(int); ALTER EXTENSION plpgsql ADD OPERATOR ## (NONE, int);"
            "CREATE TABLE e (id int, CHECK (early(id) > 0)); CREATE TABLE b (id int, CHECK (random() + abs(id) > 0));"
            "CREATE TABLE l (id int, CHECK (late(id) > 0)); CREATE TABLE s (id int, CHECK (stable(id) > 0));"
            "CREATE TABLE o (id int, CHECK (##id > 0)); CREATE TABLE v (id int, CHECK (nextval('s'::text) > 0))"
        )
        assert sorted(name for _, name in await by_name(conn)) == ["l", "o", "s", "v"]


# --- Every function that a server has ------------------------------------------------------------------

NOT_TRUSTED: Final = {
    r"pg_.*|_pg_.*|has_.*|row_security_active|mxid_age|txid_.*|.*obj_description|col_description|oidvectortypes":
        "tells of the server, or acts: what some of them tell is not for everybody",
    r".*_to_xml|.*_to_xmlschema|.*_to_xml_and_xmlschema|ts_rewrite": "runs a text, or reads tables",
    r"jsonb?_populate_record.*|jsonb?_to_record.*": "reads values as of a type that may be known only when it runs",
    r"nextval|setval|currval|lastval|setseed|set_config|current_query|currtid2|amvalidate": "acts, or tells of the session",
    r"lo_.*|loread|lowrite": "reads and writes large objects",
    r"brin_.*|gin_clean_pending_list|binary_upgrade_.*|cursor_.*": "acts",
    r"RI_FKey_.*|tsvector_update_trigger.*|unique_key_recheck|suppress_redundant_updates_trigger|plpgsql_.*|fmgr_.*_validator":
        "is called by the server",
    r".*(out|send)": "is called by the server when values are shown",
    r"jsonb?_(object_)?agg.*": "takes the rows of a query",
}  # fmt: skip
_NOT_IMMUTABLE: Final = f"""
SELECT DISTINCT p.proname::text FROM pg_proc p
 WHERE p.oid < 16384 AND p.provolatile <> 'i' AND NOT p.proretset AND p.prokind = 'f' AND NOT ({TRUSTED})
   AND NOT p.proargtypes::oid[] && '{{internal,cstring}}'::regtype[]::oid[] ORDER BY 1
"""
REVIEWED: Final = {
    "acldefault", "makeaclitem", "btequalimage", "btvarstrequalimage", "pg_indexam_progress_phasename", "pg_partition_root",
    "postgresql_fdw_validator", "ts_lexize", "ts_parse", "ts_token_type", "int8", "nameconcatoid", "json_to_tsvector",
    "jsonb_to_tsvector", "phraseto_tsquery", "plainto_tsquery", "to_tsquery", "to_tsvector", "ts_headline", "websearch_to_tsquery",
}  # fmt: skip
"""IMMUTABLE ones that are given an object of the catalog, and run no code of its owner's: to make a parser or a template
of text search takes a superuser."""
_GIVEN_AN_OBJECT: Final = f"""
SELECT DISTINCT p.proname::text FROM pg_proc p
 WHERE p.oid < 16384 AND p.provolatile = 'i' AND p.prokind = 'f' AND ({TRUSTED}) AND p.proname !~ '^(_pg|(bt|hash)?oid)|send$|in$'
   AND p.proargtypes::oid[]
       && '{{oid,regclass,regtype,regproc,regprocedure,regoper,regoperator,regconfig,regdictionary,refcursor}}'::regtype[]::oid[]
   AND NOT p.proargtypes::oid[] && '{{internal}}'::regtype[]::oid[] ORDER BY 1
"""


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
def test_of_every_function_of_the_servers_it_is_decided_whether_it_is_trusted(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    server: PostgresServer = request.getfixturevalue(fixture)
    names = [name for (name,) in server.execute(_NOT_IMMUTABLE)]
    assert [name for name in names if not any(re.fullmatch(shape, name) for shape in NOT_TRUSTED)] == []
    assert {name for (name,) in server.execute(_GIVEN_AN_OBJECT)} <= REVIEWED


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
def test_no_operator_of_the_servers_hides_a_function_that_is_not_trusted(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    server: PostgresServer = request.getfixturevalue(fixture)
    query = f"SELECT o.oid::regoperator::text FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode WHERE o.oid < 16384 AND NOT ({TRUSTED})"
    assert server.execute(query) == []


def test_what_is_trusted_is_there(pg: PostgresServer) -> None:
    """A name that is written wrongly would trust nothing."""
    there = {name for (name,) in pg.execute("SELECT proname::text FROM pg_proc WHERE oid < 16384")}
    assert there >= TRUSTED_NAMES | NOT_TRUSTED_IMMUTABLE
