"""The demo: it proves what it claims, and leaves nothing behind, also when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from archiver.cli import demo_shop
from archiver.cli.demo_proof import compare, take_truth
from tests.fix_servers import MakeDatabase

COMMAND = [sys.executable, "-m", "archiver", "demo"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_demo_ends_with_a_restored_database_that_equals_the_source(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "PGSSLMODE": "verify-full", "AWS_PROFILE": "none"}
    result = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    for table in ("customers", "orders", "order_items", "products"):
        [line] = [line for line in result.stdout.splitlines() if line.startswith(f"public.{table} ")]
        _, source, restored, equal = line.split()
        assert source == restored
        assert equal == "yes"
    assert "the mistake: UPDATE" in result.stdout
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


async def test_the_proof_fails_for_a_database_that_only_looks_the_same(make_database: MakeDatabase) -> None:
    one, other = make_database(), make_database()
    for dsn in (one, other):
        await demo_shop.open_shop(dsn)  # as many rows in each, and other values
    truth = await take_truth(one)
    assert all(verdict.equal for verdict in await compare(truth, one))
    assert {verdict.name: verdict.equal for verdict in await compare(truth, other)}["public.customers"] is False


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        while "customers arrive" not in demo.stdout.readline():
            pass
        started = children(demo.pid)
        assert len(started) >= 3
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(30) == 128 + signal.SIGTERM
        assert demo.stderr is not None
        assert "Traceback" not in demo.stderr.read()
    time.sleep(0.2)
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []
