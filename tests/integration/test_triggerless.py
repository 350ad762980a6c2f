"""A source where archiver has no event triggers: what happens to a restore when the schema changes.

The daemon connects as a role that is no superuser; a superuser made the publication, for all tables, or the role its
own, for a list of them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archiver.embedded import PostgresServer
from archiver.errors import PostgresUnavailable, TargetUnreachable
from archiver.format.manifest import Lost
from archiver.lsn import Lsn
from archiver.policy import schema_watch
from archiver.policy.target import Target, ToLatest, ToLsn, ToName
from archiver.postgres.catalog_look import CatalogReader
from archiver.postgres.preflight import check_ddl
from archiver.postgres.session import connect
from archiver.postgres.setup import name_restore_point
from archiver.postgres.triggers import drop_statements
from archiver.recovery_plan import make_plan, read_history
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_crash import file_regions, with_fields

BEFORE = """
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric DEFAULT 1);
INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 50) i;
CREATE TABLE owner (id int PRIMARY KEY);
CREATE SEQUENCE ticket; CREATE TYPE mood AS ENUM ('sad');
ALTER TABLE item ADD CONSTRAINT cheap CHECK (id > 0) NOT VALID;
CREATE TRIGGER quiet BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
"""
CHANGES = {
    "a column comes": "ALTER TABLE item ADD more text",
    "a column comes with a value": "ALTER TABLE item ADD at timestamptz DEFAULT now()",
    "a column is renamed": "ALTER TABLE item RENAME name TO label",
    "a column has another type": "ALTER TABLE item ALTER price TYPE text USING 'p' || price",
    "a column goes": "ALTER TABLE item DROP more",
    "a table comes, with rows": "CREATE TABLE made (id int PRIMARY KEY REFERENCES item); INSERT INTO made VALUES (1), (2)",
    "a table is renamed": "ALTER TABLE made RENAME TO remade",
    "a table goes": "DROP TABLE remade",
}
UNSEEN = {
    "an index": "CREATE INDEX ON item (name)",
    "a view": "CREATE VIEW seen AS SELECT name FROM item",
    "a function": "CREATE FUNCTION one() RETURNS int RETURN 1",
    "a default": "ALTER TABLE item ALTER name SET DEFAULT 'none'",
    "a sequence gets an owner": "ALTER SEQUENCE ticket OWNED BY item.id",
    "a comment": "COMMENT ON COLUMN item.name IS 'what it says'",
    "a grant": "GRANT SELECT ON item TO PUBLIC",
    "a trigger is disabled": "ALTER TABLE item DISABLE TRIGGER quiet",
    "a constraint is validated": "ALTER TABLE item VALIDATE CONSTRAINT cheap",
    "a value of an enum": "ALTER TYPE mood ADD VALUE 'ok'",
    "a setting of the database": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = 99', current_database()); END $$",
}
"""What rows never show."""
ROWS = "INSERT INTO owner SELECT count(*) FROM owner; DELETE FROM item WHERE id = (SELECT max(id) FROM item)"


@pytest.fixture(scope="module")
def role(pg: PostgresServer) -> Iterator[str]:
    name = f"replica_{secrets.token_hex(4)}"
    pg.execute(f"CREATE ROLE {name} LOGIN REPLICATION")
    pg.execute(f"GRANT pg_read_all_data TO {name}")
    yield name
    pg.execute(f"DROP ROLE {name}")


def folders(tmp_path: Path) -> list[dict[str, str]]:
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    return file_regions(tmp_path)


def as_role(setup: Setup, role: str) -> Setup:
    """The same archive, with a daemon that connects as another role."""
    source = setup.config.require_source().model_dump() | {"dsn": make_conninfo(setup.dsn, user=role)}
    return with_fields(setup, source=source)


@pytest.fixture
async def setup(make_setup: MakeSetup, role: str, tmp_path: Path) -> Setup:
    """FOR ALL TABLES, made by a superuser, and no triggers."""
    setup = make_setup(region=folders(tmp_path), segment={"max_age": "300ms"})
    with setup.connect() as conn:
        conn.execute(BEFORE)
        await setup.init()
        conn.execute(drop_statements().encode())
    return as_role(setup, role)


@dataclass
class Moments:
    """What the source looked like, and where nothing can be restored."""

    dumps: dict[str, list[str]] = field(default_factory=dict)
    between: list[Lsn] = field(default_factory=list)


async def remember(setup: Setup, moments: Moments, name: str) -> None:
    moments.dumps[name] = pg_dump(setup.dsn)
    async with await connect(setup.dsn, purpose="test") as conn:
        await name_restore_point(conn, name)
    await setup.archived()


async def covered(setup: Setup) -> None:
    """Wait until a base snapshot follows whatever was lost, and for all up to now."""
    await setup.archived()
    async with setup.open() as archive, asyncio.timeout(30):
        while True:
            history = await read_history(archive)
            lost = [each.lsn for segment in history.changes for each in segment.lost]
            if not lost or history.snapshots[-1].lsn >= max(lost):
                break
            await asyncio.sleep(0.2)
    await setup.archived()


async def losses(setup: Setup) -> list[Lost]:
    async with setup.open() as archive:
        return [each for segment in (await read_history(archive)).changes for each in segment.lost]


async def snapshots(setup: Setup) -> int:
    async with setup.open() as archive:
        return len((await read_history(archive)).snapshots)


def position(conn: psycopg.Connection[tuple[str]]) -> Lsn:
    [(lsn,)] = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
    return Lsn.parse(lsn)


@asynccontextmanager
async def maybe_running(setup: Setup, running: bool) -> AsyncIterator[None]:
    if running:
        async with setup.daemon():
            yield
    else:
        yield


async def refused(setup: Setup, target: Target) -> TargetUnreachable:
    async with setup.open() as archive:
        with pytest.raises(TargetUnreachable, match="schema change that was not captured") as caught:
            await make_plan(archive, target)
    return caught.value


# --- what changes ---


@pytest.mark.deep
@pytest.mark.parametrize("running", [True, False], ids=["daemon runs", "daemon is down"])
async def test_each_change_of_the_schema_ends_in_a_base_snapshot(setup: Setup, running: bool) -> None:
    """Before the change and from the base snapshot on everything comes back; what lies between is refused."""
    moments = Moments()
    with setup.connect() as conn:
        async with maybe_running(setup, running):
            for name, change in CHANGES.items():
                async with maybe_running(setup, not running):
                    await covered(setup)
                    conn.execute(ROWS)
                    await remember(setup, moments, f"before {name}")
                conn.execute(change)
                conn.execute(ROWS)
                moments.between.append(position(conn))
            async with maybe_running(setup, not running):
                await covered(setup)
                conn.execute(ROWS)
                await remember(setup, moments, "end")
        assert len(await losses(setup)) == len(CHANGES)
        assert await snapshots(setup) == len(CHANGES) + 1
    for name, dump in moments.dumps.items():
        restored, _ = await setup.restore(ToName(name))
        assert difference(pg_dump(restored), dump) == "", name
    for lsn in moments.between:
        await refused(setup, ToLsn(lsn))
    latest, _ = await setup.restore(ToLatest())
    assert difference(pg_dump(latest), pg_dump(setup.dsn)) == ""


async def test_a_look_sees_every_change_that_rows_never_show(make_database: MakeDatabase) -> None:
    """And that of each row that the content of a digest comes from."""
    async with await connect(make_database(), purpose="test") as conn:
        await conn.execute("SET search_path = public")
        await conn.execute(BEFORE.encode())
        await conn.execute("SET search_path = ''")
        reader, seen = CatalogReader(), set[str | None]()
        for name, change in {"": "SELECT", **UNSEEN}.items():
            await conn.execute("SET search_path = public")
            await conn.execute(change.encode())
            await conn.execute("SET search_path = ''")
            digest = (await reader.look(conn)).digest
            assert digest not in seen, name
            assert (await CatalogReader().look(conn)).digest == digest
            seen.add(digest)


async def test_what_is_no_change_of_the_schema_takes_no_base_snapshot(setup: Setup) -> None:
    """Nor does a daemon that starts again, nor a connection that is lost."""
    with setup.connect() as conn:
        for _ in range(2):
            async with setup.daemon():
                await setup.archived()
                conn.execute(ROWS)
                conn.execute("CREATE TEMP TABLE scratch (id serial PRIMARY KEY, t text); DROP TABLE scratch")
                for statement in ("VACUUM FULL item", "TRUNCATE owner", "ANALYZE", "REINDEX TABLE item"):
                    conn.execute(statement)
                await setup.archived()
                conn.execute(
                    "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = %s",
                    (setup.config.require_source().slot,),
                )
                conn.execute(ROWS)
                await setup.archived()
    assert (await losses(setup), await snapshots(setup)) == ([], 1)


async def test_a_table_that_comes_and_goes_between_two_looks_is_told_from_the_stream(setup: Setup) -> None:
    """Its rows are in the stream, and replay would have nowhere to put them."""
    with setup.connect() as conn:
        async with setup.daemon():
            await covered(setup)
            conn.execute("CREATE TABLE brief (id int PRIMARY KEY); INSERT INTO brief VALUES (1)")
            conn.execute("DROP TABLE brief")
            conn.execute("ALTER TABLE item RENAME name TO label")
            conn.execute("UPDATE item SET label = 'x' WHERE id = 1")
            conn.execute("ALTER TABLE item RENAME label TO name")
            conn.execute(ROWS)
            await covered(setup)
            conn.execute(ROWS)
            await setup.archived()
    [lost] = await losses(setup)
    assert lost.reason in {schema_watch.CHANGED, schema_watch.CHANGED_BACK}
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""


async def test_what_could_not_be_looked_at_is_refused_and_costs_a_base_snapshot(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durability does not wait for the catalog for ever; whoever restores does not guess."""
    monkeypatch.setattr("archiver.capture.LOOKS", 1)
    with setup.connect() as conn:
        async with setup.daemon():
            await covered(setup)
            with monkeypatch.context() as broken:
                broken.setattr(CatalogReader, "look", unanswered)
                conn.execute(ROWS)
                await setup.archived()
                between = position(conn)
            conn.execute(ROWS)
            await covered(setup)
    found = await losses(setup)
    assert {each.reason for each in found} == {schema_watch.NOT_SEEN}
    assert min(each.since or 0 for each in found) < between
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""


