"""What capturing DDL costs at the source, per statement: `python bench/ddl.py`.

Each workload runs on one server twice, in turns: without archiver's event triggers, which is the baseline, and with
them. The difference divided by the number of statements is what a statement costs; it must not grow with the number of
statements in a text, with the number of locks that the transaction holds, or with the number of tables.

With `--restore` instead: archives of many tables, and of many statements in few texts, are restored; the time for each
must not grow with their number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
from worlds import archiver, run, write_config

from archiver.embedded import PostgresServer, S3Server
from archiver.lsn import Lsn
from archiver.postgres import setup
from archiver.postgres.session import connect

Workload = Callable[[psycopg.Connection, int], None]


def one_by_one(conn: psycopg.Connection, count: int) -> None:
    """Each statement a transaction and a text of its own."""
    for number in range(count):
        conn.execute(f"CREATE TABLE w.a{number} (id int PRIMARY KEY)".encode())


def one_text(conn: psycopg.Connection, count: int) -> None:
    """All statements in one text, as a migration is sent."""
    conn.execute("; ".join(f"CREATE TABLE w.b{number} (id int PRIMARY KEY)" for number in range(count)).encode())


def one_transaction(conn: psycopg.Connection, count: int) -> None:
    """Each statement a text of its own in one transaction, whose locks add up."""
    with conn.transaction():
        for number in range(count):
            conn.execute(f"CREATE TABLE w.c{number} (id int PRIMARY KEY)".encode())


def in_a_function(conn: psycopg.Connection, count: int) -> None:
    """A loop in PL/pgSQL."""
    conn.execute(
        f"DO $$ BEGIN FOR i IN 1..{count} LOOP"
        " EXECUTE format('CREATE TABLE w.d%s (id int PRIMARY KEY)', i); END LOOP; END $$".encode()
    )


def altered(conn: psycopg.Connection, count: int) -> None:
    """Columns, comments and indexes of one table."""
    conn.execute("CREATE TABLE w.e (id int PRIMARY KEY)")
    for number in range(count // 3):
        conn.execute(f"ALTER TABLE w.e ADD COLUMN c{number} int DEFAULT {number}".encode())
        conn.execute(f"COMMENT ON COLUMN w.e.c{number} IS 'number {number}'".encode())
        conn.execute(f"ALTER TABLE w.e DROP COLUMN c{number}".encode())


def temporary(conn: psycopg.Connection, count: int) -> None:
    """Temporary tables, which are not archived."""
    for number in range(count):
        conn.execute(f"CREATE TEMP TABLE t{number} (id int) ON COMMIT DROP".encode())


def temporary_dropped(conn: psycopg.Connection, count: int) -> None:
    """The same, dropped by a statement."""
    for number in range(count // 2):
        conn.execute(f"CREATE TEMP TABLE t{number} (id int PRIMARY KEY)".encode())
        conn.execute(f"DROP TABLE t{number}".encode())


def dropped(conn: psycopg.Connection, count: int) -> None:
    """What a key might have stood on, and an index that might have been a replica identity."""
    conn.execute("CREATE TABLE w.f (id int PRIMARY KEY)")
    for number in range(count // 4):
        conn.execute(f"CREATE TYPE w.y{number} AS ENUM ('a')".encode())
        conn.execute(f"DROP TYPE w.y{number}".encode())
        conn.execute(f"CREATE INDEX i{number} ON w.f (id)".encode())
        conn.execute(f"DROP INDEX w.i{number}".encode())


WORKLOADS: dict[str, Workload] = {
    workload.__name__: workload
    for workload in (
        one_by_one,
        one_text,
        one_transaction,
        in_a_function,
        altered,
        temporary,
        temporary_dropped,
        dropped,
    )
}


def timed(dsn: str, workload: Workload, count: int) -> float:
    """Seconds; what it made is dropped again, out of the measurement."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET client_min_messages = error")
        conn.execute("CREATE SCHEMA w")
        started = time.perf_counter()
        workload(conn, count)
        seconds = time.perf_counter() - started
        names = conn.execute("SELECT relname FROM pg_class WHERE relnamespace = 'w'::regnamespace AND relkind = 'r'")
        for (name,) in names.fetchall():
            conn.execute(f'DROP TABLE w."{name}"'.encode())
        conn.execute("DROP SCHEMA w CASCADE")
    return seconds


