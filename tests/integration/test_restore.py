"""Restores under hard conditions, from one region, of damaged archives, or refused: exactly the source, or an error."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.archive import open_archive
from archiver.embedded import PostgresServer, S3Server
from archiver.errors import IntegrityError, PostgresError, WrongKey
from archiver.format.manifest import Changes
from archiver.keys import LocalKek
from archiver.lsn import Lsn
from archiver.policy.target import ToLatest, ToLsn, ToTime
from archiver.recovery_plan import make_plan, read_history
from archiver.regions import only, open_keks, open_regions
from archiver.restore import run_restore
from tests.damage import HOWS, damage
from tests.fix_archive import MakeSetup, Setup
from tests.fix_shop import (
    SCHEMA,
    archived_shop,
    assert_equal,
    change,
    fill,
    foreign_keys_and_triggers,
    segments,
    sequences,
)
from tests.integration.test_crash import file_regions, with_fields

# --- conditions ---


async def test_everything_comes_back_with_its_keys_triggers_and_sequences(shop: Setup) -> None:
    restored, summary = await shop.restore()
    assert_equal(restored, shop.dsn)
    assert foreign_keys_and_triggers(restored) == foreign_keys_and_triggers(shop.dsn)
    assert summary.warnings == []


async def test_an_owner_who_is_no_superuser_restores_the_same(shop: Setup, pg: PostgresServer) -> None:
    dsn = shop.make_database(stem="owned")
    name = str(conninfo_to_dict(dsn)["dbname"])
    pg.execute(f"CREATE ROLE {name}_owner LOGIN")
    try:
        pg.execute(f"ALTER DATABASE {name} OWNER TO {name}_owner")
        async with shop.open() as archive:
            await run_restore(archive, await make_plan(archive, ToLatest()), pg.dsn(name, user=f"{name}_owner"))
        assert_equal(dsn, shop.dsn)
        assert foreign_keys_and_triggers(dsn) == foreign_keys_and_triggers(shop.dsn)
    finally:
        pg.execute(f"DROP DATABASE {name} WITH (FORCE)")
        pg.execute(f"DROP ROLE {name}_owner")


async def test_triggers_that_fire_always_do_not_fire_during_replay(make_setup: MakeSetup, tmp_path: Path) -> None:
    """What they wrote at the source is in the stream already."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path))
    with setup.connect() as conn:
        conn.execute(SCHEMA)
        conn.execute("ALTER TABLE purchase ENABLE ALWAYS TRIGGER counted")
        fill(conn, 20)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            change(conn, 20)
            await setup.archived()
    restored, _ = await setup.restore()
    assert_equal(restored, setup.dsn)


async def test_a_sequence_that_moved_alone_does_not_stand_below_its_true_value(shop: Setup) -> None:
    """Its values were handed out, perhaps as the numbers of invoices, though no row tells of them."""
    async with shop.daemon():
        with shop.connect() as conn:
            conn.execute("SELECT nextval('ticket') FROM generate_series(1, 1000)")
        await shop.archived()
        await asyncio.sleep(1)
    restored, _ = await shop.restore()
    assert sequences(restored)["ticket"] <= sequences(shop.dsn)["ticket"]


async def test_a_sequence_that_moved_within_an_lsn_does_not_stand_below_its_true_value(shop: Setup) -> None:
    """Of 32 values one record is in the WAL: a target, by LSN or time, that lies behind a segment's reading."""
    async with shop.daemon():
        with shop.connect() as conn:
            conn.execute("SELECT nextval('ticket')")
            await shop.archived()
            await asyncio.sleep(1.5)  # a segment is cut, and the sequences are read with it
            conn.execute("SELECT nextval('ticket') FROM generate_series(1, 20)")
            [(lsn, now)] = conn.execute("SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()").fetchall()
            moved = sequences(shop.dsn)["ticket"]
            await asyncio.sleep(1.5)
            conn.execute("SELECT pg_current_xact_id()")
            await shop.archived()
            await asyncio.sleep(1)
    for target in (ToLsn(Lsn.parse(lsn).before_page_header()), ToTime(now)):
        restored, _ = await shop.restore(target)
        assert sequences(restored)["ticket"] <= moved  # it descends


