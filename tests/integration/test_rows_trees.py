"""Partitions, by leaf and by root, inheritance, row-level security and unlogged tables, through the whole chain."""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from archiver.policy.target import ToLatest
from archiver.postgres.preflight import check_before_init, check_source
from archiver.postgres.session import connect
from archiver.recovery_plan import make_plan, read_history
from archiver.restore import run_restore
from archiver.snapshots import take_snapshot
from tests.dumps import difference, pg_dump
from tests.fix_archive import Setup
from tests.fix_cli import Site
from tests.integration.test_crash import with_fields
from tests.integration.whole_chain import apart, restore_both_ways

MakeSetup = Callable[..., Setup]

PARTITIONS = [
    """
    CREATE TABLE part (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE part_eu (v int, region text NOT NULL, gone int, id int NOT NULL); ALTER TABLE part_eu DROP gone;
    ALTER TABLE part ATTACH PARTITION part_eu FOR VALUES IN ('eu');
    CREATE TABLE part_us PARTITION OF part FOR VALUES IN ('us') PARTITION BY RANGE (id);
    CREATE TABLE part_us_1 PARTITION OF part_us FOR VALUES FROM (0) TO (20);
    CREATE TABLE part_us_2 PARTITION OF part_us FOR VALUES FROM (20) TO (1000);
    CREATE TABLE part_else PARTITION OF part DEFAULT;
    CREATE TABLE base (id int PRIMARY KEY, v int);
    CREATE TABLE derived (w text, PRIMARY KEY (id)) INHERITS (base); CREATE TABLE loose (x json) INHERITS (derived);
    """,
    "INSERT INTO part SELECT i, (ARRAY['eu', 'us', 'xx'])[i % 3 + 1], i FROM generate_series(1, 90) i",
    "UPDATE part SET v = -v WHERE id % 2 = 0; UPDATE part SET region = 'us' WHERE id % 9 = 0; DELETE FROM part WHERE id = 50",
    "UPDATE part SET id = id + 100 WHERE region = 'us' AND id < 20; UPDATE part_eu SET v = 0 WHERE id = 3",
    "INSERT INTO base SELECT i, i FROM generate_series(1, 30) i; INSERT INTO derived SELECT i, i, 'w' FROM generate_series(1, 30) i",
    "INSERT INTO loose SELECT i % 3, i % 3, 'w', '{}' FROM generate_series(1, 30) i; UPDATE base SET v = v * 2",
    "DELETE FROM ONLY base WHERE id = 4; UPDATE ONLY derived SET id = -id; DELETE FROM base WHERE id = 2",
    "TRUNCATE part_us; INSERT INTO part VALUES (1, 'us', 1)",
]


async def test_partitions_and_children_come_back(make_setup: MakeSetup) -> None:
    before, *changes = PARTITIONS
    for each in (changes, apart(changes)):
        await restore_both_ways(make_setup(), before, each)


async def test_a_publication_by_root_is_published_by_leaf_again(make_setup: MakeSetup) -> None:
    """Base snapshots hold the leaves, and a leaf that is attached later has rows of its own."""
    before, *changes = PARTITIONS
    setup = make_setup()
    name = setup.config.require_source().publication
    published = f'CREATE PUBLICATION "{name}" FOR ALL TABLES WITH (publish_via_partition_root = true);'
    await restore_both_ways(setup, before + published, changes)


@pytest.mark.parametrize("option", ["publish_via_partition_root = true", "publish = 'insert, update, delete'"])
def test_check_fails_where_a_publication_would_lose_changes(site: Site, option: str) -> None:
    assert site.run("init").returncode == 0
    [(name,)] = site.execute("SELECT pubname FROM pg_publication")
    site.execute(f'ALTER PUBLICATION "{name}" SET ({option})')
    result = site.run("check")
    assert result.returncode == 3
    assert "changes are lost" in result.stdout + result.stderr
    assert site.run("init").returncode == 0
    assert site.run("check").returncode == 0


async def test_policies_hide_no_row_from_a_restore(make_setup: MakeSetup, pg: PostgresServer) -> None:
    before = """
        CREATE TABLE item (id int PRIMARY KEY, v text); ALTER TABLE item ENABLE ROW LEVEL SECURITY;
        ALTER TABLE item FORCE ROW LEVEL SECURITY; CREATE POLICY none ON item USING (false);
        CREATE TABLE later (id int PRIMARY KEY, v text); INSERT INTO item VALUES (0), (-1);"""
    changes = [
        "INSERT INTO item SELECT i FROM generate_series(1, 60) i; UPDATE item SET v = 'x'; DELETE FROM item WHERE id = 7",
        "INSERT INTO later SELECT i FROM generate_series(1, 60) i",
        "ALTER TABLE later ENABLE ROW LEVEL SECURITY; ALTER TABLE later FORCE ROW LEVEL SECURITY",
        "CREATE POLICY none ON later USING (false); INSERT INTO later SELECT i FROM generate_series(61, 90) i",
        "UPDATE later SET v = 'y' WHERE id > 30; DELETE FROM later WHERE id < 20",
    ]
    setup = make_setup()
    await restore_both_ways(setup, before, changes)
    dsn = setup.make_database(stem="owned")
    name = str(conninfo_to_dict(dsn)["dbname"])
    pg.execute(f"CREATE ROLE {name}_owner LOGIN")
    pg.execute(f"ALTER DATABASE {name} OWNER TO {name}_owner")
    try:
        async with setup.open() as archive:
            first = await make_plan(archive, ToLatest())
            await run_restore(archive, first, pg.dsn(name, user=f"{name}_owner"))
        owners = f"OWNER TO {name}_owner;"
        found = [line.replace(owners, "OWNER TO postgres;") for line in pg_dump(dsn)]
        assert difference([line for line in found if line.startswith("INSERT")], rows_of(setup)) == ""
    finally:
        pg.execute(f"DROP DATABASE {name} WITH (FORCE)")
        pg.execute(f"DROP ROLE {name}_owner")


