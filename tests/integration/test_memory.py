"""The daemon's memory is bounded, whatever the size of a transaction and beside a base snapshot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.fix_archive import MakeSetup, Setup

LIMIT_KIB = 256 * 1024
ROW_TIMES = 3  # docs/operations.md, "Memory"


def write_config(setup: Setup, path: Path) -> None:
    """The configuration as environment variables and a file, for a process of its own."""
    config = setup.config.model_dump(mode="json")
    lines = [f'[archive]\nname = "{config["archive"]["name"]}"', f'[source]\ndsn = "{setup.dsn}"']
    for region in config["region"]:
        lines.append("[[region]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in region.items() if value is not None]
    lines.append(f"[encryption]\nkeys = {json.dumps(config['encryption']['keys'])}")
    lines.append('[http]\nlisten = "127.0.0.1:0"')
    path.write_text("\n".join(lines) + "\n")


def peak_kib(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1])


@contextmanager
def running(setup: Setup, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in a process of its own, which drains at the end."""
    config = folder / "archiver.toml"
    write_config(setup, config)
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "archiver", "--config", str(config), "run"]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ.copy())
    try:
        yield daemon
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=30) == 0
    finally:
        daemon.kill()


@pytest.mark.alone
async def test_a_huge_transaction_and_a_base_snapshot_fit_into_256_mib(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE wide (id bigint PRIMARY KEY, a text, b text)")
        values = "repeat(md5(i::text), 8), repeat(md5((-i)::text), 8)"
        row = "INSERT INTO wide SELECT i, " + values + " FROM generate_series({}, {}) i"
        conn.execute(row.format(1, 300_000))
        await setup.init()
        with running(setup, tmp_path) as daemon:
            conn.execute("BEGIN")
            conn.execute(row.format(300_001, 800_000))  # 270 MB of messages in one transaction
            conn.execute("COMMIT")
            await setup.archived()
            peak = peak_kib(daemon.pid)
    assert peak < LIMIT_KIB, f"{peak // 1024} MiB\n{(tmp_path / 'log').read_text()[-2000:]}"


@pytest.mark.alone
async def test_a_row_of_200_mb_takes_a_few_times_its_size_and_comes_back(make_setup: MakeSetup, tmp_path: Path) -> None:
    """And a logical message of any size takes nothing: nobody asks for it."""
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute("CREATE TABLE wide (id int PRIMARY KEY, v bytea)")
        await setup.init()
        with running(setup, tmp_path) as daemon:
            await setup.archived()
            conn.execute("SELECT pg_logical_emit_message(true, 'archiver.ddl', repeat('x', 150000000))")
            await setup.archived()
            assert peak_kib(daemon.pid) < LIMIT_KIB
            conn.execute(
                "INSERT INTO wide SELECT 1, string_agg(sha512(i::text::bytea), '') FROM generate_series(1, 1562500) i"
            )
            await setup.archived()
            peak = peak_kib(daemon.pid)
        digest = conn.execute("SELECT md5(v), length(v) FROM wide").fetchone()
    assert peak < LIMIT_KIB + ROW_TIMES * (200 << 10), f"{peak // 1024} MiB"
    restored, _ = await setup.restore()
    with psycopg.connect(restored) as conn:
        assert conn.execute("SELECT md5(v), length(v) FROM wide").fetchone() == digest
