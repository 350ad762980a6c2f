"""What every database has, schema public, plpgsql and itself: as at the source, though pg_dump does not tell of all."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from archiver.embedded import PostgresServer
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase

CHANGES = {
    "a comment that is gone": "COMMENT ON SCHEMA public IS NULL",
    "an empty comment": "COMMENT ON SCHEMA public IS ''",
    "another comment": "COMMENT ON SCHEMA public IS 'the shop''s'",
    "made anew": "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE item (id int PRIMARY KEY)",
    "another owner": "ALTER SCHEMA public OWNER TO postgres",
    "open to all": "GRANT CREATE ON SCHEMA public TO PUBLIC",
    "closed to all": "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    "its owner's no more": "REVOKE ALL ON SCHEMA public FROM pg_database_owner",
    "plpgsql without a comment": "COMMENT ON EXTENSION plpgsql IS NULL",
    "plpgsql with another": "COMMENT ON EXTENSION plpgsql IS 'a language'",
}
FACTS = """
SELECT obj_description(n.oid, 'pg_namespace'), pg_get_userbyid(nspowner),
       (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(nspacl, acldefault('n', nspowner))) a),
       (SELECT obj_description(e.oid, 'pg_extension') FROM pg_extension e WHERE extname = 'plpgsql')
  FROM pg_namespace n WHERE nspname = 'public'
"""


@pytest.fixture(params=["pg", "pg15"])
def setup(request: pytest.FixtureRequest, make_setup: MakeSetup, make_database: MakeDatabase) -> Setup:
    server: PostgresServer = request.getfixturevalue(request.param)
    setup = make_setup(make_database(server))

    def make(**options: Any) -> str:
        return make_database(server, **options)

    setup.make_database = make
    return setup


def facts(dsn: str) -> object:
    with psycopg.connect(dsn) as conn:
        return conn.execute(FACTS).fetchone()


@pytest.mark.parametrize("how", ["base snapshot", "stream"])
@pytest.mark.parametrize("what", CHANGES)
async def test_what_every_database_has_is_as_at_the_source(setup: Setup, what: str, how: str) -> None:
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY)")
        if how == "base snapshot":
            conn.execute(CHANGES[what].encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            if how == "stream":
                conn.execute(CHANGES[what].encode())
            conn.execute("INSERT INTO item VALUES (1)")
            await setup.archived()
    restored, summary = await setup.restore()
    assert facts(restored) == facts(setup.dsn)
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""
    assert summary.warnings == []


async def test_the_databases_own_comment_comes_back_from_a_base_snapshot(setup: Setup) -> None:
    comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
    with setup.connect() as conn:
        conn.execute(f"COMMENT ON DATABASE {conn.info.dbname} IS 'the shop'".encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute(comment).fetchone() == ("the shop",)
