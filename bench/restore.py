"""Restoring, against PostgreSQL's own tools on the same machine, data and settings, in one run.

- the base: `archiver restore` of a fresh base snapshot, from Python's start to its end, against `pg_restore -j2` of a
  `pg_dump -Fc` of the same data and the ANALYZE that has to follow it; and the same without ANALYZE on either side;
- replay: a million changes, insert-heavy and update-heavy, against the apply worker of a subscription that catches up
  on the same changes.

archiver reads its objects from an S3 server on the same machine and decrypts them; pg_restore reads a file. Run it
as `python bench/restore.py` on a machine that does nothing else. Quote the ratios: how fast archiver is where
PostgreSQL's own is 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from rich.console import Console
from rich.table import Table
from worlds import SETTINGS, archiver, run, write_config

from archiver.embedded import PostgresServer, S3Server
from archiver.lsn import Lsn

CHANGES_PER_TRANSACTION = 1000
SCHEMA = """
CREATE TABLE change (id bigint PRIMARY KEY, customer int, name text, at timestamptz DEFAULT now(), amount numeric);
CREATE INDEX ON change (customer);
"""
WORKLOADS = {
    "insert-heavy": "INSERT INTO change SELECT i, i %% 1000, 'name of ' || i, now(), i / 7.0 "
    "FROM generate_series({first}, {last}) i",
    "update-heavy": "UPDATE change SET amount = amount + 1, name = name || '.' WHERE id BETWEEN {first} AND {last}",
}


Times = dict[str, float]


class Comparison(NamedTuple):
    """Seconds of each round."""

    theirs: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.theirs) / statistics.median(self.ours)


def shown(times: Times) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())


class Bench:
    """The servers, the archive, and one measurement a method."""

    def __init__(self, stack: ExitStack, scale: int, changes: int, console: Console) -> None:
        self.scale = scale
        self.changes = changes
        self.console = console
        self.source = stack.enter_context(closing(PostgresServer(settings=SETTINGS)))
        self.target = stack.enter_context(closing(PostgresServer(settings=SETTINGS)))
        regions = [stack.enter_context(closing(S3Server(buckets=["bench"]))) for _ in range(2)]
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for each in (self.source, self.target, *regions):
            each.start()
        self.config = write_config(self.folder, self.source, regions)
        self.made = 0

    def prepare(self) -> None:
        self.source.execute("CREATE DATABASE bench")
        run(self.source.bin("pgbench"), "-i", "-q", "-s", str(self.scale), self.source.dsn("bench"))
        self.source.execute(SCHEMA, dbname="bench")
        run(*archiver(self.config, "key", "generate", str(self.folder / "kek")))
        run(*archiver(self.config, "init", "--keyless", "full"))
        run(*archiver(self.config, "snapshot"))

    def new_database(self) -> str:
        self.made += 1
        name = f"target{self.made}"
        self.target.execute(f"CREATE DATABASE {name}")
        return name

    # --- base ---

    def pg_restore(self, dump: Path) -> Times:
        name = self.new_database()
        started = time.monotonic()
        run(self.source.bin("pg_restore"), "-j2", "--no-publications", "-d", self.target.dsn(name), dump)
        restored = time.monotonic()
        self.target.execute("ANALYZE", dbname=name)
        return {"base": time.monotonic() - started, "base without ANALYZE": restored - started}

    def restore(self) -> dict[str, Any]:
        name = self.new_database()
        started = time.monotonic()
        command = archiver(self.config, "restore", "--into", self.target.dsn(name), "--latest", "--yes", "--json")
        result = dict(json.loads(run(*command))["result"])
        return result | {"wall": time.monotonic() - started}

    def base(self, rounds: int) -> dict[str, Comparison]:
        dump = self.folder / "base.dump"
        run(self.source.bin("pg_dump"), "-Fc", "-Z", "gzip:1", "-f", dump, self.source.dsn("bench"))
        theirs, ours, phases = [], [], []
        for _ in range(rounds):
            theirs.append(self.pg_restore(dump))
            result = self.restore()
            phases.append({name: float(seconds) for name, seconds in result["phases"].items()})
            analyzed = float(result["wall"])
            ours.append({"base": analyzed, "base without ANALYZE": analyzed - phases[-1]["finish"]})
            self.console.print(f"base: pg_restore {shown(theirs[-1])}; archiver {shown(ours[-1])}")
        self.console.print(f"archiver's last: {shown(phases[-1])}; the rest is Python's start, the log and the plan")
        return {name: Comparison([t[name] for t in theirs], [o[name] for o in ours]) for name in theirs[0]}

    # --- replay ---

    def subscribe(self) -> str:
        """A subscription with its tables copied, not running yet."""
        name = self.new_database()
        self.target.execute(SCHEMA, dbname=name)
        self.source.execute(SCHEMA_PUBLICATION, dbname="bench")
        dsn = self.source.dsn("bench")
        self.target.execute(f"CREATE SUBSCRIPTION {name} CONNECTION '{dsn}' PUBLICATION bench_change", dbname=name)
        ready = "SELECT count(*) = 1 FROM pg_subscription_rel WHERE srsubstate = 'r'"
        while not self.target.execute(ready, dbname=name)[0][0]:
            time.sleep(0.1)
        self.target.execute(f"ALTER SUBSCRIPTION {name} DISABLE", dbname=name)
        return name

    def make_changes(self, workload: str) -> tuple[Lsn, Lsn]:
        """Where the last transaction began, and the end."""
        statement = WORKLOADS[workload].replace("%%", "%")
        with psycopg.connect(self.source.dsn("bench"), autocommit=True) as conn:
            for first in range(1, self.changes, CHANGES_PER_TRANSACTION):
                last = self.position(conn)
                conn.execute(statement.format(first=first, last=first + CHANGES_PER_TRANSACTION - 1).encode())
            return last, self.position(conn)

    def position(self, conn: psycopg.Connection[Any]) -> Lsn:
        row = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        return Lsn.parse(row[0]).before_page_header()

    def archive_changes(self, end: Lsn) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            daemon = subprocess.Popen(archiver(self.config, "run"), stdout=log, stderr=log)
        query = f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'archiver_bench0'"
        while not self.source.execute(query)[0][0]:
            time.sleep(0.2)
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()

    def apply_worker(self, subscription: str, last: Lsn) -> float:
        """Seconds until it has committed the transaction that began at `last`."""
        started = time.monotonic()
        self.target.execute(f"ALTER SUBSCRIPTION {subscription} ENABLE", dbname=subscription)
        query = (
            f"SELECT count(*) FROM pg_replication_origin_status WHERE remote_lsn > '{last}' AND external_id ="
            f" 'pg_' || (SELECT oid FROM pg_subscription WHERE subname = '{subscription}')"
        )
        while not self.target.execute(query, dbname=subscription)[0][0]:
            time.sleep(0.05)
        seconds = time.monotonic() - started
        self.target.execute(f"DROP SUBSCRIPTION {subscription}", dbname=subscription)
        return seconds

    def replay(self, workload: str, rounds: int) -> Comparison:
        subscriptions = [self.subscribe() for _ in range(rounds)]
        last, end = self.make_changes(workload)
        self.archive_changes(end)
        compared = Comparison([], [])
        for subscription in subscriptions:
            compared.theirs.append(self.apply_worker(subscription, last))
            compared.ours.append(float(self.restore()["phases"]["replay"]))
            self.console.print(
                f"{workload}: apply worker {compared.theirs[-1]:.1f} s, archiver's replay {compared.ours[-1]:.1f} s"
            )
        run(*archiver(self.config, "snapshot"))  # the next workload's replay starts here
        return compared


SCHEMA_PUBLICATION = """
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'bench_change') THEN
    CREATE PUBLICATION bench_change FOR TABLE change;
  END IF;
END $$
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=100, help="of pgbench: 100 000 rows each")
    parser.add_argument("--changes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "restore.json")
    arguments = parser.parse_args()
    console = Console(width=100)
    with ExitStack() as stack:
        bench = Bench(stack, arguments.scale, arguments.changes, console)
        bench.prepare()
        compared = bench.base(arguments.rounds)
        for workload in WORKLOADS:
            compared[workload] = bench.replay(workload, arguments.rounds)
    table = Table(title=f"archiver's speed where PostgreSQL's own is 1; medians of {arguments.rounds}")
    for column in ("", "against", "its seconds", "archiver's", "ratio"):
        table.add_column(column)
    for name, each in compared.items():
        against = "pg_restore -j2" if name.startswith("base") else "the apply worker"
        seconds = [f"{statistics.median(times):.1f}" for times in each]
        table.add_row(name, against, *seconds, f"{each.ratio:.2f}")
    console.print(table)
    arguments.json.parent.mkdir(exist_ok=True)
    results = {name: each._asdict() | {"ratio": each.ratio} for name, each in compared.items()}
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
