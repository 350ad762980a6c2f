"""A restore by a role that may not set session_replication_role, as on a managed service: the owner of its database.

Triggers, rules and foreign keys, those of the base snapshot and those that come, change and go in the stream, must neither
act on replayed rows nor get lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from archiver import replay
from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from archiver.policy.target import Target, ToLatest, ToName
from archiver.postgres.apply import Applier
from archiver.recovery_plan import make_plan
from archiver.restore import Summary, run_restore
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup, Setup
from tests.fix_servers import MakeDatabase
from tests.integration.test_crash import file_regions
from tests.integration.test_ddl import POINT, point

BEFORE = """
CREATE TABLE customer (id int PRIMARY KEY, purchases int DEFAULT 0);
CREATE TABLE purchase (id int PRIMARY KEY, customer int NOT NULL REFERENCES customer ON DELETE CASCADE, amount int);
COMMENT ON CONSTRAINT purchase_customer_fkey ON purchase IS 'who pays';
CREATE TABLE log (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, line text);
CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  UPDATE public.customer SET purchases = purchases + 1 WHERE id = NEW.customer;
  INSERT INTO public.log (line) VALUES (TG_NAME || ' ' || NEW.id);
  RETURN NEW;
END $$;
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO public.log (line) VALUES (TG_NAME || ' ' || TG_TABLE_NAME);
  RETURN NEW;
END $$;
CREATE TRIGGER counted AFTER INSERT ON purchase FOR EACH ROW EXECUTE FUNCTION count_it();
CREATE TRIGGER always BEFORE UPDATE ON purchase FOR EACH ROW EXECUTE FUNCTION note_it();
ALTER TABLE purchase ENABLE ALWAYS TRIGGER always;
CREATE RULE logged AS ON INSERT TO customer DO ALSO INSERT INTO log (line) VALUES ('rule ' || NEW.id);

CREATE TABLE egg (id int PRIMARY KEY, hen int);
CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL REFERENCES egg DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE egg ADD FOREIGN KEY (hen) REFERENCES hen DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE reading (
  day int PRIMARY KEY, customer int REFERENCES customer DEFERRABLE INITIALLY DEFERRED
) PARTITION BY RANGE (day);
CREATE TABLE reading_a PARTITION OF reading FOR VALUES FROM (0) TO (100);
CREATE TABLE reading_b PARTITION OF reading FOR VALUES FROM (100) TO (200);
CREATE TRIGGER read AFTER INSERT ON reading FOR EACH ROW EXECUTE FUNCTION note_it();
ALTER TABLE reading_b DISABLE TRIGGER read;

