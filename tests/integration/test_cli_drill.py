"""`archiver drill` as a user runs it, on a host that only restores."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import psycopg
import pytest

from tests.fix_cli import Site
from tests.fix_drill import Drilled
from tests.fix_servers import MakeDatabase


@pytest.fixture
def shop(pair: Drilled) -> Site:
    """The command line beside an archive with two base snapshots, on a host that only restores."""
    config = pair.setup.config
    regions = "".join(f'[[region]]\nname = "{region.name}"\nurl = "{region.url}"\n' for region in config.region)
    settings = f"""
[archive]
name = "{config.archive.name}"
[encryption]
keys = ["{config.encryption.keys[0]}"]
{regions}"""
    return Site(pair.folder, pair.setup.dsn, "", (), {}, settings)


def test_the_command_drills_without_the_source_and_leaves_evidence(shop: Site) -> None:
    page = shop.folder / "drill.html"
    result = shop.run("drill", "--report", str(page))
    assert result.returncode == 0, result.stderr
    assert "PASSED" in result.stdout
    assert "recorded         in every region" in result.stdout
    assert "digests: done" in result.stderr
    assert "table public.plain" in page.read_text("utf-8")
    assert json.loads(shop.run("info", "--json").stdout)["last_drill"]["verdict"] == "passed"
    again = json.loads(shop.run("drill", "--last", "--json").stdout)
    assert (again["verdict"], again["recorded"]) == ("passed", True)
    assert again["regions"]["primary"] > 0
    # A drill that fails, on the same archive: it is recorded, and its page is written.
    shop.settings += '\n[drill]\nquery = "SELECT count(*) FROM public.plain"\nexpect = "1"\n'
    result = shop.run("drill", "--json", "--report", str(page))
    assert result.returncode == 7, result.stderr
    assert json.loads(result.stdout)["verdict"] == "failed"
    assert "error: the drill failed: 1 of" in result.stderr
    assert "FAILED" in page.read_text("utf-8")
    assert "last drill       failed, 1 of" in shop.run("info").stdout


def test_an_interrupted_drill_leaves_nothing_and_records_nothing(shop: Site) -> None:
    shop.settings += '\n[drill]\nquery = "SELECT pg_sleep(5)"\nexpect = ""\n'  # it must not be done before we interrupt
    with shop.started("drill") as process:
        servers: list[Path] = []
        shop.wait_until(lambda: servers.extend(disposable_servers(process.pid)) or servers)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=90)
        assert process.returncode == 130, stderr
    assert "nothing was recorded" in stderr
    assert not any(folder.exists() for folder in servers)
    assert json.loads(shop.run("info", "--json").stdout)["last_drill"] is None


def disposable_servers(parent: int) -> list[Path]:
    """The folders of the servers that a process runs."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text("ascii").split():
                command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                if command[0].endswith(b"/postgres") and b"-D" in command:  # not: postgres --version
                    found.append(Path(os.fsdecode(command[command.index(b"-D") + 1])).parent)
    return found


@pytest.mark.deep
def test_a_drill_into_a_database_with_a_target_of_its_own_counts_and_asks(
    shop: Site, make_database: MakeDatabase
) -> None:
    """Counts, constraints, and what the operator configured; the copy stays where --into said."""
    plain = shop.settings
    asked = {"SELECT count(*) FROM public.plain": "12", "SELECT max(name) FROM public.customer": "new"}
    for query, expect in asked.items():
        dsn = make_database()
        shop.settings = f'{plain}\n[drill]\nquery = "{query}"\nexpect = "{expect}"\n'
        result = shop.run("drill", "--into", dsn, "--latest", "--json")
        record = json.loads(result.stdout)
        checks = {check["name"]: check for check in record["checks"]}
        right = query != "SELECT count(*) FROM public.plain"  # whose rows went after the second base snapshot
        assert (result.returncode, record["verdict"]) == ((0, "passed") if right else (7, "failed")), result.stderr
        assert checks[f"query: {query}"]["passed"] is right
        assert checks["table public.customer"]["found"].startswith("550 rows, ")
        assert checks["constraints that are not validated"]["passed"]
        assert record["compared_lsn"] is None
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SELECT count(*) FROM public.customer").fetchone() == (550,)
    wrong = f'{plain}\n[drill]\nquery = "SELECT nothing FROM nowhere"\n'
    shop.settings = wrong
    result = shop.run("drill", "--into", make_database(), "--latest", "--json")
    assert result.returncode == 7
    assert "nowhere" in result.stdout


@pytest.mark.deep
def test_a_drill_that_cannot_be_recorded_keeps_its_page_and_says_so(shop: Site) -> None:
    (shop.folder / "secondary").rename(shop.folder / "away")
    page = shop.folder / "drill.html"
    result = shop.run("drill", "--report", str(page))
    assert result.returncode == 4, result.stderr
    assert "PASSED" in result.stdout
    assert "recorded         NO" in result.stdout
    assert "keep what --report and --json wrote" in result.stderr
    assert "passed" in page.read_text("utf-8")


def test_the_command_says_what_cannot_be_drilled(shop: Site) -> None:
    both = shop.run("drill", "--latest", "--target-lsn", "0/1")
    assert (both.returncode, "exactly one" in both.stderr) == (2, True)
    full = shop.run("drill", "--into", shop.dsn)
    assert (full.returncode, "not empty" in full.stderr) == (3, True)
    assert (shop.run("drill", "--last").returncode, shop.run("drill", "--target-lsn", "FF/0").returncode) == (6, 6)
