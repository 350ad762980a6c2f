"""Restoring, against PostgreSQL's own tools on the same machine and data, in one run.

- the base: `archiver restore` of a fresh base snapshot against `pg_restore -j2` of a `pg_dump -Fc` of the same data;
- replay: a million changes, insert-heavy and update-heavy, against the apply worker of a subscription that catches up
  on the same changes.

Run it as `python bench/restore.py`. Quote the ratios: how fast archiver is where PostgreSQL's own is 1.
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
from typing import Any

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

    def pg_restore(self, dump: Path) -> float:
        name = self.new_database()
        started = time.monotonic()
        run(self.source.bin("pg_restore"), "-j2", "--no-publications", "-d", self.target.dsn(name), dump)
        return time.monotonic() - started

    def restore(self) -> dict[str, Any]:
        name = self.new_database()
        started = time.monotonic()
        command = archiver(self.config, "restore", "--into", self.target.dsn(name), "--latest", "--yes", "--json")
        result = dict(json.loads(run(*command))["result"])
        return result | {"wall": time.monotonic() - started}

    def base(self, rounds: int) -> float:
        dump = self.folder / "base.dump"
        run(self.source.bin("pg_dump"), "-Fc", "-Z", "gzip:1", "-f", dump, self.source.dsn("bench"))
        theirs, ours = [], []
        for _ in range(rounds):
            theirs.append(self.pg_restore(dump))
            ours.append(self.restore()["wall"])
            self.console.print(f"base: pg_restore {theirs[-1]:.1f} s, archiver {ours[-1]:.1f} s")
        return statistics.median(theirs) / statistics.median(ours)

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

    def make_changes(self, workload: str) -> Lsn:
        statement = WORKLOADS[workload].replace("%%", "%")
        with psycopg.connect(self.source.dsn("bench"), autocommit=True) as conn:
            for first in range(1, self.changes, CHANGES_PER_TRANSACTION):
                conn.execute(statement.format(first=first, last=first + CHANGES_PER_TRANSACTION - 1).encode())
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

    def apply_worker(self, subscription: str, end: Lsn) -> float:
        started = time.monotonic()
        self.target.execute(f"ALTER SUBSCRIPTION {subscription} ENABLE", dbname=subscription)
        query = f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{subscription}'"
        while not self.source.execute(query)[0][0]:
            time.sleep(0.05)
        seconds = time.monotonic() - started
        self.target.execute(f"DROP SUBSCRIPTION {subscription}", dbname=subscription)
        return seconds

    def replay(self, workload: str, rounds: int) -> float:
        subscriptions = [self.subscribe() for _ in range(rounds)]
        end = self.make_changes(workload)
        self.archive_changes(end)
        theirs, ours = [], []
        for subscription in subscriptions:
            theirs.append(self.apply_worker(subscription, end))
            ours.append(float(self.restore()["phases"]["replay"]))
            self.console.print(f"{workload}: apply worker {theirs[-1]:.1f} s, archiver's replay {ours[-1]:.1f} s")
        run(*archiver(self.config, "snapshot"))  # the next workload's replay starts here
        return statistics.median(theirs) / statistics.median(ours)


SCHEMA_PUBLICATION = """
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'bench_change') THEN
    CREATE PUBLICATION bench_change FOR TABLE change;
  END IF;
END $$
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=20, help="of pgbench: 100 000 rows each")
    parser.add_argument("--changes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "restore.json")
    arguments = parser.parse_args()
    console = Console(width=100)
    with ExitStack() as stack:
        bench = Bench(stack, arguments.scale, arguments.changes, console)
        bench.prepare()
        ratios = {"base": bench.base(arguments.rounds)}
        for workload in WORKLOADS:
            ratios[workload] = bench.replay(workload, arguments.rounds)
    table = Table(title=f"archiver's speed where PostgreSQL's own is 1; median of {arguments.rounds}")
    for column in ("", "against", "ratio"):
        table.add_column(column)
    for name, ratio in ratios.items():
        table.add_row(name, "pg_restore -j2" if name == "base" else "the apply worker", f"{ratio:.2f}")
    console.print(table)
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps(ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
