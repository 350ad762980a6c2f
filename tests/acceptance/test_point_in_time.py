"""The main job as its users do it: the real command line, real servers, a daemon that is killed, a lost source.

pgbench writes for 20 seconds (ARCHIVER_ACCEPTANCE_SECONDS for more) while the daemon archives and is killed twice; then the
source is gone for good, and each restore must hold exactly the ledger rows that were committed by its target.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest

from archiver.embedded import PostgresServer, S3Server
from archiver.lsn import Lsn

SECONDS = int(os.environ.get("ARCHIVER_ACCEPTANCE_SECONDS", "20"))
SETTINGS: dict[str, str | int | bool] = {
    "wal_level": "logical",
    "track_commit_timestamp": True,  # the independent truth: when each ledger row was committed
    "max_connections": 50,
    "synchronous_commit": "off",
    "logical_decoding_work_mem": "64kB",
}
MARKER = "MARKER-5b1f-of-this-test"
TRANSACTION = """
\\set aid random(1, 100000 * :scale)
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO ledger (client, delta, note) VALUES (:client_id, :delta, '%s');
END;
"""


@dataclass
class World:
    """Two regions, a source, a server to restore into, and the command line with its configuration."""

    source: PostgresServer
    target: PostgresServer
    regions: tuple[S3Server, S3Server]
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        first, second = self.regions
        keys = {"K1": first.access_key, "S1": first.secret_key, "K2": second.access_key, "S2": second.secret_key}
        return {**os.environ, **keys, "ARCHIVER_CONFIG": str(self.folder / "archiver.toml")}

    def archiver(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "archiver", *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=self.environment,
        )
        assert done.returncode == 0, f"archiver {' '.join(arguments)}: {done.returncode}\n{done.stderr}\n{done.stdout}"
        return done.stdout

    def info(self) -> Any:
        return json.loads(self.archiver("info", "--json"))

    def start_daemon(self) -> subprocess.Popen[bytes]:
        with (self.folder / "daemon.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "archiver", "run"], stdout=log, stderr=log, env=self.environment
            )

    def write_config(self) -> None:
        first, second = self.regions
        (self.folder / "archiver.toml").write_text(f"""
