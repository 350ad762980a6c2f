"""A drill runs code of the source's roles, its superusers' programs included: what it can reach on this host, and who reaches it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from archiver.cli.check import check_drills
from archiver.config import DrillSection
from archiver.drill_copy import AS_OURSELVES, DisposableServer, choose, find_server, for_drill
from archiver.errors import ConfigError
from archiver.format.roles import Globals, Membership, Role
from archiver.postgres.client_programs import candidates
from archiver.postgres.snapshot import DatabaseInfo
from tests.fix_drill import Drilled

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server to another user")
DATABASE = DatabaseInfo(180000, "shop", "UTF8", "C", "C", None, None, True, 0, [], [], [], [], ["postgres", "app"])
Looks = Callable[[str], Awaitable[None]]


def postmaster(dsn: str) -> Path:
    """The process of the server behind a socket, in /proc."""
    folder = socket_folder(dsn).parent
    return Path("/proc") / (folder / "data" / "postmaster.pid").read_text().splitlines()[0]


def socket_folder(dsn: str) -> Path:
    return Path(str(psycopg.conninfo.conninfo_to_dict(dsn)["host"]))


def family(process: Path) -> list[Path]:
    children = (process / "task" / process.name / "children").read_text().split()
    return [process, *(Path("/proc") / child for child in children)]


async def look(pair: Drilled, at: Callable[[str], None]) -> None:
    """Look at the copy of a drill while it is there."""

    async def tamper(dsn: str) -> None:
        at(dsn)

    record = await pair.drill(tamper=tamper)
    assert record.verdict == "passed", record.error or record.failed


async def test_the_server_listens_on_a_socket_that_no_other_user_reaches_and_on_nothing_else(pair: Drilled) -> None:
    def at(dsn: str) -> None:
        folder, process = socket_folder(dsn), postmaster(dsn)
        assert folder.is_absolute()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == process.stat().st_uid
        assert folder.parent.stat().st_mode & 0o007 == 0
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SHOW listen_addresses").fetchone() == ("",)
        sockets = {str(fd.readlink()) for fd in (process / "fd").iterdir()}
        internet = [line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert not {f"socket:[{inode}]" for inode in internet} & sockets

    await look(pair, at)


@only_root
async def test_not_even_the_servers_own_user_can_connect(pair: Drilled) -> None:
    def at(dsn: str) -> None:
        account = pwd.getpwuid(postmaster(dsn).stat().st_uid)
        [psql, *_] = candidates("psql")
        result = subprocess.run(
            [psql, dsn],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            check=False,
            capture_output=True,
            text=True,
        )
        assert "Peer authentication failed" in result.stderr

    await look(pair, at)


async def test_the_server_sees_none_of_our_secrets(pair: Drilled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_KEK", "a secret of ours")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret of ours")
    monkeypatch.setenv("PGPASSWORD", "a secret of ours")

    def at(dsn: str) -> None:
        ours = os.geteuid()
        for process in family(Path("/proc/self").resolve()) + family(postmaster(dsn)):
            if process.name != str(os.getpid()):
                with suppress(ProcessLookupError, FileNotFoundError):  # a worker of the server may have ended
                    assert b"a secret of ours" not in (process / "environ").read_bytes()
        for process in family(postmaster(dsn)):
            with suppress(ProcessLookupError, FileNotFoundError):
                assert process.stat().st_uid != ours or ours != 0
                assert "archiver-" in str((process / "cwd").readlink())
        kek = pair.setup.config.encryption.keys[0].removeprefix("file:")
        Path(kek).chmod(0o600)
        if ours == 0:
            with psycopg.connect(dsn) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("SELECT pg_read_file(%s)", [kek])  # as superuser

    await look(pair, at)


async def test_a_role_called_like_a_superuser_is_none_unless_it_was_at_the_source() -> None:
    roles = Globals(
        passwords=True,
        roles=(
            Role("postgres", ("INHERIT", "LOGIN", "CREATEDB"), password="SCRAM-SHA-256$x"),
            Role("root", ("INHERIT", "LOGIN")),
            Role("boss", ("SUPERUSER", "LOGIN", "BYPASSRLS"), settings=("work_mem=1MB",)),
        ),
        memberships=(
            Membership("postgres", "root", admin=False),
            Membership("pg_execute_server_program", "postgres", admin=False),
        ),
    )
    place = DisposableServer(await find_server(18))
    try:
        dsn = await place.start(DATABASE, roles)
        with psycopg.connect(dsn) as conn:
            found = conn.execute(
                "SELECT rolname, rolsuper, rolcreatedb, rolbypassrls FROM pg_roles"
                " WHERE rolname !~ '^(pg|archiver)_' AND NOT rolcanlogin ORDER BY 1"
            ).fetchall()
            supers = conn.execute("SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin").fetchall()
            member = "SELECT pg_has_role('root', 'postgres', 'MEMBER'), pg_has_role('postgres', %s, 'MEMBER')"
            assert conn.execute(member, ["pg_execute_server_program"]).fetchone() == (True, False)
        assert found == [("boss", True, False, True), ("postgres", False, True, False), ("root", False, False, False)]
        [(ours,)] = supers
        assert ours.startswith("archiver_drill_")
        for name in ("postgres", "boss", "root"):
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                psycopg.connect(psycopg.conninfo.make_conninfo(dsn, user=name))
    finally:
        await place.destroy()
    assert (await place.describe()).destroyed


async def test_an_older_base_snapshot_has_its_roles_by_name_alone() -> None:
    place = DisposableServer(await find_server(18))
    try:
        with psycopg.connect(await place.start(DATABASE, None)) as conn:
            rights = (
                "SELECT rolname, rolsuper, rolcanlogin FROM pg_roles WHERE rolname IN ('postgres', 'app') ORDER BY 1"
            )
            assert conn.execute(rights).fetchall() == [("app", False, False), ("postgres", False, False)]
    finally:
        await place.destroy()


def test_no_password_of_the_source_comes_into_a_drill() -> None:
    made = for_drill(Globals(True, (Role("a", ("LOGIN", "INHERIT"), password="md5x", settings=("a.b=c",)),), ()))
    assert made == Globals(False, (Role("a", ("INHERIT",)),), ())


@only_root
async def test_the_server_runs_as_the_account_of_the_configuration(pair: Drilled) -> None:
    settings = pair.setup.config.drill.model_copy(update={"user": "games"})
    users = []

    async def look_at(dsn: str) -> None:
        users.extend(pwd.getpwuid(process.stat().st_uid).pw_name for process in family(postmaster(dsn)))

    place = await choose(None, settings, 180000)
    await place.check()
    record = await pair.drill(place, tamper=look_at)
    assert set(users) == {"games"}
    assert AS_OURSELVES not in record.deviations


@only_root
@pytest.mark.parametrize("account", ["nobody-of-that-name", "root"])
async def test_an_account_that_cannot_be_used_is_refused_before_anything_is_done(account: str) -> None:
    with pytest.raises(ConfigError) as refused:
        await DisposableServer(await find_server(18), account).check()
    assert refused.value.where == account


@pytest.mark.parametrize(
    ("settings", "uid", "status", "words"),
    [
        ({}, 0, "ok", "runs as nobody"),
        ({"user": "games"}, 0, "ok", "runs as games"),
        ({"user": "nobody-of-that-name"}, 0, "warn", "no such account"),
        ({}, pwd.getpwnam("games").pw_uid, "warn", "same user as archiver"),
        ({"user": "mail"}, pwd.getpwnam("games").pw_uid, "warn", "only root can run a server as another user"),
        ({}, 987654, "warn", "has no name on this host"),
        ({"dsn": "host=elsewhere"}, 10001, "ok", "[drill] dsn"),
    ],
)
def test_check_says_whom_a_drill_would_run_as(
    settings: dict[str, str], uid: int, status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    found = check_drills(DrillSection.model_validate(settings))
    assert (found.name, found.status) == ("drills", status)
    assert words in found.detail
    assert found.hint or status == "ok"


AS_NOBODY = """
import asyncio, concurrent.futures.thread, encodings.ascii, encodings.idna, os, pwd, psycopg
from archiver.drill_copy import DisposableServer, find_server
from archiver.errors import ConfigError
from tests.integration.test_drill_contained import DATABASE

async def main():
    bindir = await find_server(18)
    account = pwd.getpwnam("nobody")  # from here on: the interpreter itself may be out of its reach
    os.setgroups([]), os.setgid(account.pw_gid), os.setuid(account.pw_uid)
    place = DisposableServer(bindir)
    await place.check()
    try:
        dsn = await place.start(DATABASE, None)
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            print(await (await conn.execute("SHOW listen_addresses")).fetchone())
    finally:
        await place.destroy()
    print(*place.deviations)
    try:
        await DisposableServer(bindir, "games").check()
    except ConfigError as exc:
        print(exc)

asyncio.run(main())
"""


@only_root
def test_without_root_the_record_says_that_the_server_ran_as_we_do() -> None:
    result = subprocess.run([sys.executable, "-c", AS_NOBODY], check=False, capture_output=True, text=True)
    assert AS_OURSELVES in result.stdout, result.stderr
    assert result.stdout.startswith("('',)")
    assert "only root can run a server as another user (games)" in result.stdout