async def unanswered(*_: object) -> None:
    raise PostgresUnavailable("the source does not answer")


async def test_a_target_in_between_is_told_what_can_be_reached(setup: Setup) -> None:
    with setup.connect() as conn:
        async with setup.daemon():
            await covered(setup)
            conn.execute("ALTER TABLE item ADD more text")
            between = position(conn)
            await covered(setup)
    async with setup.open() as archive:
        history = await read_history(archive)
    error = await refused(setup, ToLsn(between))
    [lost] = await losses(setup)
    assert error.exit_code == 6
    assert error.hint is not None
    assert f"up to --target-lsn {lost.since}, and from {history.snapshots[-1].lsn} on" in error.hint


# --- triggers that come and go ---


@pytest.mark.parametrize("how", ["DISABLE", "ENABLE REPLICA"])
async def test_event_triggers_that_are_dropped_or_disabled_are_missed(
    make_setup: MakeSetup, tmp_path: Path, how: str
) -> None:
    """What they would have captured is not in the stream."""
    setup = make_setup(region=folders(tmp_path), segment={"max_age": "300ms"})
    with setup.connect() as conn:
        conn.execute(BEFORE)
        await setup.init()
        async with setup.daemon():
            await covered(setup)
            conn.execute("ALTER TABLE item ADD captured int")
            await setup.archived()
            assert await losses(setup) == []
            conn.execute(f"ALTER EVENT TRIGGER archiver_capture_drop {how}; ALTER TABLE item ADD missed int".encode())
            await covered(setup)
            assert [each.reason for each in await losses(setup)] == [schema_watch.CAPTURE_ENDED]
            conn.execute("ALTER TABLE item DROP missed")
            await covered(setup)
            conn.execute("ALTER EVENT TRIGGER archiver_capture_drop ENABLE ALWAYS")
            await covered(setup)
            conn.execute("ALTER TABLE item DROP captured; UPDATE item SET name = 'last'")
            await setup.archived()
    reasons = [each.reason for each in await losses(setup)]
    assert reasons == [schema_watch.CAPTURE_ENDED, schema_watch.CHANGED, schema_watch.CAPTURE_BEGAN]
    restored, _ = await setup.restore()
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""


