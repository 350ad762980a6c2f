"""The log as all regions together know it, and which of them could not be asked.

In: an archive. Out: the whole verified log, and where each region stands. A chain cannot see its own tail cut off: only
other regions, or an operator who noted the log's end, can tell. Nothing is ever written here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from archiver.archive import Names, OpenArchive
from archiver.errors import ArchiverError, IntegrityError, StoreUnavailable, UsageError
from archiver.format import manifest
from archiver.format.manifest import Signed
from archiver.policy.history import History
from archiver.policy.target import Target, ToLatest, ToName
from archiver.store.base import Store


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a region stands: its newest manifest, None if it could not be asked. `used`: the log was read from it."""

    region: str
    used: bool
    newest: int | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a log: its newest manifest's seq and hash, which an operator can note."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """`SEQ:HASH`, as `info` and `verify` show it. Raises UsageError."""
        match = re.fullmatch(r"([1-9]\d{0,19}):([0-9a-f]{64})", text)
        if match is None:
            raise UsageError(
                f"this is not the end of a log: {text!r}",
                hint="Give SEQ:HASH, as archiver info and archiver verify show it.",
            )
        return cls(int(match[1]), match[2])


@dataclass(frozen=True, slots=True)
class Survey:
    """What was read, from whom; `names` are those of restore points, by how they are sealed."""

    log: Sequence[Signed]
    standings: Sequence[Standing]
    names: Names

    @property
    def history(self) -> History:
        return History([signed.entry for signed in self.log], self.names)

    @property
    def head(self) -> Head | None:
        return head_of(self.log)

    @property
    def silent(self) -> list[str]:
        """Regions that the log should have been read from, and that could not be asked."""
        return [each.region for each in self.standings if each.used and each.newest is None]

    @property
    def is_complete(self) -> bool:
        """Whether nobody can know more of the log than was read."""
        return not any(map(self._warning, self.standings))

    @property
    def warnings(self) -> list[str]:
        """What an operator must know before he takes this for the whole log."""
        first = self.log[0].seq if self.log else 1
        missing = f"the log begins at manifest {first}: manifests 1 to {first - 1} are missing, and what they named"
        return [missing] * (first > 1) + [
            warning for each in self.standings if (warning := self._warning(each)) is not None
        ]

    def _warning(self, standing: Standing) -> str | None:
        if standing.newest is None:
            return f"{standing.region} could not be asked: the log may go on there ({standing.error})"
        end = self.log[-1].seq if self.log else 0
        if standing.newest > end:
            lacks = ", ".join(each.region for each in self.standings if each.used)
            return f"{standing.region} holds manifests {end + 1} to {standing.newest}, which {lacks} lacks"
        return None

    def require_answers(self, target: Target) -> None:
        """Raise StoreUnavailable where a silent region may know another answer: of the end, or of a name."""
        if self.silent and isinstance(target, ToLatest | ToName):
            answering = [each.region for each in self.standings if each.newest is not None]
            raise StoreUnavailable(
                f"the log may go on in a region that does not answer: {target} cannot be told",
                where=f"not asked: {', '.join(self.silent)}",
                hint="Bring that region back, give a --target-time or --target-lsn that the log holds (archiver info), "
                f"or say which region to trust: --region {' or '.join(answering) or 'NAME'}",
            )


async def survey(archive: OpenArchive) -> Survey:
    """Read the log, then ask every region for its end: one that was silent meanwhile may hold more, and is read on."""
    log = [signed async for signed in archive.log.scan()]
    used = list(archive.store.stores)
    standings = await asyncio.gather(*(_ask(archive, store, used) for store in (*used, *archive.beside)))
    newest = max((each.newest or 0 for each in standings if each.used), default=0)
    for seq in range(log[-1].seq + 1 if log else 1, newest + 1):
        signed = await archive.log.reader.read(seq)
        manifest.check_chain(log[-1] if log else None, signed, archive.identity.archive)
        log.append(signed)
    return Survey(log, standings, await archive.names_of(signed.entry for signed in log))


async def _ask(archive: OpenArchive, store: Store, used: Sequence[Store]) -> Standing:
    try:
        return Standing(store.name, store in used, await archive.log.reader.newest(store))
    except ArchiverError as exc:
        return Standing(store.name, store in used, None, str(exc))


def head_of(log: Sequence[Signed]) -> Head | None:
    """The end of a log; None for an empty one."""
    return Head(log[-1].seq, log[-1].hash) if log else None


def require_head(log: Sequence[Signed], expected: Head | None) -> None:
    """Raise IntegrityError unless the log holds the manifest that was its end when it was noted."""
    if expected is None:
        return
    held = next((signed for signed in reversed(log) if signed.seq == expected.seq), None)
    if held is not None and held.hash == expected.hash:
        return
    end = head_of(log)
    raise IntegrityError(
        "the manifest that was noted is another one" if held else "the log ends before the manifest that was noted",
        where=f"noted {expected}, found {Head(held.seq, held.hash) if held else end or 'an empty log'}",
        hint="The log was cut or replaced: compare the regions with archiver verify, and look for older versions of "
        "the objects in the buckets.",
    )
