"""Where no event trigger captures DDL: between which LSNs the source's catalog changed, told from looks at it.

In: `Look`s, one for each change segment, taken after its last commit, and what the log says of the last one. Out: for
a catalog that changed a `Lost`, whose span holds the commit of the change for certain. Nothing is guessed: the stream
does not say where that commit stands, so the whole span is given up, until the base snapshot that follows it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from archiver.format.manifest import Catalog, Lost
from archiver.format.pgmessages import Relation
from archiver.lsn import Lsn

_LOOKS: Final = 10_000  # the oldest matter only while a transaction that is as old is still running

NOWHERE: Final = Lsn(0)
ColumnShape = tuple[str, int, int]
"""Name, OID of the type, and its modifier."""

CHANGED: Final = "changed"
CHANGED_BACK: Final = "changed-back"
CAPTURE_BEGAN: Final = "capture-began"
CAPTURE_ENDED: Final = "capture-ended"
UNCOUNTED: Final = "uncounted"
UNANNOUNCED: Final = "unannounced"
NOT_SEEN: Final = "not-seen"


@dataclass(frozen=True, slots=True)
class Look:
    """What the catalog showed; `digest` is None where event triggers capture DDL.

    `strangers` are tables that the stream described, and that the catalog has not, or not so; `unannounced` are those
    that came since the first look, while event triggers captured DDL, without an event that says so. `losses` counts
    what event triggers could not even write into the journal, None where there is none that is archiver's own;
    `journal` is the OID of that.

    The source stood at `before` when the look began, and at `after` when it had ended. Transactions that were
    `running`, and those that got a number from `next_xid` on, it does not show.
    """

    digest: str | None
    before: Lsn
    after: Lsn
    running: frozenset[int]
    next_xid: int
    strangers: tuple[str, ...] = ()
    unannounced: tuple[str, ...] = ()
    losses: int | None = None
    journal: int | None = None


def is_stranger(relation: Relation, name: str | None, columns: Sequence[ColumnShape]) -> bool:
    """Whether the catalog's table of this OID is not what the stream described; some columns may not be published."""
    left = iter(columns)
    shapes = ((column.name, column.type_id, column.type_modifier) for column in relation.columns)
    return name != str(relation) or not all(shape in left for shape in shapes)


class SchemaWatch:
    """Compares each look with the one before it. `known` is the last one in the log, `start` where the log ends.

    Of what was committed up to `told` it is known already that the schema was another one.
    """

    def __init__(self, known: Catalog | None, start: Lsn, told: Lsn = NOWHERE) -> None:
        self.catalog = known
        """What the log is to say: the digest, and up to where it shows every commit."""
        self._floor = known.lsn if known else start
        self._told = told
        self._last: Look | None = None
        self._failed_before: int | None = None
        self._looks: deque[tuple[Lsn, int]] = deque(maxlen=_LOOKS)

    @property
    def is_captured(self) -> bool:
        """Whether event triggers captured DDL at the last look: what they missed since, the next one shows."""
        return self.catalog is not None and self.catalog.digest is None

    def judge(self, look: Look, start: Lsn) -> Lost | None:
        """Take in a look that was taken for the segment which starts at `start`: what is new in it is lost to replay.

        So is a table that came, or was changed, and was put back again: the stream described it, and no look shows it.
        """
        known = self.catalog
        # Only those that ended meanwhile can have brought what is new.
        ended = self._last.running - look.running if self._last else frozenset[int]()
        since = self._shown_until(ended) if self._last else self._floor
        self._last = look
        self._looks.append((look.before, look.next_xid))
        failed, losses = self._count(known, look)
        self.catalog = Catalog(digest=look.digest, lsn=self._shown_until(look.running), losses=losses)
        reason = _reason(known, look)
        if reason is None and look.strangers and start >= self._told:
            reason = CHANGED_BACK
        if reason is None and failed:
            reason = UNCOUNTED
        if reason is None and look.unannounced:
            reason = UNANNOUNCED
        if reason is None:
            return None
        self._told = look.after
        return Lost(lsn=look.after, since=since, reason=reason)

    def _count(self, known: Catalog | None, look: Look) -> tuple[bool, int | None]:
        """Whether a trigger failed since, or in a transaction that may have ended only now; and what is counted so far.

        What such a transaction did is committed later than its failure was counted.
        """
        counted = known.losses if known else None
        if counted is None or look.losses is None or look.losses == counted:
            self._failed_before = None
            return False, look.losses
        if self._failed_before is None:
            self._failed_before = look.next_xid
        settled = min(look.running, default=look.next_xid) >= self._failed_before
        return True, look.losses if settled else counted

    def _shown_until(self, unseen: Set[int]) -> Lsn:
        """The last LSN at which none of these transactions had begun: up to there everything was shown.

        A commit is in the WAL, and may be in the stream, before other sessions see it: as long as a standby makes it
        wait, even. So that the LSN was read before the look proves nothing of those that were running.
        """
        oldest = min(unseen, default=None)
        begun = (lsn for lsn, next_xid in reversed(self._looks) if oldest is None or next_xid <= oldest)
        return next(begun, self._floor)


def _reason(known: Catalog | None, look: Look) -> str | None:
    if known is None:  # a log from before this was watched
        return CHANGED if look.digest is not None else None
    if known.digest == look.digest:
        return None
    if known.digest is None:
        return CAPTURE_ENDED
    return CHANGED if look.digest is not None else CAPTURE_BEGAN