CREATE TABLE loose (id int PRIMARY KEY, customer int);
INSERT INTO loose VALUES (1, 99);
ALTER TABLE loose ADD CONSTRAINT loosely FOREIGN KEY (customer) REFERENCES customer NOT VALID;
CREATE TABLE doomed (id int PRIMARY KEY REFERENCES customer);
CREATE VIEW amounts AS SELECT id, amount FROM purchase;
CREATE TRIGGER instead INSTEAD OF INSERT ON amounts FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE RULE elsewhere AS ON DELETE TO amounts DO INSTEAD NOTHING;
CREATE TABLE guarded (id int PRIMARY KEY);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
INSERT INTO customer SELECT generate_series(1, 9);
INSERT INTO purchase SELECT i, i, i FROM generate_series(1, 9) i;
INSERT INTO reading VALUES (1, 1), (101, 2);
"""
CHANGES = [
    "INSERT INTO purchase VALUES (10, 1, 5); UPDATE purchase SET amount = 6 WHERE id = 10",
    "INSERT INTO customer VALUES (10)",
    "BEGIN; INSERT INTO hen VALUES (1, 1); INSERT INTO egg VALUES (1, 1); COMMIT",
    "INSERT INTO guarded VALUES (1); INSERT INTO reading VALUES (2, 1), (102, 1)",
    "DELETE FROM customer WHERE id = 9",
    POINT,
    # What is there already is altered, renamed, disabled and dropped.
    "ALTER TABLE purchase DISABLE TRIGGER counted; INSERT INTO purchase VALUES (11, 1, 1)",
    "ALTER TABLE purchase ENABLE REPLICA TRIGGER counted; ALTER TRIGGER counted ON purchase RENAME TO counts",
    "INSERT INTO purchase VALUES (12, 1, 1)",
    "ALTER TABLE purchase ENABLE TRIGGER counts; INSERT INTO purchase VALUES (13, 1, 1)",
    "CREATE OR REPLACE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " INSERT INTO public.log (line) VALUES ('now ' || NEW.id); RETURN NEW; END $$; INSERT INTO purchase VALUES (15, 2, 2)",
    "ALTER TABLE purchase RENAME CONSTRAINT purchase_customer_fkey TO buyer; ALTER TABLE customer RENAME id TO number",
    "ALTER TABLE purchase ALTER customer TYPE bigint; INSERT INTO purchase VALUES (14, 2, 2)",
    "BEGIN; ALTER TABLE purchase DISABLE TRIGGER ALL; INSERT INTO purchase VALUES (90, 4711, 1);"
    " DELETE FROM purchase WHERE id = 90; ALTER TABLE purchase ENABLE TRIGGER ALL; COMMIT",
    "BEGIN; INSERT INTO hen VALUES (2, 2); CREATE INDEX ON log (line); CREATE TABLE between (id int REFERENCES customer);"
    " INSERT INTO egg VALUES (2, 2); COMMIT",
    "BEGIN; INSERT INTO reading VALUES (9, 77); COMMENT ON TABLE log IS 'in between'; INSERT INTO customer VALUES (77); COMMIT",
    "DROP RULE logged ON customer; INSERT INTO customer VALUES (20)",
    "DROP TABLE doomed",
    "UPDATE loose SET customer = 1",
    "ALTER TABLE loose VALIDATE CONSTRAINT loosely",
    POINT,
    # What comes in the stream.
    "CREATE TABLE refund (id int PRIMARY KEY, purchase int REFERENCES purchase ON DELETE SET NULL)",
    "INSERT INTO refund VALUES (1, 1), (2, 2); DELETE FROM purchase WHERE id = 1",
    "ALTER TABLE refund ADD CONSTRAINT again FOREIGN KEY (id) REFERENCES purchase (id) NOT VALID",
    "CREATE TRIGGER second AFTER UPDATE ON refund FOR EACH ROW EXECUTE FUNCTION note_it()",
    "UPDATE refund SET purchase = 3 WHERE id = 2",
    "ALTER TABLE refund DISABLE TRIGGER second; UPDATE refund SET purchase = 4 WHERE id = 2",
    "CREATE TABLE reading_c (day int PRIMARY KEY, customer int REFERENCES customer DEFERRABLE INITIALLY DEFERRED)",
    "INSERT INTO reading_c VALUES (201, 3)",
    "COMMENT ON TABLE reading_c IS 'soon a partition'",
    "ALTER TABLE reading ATTACH PARTITION reading_c FOR VALUES FROM (200) TO (300); INSERT INTO reading VALUES (202, 4)",
    "ALTER TABLE reading DETACH PARTITION reading_a; INSERT INTO reading_a VALUES (3, 2)",
    "CREATE TABLE reading_d PARTITION OF reading FOR VALUES FROM (300) TO (400); INSERT INTO reading VALUES (301, 4)",
    "ALTER TABLE refund DROP CONSTRAINT refund_purchase_fkey,"
    " ADD CONSTRAINT refund_purchase_fkey FOREIGN KEY (purchase) REFERENCES purchase NOT VALID",
    "COMMENT ON CONSTRAINT refund_purchase_fkey ON refund IS 'new'",
    "CREATE TABLE short (id int REFERENCES customer); INSERT INTO short VALUES (1); DROP TABLE short",
    "TRUNCATE customer CASCADE",
    "INSERT INTO customer VALUES (1); INSERT INTO purchase VALUES (1, 1, 1)",
]


@pytest.fixture(scope="module", params=["pg", "pg15"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    """Source and target; an older one merges a partition's foreign key into its parent's by other rules."""
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def role(server: PostgresServer) -> Iterator[str]:
    name = f"owner_{secrets.token_hex(4)}"
    server.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    server.execute(f"DROP ROLE {name}")


@pytest.fixture
async def archived(
    make_setup: MakeSetup, make_database: MakeDatabase, server: PostgresServer, tmp_path: Path
) -> tuple[Setup, dict[str, list[str]]]:
    """The archive of all this, and what the source looked like, without owners, at each point and at the end."""
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(make_database(server), region=file_regions(tmp_path))
    points: dict[str, list[str]] = {}
    with setup.connect() as conn:
        conn.execute(BEFORE.encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in CHANGES:
                if statement == POINT:
                    await point(setup, points)
                    points[list(points)[-1]] = pg_dump(setup.dsn, "--no-owner")
                else:
                    conn.execute(statement.encode())
            await setup.archived()
    return setup, points | {"": pg_dump(setup.dsn, "--no-owner")}


@pytest.fixture
async def small(make_setup: MakeSetup, make_database: MakeDatabase, server: PostgresServer, tmp_path: Path) -> Setup:
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(make_database(server), region=file_regions(tmp_path))
    with setup.connect() as conn:
        conn.execute(b"CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute(b"INSERT INTO item VALUES (2)")
            await setup.archived()
    return setup


def own_database(setup: Setup, server: PostgresServer, role: str) -> str:
    name = str(conninfo_to_dict(setup.make_database(server, stem="owned"))["dbname"])
    server.execute(f"ALTER DATABASE {name} OWNER TO {role}")
    return server.dsn(name, user=role)


async def restore(setup: Setup, dsn: str, target: Target) -> Summary:
    async with setup.open() as archive:
        return await run_restore(archive, await make_plan(archive, target), dsn)


async def test_nothing_acts_during_replay_and_nothing_gets_lost(
    archived: tuple[Setup, dict[str, list[str]]], server: PostgresServer, role: str
) -> None:
    setup, expected = archived
    for name, dump in expected.items():
        dsn = own_database(setup, server, role)
        await restore(setup, dsn, ToName(name) if name else ToLatest())
        assert difference(pg_dump(server.dsn(database_of(dsn)), "--no-owner"), dump) == "", name


async def test_an_interrupted_restore_gives_everything_back(
    archived: tuple[Setup, dict[str, list[str]]], server: PostgresServer, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops after each few transactions; what was dropped and disabled is known from the target alone."""
    setup, expected = archived
    monkeypatch.setattr(replay, "COMMIT_ROWS", 0)
    dsn, attempts = own_database(setup, server, role), 0
    while True:
        attempts += 1
        with monkeypatch.context() as broken:
            stop_after(broken, 7)
            try:
                await restore(setup, dsn, ToLatest())
            except PostgresError:
                continue
        break
    assert attempts > 3
    assert difference(pg_dump(server.dsn(database_of(dsn)), "--no-owner"), expected[""]) == ""


