"""What a soak runs on: a source under pgbench, two S3 servers, and a daemon that may be killed. Traffic is loopback only."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg

from archiver.embedded import PostgresServer, S3Server
from archiver.lsn import Lsn
from tests.fault_proxy import FaultProxy

SETTINGS: dict[str, str | int | bool] = {
    "wal_level": "logical",
    "max_connections": 50,
    "fsync": True,  # the source itself must not lose what it committed when it is killed
    "logical_decoding_work_mem": "1MB",  # so that larger transactions are streamed while they are open
    "wal_sender_timeout": "5s",
}
LEDGER = """
CREATE TABLE ledger (id bigserial PRIMARY KEY, client int, delta int, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE note (line text);
"""
SCRIPT = r"""
\set delta random(-5000, 5000)
\set account random(1, 100000 * :scale)
\set rows random(1, 40)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :account;
INSERT INTO ledger (client, delta) VALUES (:client_id, :delta);
INSERT INTO note SELECT repeat(md5(random()::text), 3) FROM generate_series(1, :rows);
DELETE FROM note WHERE ctid = ANY (ARRAY(SELECT ctid FROM note LIMIT :rows));
END;
"""


class World:
    """Servers and daemon of one soak; everything it starts ends with `close`."""

    def __init__(self, durability: dict[str, str], clients: int, rate: int) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        self.source = self._stack.enter_context(closing(PostgresServer(settings=SETTINGS)))
        self.regions = [self._stack.enter_context(closing(S3Server(buckets=["soak"]))) for _ in range(2)]
        for server in (self.source, *self.regions):
            server.start()
        self.proxies = [self._stack.enter_context(FaultProxy(region.endpoint)) for region in self.regions]
        self.dsn = self.source.dsn("soak")
        self._config = self._write_config(durability)
        self._load: subprocess.Popen[bytes] | None = None
        self._clients, self._rate = clients, rate
        self.daemon: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.ended: list[str] = []
        """What the daemon said when it ended by itself."""

    def prepare(self) -> None:
        self.source.execute("CREATE DATABASE soak")
        self.run(self.source.bin("pgbench"), "-i", "-q", "-s", "1", self.dsn)
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(LEDGER)
        (self.folder / "load.sql").write_text(SCRIPT)
        self.archiver("key", "generate", str(self.folder / "kek"))
        self.archiver("init", "--keyless", "full")

    def close(self) -> None:
        self.stop_load()
        self.kill_daemon()
        self._stack.close()

    # --- programs ---

    def run(self, *command: Any, allowed: Collection[int] = ()) -> str:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode and done.returncode not in allowed:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def psql(self, text: str) -> None:
        self.run(self.source.bin("psql"), "-qX", "-d", self.dsn, "-c", text)

    def archiver(self, *arguments: str, allowed: Collection[int] = ()) -> str:
        return self.run(*self._command(*arguments), allowed=allowed)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "archiver", "--config", str(self._config), *arguments]

    def start_daemon(self) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(self._command("run"), stdout=log, stderr=log)
        self.starts += 1

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()

    def require_daemon(self) -> None:
        """Start the daemon again if it ended: only an error of the source's or a region's absence may end it."""
        if self.daemon is None or (code := self.daemon.poll()) is None:
            return
        if code not in {-9, 3, 4}:
            raise RuntimeError(f"the daemon ended with {code}: {self.log()}")
        self.ended += [f"{code}: {line}" for line in self.log().splitlines() if line.startswith("error: ")][-1:]
        self.start_daemon()

    def log(self) -> str:
        return (self.folder / "daemon.log").read_text()[-3000:]

    def start_load(self) -> None:
        """pgbench until told otherwise; it ends when the source is restarted, and is started again."""
        if self._load is None or self._load.poll() is not None:
            command = [self.source.bin("pgbench"), "-n", "-T", "1000000", "-c", self._clients, "-R", self._rate]
            command += ["-f", self.folder / "load.sql", "-s", "1", self.dsn]
            words = [str(word) for word in command]
            self._load = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop_load(self) -> None:
        if self._load is not None:
            self._load.terminate()
            self._load.wait()
            self._load = None

    # --- what is so ---

    def ask(self, query: str) -> Any:
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as conn:
            row = conn.execute(query.encode()).fetchone()
        return row[0] if row else None

    def confirmed(self) -> Lsn:
        return Lsn.parse(self.ask("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = 'soak'"))

    def catch_up(self, seconds: float = 180) -> None:
        """Wait until what the source has written now is confirmed."""
        written = Lsn.parse(self.ask("SELECT pg_current_wal_insert_lsn()::text")).before_page_header()
        deadline = time.monotonic() + seconds
        while self.confirmed() < written:
            self.require_daemon()
            if time.monotonic() > deadline:
                raise RuntimeError(f"not archived within {seconds} s: {self.confirmed()} < {written}: {self.log()}")
            time.sleep(0.5)

    def _write_config(self, durability: dict[str, str]) -> Path:
        lines = ['[archive]\nname = "soak"', f'[source]\ndsn = "{self.dsn}"', "[durability]"]
        lines += [f'{key} = "{value}"' for key, value in durability.items()]
        for number, (region, proxy) in enumerate(zip(self.regions, self.proxies, strict=True)):
            os.environ[f"SOAK_{number}_KEY"] = region.access_key
            os.environ[f"SOAK_{number}_SECRET"] = region.secret_key
            lines.append(
                f'[[region]]\nname = "region{number}"\nurl = "s3://soak/shop"\nendpoint = "{proxy.endpoint}"\n'
                f'access_key_env = "SOAK_{number}_KEY"\nsecret_key_env = "SOAK_{number}_SECRET"'
            )
        lines.append('[segment]\nmax_age = "300ms"\nmax_bytes = "256KiB"\n[snapshot]\nevery = "5m"')
        lines.append(f'[encryption]\nkeys = ["file:{self.folder}/kek"]\n[http]\nlisten = "127.0.0.1:0"')
        path = self.folder / "archiver.toml"
        path.write_text("\n".join(lines) + "\n")
        return path
