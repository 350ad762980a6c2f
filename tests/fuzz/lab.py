"""A server, two regions in a folder, and the oracle: steps on an archived source, then a restore of every frozen moment.

The comparison is of whole dumps; sequences may stand higher, never lower.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from archiver.cli.key import write_key
from archiver.config import Config
from archiver.embedded import PostgresServer
from archiver.errors import ArchiverError
from archiver.policy.target import ToLsn
from tests.dumps import difference
from tests.fix_archive import Setup
from tests.fix_servers import PG_SETTINGS, drop_database
from tests.fuzz.drive import Drive, Frozen, everything, generate, sequences
from tests.fuzz.script import INIT, Step

SETTINGS = PG_SETTINGS | {
    "max_prepared_transactions": 10,
    "logical_decoding_work_mem": "64kB",  # large transactions are streamed
    "autovacuum": False,  # whose locks come at any time
    "synchronous_commit": False,
}

MAX_LINES = 30
"""Of a difference, and 200 characters of each."""

Source = Callable[[Drive], Iterable[Step]]


def of_seed(seed: int, length: int) -> Source:
    return lambda drive: generate(drive, seed, length)


class Lab:
    """Runs attempts one after the other; use it as a context."""

    def __init__(self, server: PostgresServer | None = None) -> None:
        self._stack = ExitStack()
        self._given = server
        self.steps: list[Step] = []
        self.outcomes: list[str] = []
        self.restores = 0

    def __enter__(self) -> Lab:
        self.folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="fuzz-")))
        self.server = self._given or self._stack.enter_context(closing(PostgresServer(settings=SETTINGS)))
        if self._given is None:
            self.server.start()
        write_key(self.folder / "kek")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def attempt(self, source: Source) -> list[str]:
        """What went wrong; empty if every restore was equal. `steps` then tells what was done."""
        with ExitStack() as made:
            setup = self._setup(made)
            drive = Drive(setup.dsn)
            drive.open()
            made.callback(drive.close)
            self.steps, self.outcomes = drive.steps, drive.outcomes
            try:
                await self._drive(setup, drive, source)
                failures = [failure for frozen in drive.frozen if (failure := await self._compare(setup, frozen))]
            except (ArchiverError, TimeoutError) as exc:
                return [*drive.complaints, f"{type(exc).__name__}: {exc}"]
            return [*drive.complaints, *failures]

    async def _drive(self, setup: Setup, drive: Drive, source: Source) -> None:
        steps = iter(source(drive))
        await asyncio.to_thread(drive.run, itertools.takewhile(lambda step: step.text != INIT, steps))
        drive.steps.append(Step(0, INIT))
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            await asyncio.to_thread(drive.run, steps)
            await setup.archived(max(frozen.lsn for frozen in drive.frozen))

    async def _compare(self, setup: Setup, frozen: Frozen) -> str:
        at = f"frozen at step {frozen.step}, {frozen.lsn}"
        self.restores += 1
        try:
            restored, _ = await setup.restore(ToLsn(frozen.lsn))
        except ArchiverError as exc:
            return f"{at}: {type(exc).__name__}: {exc}"
        if differs := difference(everything(restored), frozen.dump):
            shown = "\n".join(line[:200] for line in differs.splitlines()[:MAX_LINES])
            return f"{at}: the dumps differ\n{shown}"
        found = sequences(restored)
        below = [
            f"{name} stands at {found.get(name)}, source {last}"
            for name, (last, by) in frozen.sequences.items()
            if name not in found or (found[name][0] - last) * by < 0
        ]
        return f"{at}: sequences\n{'; '.join(below)}" if below else ""

    def _setup(self, made: ExitStack) -> Setup:
        folder = Path(made.enter_context(TemporaryDirectory(dir=self.folder)))
        for region in ("primary", "secondary"):
            (folder / region).mkdir()

        def make_database(*, stem: str = "fuzz") -> str:
            name = f"{stem}_{secrets.token_hex(6)}"
            self.server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            made.callback(drop_database, self.server, name)
            return self.server.dsn(name)

        dsn = make_database()
        regions = [{"name": name, "url": f"file://{folder}/{name}"} for name in ("primary", "secondary")]
        config = {
            "archive": {"name": "fuzz"},
            "source": {"dsn": dsn},
            "region": regions,
            "encryption": {"keys": [f"file:{self.folder / 'kek'}"]},
            "segment": {"max_age": "200ms"},
            "http": {"listen": "127.0.0.1:0"},
        }
        return Setup(dsn, Config.model_validate(config), make_database)


def signature(failures: list[str]) -> str:
    """What stays the same when a failing script gets shorter."""
    text = failures[0].partition(": ")[2] if failures else ""
    return "".join(letter for letter in text.partition("\n")[0].partition(" (")[0] if letter.isalpha())[:60]


async def shrink(lab: Lab, steps: list[Step], say: Callable[[str], None]) -> list[Step]:
    """A script with fewer steps that fails alike: pieces are left out as long as that is so."""
    wanted = signature(await lab.attempt(lambda _: steps))
    say(f"{len(steps)} steps: {wanted}")
    size = len(steps) // 2
    while size:
        for shorter in _without(steps, size):
            if signature(await lab.attempt(lambda _, shorter=shorter: shorter)) == wanted:  # type: ignore[misc]
                steps = shorter
                say(f"{len(steps)} steps")
                break
        else:
            size //= 2
    return steps


def _without(steps: list[Step], size: int) -> Iterator[list[Step]]:
    for start in range(len(steps) - 1, -1, -size):
        cut = range(max(0, start - size), start)
        kept = [step for number, step in enumerate(steps) if number not in cut or step.text == INIT]
        if len(kept) < len(steps):
            yield kept
