"""Runs PostgreSQL's regression tests against a source under capture, restores, and compares: `make regress`.

`python -m tests.regress.run --sources FOLDER [--source BINDIR] [--target BINDIR] [--only TEST,…]`. The state of the
source is dumped between groups of tests, when nothing runs, and each of these moments is restored.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from archiver.archive import OpenArchive
from archiver.cli.key import write_key
from archiver.config import Config
from archiver.embedded import PostgresServer
from archiver.errors import ArchiverError
from archiver.lsn import Lsn
from archiver.policy.target import ToLsn
from archiver.postgres.client_programs import candidates
from archiver.recovery_plan import make_plan
from archiver.restore import run_restore
from tests.fix_archive import Setup
from tests.fix_servers import PG_SETTINGS
from tests.integration.whole_chain import take_another_snapshot
from tests.regress import schedule
from tests.regress.compare import Objects, different, objects

SETTINGS = PG_SETTINGS | {
    "max_prepared_transactions": 2,
    "max_connections": 60,
    "max_locks_per_transaction": 512,
    "logical_decoding_work_mem": "1MB",
    "timezone": "PST8PDT",
}
# As pg_regress sets them.
DATABASE = (
    "SET lc_messages TO 'C'", "SET lc_monetary TO 'C'", "SET lc_numeric TO 'C'", "SET lc_time TO 'C'",
    "SET bytea_output TO 'hex'", "SET timezone_abbreviations TO 'Default'",
)  # fmt: skip
SESSION = {
    "PGTZ": "PST8PDT",
    "PGDATESTYLE": "Postgres, MDY",
    "PGOPTIONS": "-c intervalstyle=postgres_verbose",
    "LANG": "C",
}
SHOWN = 12
"""Lines of a difference."""


@dataclass
class Moment:
    """What the source held when nothing ran."""

    after: str
    lsn: Lsn
    objects: Objects


@dataclass
class Suite:
    """One run: the source with its archive, and the moments that are compared."""

    setup: Setup
    home: Path
    scratch: Path
    output: Path
    rng: random.Random
    moments: list[Moment] = field(default_factory=list)
    snapshots: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self, groups: Sequence[Sequence[str]], moments: int, snapshots: int) -> None:
        kept = set(self.rng.sample(range(len(groups)), min(moments, len(groups)))) | {len(groups) - 1}
        beside = set(self.rng.sample(range(len(groups)), min(snapshots, len(groups))))
        await self.setup.init()
        async with self.setup.daemon():
            await self.setup.archived()
            for number, group in enumerate(groups):
                say(f"{number + 1}/{len(groups)}: {' '.join(group)}")
                running = [asyncio.to_thread(self._psql, test) for test in group]
                if number in beside:
                    running.append(self._snapshot())
                await asyncio.gather(*running)
                if number in kept:
                    self.moments.append(await asyncio.to_thread(self._moment, group[-1]))
            await self.setup.archived()

    async def _snapshot(self) -> None:
        await asyncio.sleep(self.rng.random() * 2)
        try:
            await take_another_snapshot(self.setup)
            self.snapshots += 1
        except ArchiverError as exc:
            self.failures.append(f"a base snapshot in the midst: {exc}")

    def _psql(self, test: str) -> None:
        """What a test prints is PostgreSQL's own affair."""
        environment = {
            **os.environ,
            **SESSION,
            "PG_ABS_SRCDIR": str(self.home),
            "PG_ABS_BUILDDIR": str(self.scratch),
            "PG_LIBDIR": "/nowhere",
            "PG_DLSUFFIX": ".so",
        }
        [psql, *_] = candidates("psql")
        command = [
            psql,
            "-X",
            "-a",
            "-q",
            "-d",
            self.setup.dsn,
            "-v",
            "HIDE_TABLEAM=on",
            "-v",
            "HIDE_TOAST_COMPRESSION=on",
        ]
        with (self.output / f"{test}.out").open("wb") as out:
            ended = subprocess.run(
                [*command, "-f", self.home / "sql" / f"{test}.sql"],
                env=environment, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False, cwd=self.scratch, timeout=600,
            )  # fmt: skip
        if ended.returncode != 0:  # what a statement of it says is no error of psql's
            self.failures.append(f"{test} did not run: psql ended with {ended.returncode}")

    def _moment(self, after: str) -> Moment:
        found = objects(self.setup.dsn)
        with self.setup.connect() as conn:
            [(lsn,)] = conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
            conn.execute("SELECT pg_current_xact_id()")
        return Moment(after, Lsn.parse(lsn).before_page_header(), found)

    # --- restoring

    async def compare(self, server: PostgresServer, label: str, *, with_globals: bool) -> None:
        allowed = schedule.objects_left_out()
        for moment in self.moments:
            name = f"{label} after {moment.after}, {moment.lsn}"
            dsn = self._fresh(server)
            async with self.setup.open() as archive:
                if not await self._restore(archive, moment, dsn, name, with_globals=with_globals):
                    continue
            found = await asyncio.to_thread(objects, dsn)
            wrong = [
                each for each in different(found, moment.objects) if not any(p.fullmatch(each.name) for p, _ in allowed)
            ]
            self.failures += [f"{name}: {each.name}\n{each.lines(SHOWN)}" for each in wrong]
            say(f"{name}: {len(wrong)} of {len(moment.objects)} objects differ")

    async def _restore(self, archive: OpenArchive, moment: Moment, dsn: str, name: str, *, with_globals: bool) -> bool:
        try:
            plan = await make_plan(archive, ToLsn(moment.lsn))
            await run_restore(archive, plan, dsn, with_globals=with_globals)
        except ArchiverError as exc:
            self.failures.append(f"{name}: {exc}" + (f" ({exc.where})" if exc.where else ""))
            say(self.failures[-1])
            return False
        return True

    def _fresh(self, server: PostgresServer) -> str:
        server.execute("DROP DATABASE IF EXISTS regress_restored WITH (FORCE)")
        server.execute("CREATE DATABASE regress_restored TEMPLATE template0")
        return server.dsn("regress_restored")


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def prepare(server: PostgresServer, folder: Path) -> Setup:
    server.execute("CREATE DATABASE regression TEMPLATE template0")
    for setting in DATABASE:
        server.execute(f"ALTER DATABASE regression {setting}")
    write_key(folder / "kek")
    regions = [{"name": name, "url": f"file://{folder}/{name}"} for name in ("primary", "secondary")]
    for region in ("primary", "secondary"):
        (folder / region).mkdir()
    config = {
        "archive": {"name": "regress"},
        "source": {"dsn": server.dsn("regression")},
        "region": regions,
        "encryption": {"keys": [f"file:{folder / 'kek'}"]},
        "segment": {"max_age": "500ms"},
        "http": {"listen": "127.0.0.1:0"},
    }
    return Setup(server.dsn("regression"), Config.model_validate(config), lambda **_: "")