async def test_a_source_role_that_policies_apply_to_is_refused_and_with_bypassrls_archives_every_row(
    make_setup: MakeSetup, pg: PostgresServer
) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1), (2)")
        conn.execute("ALTER TABLE item ENABLE ROW LEVEL SECURITY; CREATE POLICY one ON item USING (id = 1)")
    await setup.init()
    role = f"limited_{conninfo_to_dict(setup.dsn)['dbname']}"
    limited = with_fields(setup, source={"dsn": setup.dsn.replace("postgres@", f"{role}@")})
    pg.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    try:
        pg.execute(f"GRANT pg_read_all_data TO {role}")
        assert await row_security(limited) == {"fail"}
        async with limited.open() as archive:
            await archive.follow()
            with pytest.raises(PostgresError, match="row-level security policy"):
                await take_snapshot(archive, limited.config.require_source(), limited.config.snapshot)
            assert (await read_history(archive)).snapshots == []
        pg.execute(f"ALTER ROLE {role} BYPASSRLS")
        assert await row_security(limited) == set()
        with setup.connect() as conn:
            async with limited.daemon():
                await limited.archived()
                conn.execute("INSERT INTO item VALUES (3)")
                await limited.archived()
        restored, summary = await limited.restore()
        assert (summary.rows_loaded, difference(pg_dump(restored), pg_dump(setup.dsn))) == (2, "")
    finally:
        pg.execute(f"DROP ROLE {role}")


async def row_security(setup: Setup) -> set[str]:
    """What `init` and `check` say of policies."""
    source = setup.config.require_source()
    async with await connect(source.dsn, purpose="test") as conn:
        found = await check_before_init(conn, source, None) + await check_source(conn, source, None)
    return {check.status for check in found if check.name == "row security"}


def rows_of(setup: Setup) -> list[str]:
    return [line for line in pg_dump(setup.dsn) if line.startswith("INSERT")]


async def test_unlogged_tables_come_back_empty_and_the_restore_says_so(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE UNLOGGED TABLE quick (id int PRIMARY KEY); INSERT INTO quick VALUES (1)")
        conn.execute("CREATE UNLOGGED TABLE brief (id int PRIMARY KEY); CREATE TABLE turned (id int PRIMARY KEY)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute(
                "INSERT INTO quick VALUES (2); CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (1)"
            )
            conn.execute("DROP TABLE brief; CREATE UNLOGGED TABLE later (id int); INSERT INTO later VALUES (1)")
            conn.execute(
                "INSERT INTO turned VALUES (1); ALTER TABLE turned SET UNLOGGED; INSERT INTO turned VALUES (2)"
            )
            await setup.archived()
    restored, summary = await setup.restore()
    names = ("later", "quick", "turned")
    said = [f"unlogged table public.{name} is empty: its rows are never archived" for name in names]
    assert summary.warnings == said
    with psycopg.connect(restored) as conn:
        for name in names:
            assert conn.execute(f"SELECT * FROM {name}".encode()).fetchall() == []
        assert conn.execute("SELECT count(*) FROM kept").fetchone() == (1,)
    option = "--no-unlogged-table-data"
    assert difference(pg_dump(restored, option), pg_dump(setup.dsn, option)) == ""


def test_check_counts_large_objects_and_names_unlogged_tables(site: Site) -> None:
    assert site.run("init").returncode == 0
    nothing = site.run("check").stdout
    assert re.search(r"^ok +large objects +none$", nothing, re.MULTILINE)
    assert "unlogged" not in nothing
    site.execute("SELECT lo_create(0), lo_create(0)")
    site.execute("CREATE UNLOGGED TABLE quick (id int PRIMARY KEY)")
    found = site.run("check")
    assert found.returncode == 0
    assert re.search(r"^warn +large objects +2, which are not archived$", found.stdout, re.MULTILINE)
    assert re.search(r"^warn +unlogged tables +their rows are not archived: public\.quick$", found.stdout, re.MULTILINE)


async def test_a_restore_counts_the_large_objects_that_it_lacks(make_setup: MakeSetup) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("SELECT lo_create(0); CREATE TABLE t (id int PRIMARY KEY, o oid)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("SELECT lo_from_bytea(0, 'later'); INSERT INTO t VALUES (1, 2)")
            await setup.archived()
    _, summary = await setup.restore()
    assert summary.warnings == ["1 large objects are not archived"]
