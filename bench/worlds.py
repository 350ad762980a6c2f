"""What the benchmarks share: a source, two regions, configurations, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from archiver.embedded import PostgresServer, S3Server

SETTINGS: dict[str, str | int | bool] = {
    "wal_level": "logical",
    "max_replication_slots": 20,
    "max_wal_senders": 20,
    "max_connections": 50,
    "fsync": False,
    "synchronous_commit": "off",
    "shared_buffers": "512MB",
    "max_wal_size": "20GB",
    "checkpoint_timeout": "1h",
    "autovacuum": False,
}


def archiver(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "archiver", "--config", str(config), *arguments]


def run(*command: Any) -> str:
    """Run to its end; what it printed."""
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


def write_config(folder: Path, server: PostgresServer, regions: list[S3Server], number: int = 0) -> Path:
    """An archive of database `bench` with a slot and prefix of its own; all share the publication."""
    lines = [
        f'[archive]\nname = "bench{number}"',
        f'[source]\ndsn = "{server.dsn("bench")}"\npublication = "archiver_bench"',
    ]
    for name, region in zip(("first", "second"), regions, strict=True):
        lines.append(
            f'[[region]]\nname = "{name}"\nurl = "s3://bench/{number}"\nendpoint = "{region.endpoint}"\n'
            f'access_key_env = "BENCH_{name.upper()}_KEY"\nsecret_key_env = "BENCH_{name.upper()}_SECRET"'
        )
        os.environ[f"BENCH_{name.upper()}_KEY"] = region.access_key
        os.environ[f"BENCH_{name.upper()}_SECRET"] = region.secret_key
    lines.append('[segment]\nmax_age = "1s"')
    lines.append(f'[encryption]\nkeys = ["file:{folder}/kek"]\n[http]\nlisten = "127.0.0.1:0"')
    path = folder / f"archiver{number}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