# --- a publication that lists its tables ---


async def test_a_role_that_lists_its_tables_gets_each_change_and_publishes_its_own_new_tables(
    make_setup: MakeSetup, pg: PostgresServer, role: str, tmp_path: Path
) -> None:
    """All that `init` can do for a role that owns its database, and is no superuser."""
    owner = make_setup(region=folders(tmp_path), segment={"max_age": "300ms"})
    pg.execute(f"ALTER DATABASE {conninfo_to_dict(owner.dsn)['dbname']} OWNER TO {role}")
    setup = as_role(owner, role)
    setup.dsn = setup.config.require_source().dsn
    with setup.connect() as conn:
        conn.execute(BEFORE)
        await setup.init()
        async with setup.daemon():
            await covered(setup)
            conn.execute("ALTER TABLE item ADD more text")
            conn.execute("INSERT INTO item VALUES (90, 'ninety', 9, 'more')")
            await covered(setup)
            conn.execute("CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1)")
            await covered(setup)
            conn.execute("INSERT INTO made VALUES (2)")
            await setup.archived()
    restored, summary = await setup.restore()
    assert not [each for each in summary.warnings if "not archived" in each]
    assert difference(pg_dump(restored), pg_dump(setup.dsn)) == ""
    assert summary.transactions_replayed > 0


