"""Restores that are interrupted, damaged, refused, or made under hard conditions: exactly the source, or an error."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver.archive import OpenArchive, open_archive
from archiver.embedded import PostgresServer, S3Server
from archiver.errors import IntegrityError, PostgresError, WrongKey
from archiver.format.manifest import Changes
from archiver.keys import LocalKek
from archiver.policy.batch import Batch
from archiver.policy.target import ToLatest, ToLsn
from archiver.recovery_plan import make_plan, read_history
from archiver.regions import only, open_keks, open_regions
from archiver.restore import run_restore
from tests.fix_archive import Setup
from tests.integration.test_capture import digest
from tests.integration.test_crash import file_regions, with_fields

MakeSetup = Callable[..., Setup]
TABLES = ("customer", "purchase", "reading_a", "reading_b", "note")
SCHEMA = """
CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, purchases int DEFAULT 0);
CREATE TABLE purchase (
  id serial PRIMARY KEY, customer bigint NOT NULL REFERENCES customer ON DELETE CASCADE, amount int
);
CREATE TABLE reading (day date, sensor int, value numeric, PRIMARY KEY (day, sensor)) PARTITION BY RANGE (day);
CREATE TABLE reading_a PARTITION OF reading FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE reading_b PARTITION OF reading FOR VALUES FROM ('2026-02-01') TO ('2027-01-01');
CREATE TABLE note (line text);
CREATE SEQUENCE ticket INCREMENT -2;
CREATE FUNCTION count_purchases() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE public.customer SET purchases = purchases + 1 WHERE id = NEW.customer;
  INSERT INTO public.note VALUES ('purchase of ' || NEW.amount);
  RETURN NULL;
END $$;
CREATE TRIGGER counted AFTER INSERT ON purchase FOR EACH ROW EXECUTE FUNCTION count_purchases();
"""


def fill(conn: psycopg.Connection[Any], rows: int = 2000) -> None:
    conn.execute("INSERT INTO customer (name) SELECT 'customer ' || i FROM generate_series(1, %s::int) i", (rows,))
    change(conn, rows)


def change(conn: psycopg.Connection[Any], rows: int) -> None:
    """Something of everything, in a few transactions."""
    values = "SELECT id, id %% 97 FROM customer ORDER BY random() LIMIT %s"
    conn.execute(f"INSERT INTO purchase (customer, amount) {values}", (rows // 2,))
    conn.execute("DELETE FROM customer WHERE id = (SELECT max(id) FROM customer)")
    conn.execute(
        "INSERT INTO reading SELECT date '2026-01-15' + i %% 60, (SELECT count(*) FROM reading) + i, i / 7.0"
        " FROM generate_series(1, %s::int) i",
        (rows // 4,),
    )
    conn.execute("UPDATE reading SET day = day + 20 WHERE day BETWEEN '2026-01-20' AND '2026-01-25' AND sensor % 2 = 0")
    conn.execute("INSERT INTO note SELECT 'same' FROM generate_series(1, 5)")
    conn.execute("DELETE FROM note WHERE ctid IN (SELECT ctid FROM note WHERE line = 'same' LIMIT 2)")
    conn.execute("SELECT nextval('ticket') FROM generate_series(1, 7)")
    conn.execute("UPDATE customer SET name = name || '!' WHERE id % 3 = 0")


def contents(dsn: str) -> list[object]:
    return [digest(dsn, table) for table in TABLES]


def sequences(dsn: str) -> dict[str, int]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall()
    return {name: value or 0 for name, value in rows}


def assert_equal(restored: str, source: str) -> None:
    assert contents(restored) == contents(source)
    truth, there = sequences(source), sequences(restored)
    assert truth.keys() == there.keys()
    assert all(there[name] >= truth[name] for name in truth if name != "ticket")
    assert there["ticket"] <= truth["ticket"]
    with psycopg.connect(restored) as conn:
        left = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'archiver'").fetchall()
    assert left == []


def foreign_keys_and_triggers(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(
            "SELECT conname FROM pg_constraint WHERE contype = 'f'"
            " UNION SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
        ).fetchall()


@pytest.fixture
async def shop(make_setup: MakeSetup, tmp_path: Path) -> Setup:
    """A shop with a base snapshot and several change segments, all in folders."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms", "max_bytes": "64KiB"})
    return await archived_shop(setup)


async def archived_shop(setup: Setup) -> Setup:
    with setup.connect() as conn:
        conn.execute(SCHEMA)
        fill(conn)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for _ in range(4):
                change(conn, 600)
                await asyncio.sleep(0.25)
            await setup.archived()
    return setup