[archive]
name = "bank"
[source]
dsn = "{self.source.dsn("bank")}"
[[region]]
name = "primary"
url = "s3://archive/bank"
endpoint = "{first.endpoint}"
access_key_env = "K1"
secret_key_env = "S1"
[[region]]
name = "secondary"
url = "s3://archive/bank"
endpoint = "{second.endpoint}"
access_key_env = "K2"
secret_key_env = "S2"
[segment]
max_age = "2s"
max_bytes = "1MiB"
[encryption]
keys = ["file:{self.folder / "kek"}"]
[http]
listen = "127.0.0.1:0"
""")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        source = stack.enter_context(closing(PostgresServer(settings=SETTINGS)))
        target = stack.enter_context(closing(PostgresServer(settings={"fsync": False})))
        first = stack.enter_context(closing(S3Server(buckets=["archive"])))
        second = stack.enter_context(closing(S3Server(buckets=["archive"])))
        for server in (source, target, first, second):
            server.start()
        world = World(source, target, (first, second), tmp_path)
        world.write_config()
        yield world


def wait_until(condition: Any, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.5)


def make_bank(world: World) -> None:
    world.source.execute("CREATE DATABASE bank")
    pgbench = [str(world.source.bin("pgbench")), "-i", "-q", "-s", "10", world.source.dsn("bank")]
    subprocess.run(pgbench, check=True, capture_output=True)
    world.source.execute(
        "CREATE TABLE ledger (id bigserial PRIMARY KEY, client int, delta int, note text)", dbname="bank"
    )


def work_and_be_killed(world: World) -> list[datetime]:
    """A minute of pgbench; the daemon is killed at one and two thirds. Returns three moments within it."""
    script = world.folder / "transaction.sql"
    script.write_text(TRANSACTION % MARKER)
    daemon = world.start_daemon()
    wait_until(lambda: world.info()["snapshots"], 60, "the first base snapshot")
    pgbench = subprocess.Popen(
        [
            str(world.source.bin("pgbench")), "-n", "-c", "4", "-j", "2", "-T", str(SECONDS), "-s", "10",
            "-f", str(script), world.source.dsn("bank"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    moments = []
    for number in range(3):
        time.sleep(SECONDS / 4)
        moments.append(world.source.execute("SELECT clock_timestamp()")[0][0])
        if number < 2:
            time.sleep(SECONDS / 20)
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
            daemon = world.start_daemon()
    assert pgbench.wait(timeout=SECONDS + 30) == 0
    end = Lsn.parse(str(world.source.execute("SELECT pg_current_wal_insert_lsn()::text")[0][0])).before_page_header()
    wait_until(lambda: Lsn.parse(world.info()["window"]["end_lsn"]) >= end, 60, "the archive to catch up")
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=30) == 0, (world.folder / "daemon.log").read_text()[-3000:]
    return moments


def committed(world: World) -> dict[int, datetime]:
    """The truth, from the source itself: every ledger row and when it was committed."""
    rows = world.source.execute("SELECT id, pg_xact_commit_timestamp(xmin) FROM ledger", dbname="bank")
    return {int(row[0]): row[1] for row in rows}


def calm_moment(wanted: datetime, commits: list[datetime]) -> datetime:
    """The middle of the longest pause between commits near `wanted`: there, by time and by LSN is the same."""
    near = [at for at in sorted(commits) if abs(at - wanted) < timedelta(seconds=1)]
    before, after = max(pairwise(near), key=lambda pair: pair[1] - pair[0])
    return before + (after - before) / 2


def restore(world: World, name: str, *arguments: str) -> dict[str, Any]:
    world.target.execute(f"CREATE DATABASE {name}")
    output = world.archiver("restore", "--into", world.target.dsn(name), "--yes", "--json", *arguments)
    result: dict[str, Any] = json.loads(output)
    return result


def check(world: World, name: str, expected: set[int]) -> None:
    with psycopg.connect(world.target.dsn(name)) as conn:
        found = {row[0] for row in conn.execute("SELECT id FROM ledger").fetchall()}
        assert found == expected, f"missing {sorted(expected - found)[:5]}, extra {sorted(found - expected)[:5]}"
        sums = conn.execute(
            "SELECT (SELECT sum(delta) FROM ledger), (SELECT sum(delta) FROM pgbench_history),"
            " (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches)"
        ).fetchone()
        assert sums is not None
        assert len(set(sums)) == 1, sums
        counts = conn.execute(
            "SELECT count(*), (SELECT count(*) FROM pgbench_history) FROM pgbench_accounts"
        ).fetchone()
        assert counts == (1_000_000, len(expected))
        following = conn.execute("SELECT nextval('ledger_id_seq')").fetchone()
        assert following is not None
        assert following[0] > max(expected)
        assert conn.execute("SELECT to_regnamespace('archiver')").fetchone() == (None,)


def stored_bytes(server: S3Server) -> Iterator[tuple[str, bytes]]:
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="archive"):
        for entry in page.get("Contents", []):
            yield entry["Key"], client.get_object(Bucket="archive", Key=entry["Key"])["Body"].read()


@pytest.mark.timeout(900)
def test_a_killed_daemon_and_a_lost_source_lose_nothing(world: World) -> None:
    make_bank(world)
    world.archiver("key", "generate", str(world.folder / "kek"))
    world.archiver("init", "--keyless", "full")
    moments = work_and_be_killed(world)
    truth = committed(world)
    assert len(truth) > SECONDS * 10
    world.source.close()  # the source is gone, with all its files

    world.archiver("verify", "--read-data")
    for server in world.regions:
        for key, data in stored_bytes(server):
            assert MARKER.encode() not in data, key
    for number, wanted in enumerate(moments):
        moment = calm_moment(wanted, list(truth.values()))
        if number == 1:
            world.regions[0].stop()
        restore(world, f"moment{number}", "--target-time", moment.isoformat())
        check(world, f"moment{number}", {row for row, at in truth.items() if at <= moment})
        if number == 1:
            world.regions[0].start()
    restore(world, "latest", "--latest")
    check(world, "latest", set(truth))