async def test_a_table_that_nobody_archives_is_named(
    make_setup: MakeSetup,
    pg: PostgresServer,
    role: str,
    *,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others' tables, which the role may not publish, and tables without a key, of which nobody has said what to do."""
    monkeypatch.setattr("archiver.table_watch.TABLES_SECONDS", 0.2)
    owner = make_setup(region=folders(tmp_path), segment={"max_age": "300ms"})
    pg.execute(f"ALTER DATABASE {conninfo_to_dict(owner.dsn)['dbname']} OWNER TO {role}")
    setup = as_role(owner, role)
    setup.dsn = setup.config.require_source().dsn
    with setup.connect() as conn, owner.connect() as dba:
        conn.execute(BEFORE)
        await setup.init()
        async with setup.daemon() as daemon:
            await covered(setup)
            dba.execute("CREATE TABLE coupons (id int PRIMARY KEY); INSERT INTO coupons VALUES (1)")
            conn.execute("CREATE TABLE keyless (v int); CREATE TABLE keyed (id int PRIMARY KEY)")
            await covered(setup)
            await asyncio.sleep(1)
            assert daemon.metrics.registry.get_sample_value("archiver_unarchived_tables") == 2
        async with await connect(setup.dsn, purpose="test") as source:
            section = setup.config.require_source()
            names = {each.name: each.detail for each in await check_ddl(source, section)}
    said = capsys.readouterr().out
    assert "public.coupons" in said
    assert "public.keyless" in said
    assert "published new tables" in said
    assert "only if its role owns it" in names["new tables"]
    assert any("public.coupons is not archived" in each for each in (await setup.restore())[1].warnings)


# --- check ---


async def test_check_says_what_is_not_seen_without_triggers(setup: Setup) -> None:
    async with await connect(setup.config.require_source().dsn, purpose="test") as conn:
        [found] = await check_ddl(conn, setup.config.require_source())
    assert found.status == "warn"
    for words in ("no event triggers", "takes a base snapshot", "refused", "made and removed again", "REFRESH"):
        assert words in found.detail
