"""Loading a target, piece by piece."""

from __future__ import annotations

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.errors import PostgresError
from archiver.format.dump import split
from archiver.policy.sequence_log import SequenceState
from archiver.postgres import load
from archiver.postgres.sequences import raise_to_columns, read_sequences, set_sequences
from archiver.postgres.session import connect
from tests.fix_servers import MakeDatabase


async def test_views_on_views_are_filled_in_any_order_and_a_failing_one_is_reported(
    make_database: MakeDatabase,
) -> None:
    conn = await connect(make_database(), purpose="test")
    async with conn:
        await conn.execute("CREATE MATERIALIZED VIEW public.z AS SELECT 1 AS one WITH NO DATA")
        await conn.execute("CREATE MATERIALIZED VIEW public.a AS SELECT one FROM public.z WITH NO DATA")
        await conn.execute(
            "CREATE MATERIALIZED VIEW public.broken AS SELECT 1 / (one - one) FROM public.z WITH NO DATA"
        )
        views = [("public", "a"), ("public", "broken"), ("public", "z")]
        [failed] = await load.refresh_views(conn, views)
        assert (failed.entry, failed.reason) == ("MATERIALIZED VIEW public.broken", "division by zero (22012)")
        cur = await conn.execute("SELECT one FROM public.a")
        assert await cur.fetchone() == (1,)


async def test_extensions_and_a_restores_progress_do_not_make_a_target_full(make_database: MakeDatabase) -> None:
    conn = await connect(make_database(), purpose="test")
    async with conn:
        await conn.execute("CREATE EXTENSION pg_trgm SCHEMA public")
        assert await load.read_progress(conn) is None
        await load.create_progress(conn)
        async with conn.cursor() as cur:
            await load.write_progress(cur, step="keys", at={"lsn": "0/1"})
            await load.write_progress(cur, step="late")
        await load.ensure_empty(conn)
        assert await load.read_progress(conn) == {"step": "late", "at": {"lsn": "0/1"}}
        await load.drop_progress(conn)
        assert await load.read_progress(conn) is None


async def test_an_entry_that_fails_is_named(make_database: MakeDatabase) -> None:
    broken = split(
        "--\n-- Name: x; Type: TABLE; Schema: public; Owner: me\n--\n\nCREATE TABLE public.x (a nonsense);\n"
    )
    conn = await connect(make_database(), purpose="test")
    async with conn:
        with pytest.raises(PostgresError, match=r"TABLE public\.x"):
            await load.run_script(conn, broken[0], broken[1:])


async def test_a_state_beyond_a_sequence_s_bounds_sets_it_to_its_last_value(make_database: MakeDatabase) -> None:
    conn = await connect(make_database(), purpose="test")
    async with conn:
        await conn.execute("CREATE SEQUENCE public.up MAXVALUE 100")
        await conn.execute("CREATE SEQUENCE public.down INCREMENT -1 MINVALUE -100")
        states = [SequenceState("public", "up", 5000, True), SequenceState("public", "down", -5000, True, -1)]
        await set_sequences(conn, states)
        now = {state.name: state.last_value for state in (await read_sequences(conn)).states}
        assert now == {"up": 100, "down": -100}


async def test_a_sequence_that_may_not_be_read_is_an_error_where_it_might_stand_too_low(
    make_database: MakeDatabase, pg: PostgresServer
) -> None:
    pg.execute("DO $$ BEGIN CREATE ROLE archiver_test_blind LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("CREATE TABLE item (id serial); INSERT INTO item DEFAULT VALUES; CREATE SEQUENCE open")
        owner.execute("GRANT SELECT ON item TO PUBLIC; GRANT SELECT, UPDATE ON SEQUENCE open TO PUBLIC")
    allowed = SequenceState("public", "open", 5, True)
    conn = await connect(dsn.replace("postgres@", "archiver_test_blind@"), purpose="test")
    async with conn:
        with pytest.raises(PostgresError, match=r"too low: public\.item_id_seq \("):
            await set_sequences(conn, [SequenceState("public", "item_id_seq", 1, True), allowed])
        with pytest.raises(PostgresError, match=r"too low: public\.item_id_seq \("):
            await raise_to_columns(conn)
        assert await set_sequences(conn, [allowed]) == []
