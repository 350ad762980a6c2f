"""The daemon's memory is bounded, whatever the size of a transaction and beside a base snapshot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fix_archive import Setup

LIMIT_KIB = 256 * 1024


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


@pytest.mark.alone
async def test_a_huge_transaction_and_a_base_snapshot_fit_into_256_mib(
    make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    setup = make_setup()
    config = tmp_path / "archiver.toml"
    write_config(setup, config)
    with setup.connect() as conn:
        conn.execute("CREATE TABLE wide (id bigint PRIMARY KEY, a text, b text)")
        values = "repeat(md5(i::text), 8), repeat(md5((-i)::text), 8)"
        row = "INSERT INTO wide SELECT i, " + values + " FROM generate_series({}, {}) i"
        conn.execute(row.format(1, 300_000))
        await setup.init()
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-m", "archiver", "--config", str(config), "run"]
            daemon = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ.copy())
        try:
            conn.execute("BEGIN")
            conn.execute(row.format(300_001, 800_000))  # 270 MB of messages in one transaction
            conn.execute("COMMIT")
            await setup.archived()
            peak = peak_kib(daemon.pid)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(timeout=30) == 0
        finally:
            daemon.kill()
    assert peak < LIMIT_KIB, f"{peak // 1024} MiB\n{(tmp_path / 'log').read_text()[-2000:]}"
