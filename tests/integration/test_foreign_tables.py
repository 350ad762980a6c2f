"""Foreign tables as children and partitions: they are made, and never asked: with our rights, from a server elsewhere.

Of this foreign server no table can be read: whoever tries fails.
"""

from __future__ import annotations

from typing import Final

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.names import TableName
from archiver.postgres import calling, proof
from archiver.postgres.sequences import raise_to_columns
from archiver.postgres.session import connect
from tests.fix_servers import MakeDatabase
from tests.integration.test_containment import World, world  # noqa: F401

SERVER: Final = "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER far FOREIGN DATA WRAPPER nothing"
TREES: Final = {
    "a child": "CREATE TABLE app.t (id serial PRIMARY KEY); CREATE FOREIGN TABLE app.f () INHERITS (app.t) SERVER far;"
    "CREATE TABLE app.u () INHERITS (app.t); ALTER TABLE app.u ADD PRIMARY KEY (id)",
    "a partition": "CREATE TABLE app.t (id serial) PARTITION BY RANGE (id); CREATE INDEX ON app.t (id);"
    "CREATE FOREIGN TABLE app.f PARTITION OF app.t FOR VALUES FROM (100) TO (200) SERVER far;"
    "CREATE TABLE app.u PARTITION OF app.t FOR VALUES FROM (1) TO (100); ALTER TABLE app.u ADD PRIMARY KEY (id)",
    "a partition of a partition": "CREATE SEQUENCE app.t_id_seq; CREATE TABLE app.t (id int DEFAULT nextval('app.t_id_seq')) PARTITION BY RANGE (id);"
    "CREATE TABLE app.m PARTITION OF app.t FOR VALUES FROM (1) TO (200) PARTITION BY RANGE (id);"
    "CREATE FOREIGN TABLE app.f PARTITION OF app.m FOR VALUES FROM (100) TO (200) SERVER far;"
    "CREATE TABLE app.u (id int PRIMARY KEY); ALTER TABLE app.m ATTACH PARTITION app.u FOR VALUES FROM (1) TO (100)",
}  # fmt: skip


@pytest.mark.parametrize("tree", TREES)
async def test_foreign_tables_stop_no_restore_and_are_not_read(world: World, tree: str) -> None:  # noqa: F811
    await world.archive(
        [f"dba: {SERVER}; GRANT USAGE ON FOREIGN SERVER far TO {{evil}}", TREES[tree], "INSERT INTO app.u VALUES (1)"],
        ["INSERT INTO app.u VALUES (50)"],
    )
    restored, _ = await world.setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT id FROM app.u ORDER BY id").fetchall() == [(1,), (50,)]
        assert conn.execute("SELECT last_value, is_called FROM app.t_id_seq").fetchall() == [(50, True)]
        assert conn.execute("SELECT reltuples FROM pg_class WHERE oid = 'app.u'::regclass").fetchall() == [(2,)]
        with pytest.raises(psycopg.Error, match="no handler"):
            conn.execute("SELECT * FROM app.t")


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
@pytest.mark.parametrize("tree", TREES)
async def test_neither_statistics_nor_sequences_nor_a_proof_ask_them(
    request: pytest.FixtureRequest, make_database: MakeDatabase, fixture: str, tree: str
) -> None:
    server: PostgresServer = request.getfixturevalue(fixture)
    dsn = make_database(server)
    async with await connect(dsn, purpose="test") as conn:
        await conn.execute(f"CREATE SCHEMA app; {SERVER}; {TREES[tree]}; INSERT INTO app.u VALUES (50)".encode())
        assert "ANALYZE app.t" in [skipped.entry for skipped in await calling.analyze(conn)]
        assert [state.last_value for state in await raise_to_columns(conn)] == [50]
        tables, app_u = await proof.tables_of(dsn), TableName("app", "u")
        states = await proof.read_tables(dsn, tables, jobs=1, progress=lambda _done, _total: None)
        assert states[app_u].digest is not None
        assert await proof.with_rows(dsn, list(tables.values())) == ["app.u"]


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
async def test_no_foreign_key_is_looked_at_through_a_partitioned_table_with_foreign_partitions(
    request: pytest.FixtureRequest, make_database: MakeDatabase, fixture: str
) -> None:
    """The server has none: `proof.dangling` reads such tables without ONLY."""
    dsn = make_database(request.getfixturevalue(fixture))
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SERVER + "; CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (id int) PARTITION BY LIST (id)")
        conn.execute("CREATE FOREIGN TABLE f PARTITION OF t FOR VALUES IN (1) SERVER far")
        with pytest.raises(psycopg.Error, match="foreign"):
            conn.execute("ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES p")
        with pytest.raises(psycopg.Error, match="foreign"):
            conn.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