def stop_after(monkeypatch: pytest.MonkeyPatch, transactions: int) -> None:
    apply, left = Applier.apply, iter(range(transactions))

    async def limited(self: Applier, transaction: Any) -> None:
        if next(left, None) is None:
            raise PostgresError("interrupted")
        await apply(self, transaction)

    monkeypatch.setattr(Applier, "apply", limited)


def database_of(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])


MANY_KEYS = 50
TURNS = 70  # of DDL and rows: more locks than a server of the default configuration has, if none are let go


@pytest.mark.deep
async def test_many_foreign_keys_and_much_ddl_need_few_locks(
    make_setup: MakeSetup, make_database: MakeDatabase, server: PostgresServer, role: str, tmp_path: Path
) -> None:
    for name in ("primary", "secondary"):
        (tmp_path / name).mkdir()
    setup = make_setup(make_database(server), region=file_regions(tmp_path))
    columns = ", ".join(f"c{number} int REFERENCES one" for number in range(MANY_KEYS))
    with setup.connect() as conn:
        conn.execute(f"CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE many (id int, {columns})".encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for number in range(TURNS):
                conn.execute(f"INSERT INTO one VALUES ({number})".encode())
                conn.execute(f"ALTER TABLE one ALTER id SET STATISTICS {number}".encode())
            run = "; ".join(f"ALTER TABLE one ALTER id SET STATISTICS {number}" for number in range(2 * TURNS))
            conn.execute(f"BEGIN; {run}; ALTER TABLE many RENAME CONSTRAINT many_c1_fkey TO first; COMMIT".encode())
            conn.execute(b"BEGIN; ALTER TABLE one ALTER id TYPE bigint; ALTER TABLE many ALTER c2 TYPE bigint;")
            conn.execute(b"ALTER TABLE many RENAME CONSTRAINT many_c2_fkey TO second; COMMIT")
            await setup.archived()
    dsn = own_database(setup, server, role)
    await restore(setup, dsn, ToLatest())
    assert difference(pg_dump(server.dsn(database_of(dsn)), "--no-owner"), pg_dump(setup.dsn, "--no-owner")) == ""


async def test_event_triggers_of_others_in_the_target_are_left_alone(
    small: Setup, server: PostgresServer, role: str
) -> None:
    """A managed service has some of its own in every database."""
    dsn = own_database(small, server, role)
    with psycopg.connect(server.dsn(database_of(dsn)), autocommit=True) as conn:
        conn.execute(PROVIDERS)
        await restore(small, dsn, ToLatest())
        assert conn.execute("SELECT evtname, evtenabled FROM pg_event_trigger").fetchall() == [("providers", "O")]
        assert conn.execute("SELECT * FROM item").fetchall() == [(1,), (2,)]


PROVIDERS = """
CREATE SCHEMA audit;
CREATE FUNCTION audit.look() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE EVENT TRIGGER providers ON ddl_command_end EXECUTE FUNCTION audit.look();
ALTER EXTENSION plpgsql ADD SCHEMA audit; ALTER EXTENSION plpgsql ADD FUNCTION audit.look();
"""


async def test_a_database_that_is_read_only_by_its_settings_is_finished_all_the_same(
    small: Setup, server: PostgresServer, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are given last, but for what was silent: it may be interrupted in between."""
    dsn = own_database(small, server, role)
    with monkeypatch.context() as broken:
        broken.setattr("archiver.postgres.always_triggers.lift_all", interrupted)
        with pytest.raises(PostgresError, match="interrupted"):
            await restore(small, dsn, ToLatest())
    server.execute(f"ALTER DATABASE {database_of(dsn)} SET default_transaction_read_only = on")
    assert (await restore(small, dsn, ToLatest())).resumed
    assert difference(pg_dump(server.dsn(database_of(dsn)), "--no-owner"), pg_dump(small.dsn, "--no-owner")) == ""


async def interrupted(_conn: object) -> None:
    raise PostgresError("interrupted")


async def test_whatever_fails_before_the_restore_is_complete_can_be_asked_for_again(
    small: Setup, server: PostgresServer, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = own_database(small, server, role)
    with monkeypatch.context() as broken:
        broken.setattr("archiver.postgres.load.unlogged_tables", interrupted)
        with pytest.raises(PostgresError, match="interrupted"):
            await restore(small, dsn, ToLatest())
    assert (await restore(small, dsn, ToLatest())).resumed


async def test_a_sequence_that_may_not_be_set_is_named_and_the_restore_goes_on_once_it_may(
    small: Setup, server: PostgresServer, role: str
) -> None:
    """Its owner has revoked his own rights to it. It must not come back at its start, without a word."""
    with small.connect() as conn:
        async with small.daemon():
            conn.execute(f"CREATE SEQUENCE ticket; ALTER SEQUENCE ticket OWNER TO {role}".encode())
            conn.execute(f"REVOKE ALL ON SEQUENCE ticket FROM {role}".encode())
            conn.execute(b"SELECT nextval('ticket') FROM generate_series(1, 7)")
            await small.archived()
    dsn = own_database(small, server, role)
    with pytest.raises(PostgresError, match=r"too low: public\.ticket \(") as refused:
        await restore(small, dsn, ToLatest())
    assert f"SEQUENCE TO {role}" in (refused.value.hint or "")
    with psycopg.connect(server.dsn(database_of(dsn)), autocommit=True) as conn:
        conn.execute(f"GRANT SELECT, UPDATE ON SEQUENCE ticket TO {role}".encode())
        assert (await restore(small, dsn, ToLatest())).resumed
        assert conn.execute("SELECT last_value >= 7, is_called FROM ticket").fetchone() == (True, True)