async def installed(dsn: str, *, tables: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA many")
        for start in range(0, tables, 500):
            conn.execute(
                f"DO $$ BEGIN FOR i IN {start}..{min(start + 500, tables) - 1} LOOP"
                " EXECUTE format('CREATE TABLE many.t%s (id int PRIMARY KEY)', i); END LOOP; END $$".encode()
            )
    async with await connect(dsn, purpose="bench") as source:
        await setup.set_up_publication(source, "bench", [], "full")


def cases(rounds: int, count: int, pair: tuple[str, str]) -> Iterator[tuple[str, int, float, float]]:
    """Name, statements, and the medians without and with the triggers."""
    plain, captured = pair
    for name, workload in WORKLOADS.items():
        for size in (count // 4, count):
            found = [(timed(plain, workload, size), timed(captured, workload, size)) for _ in range(rounds)]
            yield name, size, statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


# --- restoring ---


def many_tables(conn: psycopg.Connection, count: int) -> None:
    """In the base snapshot: tables with a key and a row."""
    for start in range(0, count, 500):
        conn.execute(
            f"DO $$ BEGIN FOR i IN {start}..{min(start + 500, count) - 1} LOOP"
            " EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY); INSERT INTO many_%s VALUES (1)', i, i);"
            " END LOOP; END $$".encode()
        )


def many_statements(conn: psycopg.Connection, count: int) -> None:
    """In the stream: texts of 400 statements."""
    for start in range(0, count, 400):
        numbers = range(start, min(start + 400, count))
        conn.execute("; ".join(f"CREATE TABLE text_{number} (id int PRIMARY KEY)" for number in numbers).encode())


def restored(folder: Path, number: int, before: Workload | None, during: Workload | None, count: int) -> float:
    """Seconds of a restore of its latest state, by the command."""
    settings = {"wal_level": "logical", "max_locks_per_transaction": 8192, "fsync": False}
    with ExitStack() as stack:
        server = stack.enter_context(closing(PostgresServer(settings=settings)))
        regions = [stack.enter_context(closing(S3Server(buckets=["bench"]))) for _ in range(2)]
        for each in (server, *regions):
            each.start()
        server.execute("CREATE DATABASE bench")
        server.execute("CREATE DATABASE target")
        config = write_config(folder, server, regions, number)
        with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
            if before is not None:
                before(conn, count)
            run(*archiver(config, "init", "--keyless", "full"))
            daemon = subprocess.Popen(archiver(config, "run"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for(config, conn)
                if during is not None:
                    during(conn, count)
                wait_for(config, conn)
            finally:
                daemon.terminate()
                daemon.wait()
        started = time.perf_counter()
        run(*archiver(config, "restore", "--latest", "--yes", "--into", server.dsn("target")))
        return time.perf_counter() - started


def wait_for(config: Path, conn: psycopg.Connection) -> None:
    """Until all up to now is archived, behind a base snapshot."""
    conn.execute("CREATE TABLE IF NOT EXISTS mark (at timestamptz PRIMARY KEY)")
    conn.execute("INSERT INTO mark VALUES (clock_timestamp())")
    row = conn.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    while True:
        facts = json.loads(run(*archiver(config, "info", "--json")))
        if facts["snapshots"] and Lsn.parse(facts["window"]["end_lsn"]) >= Lsn.parse(row[0]):
            return
        time.sleep(1)


def restores(count: int) -> None:
    print(f"{'archive of':<18}{'number':>8}{'restore':>10}{'ms each':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(*archiver(folder / "none", "key", "generate", folder / "kek"))
        for number, (before, during) in enumerate(((many_tables, None), (None, many_statements))):
            for each, size in enumerate((count // 4, count)):
                seconds = restored(folder, 2 * number + each, before, during, size)
                label = (before or during or many_tables).__name__
                print(f"{label:<18}{size:>8}{seconds:>9.1f}s{seconds / size * 1000:>10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statements", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tables", type=int, default=0, help="tables that are there already")
    parser.add_argument("--restore", action="store_true", help="of --statements tables, and of as many statements")
    arguments = parser.parse_args()
    if arguments.restore:
        restores(arguments.statements)
        return
    server = PostgresServer(settings={"wal_level": "logical", "max_locks_per_transaction": 1024, "fsync": False})
    server.start()
    try:
        for name in ("plain", "captured"):
            server.execute(f"CREATE DATABASE {name}")
        asyncio.run(installed(server.dsn("captured"), tables=arguments.tables))
        print(f"{'workload':<18}{'statements':>11}{'without':>10}{'with':>10}{'ms a statement':>16}")
        pair = (server.dsn("plain"), server.dsn("captured"))
        for name, size, without, captured in cases(arguments.rounds, arguments.statements, pair):
            cost = (captured - without) / size * 1000
            print(f"{name:<18}{size:>11}{without:>9.2f}s{captured:>9.2f}s{cost:>16.3f}", flush=True)
    finally:
        server.close()


if __name__ == "__main__":
    main()
