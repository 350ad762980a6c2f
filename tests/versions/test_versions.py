"""Sources of every major version that can be had, restored into the same and every later one, by replay and by snapshot.

PostgreSQL 18 is embedded and 15 is Debian's; `make test-versions` gets the others and names their folder in
ARCHIVER_TEST_VERSIONS. All dumps that are compared were written by one pg_dump, that of 18.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.postgres.preflight import NEWEST_TESTED_MAJOR, OLDEST_MAJOR
from archiver.restore import Summary
from tests.dumps import difference, pg_dump
from tests.fix_archive import Setup
from tests.fix_servers import DEBIAN_15, PG_SETTINGS, MakeDatabase
from tests.integration.test_ddl import BEFORE, DROPS, FILLED, NESTED, TABLES
from tests.integration.test_rows_types import edges, literal
from tests.integration.whole_chain import take_another_snapshot
from tests.versions.obtain import VERSIONS

MakeSetup = Callable[..., Setup]
RICH = Path(__file__).parents[1] / "integration" / "data" / "rich_schema.sql"
ROLES = ("archiver_test_owner", "archiver_test_reader")
EMBEDDED: Final = 18
OLDEST: Final = 14
NO_UNLOGGED: Final = "--no-unlogged-table-data"  # their rows are not archived


def _programs() -> dict[int, Path | None]:
    """The folder of each major version's programs; None for the embedded one."""
    found: dict[int, Path | None] = {EMBEDDED: None}
    if folder := os.environ.get("ARCHIVER_TEST_VERSIONS"):
        found |= {major: Path(folder).absolute() / str(major) / "bin" for major in VERSIONS}
    elif (DEBIAN_15 / "postgres").exists():
        found[15] = DEBIAN_15
    return dict(sorted(found.items()))


PROGRAMS: Final = _programs()


def test_what_check_calls_tested_is_tested() -> None:
    assert (min(OLDEST, *VERSIONS), max(EMBEDDED, *VERSIONS)) == (OLDEST_MAJOR, NEWEST_TESTED_MAJOR)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[int, PostgresServer]]:
    with ExitStack() as stack:
        started: dict[int, PostgresServer] = {}
        for major, bindir in PROGRAMS.items():
            server = PostgresServer(settings=PG_SETTINGS | {"logical_decoding_work_mem": "64kB"}, bindir=bindir)
            stack.callback(server.close)
            server.start()
            assert int(str(server.execute("SHOW server_version_num")[0][0])) // 10000 == major
            for role in ROLES:
                server.execute(f"CREATE ROLE {role}")
            started[major] = server
        yield started


def schema(major: int) -> str:
    """One of everything that this version knows."""
    text = RICH.read_text().partition("CREATE SCHEMA archiver;")
    text = text[0] + text[2].partition("IS 'ours again';")[2]
    if major < 15:
        text = re.sub(r"^CREATE PUBLICATION user_publication .*;$", "", text, flags=re.MULTILINE)
    return text + BEFORE