async def segments(archive: OpenArchive) -> list[Path]:
    """The keys of the change segments."""
    return [Path(entry.object.key) for entry in (await read_history(archive)).changes if entry.object]


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


# --- interruptions ---


def commit_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many transactions at the target, so that an interruption falls between two of them."""
    monkeypatch.setattr("archiver.restore.COMMIT_ROWS", 100)
    monkeypatch.setattr("archiver.postgres.apply.Batch", partial(Batch, max_rows=50))


@asynccontextmanager
async def interruptions(dsn: str, chance: random.Random) -> AsyncIterator[None]:
    """Somewhere in between, every connection to the target is ended."""

    async def interrupt() -> None:
        await asyncio.sleep(chance.uniform(0.02, 0.12))
        name = conninfo_to_dict(dsn)["dbname"]
        async with await psycopg.AsyncConnection.connect(dsn.replace(str(name), "postgres"), autocommit=True) as conn:
            await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    task = asyncio.create_task(interrupt(), name="interrupt")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_restore_whose_connections_break_goes_on_to_the_same_end(
    shop: Setup, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_often(monkeypatch)
    chance, dsn, broken = random.Random(seed), shop.make_database(), 0
    async with shop.open() as archive:
        plan = await make_plan(archive, ToLatest())
        for _ in range(8):
            try:
                async with interruptions(dsn, chance):
                    await run_restore(archive, plan, dsn)
                break
            except PostgresError:
                broken += 1
        else:
            await run_restore(archive, plan, dsn)
    assert broken
    assert_equal(dsn, shop.dsn)


async def test_a_restore_that_is_cancelled_goes_on_to_the_same_end(
    shop: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_often(monkeypatch)
    chance, dsn = random.Random(3), shop.make_database()
    async with shop.open() as archive:
        plan = await make_plan(archive, ToLatest())
        for _ in range(8):
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.02, 0.6)):
                    await run_restore(archive, plan, dsn)
                    break
        else:
            await run_restore(archive, plan, dsn)
    assert_equal(dsn, shop.dsn)


async def interrupted(archive: OpenArchive, dsn: str, target: ToLatest | ToLsn) -> None:
    """A restore that ends while it loads rows."""

    def stop(_phase: str, _done: int, _total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await run_restore(archive, await make_plan(archive, target), dsn, progress=stop)


async def test_the_same_command_goes_on_though_the_archive_has_grown(shop: Setup) -> None:
    """`restore --latest` beside a running daemon: at night nobody works out an LSN."""
    dsn = shop.make_database()
    async with shop.open() as archive:
        await interrupted(archive, dsn, ToLatest())
    async with shop.daemon():
        with shop.connect() as conn:
            conn.execute("INSERT INTO note VALUES ('later')")
        await shop.archived()
    async with shop.open() as archive:
        summary = await run_restore(archive, await make_plan(archive, ToLatest()), dsn)
    assert summary.resumed


async def test_the_interrupted_restore_of_another_plan_is_refused(shop: Setup) -> None:
    dsn = shop.make_database()
    async with shop.open() as archive:
        await interrupted(archive, dsn, ToLatest())
        history = await read_history(archive)
        other = ToLsn(history.snapshots[-1].lsn)
        with pytest.raises(PostgresError, match="another restore"):
            await run_restore(archive, await make_plan(archive, other), dsn)


async def test_two_restores_into_one_database_never_double_a_row(shop: Setup) -> None:
    """Someone repeats the command while the first still runs."""
    dsn = shop.make_database()
    async with shop.open() as archive:
        plan = await make_plan(archive, ToLatest())
        await interrupted(archive, dsn, ToLatest())
        work = [run_restore(archive, plan, dsn) for _ in range(2)]
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        if all(isinstance(outcome, Exception) for outcome in outcomes):
            await run_restore(archive, plan, dsn)
    assert not any(isinstance(outcome, Exception) and not isinstance(outcome, PostgresError) for outcome in outcomes)
    assert_equal(dsn, shop.dsn)


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


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage(how: str, path: Path, other: Path) -> None:
    """Alter, cut, swap or delete an object in one region."""
    actions: dict[str, Callable[[], object]] = {
        "altered": lambda: path.write_bytes(flip(path.read_bytes())),
        "cut": lambda: path.write_bytes(path.read_bytes()[:-1]),
        "swapped": lambda: path.write_bytes(other.read_bytes()),
        "deleted": path.unlink,
    }
    path.chmod(0o600)
    actions[how]()


HOWS = ("altered", "cut", "swapped", "deleted")


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
