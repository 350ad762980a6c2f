"""Errors of a server quote rows: what a user, a log or a drill's record sees of them does not."""

from __future__ import annotations

import psycopg
import pytest

from archiver.cli import main as cli
from archiver.errors import PostgresError
from archiver.postgres.client_programs import dump_schema, find_pg_dump
from archiver.postgres.server_words import without_values
from archiver.postgres.session import connect, fetch, postgres_error
from tests.fix_servers import MakeDatabase

SETUP = r"""
CREATE DOMAIN short AS text CONSTRAINT is_short CHECK (length(value) < 5);
CREATE TABLE item (id int PRIMARY KEY, word short, CONSTRAINT small CHECK (id < 10), UNIQUE (word), n int NOT NULL DEFAULT 0);
INSERT INTO item VALUES (1, 'one');
CREATE TABLE part (id int REFERENCES item);
CREATE VIEW few AS SELECT * FROM item WHERE id < 5 WITH CHECK OPTION;
CREATE FUNCTION raises(state text) RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'seen: geheim' USING ERRCODE = state, HINT = 'geheim', TABLE = 'item'; END $$;
CREATE FUNCTION asserts() RETURNS int LANGUAGE plpgsql AS $$ BEGIN ASSERT false, 'geheim'; END $$;
"""


@pytest.fixture
def dsn(make_database: MakeDatabase) -> str:
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SETUP)
    return dsn


@pytest.mark.parametrize(
    ("query", "state", "words"),
    [
        ("SELECT 'geheim'::int", "22P02", "invalid text representation"),
        ("SELECT 'geheim'::timestamptz", "22007", "invalid datetime format"),
        ("SELECT '9999999999'::int + length('geheim')", "22003", "numeric value out of range"),
        ("SELECT '{geheim'::jsonb", "22P02", "invalid text representation"),
        ("SELECT 'geheim' ~ '(geheim'", "2201B", "invalid regular expression"),
        ("SET TimeZone = 'geheim'", "22023", "invalid parameter value"),
        ("INSERT INTO item VALUES (2, 'geheim')", "23514", "check violation (23514): table"),
        ("INSERT INTO public.item VALUES (2, 'one')", "23505", "table public.item, constraint item_word_key"),
        ("INSERT INTO public.item VALUES (3, 'x', NULL)", "23502", "not null violation (23502): table public.item, column n"),
        ("INSERT INTO public.part VALUES (77)", "23503", "constraint part_id_fkey"),
        ("INSERT INTO public.few VALUES (7, 'x')", "44000", "with check option violation"),
        ("SELECT * FROM \"x\" WHERE 'geheim' 'geheim'", "42601", "syntax error"),
        ("SELECT public.raises('P0001')", "P0001", "a function of the database raised an exception (P0001)"),
        ("SELECT public.raises('42501')", "42501", "insufficient privilege (42501): table item"),
        ("SELECT public.raises('MY001')", "MY001", "an error that the database's own code raised (MY001)"),
        ("SELECT public.raises('XX000')", "XX000", "internal error (XX000)"),
        ("SELECT public.asserts()", "P0004", "assert failure"),
    ],
)  # fmt: skip
async def test_an_error_that_may_quote_a_row_is_told_by_its_state_and_names(
    dsn: str, query: str, state: str, words: str
) -> None:
    query = query.replace("INTO item", "INTO public.item")
    async with await connect(dsn, purpose="test") as conn:
        with pytest.raises(PostgresError) as raised:
            await fetch(conn, query)  # type: ignore[arg-type]
    shown = f"{raised.value} {raised.value.hint}"
    assert "geheim" not in shown
    assert "77" not in shown
    assert f"({state})" in shown
    assert words in shown


async def test_a_row_that_cannot_be_loaded_is_told_by_its_place(dsn: str) -> None:
    async with await connect(dsn, purpose="test") as conn:
        try:
            async with conn.cursor() as cur, cur.copy("COPY public.item (id, word) FROM STDIN") as copy:
                await copy.write(b"2\ttwo\ngeheim\tthree\n")
        except psycopg.Error as exc:
            error = postgres_error(exc, "table public.item")
    assert str(error) == "invalid text representation (22P02): table item, column id, line 2 (table public.item)"


async def test_what_names_things_and_no_rows_keeps_its_words(dsn: str) -> None:
    async with await connect(dsn, purpose="test") as conn:
        with pytest.raises(PostgresError, match='relation "nowhere" does not exist'):
            await fetch(conn, "SELECT * FROM nowhere")
        with pytest.raises(PostgresError, match="extension"):
            await fetch(conn, "CREATE EXTENSION nothing_of_that_name")


async def test_a_value_that_psycopg_cannot_read_is_not_repeated(dsn: str) -> None:
    async with await connect(dsn, purpose="test") as conn:
        with pytest.raises(PostgresError, match="a value could not be read"):
            await fetch(conn, "SELECT 'infinity'::date")


async def test_pg_dump_that_meets_a_value_does_not_repeat_it(dsn: str) -> None:
    assert without_values('ERROR:  invalid input syntax for type integer: "geheim"') == (
        'ERROR:  invalid input syntax for type integer: "***"'
    )
    with pytest.raises(PostgresError, match='invalid snapshot identifier: "\\*\\*\\*"'):
        await dump_schema(dsn, await find_pg_dump(18), snapshot="geheim")


def test_not_even_an_error_that_nobody_expected_tells_a_row(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute("SELECT 'geheim'::int")

    monkeypatch.setattr(cli, "app", fail)
    assert cli.main([]) == 1
    shown = capsys.readouterr().err
    assert "unexpected InvalidTextRepresentation: invalid text representation (22P02)" in shown
    assert "geheim" not in shown
