"""The commands as an operator uses them, from init to uninstall, on one archive with a daemon beside."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.embedded import S3Server
from archiver.embedded.process import free_ports
from tests.fix_cli import Site, make_site
from tests.fix_servers import drop_database

ROWS = 1000


@pytest.fixture(scope="module")
def running(
    pg: Any, s3_servers: tuple[S3Server, S3Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, subprocess.Popen[str]]]:
    """An archive in which a base snapshot, a restore point and a mistake lie, and its running daemon."""
    with ExitStack() as stack:
        pg.execute("CREATE DATABASE cli_commands_0cli")
        stack.callback(drop_database, pg, "cli_commands_0cli")
        for server in s3_servers:
            server.create_bucket("test-cli-commands")
        folder = tmp_path_factory.mktemp("cli")
        site = make_site(folder, pg.dsn("cli_commands_0cli"), "test-cli-commands", s3_servers)
        site.execute(f"INSERT INTO keyed SELECT g, 'right' FROM generate_series(1, {ROWS}) g")
        assert site.run("init").returncode == 0
        daemon = stack.enter_context(site.started("run"))
        site.wait_until(lambda: info(site)["snapshots"])
        site.execute("INSERT INTO keyed VALUES (0, 'late')")
        named = site.run("restore-point", "before the mistake", "--json")
        assert json.loads(named.stdout)["name"] == "before the mistake", named.stderr
        site.execute("UPDATE keyed SET v = 'wrong'")
        site.wait_until(lambda: info(site)["restore_points"])
        yield site, daemon


@pytest.fixture
def site(running: tuple[Site, subprocess.Popen[str]]) -> Site:
    return running[0]


@pytest.fixture
def target(pg: Any) -> Iterator[str]:
    """An empty database."""
    pg.execute("CREATE DATABASE cli_target")
    yield pg.dsn("cli_target")
    drop_database(pg, "cli_target")


def info(site: Site) -> dict[str, Any]:
    result = site.run("info", "--json")
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def contents(site: Site, dsn: str) -> dict[str, int]:
    return dict(site.execute("SELECT v, count(*) FROM keyed GROUP BY v", dsn))


# --- looking ---


def test_info_tells_programs_everything(site: Site) -> None:
    facts = info(site)
    assert list(facts["window"]) == ["earliest", "latest", "end_lsn"]
    assert [(r["name"], r["reachable"]) for r in facts["regions"]] == [("fra", True), ("dub", True)]
    assert facts["source"]["slot_active"]
    assert facts["snapshots"][0]["rows"] == ROWS
    assert facts["gaps"] == facts["holds"] == []
    assert facts["last_drill"] is None
    assert facts["segments"] > 0
    assert facts["raw_bytes"] > facts["stored_bytes"] > 0


def test_info_tells_people_the_same(site: Site) -> None:
    shown = site.run("info").stdout
    assert "recovery window  20" in shown
    assert "before the mistake" in shown
    assert "fra: newest manifest" in shown


def test_info_works_without_the_source_and_with_one_region(site: Site) -> None:
    site.extra = {"ARCHIVER_SOURCE__DSN": "postgresql://postgres@127.0.0.1:9/none", "DUB_SECRET": "wrong"}
    try:
        facts = info(site)
    finally:
        site.extra = {}
    assert facts["source"] is None
    assert [r["reachable"] for r in facts["regions"]] == [True, False]


def test_check_finds_everything_in_order(site: Site) -> None:
    result = site.run("check", "--json")
    document = json.loads(result.stdout)
    assert result.returncode == 0, document
    assert document["ok"]
    states = {check["name"]: check["status"] for check in document["checks"]}
    assert states["region fra"] == states["slot"] == states["publication"] == states["position"] == "ok"


def test_verify_reads_everything(site: Site) -> None:
    result = site.run("verify", "--read-data", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["ok"]


def test_verify_tells_a_region_that_it_cannot_ask_from_a_damaged_one(site: Site) -> None:
    site.extra = {"DUB_SECRET": "wrong"}
    try:
        result = site.run("verify", "--json")
    finally:
        site.extra = {}
    report = json.loads(result.stdout)
    assert result.returncode == 4, result.stderr
    assert (report["ok"], report["silent"], len(report["findings"])) == (False, ["dub"], 1)
    assert "could not be asked: dub" in result.stderr


def test_a_base_snapshot_beside_the_daemon(site: Site) -> None:
    before = len(info(site)["snapshots"])
    result = site.run("snapshot", "--json")
    assert json.loads(result.stdout)["rows"] == ROWS + 1, result.stderr
    assert len(info(site)["snapshots"]) == before + 1


@pytest.mark.parametrize("port", ["the same port", "another port"])
def test_a_second_daemon_gives_way_and_leaves_the_first_alone(
    running: tuple[Site, subprocess.Popen[str]], port: str
) -> None:
    site, daemon = running
    if port == "another port":
        site.extra = {"ARCHIVER_HTTP__LISTEN": f"127.0.0.1:{free_ports(1)[0]}"}
    try:
        second = site.run("run")
    finally:
        site.extra = {}
    assert second.returncode == 8, second.stderr
    assert "hint: Run one daemon" in second.stderr
    assert daemon.poll() is None
    assert info(site)["source"]["slot_active"]


def test_a_restore_point_has_a_name_of_its_own(site: Site) -> None:
    result = site.run("restore-point", "before the mistake")
    assert result.returncode == 2
    assert "hint:" in result.stderr


# --- restoring ---


def test_a_restore_point_is_restored(site: Site, target: str) -> None:
    result = site.run("restore", "--into", target, "--target-name", "before the mistake", "--yes", "--json")
    document = json.loads(result.stdout)
    assert document["result"]["rows_loaded"] == ROWS
    assert document["result"]["transactions_replayed"] == 1
    assert contents(site, target) == {"right": ROWS, "late": 1}


def test_latest_is_restored_from_one_region(site: Site, target: str) -> None:
    result = site.run("restore", "--into", target, "--latest", "--region", "dub", "--yes")
    assert result.returncode == 0, result.stderr
    assert "from dub" in result.stdout
    assert "last commit" in result.stdout
    assert contents(site, target) == {"wrong": ROWS + 1}


def test_a_dry_run_shows_the_plan_and_touches_nothing(site: Site, target: str) -> None:
    result = site.run("restore", "--into", target, "--latest", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "base snapshot" in result.stdout
    assert site.execute("SELECT relname FROM pg_class WHERE relname = 'keyed'", target) == []


def test_without_a_terminal_and_without_yes_nothing_is_restored(site: Site, target: str) -> None:
    result = site.run("restore", "--into", target, "--latest")
    assert result.returncode == 2
    assert "hint: Give --yes" in result.stderr
    assert site.execute("SELECT nspname FROM pg_namespace WHERE nspname = 'archiver'", target) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--target-time", "2026-11-22T03:00:00"], 2),
        (["--target-time", f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"], 6),
        (["--target-time", "2020-01-01T00:00:00Z"], 6),
        (["--target-lsn", "FFFF/0"], 6),
        (["--target-name", "never"], 6),
        (["--latest", "--region", "mars"], 2),
    ],
)
def test_targets_that_cannot_be_reached(site: Site, target: str, arguments: list[str], code: int) -> None:
    result = site.run("restore", "--into", target, "--yes", *arguments)
    assert result.returncode == code, result.stderr
    assert "\nhint: " in result.stderr
    assert "Traceback" not in result.stderr
    assert site.execute("SELECT relname FROM pg_class WHERE relname = 'keyed'", target) == []


def test_a_target_that_holds_something_is_refused_before_anybody_is_asked(site: Site, target: str) -> None:
    site.execute("CREATE TABLE mine (a int)", target)
    result = site.run("restore", "--into", target, "--latest")
    assert result.returncode == 3
    assert "not empty: table public.mine" in result.stderr
    assert "hint:" in result.stderr


def test_the_source_itself_is_refused(site: Site) -> None:
    result = site.run("restore", "--into", site.dsn, "--target-name", "before the mistake", "--yes")
    assert result.returncode == 2
    assert "the source database itself" in result.stderr
    assert contents(site, site.dsn) == {"wrong": ROWS + 1}


# --- the end; this test comes last, because it ends the daemon ---


def test_the_daemon_stops_in_order_and_the_source_is_cleaned(running: tuple[Site, subprocess.Popen[str]]) -> None:
    site, daemon = running
    refused = site.run("uninstall", "--yes")
    assert refused.returncode == 3
    assert "hint:" in refused.stderr
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30) == 0
    assert daemon.stderr is not None
    assert [line for line in daemon.stderr.read().splitlines() if not line.startswith("{")] == []
    assert site.run("uninstall", "--yes").returncode == 0
    assert [trace for trace in site.traces() if not trace.startswith("object ")] == []