def typed_rows(dsn: str) -> list[str]:
    """A table with a column of every type, and a row for each edge value."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        known = {name: values for name, values in edges(conn).items() if len("".join(values)) < 20_000}
    types = {name: values for name, values in known.items() if name != "xml"}  # the embedded 18 is built without
    columns = ", ".join(f"c{at} {name}" for at, name in enumerate(types))
    rows = [
        f"INSERT INTO typed (id, c{at}) VALUES ({at * 100 + number}, {literal(value)})"
        for at, values in enumerate(types.values())
        for number, value in enumerate(values)
    ]
    changes = "UPDATE typed SET id = -id WHERE id % 3 = 0; DELETE FROM typed WHERE id % 7 = 0"
    return [f"CREATE TABLE typed (id int PRIMARY KEY, {columns})", "; ".join(rows), changes]


DDL = [*FILLED, *NESTED, *(statement.replace("shop", "store") for statement in DROPS), *TABLES]
STREAMED = [
    "CREATE TABLE streamed (id int PRIMARY KEY, v text)",
    "BEGIN; INSERT INTO streamed SELECT i, 'row ' || i FROM generate_series(1, 9000) i; SAVEPOINT a;"
    " UPDATE streamed SET v = 'wrong'; ALTER TABLE streamed ADD gone int; ROLLBACK TO a;"
    " ALTER TABLE streamed ADD at timestamptz DEFAULT now(); DELETE FROM streamed WHERE id % 3 = 0; COMMIT",
    "BEGIN; DELETE FROM streamed; ROLLBACK",
    "SELECT nextval('shop.untouched') FROM generate_series(1, 70); SELECT nextval('shop.descending')",
    "UPDATE shop.customers SET name = 'x' || name WHERE id % 10 = 0; DELETE FROM shop.keyless; TRUNCATE shop.parent",
    "INSERT INTO shop.events SELECT i, '2024-07-01', 'later' FROM generate_series(1000, 1100) i; DROP TABLE shop.child",
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("major", PROGRAMS)
async def test_a_source_comes_back_in_its_own_and_every_later_version(
    make_setup: MakeSetup, make_database: MakeDatabase, servers: dict[int, PostgresServer], major: int
) -> None:
    setup = make_setup(make_database(servers[major]))
    with setup.connect() as conn:
        conn.execute(schema(major).encode())
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            for statement in [*typed_rows(setup.dsn), *DDL, *STREAMED]:
                conn.execute(statement.encode())
            await setup.archived()
    targets = {later: server for later, server in servers.items() if later >= major}
    await compare(setup, make_database, targets)
    await take_another_snapshot(setup)
    await compare(setup, make_database, targets)


async def compare(setup: Setup, make_database: MakeDatabase, targets: dict[int, PostgresServer]) -> None:
    expected = pg_dump(setup.dsn, NO_UNLOGGED)
    for major, server in targets.items():
        setup.make_database = lambda server=server, **options: make_database(server, **options)
        restored, summary = await setup.restore()
        found = pg_dump(restored, NO_UNLOGGED)
        same = version(restored) == version(setup.dsn)
        differs = difference(found, expected) if same else difference(neutral(found), neutral(expected))
        assert not differs, f"into {major}: {differs[:4000]}"
        assert unexpected(summary) == []
        assert behind(restored, setup.dsn) == []


def version(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        return conn.info.server_version


_QUALIFIER = re.compile(r"\b(?!public|shop|store|pg_catalog)\w+\.(?=\w)")


def neutral(dump: list[str]) -> list[str]:
    """Without what each version spells in its own way.

    That is its name; qualified columns in a view of one table (to 15); and names of NOT NULL constraints (from 18),
    which keep the names that a table had at first.
    """
    rows = [line for line in dump if line.startswith("INSERT INTO ")]
    other = [line for line in dump if not line.startswith(("INSERT INTO ", "-- Dumped from database version"))]
    return [_QUALIFIER.sub("", re.sub(r"CONSTRAINT \S+ NOT NULL", "NOT NULL", line)) for line in other] + rows


def unexpected(summary: Summary) -> list[str]:
    return [warning for warning in summary.warnings if "unlogged table" not in warning]


_SEQUENCES = (
    "SELECT schemaname, sequencename, coalesce(last_value, start_value), increment_by FROM pg_sequences"
    " WHERE schemaname <> 'archiver'"
)


def behind(restored: str, source: str) -> list[str]:
    """The sequences that stand below their true value."""
    with psycopg.connect(restored) as conn:
        found = {(schema, name): value for schema, name, value, _ in conn.execute(_SEQUENCES)}
    with psycopg.connect(source) as conn:
        rows = conn.execute(_SEQUENCES).fetchall()
    return [name for schema, name, value, step in rows if (found[schema, name] - value) * step < 0]


def test_the_matrix_is_whole_where_its_versions_were_obtained() -> None:
    if "ARCHIVER_TEST_VERSIONS" in os.environ:
        assert list(PROGRAMS) == list(range(OLDEST, EMBEDDED + 1))
    assert all(bindir is None or (bindir / "postgres").exists() for bindir in PROGRAMS.values())
