"""What a restore from the newest base snapshot needs: its keys, and a sample of all else, however much that is. Pure.

In: manifests in their order. Out: names of objects to look at. An expiry rule takes the oldest first: those are always
among them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from archiver.format import layout
from archiver.format.manifest import Changes, ObjectRef, Signed, Snapshot, key_ids, refs
from archiver.lsn import Lsn

MOST = 100  # objects beside archive.json, the keys and the oldest ones


@dataclass(frozen=True, slots=True)
class Needed:
    """One object: with its hash where a manifest names it. `end`: up to which LSN it tells of changes."""

    name: str
    ref: ObjectRef | None
    end: Lsn


class Sample:
    """At most MOST of the needed objects at random, the oldest of each kind, and the last use of every key."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.Random()  # noqa: S311 - which objects are looked at is no secret
        self._oldest: list[Needed] = []
        self._some: list[Needed] = []
        self._keys: dict[str, Lsn] = {}
        self._seen = 0

    def observe(self, signed: Signed) -> None:
        """A manifest became part of the log."""
        entry = signed.entry
        if isinstance(entry, Snapshot):
            self._begin(entry.lsn)
        end = entry.end_lsn if isinstance(entry, Changes) else Lsn(2**64 - 1)
        needed = [Needed(layout.manifest(signed.seq), None, end)]
        needed += [Needed(ref.key, ref, end) for ref in refs(entry)]
        self._keys |= dict.fromkeys(key_ids(entry), end)
        for each in needed:
            self._add(each)

    def names(self) -> Iterator[Needed]:
        """What to look at, each once."""
        always = [layout.ARCHIVE, layout.key("signing"), *map(layout.key, self._keys)]
        found = {name: Needed(name, None, Lsn(0)) for name in always}
        found |= {each.name: each for each in (*self._oldest, *self._some)}
        yield from found.values()

    def _begin(self, lsn: Lsn) -> None:
        """A base snapshot is complete: what ended before it is needed no more."""
        self._oldest = []
        self._some = [each for each in self._some if lsn < each.end < 2**64 - 1]
        self._keys = {key_id: end for key_id, end in self._keys.items() if lsn < end < 2**64 - 1}
        self._seen = len(self._some)

    def _add(self, each: Needed) -> None:
        """Each of all that were seen is as likely to be kept (reservoir sampling)."""
        self._seen += 1
        if len(self._oldest) < 4:
            self._oldest.append(each)
        if len(self._some) < MOST:
            self._some.append(each)
        elif (place := self._chance.randrange(self._seen)) < MOST:
            self._some[place] = each
