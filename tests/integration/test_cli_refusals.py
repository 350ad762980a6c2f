"""Every bad input gets its exit code, a hint and no traceback, and changes nothing anywhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from archiver.cli.key import write_key
from archiver.embedded import PostgresServer, S3Server
from tests.fix_cli import Result, Site, make_site
from tests.fix_servers import DEBIAN_15, PG_SETTINGS, MakeBucket, MakeDatabase


def assert_refused(result: Result, code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert any(line.startswith("error: ") for line in lines), result.stderr
    assert any(line.startswith("hint: ") for line in lines), result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


# --- configuration ---


def test_a_missing_configuration(site: Site) -> None:
    assert_refused(site.run_bare("init"), 2, "no configuration")
    assert_refused(site.run_bare("-c", str(site.folder / "none.toml"), "init"), 2, "none.toml")
    assert site.traces() == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda site: setattr(site, "settings", "[archive\nname ="), "not TOML"),
        (lambda site: site.replace("[segment]", "[segment]\nmax_agee = 1"), "segment.max_agee: unknown key"),
        (lambda site: site.replace('max_age = "300ms"', "max_age = 5"), "segment.max_age"),
        (lambda site: (site.folder / "kek").unlink(), "cannot read the key file"),
        (lambda site: (site.folder / "kek").write_text("secret"), "this is not a key"),
        (lambda site: site.replace(f"file:{site.folder}/kek", "env:NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (lambda site: site.variables.pop("FRA_SECRET"), "fra: secret_key_env"),
    ],
    ids=["not TOML", "unknown key", "no unit", "no key file", "no key in it", "no key in env", "no credentials in env"],
)
def test_an_unusable_configuration(site: Site, spoil: Callable[[Site], object], words: str) -> None:
    spoil(site)
    assert_refused(site.run("init"), 2, words)
    assert site.traces() == []


def test_a_key_file_is_never_overwritten(site: Site) -> None:
    before = (site.folder / "kek").read_text()
    assert_refused(site.run_bare("key", "generate", str(site.folder / "kek")), 2)
    assert (site.folder / "kek").read_text() == before


# --- regions ---


def test_a_bucket_that_is_not_there(site: Site) -> None:
    site.replace(f"s3://{site.bucket}/", f"s3://none-{secrets.token_hex(4)}/")
    assert_refused(site.run("init"), 4, "no such bucket")
    assert site.traces() == []


def test_refused_credentials(site: Site) -> None:
    site.variables["DUB_SECRET"] = "wrong"
    assert_refused(site.run("init"), 4, "dub")
    assert site.traces() == []


# --- the source ---


@pytest.fixture(scope="module")
def replica_pg() -> Iterator[PostgresServer]:
    """A server that nobody prepared for logical replication."""
    with closing(PostgresServer(settings=PG_SETTINGS | {"wal_level": "replica"})) as server:
        server.start()
        yield server


def test_a_server_without_logical_replication(
    replica_pg: PostgresServer,
    make_database: MakeDatabase,
    make_bucket: MakeBucket,
    tmp_path: Path,
    s3_servers: tuple[S3Server, S3Server],
) -> None:
    site = make_site(tmp_path, make_database(replica_pg), make_bucket(), s3_servers)
    assert_refused(site.run("init"), 3, "wal_level", "rds.logical_replication")
    checked = site.run("check")
    assert checked.returncode == 3
    assert "fail  wal_level" in checked.stdout
    assert site.traces() == []


def test_a_server_that_is_not_there(site: Site) -> None:
    site.replace(f'dsn = "{site.dsn}"', 'dsn = "postgresql://postgres@127.0.0.1:9/shop"')
    assert_refused(site.run("init"), 3)
    assert site.traces() == []


@pytest.fixture
def plain_role(pg: PostgresServer) -> Iterator[str]:
    name = f"plain_{secrets.token_hex(4)}"
    pg.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    pg.execute(f"DROP ROLE {name}")


def test_a_role_without_rights_is_told_which_it_lacks(site: Site, pg: PostgresServer, plain_role: str) -> None:
    site.replace(f'dsn = "{site.dsn}"', f'dsn = "{site.dsn.replace("postgres@", plain_role + "@")}"')
    assert_refused(site.run("init"), 3, f"ALTER ROLE {plain_role} REPLICATION")
    pg.execute(f"ALTER ROLE {plain_role} REPLICATION")
    assert_refused(site.run("init"), 3, "GRANT CREATE ON DATABASE", "no SELECT on public.keyed")
    assert site.traces() == []


def test_a_server_without_a_free_slot(site: Site, pg: PostgresServer) -> None:
    [(free,)] = pg.execute("SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_replication_slots")
    names = [f"taken_{number}" for number in range(free)]
    for name in names:
        pg.execute(f"SELECT pg_create_physical_replication_slot('{name}')")
    try:
        assert_refused(site.run("init"), 3, "0 of 20 free", "max_replication_slots")
    finally:
        for name in names:
            pg.execute(f"SELECT pg_drop_replication_slot('{name}')")
    assert site.traces() == []


def test_a_slot_of_that_name_for_another_database(site: Site, pg: PostgresServer) -> None:
    site.replace("[source]", '[source]\nslot = "somebody_elses"')
    pg.execute("SELECT pg_create_logical_replication_slot('somebody_elses', 'pgoutput')")
    try:
        assert_refused(site.run("init"), 3, "somebody else's")
    finally:
        pg.execute("SELECT pg_drop_replication_slot('somebody_elses')")
    assert site.traces() == []


def old_pg_dump(folder: Path) -> Path:
    """Debian's pg_dump 15, or where there is none a script that says it is one."""
    if (DEBIAN_15 / "pg_dump").exists():
        return DEBIAN_15 / "pg_dump"
    script = folder / "pg_dump"
    script.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 15.13'\n")
    script.chmod(0o755)
    return script