def started(stack: ExitStack, bindir: Path | None) -> PostgresServer:
    server = stack.enter_context(closing(PostgresServer(settings=SETTINGS, bindir=bindir)))
    server.start()
    return server


def shared(folder: Path) -> Path:
    """A folder in it where the server may write, whoever it runs as."""
    folder.chmod(0o755)
    scratch = folder / "scratch"
    (scratch / "results").mkdir(parents=True)
    for each in (scratch, scratch / "results"):
        each.chmod(0o777)
    return scratch


async def main(options: argparse.Namespace) -> int:
    left_out = schedule.tests_left_out()
    groups = schedule.read(options.sources, left_out)
    if options.only:
        groups = schedule.third(groups, frozenset(options.only.split(",")))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="regress-")))
        scratch = shared(folder)
        source = started(stack, options.source)
        suite = Suite(
            prepare(source, folder), options.sources, scratch, options.output or scratch, random.Random(options.seed)
        )
        began = time.monotonic()
        await suite.run(groups, options.moments, options.snapshots)
        say(f"the suite took {time.monotonic() - began:.0f} s; {suite.snapshots} base snapshots in the midst of it")
        await suite.compare(source, "same server", with_globals=False)
        if options.target != options.source:
            other = started(stack, options.target)
            await suite.compare(other, "other version", with_globals=True)
        if options.keep:
            options.keep.write_text("\n\n".join(suite.failures), "utf-8")
    for failure in suite.failures:
        print(f"\n{failure}")
    print(f"\n{len(suite.failures)} differences in {len(suite.moments)} moments, seed {options.seed}")
    return 1 if suite.failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True, help="what tests.regress.obtain printed")
    parser.add_argument("--source", type=Path, help="the programs of the source's server; by default the embedded 18")
    parser.add_argument("--target", type=Path, help="those of a second target; by default the embedded 18")
    parser.add_argument("--only", default="", help="tests, separated by commas")
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--snapshots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--keep", type=Path, help="a file for the differences")
    parser.add_argument("--output", type=Path, help="a folder for what the tests print")
    options = parser.parse_args()
    options.sources = options.sources.absolute()  # psql runs elsewhere
    return options


if __name__ == "__main__":
    sys.exit(asyncio.run(main(arguments())))
