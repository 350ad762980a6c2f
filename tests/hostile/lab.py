"""Two servers, an archive in a folder, and restores of each frozen moment, which the judge compares with the source."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from archiver.embedded import PostgresServer
from archiver.errors import ArchiverError, TargetUnreachable
from archiver.lsn import Lsn
from archiver.policy.target import ToLsn
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.fix_archive import Setup
from tests.fuzz.gen import Gen
from tests.fuzz.lab import SETTINGS, Lab
from tests.fuzz.script import FREEZE, INIT, Step
from tests.fuzz.statements import statement
from tests.fuzz.world import look
from tests.hostile import judge
from tests.hostile.gen import DBA, NEIGHBOUR
from tests.integration.whole_chain import take_another_snapshot

KINDS: Final = ("a superuser", "elsewhere", "an owner", "elsewhere, with roles")
TIMEOUT: Final = 20
"""Seconds of a restore: one that hangs is a finding."""
_OPTIONS: Final = "-c lock_timeout=2s -c statement_timeout=20s -c client_min_messages=error"
_ROLES: Final = "SELECT rolname FROM pg_roles WHERE oid >= 16384 ORDER BY oid"

Steps = Iterable[Step]


@dataclass(slots=True)
class _Frozen:
    lsn: Lsn
    held: dict[bool, judge.Held]


@dataclass
class _Source:
    """The source of one attempt, and what it was at the end of each phase."""

    setup: Setup
    marker: Path
    roles: list[str] = field(default_factory=list)
    frozen: list[_Frozen] = field(default_factory=list)
    connections: dict[int, psycopg.Connection[Any]] = field(default_factory=dict)

    def connect(self, number: int) -> psycopg.Connection[Any]:
        if number not in self.connections:
            self.roles = self.roles if len(self.roles) > 3 else _roles(self.setup.dsn)
            user = {} if number == 1 else {"user": self.roles[number - 2]}
            self.connections[number] = psycopg.connect(self.setup.dsn, autocommit=True, options=_OPTIONS, **user)
        return self.connections[number]

    def execute(self, step: Step) -> str:
        conn = self.connect(step.connection)
        try:
            text = step.text.replace("<MARKER>", str(self.marker)).replace("<SOURCE>", conn.info.dbname)
            conn.execute(text.encode())
        except psycopg.Error as exc:
            if conn.closed:
                del self.connections[step.connection]
            elif conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                conn.execute("ROLLBACK")
            return str(exc).partition("\n")[0]
        finally:
            if step.connection == DBA and DBA in self.connections:
                # What his ANALYZE runs of evil's code may leave settings in his session: PostgreSQL's rule, not ours.
                self.connections.pop(DBA).close()
        return "ok"

    def evil(self) -> set[str]:
        """Evil and the outsider, as PostgreSQL quotes them."""
        with psycopg.connect(self.setup.dsn) as conn:
            found = conn.execute("SELECT quote_ident(r) FROM unnest(%s::text[]) r", [[self.roles[0], self.roles[3]]])
            return {name for (name,) in found.fetchall()}


def _roles(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as conn:
        return [name for (name,) in conn.execute(_ROLES).fetchall()]


class HostileLab(Lab):
    """Runs attempts one after the other; use it as a context.

    `every`: each moment is restored in each way. Otherwise in one way, which is another one for the next attempt.
    `may_stop`: a restore may end with an error, as long as it changes nothing.
    """

    def __init__(self, *, every: bool = False) -> None:
        super().__init__()
        self.every = every
        self.may_stop = False
        self.turn = 0
        self.stopped: list[str] = []
        self.refused: list[str] = []

    def __enter__(self) -> HostileLab:
        super().__enter__()
        self.other = self._stack.enter_context(closing(PostgresServer(settings=SETTINGS)))
        self.other.start()
        self.marker = Path(mkdtemp(prefix="hostile-"))
        self._stack.callback(self.marker.rmdir)
        self.marker.chmod(0o777)
        return self

    async def attempt(self, source: Callable[[Any], Steps]) -> list[str]:
        """What went wrong; `steps` and `outcomes` tell what was done."""
        self.steps, self.outcomes, self.stopped, self.refused = [], [], [], []
        with ExitStack() as made:
            made.callback(self._clear)
            world = _Source(self._setup(made), self.marker)
            try:
                wrong = await self._drive(world, source(None))
            except (ArchiverError, TimeoutError) as exc:
                return [f"the source: {type(exc).__name__}: {exc}"]
            finally:
                for conn in world.connections.values():
                    conn.close()
            return wrong or await self._restores(world)

    # --- The source

    async def _drive(self, world: _Source, steps: Steps) -> list[str]:
        steps = iter(steps)
        for step in steps:
            if step.text == INIT:
                break
            await self._do(world, step)
        self.steps.append(Step(0, INIT))
        before = judge.cluster(world.setup.dsn, self.marker)
        await world.setup.init()
        async with world.setup.daemon():
            await world.setup.archived()
            for step in steps:
                await self._do(world, step)
        after = judge.cluster(world.setup.dsn, self.marker) | {"member": before["member"]}
        traces = [trace for frozen in world.frozen for trace in frozen.held[True].traces]
        return [f"at the source: {each}" for each in judge.changed(after, before) + traces]

    async def _do(self, world: _Source, step: Step) -> None:
        if step.text == FREEZE:
            self.steps.append(step)
            await self._freeze(world)
            return
        if step.connection == NEIGHBOUR and not step.text:
            step = Step(NEIGHBOUR, self._neighbours(world))
        self.steps.append(step)
        self.outcomes.append(await asyncio.to_thread(world.execute, step))

    def _neighbours(self, world: _Source) -> str:
        """What tests/fuzz would do to his own schema; it fails wherever he may not."""
        conn, number = world.connect(NEIGHBOUR), len(self.steps)
        seen = look(conn)
        seen.tables = [table for table in seen.tables if table.schema == "hood"]
        seen.others = [each for each in seen.others if each.full.startswith("hood")]
        gen = Gen(random.Random(f"{number} {self.steps[0]}"), seen, idle=False, number=number, server_version=170000)
        return statement(gen)

    async def _freeze(self, world: _Source) -> None:
        with world.setup.connect() as conn:
            row = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            lsn = Lsn.parse(row[0]).before_page_header()
            conn.execute("SELECT pg_current_xact_id()")  # wakes the WAL writer: all up to here is sent soon
        evil = world.evil()
        looks = {owners: judge.held(world.setup.dsn, evil, owners=owners) for owners in (True, False)}
        world.frozen.append(_Frozen(lsn, looks))
        await world.setup.archived(lsn)
        await take_another_snapshot(world.setup)

    # --- The restores

    async def _restores(self, world: _Source) -> list[str]:
        """To each moment by replay, and to the last one once more, from the base snapshot behind it."""
        last = world.frozen[-1]
        with world.setup.connect() as conn:
            row = conn.execute(
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = current_database() AND NOT temporary"
            ).fetchone()
        assert row is not None
        moments = [(frozen.lsn, frozen, "replayed") for frozen in world.frozen]
        moments.append((Lsn.parse(row[0]), last, "loaded"))
        wrong = []
        for number, (lsn, frozen, how) in enumerate(moments):
            for kind in KINDS if self.every else [KINDS[(number + self.turn) % len(KINDS)]]:
                wrong += [f"{how} by {kind}: {each}" for each in await self._restore(world, lsn, frozen, kind)]
        self.turn += len(moments)
        return wrong

    async def _restore(self, world: _Source, lsn: Lsn, frozen: _Frozen, kind: str) -> list[str]:
        elsewhere = kind.startswith("elsewhere")
        dsn = self._elsewhere() if elsewhere else world.setup.make_database(stem="restored")
        connect_as = self._manager(dsn, world) if kind == "an owner" else dsn
        before = judge.cluster(dsn, self.marker)
        self.restores += 1
        error = ""
        try:
            async with world.setup.open() as archive, asyncio.timeout(TIMEOUT):
                plan = await make_plan(archive, ToLsn(lsn))
                await run_restore(archive, plan, connect_as, with_globals=kind == "elsewhere, with roles")
        except TargetUnreachable as exc:  # an owner may lose what is his: a base snapshot follows
            self.refused.append(f"{kind}: {exc}")
            return []
        except ArchiverError as exc:
            error = f"{type(exc).__name__}: {exc}"
        except TimeoutError:
            error = f"it hung for {TIMEOUT} s"
        after = judge.cluster(dsn, self.marker)
        wrong = self._outside(world, after, before, kind)
        if error:
            self.stopped.append(f"{kind}: {error}")
            wrong += [] if self.may_stop and "hung" not in error else [f"it stopped: {error}"]
        else:
            owners = kind == "a superuser"
            wrong += judge.compared(judge.held(dsn, world.evil(), owners=owners), frozen.held[owners], owners=owners)
        for path in self.marker.iterdir():
            path.unlink()
        return wrong

    def _outside(self, world: _Source, after: dict[str, Any], before: dict[str, Any], kind: str) -> list[str]:
        """Elsewhere roles of the source may have come, as they are there or as stand-ins that can do nothing."""
        if not kind.startswith("elsewhere"):
            return judge.changed(after, before)
        came = [name for name, _ in after["role"] if name not in dict(before["role"])]
        wrong = [f"role {name!r} came" for name in came if name not in world.roles]
        with psycopg.connect(self.other.dsn()) as conn:
            able = "rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls"
            able += "" if kind.endswith("roles") else " OR rolcanlogin"
            query = f"SELECT rolname FROM pg_roles WHERE rolname = ANY (%s::text[]) AND ({able})"
            wrong += [f"role {name!r} may more" for (name,) in conn.execute(query.encode(), [came]).fetchall()]
        after = after | {"role": [each for each in after["role"] if each[0] not in came]}
        if kind.endswith("roles"):
            after["member"] = before["member"]
        return wrong + judge.changed(after, before)

    def _elsewhere(self) -> str:
        name = f"restored_{self.restores}"
        for (database,) in self.other.execute("SELECT datname FROM pg_database WHERE datname ~ '^restored_'"):
            self.other.execute(f"DROP DATABASE {database} WITH (FORCE)")
        _drop_roles(self.other)
        self.other.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.other.dsn(name)

    def _manager(self, dsn: str, world: _Source) -> str:
        """As on a managed service: he owns the target, and may grant the roles that own what is in it."""
        with psycopg.connect(dsn, autocommit=True) as conn:
            with suppress(psycopg.errors.DuplicateObject):
                conn.execute("CREATE ROLE manager LOGIN")
            for role in world.roles[:4]:
                conn.execute(
                    psycopg.sql.SQL("GRANT {} TO manager WITH ADMIN OPTION").format(psycopg.sql.Identifier(role))
                )
            conn.execute(f"ALTER DATABASE {conninfo_to_dict(dsn)['dbname']} OWNER TO manager".encode())
        return make_conninfo(dsn, user="manager")

    def _clear(self) -> None:
        for path in self.marker.iterdir():
            path.unlink()
        _drop_roles(self.server)


def _drop_roles(server: PostgresServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        for (role,) in conn.execute(_ROLES).fetchall():
            name = psycopg.sql.Identifier(role)
            conn.execute(psycopg.sql.SQL("REASSIGN OWNED BY {} TO CURRENT_USER").format(name))
            conn.execute(psycopg.sql.SQL("DROP OWNED BY {} CASCADE").format(name))
            conn.execute(psycopg.sql.SQL("DROP ROLE {}").format(name))