def test_a_pg_dump_older_than_the_server(site: Site) -> None:
    site.settings += f'\n[snapshot]\npg_dump = "{old_pg_dump(site.folder)}"\n'
    assert_refused(site.run("init"), 3, "pg_dump 15 is older")
    assert "fail  pg_dump" in site.run("check").stdout
    assert site.traces() == []


# --- tables without a key ---


def test_tables_without_a_key_need_a_decision(site: Site) -> None:
    site.execute("CREATE TABLE keyless (a int)")
    assert_refused(site.run("init"), 3, "public.keyless", "--keyless full")
    assert site.traces() == []


PUBLISHED = "SELECT tablename FROM pg_publication_tables WHERE schemaname <> 'archiver'"


@pytest.mark.parametrize("choice", ["full", "exclude"])
def test_both_decisions_about_tables_without_a_key(site: Site, choice: str) -> None:
    site.execute("CREATE TABLE keyless (a int)")
    for arguments in (("--keyless", choice), ()):  # the second time, what was decided holds
        result = site.run("init", *arguments)
        assert result.returncode == 0, result.stderr
    published = {name for (name,) in site.execute(PUBLISHED)}
    assert published == ({"keyed", "keyless"} if choice == "full" else {"keyed"})
    site.execute("INSERT INTO keyless VALUES (1); UPDATE keyless SET a = 2; DELETE FROM keyless")


# --- a slot that has to wait ---


def test_the_transaction_that_keeps_the_slot_from_being_made_is_named(site: Site) -> None:
    with psycopg.connect(site.dsn) as blocker:
        blocker.execute("INSERT INTO keyed VALUES (1)")
        pid = blocker.info.backend_pid
        result = site.run("init", "--wait", "2500ms")
        assert_refused(result, 3, f"waiting for a transaction to end: pid {pid} of postgres", "since")
        assert f"pg_terminate_backend({pid})" in result.stderr
        blocker.rollback()
    assert site.traces() == []
    assert site.run("init").returncode == 0


def test_init_goes_on_when_the_transaction_in_the_way_ends(site: Site) -> None:
    with psycopg.connect(site.dsn) as blocker:
        blocker.execute("INSERT INTO keyed VALUES (1)")
        with site.started("init") as process:
            assert process.stderr is not None
            assert "waiting for a transaction" in process.stderr.readline()
            blocker.commit()
            assert process.wait(20) == 0


# --- the wrong archive, the wrong key ---


def test_another_databases_archive(site: Site, make_database: MakeDatabase) -> None:
    assert site.run("init").returncode == 0
    mine = site.traces()
    other = make_database()
    site.replace(f'dsn = "{site.dsn}"', f'dsn = "{other}"')
    first, site.dsn = site.dsn, other
    assert_refused(site.run("init"), 2, "belongs to database")
    assert not any(not trace.startswith("object ") for trace in site.traces())
    assert_refused(site.run("run"), 2, "belongs to database")
    site.dsn = first
    assert site.traces() == mine


def test_another_key(site: Site) -> None:
    assert site.run("init").returncode == 0
    before = site.traces()
    (site.folder / "kek").unlink()
    write_key(site.folder / "kek")
    for command in ("init", "run", "info", "check"):
        result = site.run(command)
        assert result.returncode == 5, (command, result.stderr)
        assert "none of the configured keys opens the archive" in result.stderr + result.stdout
    assert site.traces() == before


def test_an_older_server_is_checked_and_set_up(
    pg15: PostgresServer,
    make_database: MakeDatabase,
    make_bucket: MakeBucket,
    tmp_path: Path,
    s3_servers: tuple[S3Server, S3Server],
) -> None:
    site = make_site(tmp_path, make_database(pg15), make_bucket(), s3_servers)
    assert site.run("init").returncode == 0
    checked = site.run("check")
    assert checked.returncode == 0, checked.stdout
    assert "PostgreSQL 15" in checked.stdout