async def test_a_table_that_is_not_published_is_not_restored_stale_in_silence(
    make_setup: MakeSetup, tmp_path: Path
) -> None:
    """With `exclude` the publication lists tables: one created later is in base snapshots, its changes nowhere."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path))
    with setup.connect() as conn:
        conn.execute("CREATE TABLE session (id int PRIMARY KEY)")
        source = setup.config.require_source().model_dump() | {"exclude": ("public.session",)}
        setup = with_fields(setup, source=source)
        await setup.init()
        conn.execute("DROP EVENT TRIGGER archiver_publish_new")  # as where the role may not create it
        conn.execute("CREATE TABLE later (id int PRIMARY KEY)")
        async with setup.daemon():
            await setup.archived()
            conn.execute("INSERT INTO later VALUES (1)")
            await setup.archived()
    _, summary = await setup.restore()
    assert [w for w in summary.warnings if "public.later" in w]
    assert [w for w in summary.warnings if "public.session" in w]


# --- regions ---


async def test_the_secondary_alone_is_enough_when_the_primary_is_gone(
    make_setup: MakeSetup, own_s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secondary").mkdir()
    monkeypatch.setenv("OWN_KEY", own_s3_server.access_key)
    monkeypatch.setenv("OWN_SECRET", own_s3_server.secret_key)
    primary = {"name": "primary", "url": "s3://archive/a", "endpoint": own_s3_server.endpoint}
    primary |= {"access_key_env": "OWN_KEY", "secret_key_env": "OWN_SECRET"}
    setup = await archived_shop(make_setup(region=[primary, file_regions(tmp_path)[1]]))
    await asyncio.to_thread(own_s3_server.kill)
    restored, _ = await setup.restore()
    assert_equal(restored, setup.dsn)


@pytest.mark.parametrize("region", ["primary", "secondary"])
async def test_one_region_is_enough_when_the_other_was_wiped(shop: Setup, tmp_path: Path, region: str) -> None:
    other = {"primary": "secondary", "secondary": "primary"}[region]
    for path in (tmp_path / other).rglob("*"):
        if path.is_file():
            path.unlink()
    mirror = open_regions(shop.config, prefer=region)
    archive = await open_archive(only(mirror, region), shop.config.archive.name, open_keks(shop.config))
    dsn = shop.make_database()
    await run_restore(archive, await make_plan(archive, ToLatest()), dsn)
    assert_equal(dsn, shop.dsn)
    restored, _ = await shop.restore()
    assert_equal(restored, shop.dsn)


# --- refusals ---


async def test_a_target_that_is_not_empty_is_refused_and_untouched(shop: Setup) -> None:
    dsn = shop.make_database()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE customer (precious text)")
        conn.execute("INSERT INTO customer VALUES ('mine')")
        async with shop.open() as archive:
            with pytest.raises(PostgresError, match="not empty"):
                await run_restore(archive, await make_plan(archive, ToLatest()), dsn)
        assert conn.execute("SELECT * FROM customer").fetchall() == [("mine",)]
        assert conn.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'archiver'").fetchone() == (0,)


async def test_another_key_opens_nothing(shop: Setup) -> None:
    mirror = open_regions(shop.config)
    with pytest.raises(WrongKey) as refused:
        await open_archive(mirror, shop.config.archive.name, [LocalKek(bytes(32))])
    assert refused.value.exit_code == 5


# --- damage ---


async def test_what_is_damaged_in_one_region_is_read_from_the_other(shop: Setup, tmp_path: Path) -> None:
    async with shop.open() as archive:
        history = await read_history(archive)
        objects = await segments(archive) + [Path(part.key) for part in history.snapshots[-1].parts]
    folders = [tmp_path / name / path for name in ("primary",) for path in objects]
    assert len(folders) >= 2 * len(HOWS)
    for number, path in enumerate(folders):
        damage(HOWS[number % 4], path, tmp_path / "secondary" / objects[number - 1])
    restored, _ = await shop.restore()
    assert_equal(restored, shop.dsn)


@pytest.mark.parametrize("how", HOWS)
async def test_nothing_of_an_object_that_is_damaged_everywhere_reaches_the_target(
    shop: Setup, tmp_path: Path, how: str
) -> None:
    async with shop.open() as archive:
        changes = [entry for entry in (await read_history(archive)).changes if entry.object]
        bad: Changes = changes[-1]
        before = ToLsn(changes[-1].start_lsn)
        sound, _ = await shop.restore(before)
        for region in ("primary", "secondary"):
            keys = [Path(entry.object.key) for entry in changes[-2:] if entry.object]
            damage(how, tmp_path / region / keys[1], tmp_path / region / keys[0])
        dsn = shop.make_database()
        plan = await make_plan(archive, ToLsn(bad.end_lsn))
        with pytest.raises(IntegrityError) as refused:
            await run_restore(archive, plan, dsn)
    assert refused.value.exit_code == 5
    with psycopg.connect(dsn) as conn, psycopg.connect(sound) as expected:
        count = "SELECT count(*) FROM note"
        there, most = conn.execute(count).fetchone(), expected.execute(count).fetchone()
    assert there is not None
    assert most is not None
    assert there <= most


async def test_what_stands_on_a_temporary_object_is_left_out_and_told(make_setup: MakeSetup, tmp_path: Path) -> None:
    """It is there as long as that session, and goes without an event."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path))
    with setup.connect() as session:
        session.execute(
            "CREATE TABLE kept (id int PRIMARY KEY, v text); INSERT INTO kept VALUES (1, 'pg_temp_3.t');"
            'CREATE TEMP TABLE t (a int); CREATE DOMAIN "Of t" AS t[]; COMMENT ON DOMAIN "Of t" IS \'gone\';'
            'GRANT USAGE ON DOMAIN "Of t" TO PUBLIC; REVOKE USAGE ON DOMAIN "Of t" FROM PUBLIC;'
            "CREATE FUNCTION f(t) RETURNS int LANGUAGE sql AS 'SELECT 1'; COMMENT ON FUNCTION f(t) IS 'gone'"
        )
        await setup.init()
        async with setup.daemon():
            await setup.archived()
    dsn, summary = await setup.restore()
    told = [each for each in summary.warnings if each.endswith("left out: it stands on a temporary object")]
    named = {each.partition("(")[0].partition(" left")[0] for each in told}
    assert named == {"DOMAIN public.Of t", "FUNCTION public.f", 'COMMENT public.FUNCTION "f"'}
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT v FROM kept").fetchall() == [("pg_temp_3.t",)]
        assert conn.execute(
            "SELECT to_regtype('\"Of t\"') IS NULL AND NOT EXISTS (SELECT FROM pg_proc WHERE proname = 'f')"
        ).fetchone() == (True,)
