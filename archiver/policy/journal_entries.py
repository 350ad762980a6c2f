"""What entries of the journal mean for the manifest while they are captured: restore points, and losses.

In: rows of the journal, in the order of their transaction. Out: what the manifest must say of them. An entry of DDL
whose statement no restore could tell is a loss, so that a base snapshot follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archiver.errors import IntegrityError
from archiver.format import journal
from archiver.format.ddl import Text, parse_event
from archiver.format.ddl_losses import loss_of
from archiver.format.ddl_told import LONG
from archiver.format.journal import Entry, Point
from archiver.format.manifest import Lost
from archiver.format.pgmessages import Relation, Row
from archiver.lsn import Lsn

_TEXTS = 100  # of a transaction's, those that are kept
ROOM = 32 << 20
"""Bytes for the texts of all open transactions, and what was read of them, of the 256 MiB of a daemon."""
BRIEF = 8 << 10
"""Characters of a text that is read in a moment."""
_MAKING = frozenset({"CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "CREATE SCHEMA", "CREATE MATERIALIZED VIEW"})
_HOLDING_ROWS = frozenset({"table", "materialized view"})


class JournalEntries:
    """`context` is a transaction: entries of DDL refer to texts that came before in it."""

    def __init__(self) -> None:
        self._texts: dict[int, dict[str, Text]] = {}
        self.announced: set[int] = set()
        """The OIDs of tables and materialized views that DDL made; who takes them puts another set in its place."""
        self.named: dict[int, str] = {}
        """Those that it changed, with their names; taken in the same way."""
        self._lengthy: set[int] = set()
        self.held = 0
        """Bytes that texts take."""

    @property
    def take_long(self) -> bool:
        """Whether a text is kept that takes a while to read, should an entry refer to it."""
        return bool(self._lengthy)

    def forget(self, context: int) -> None:
        self.held -= sum(text.weight for text in self._texts.pop(context, {}).values())
        self._lengthy.discard(context)

    def said(self, context: int, relation: Relation, row: Row) -> Lost | Point | None:
        """An entry that cannot be read is a loss: nobody knows what it was to say."""
        if journal.kind_of(relation, row) not in {journal.LOST, journal.POINT, journal.TEXT, journal.DDL}:
            return None
        try:
            entry = journal.parse_entry(relation, row)
            if entry.kind in {journal.TEXT, journal.DDL}:
                reason = self._loss_of(context, entry)
                return None if reason is None else _lost(reason)
        except IntegrityError:
            return _lost("unreadable")
        point = journal.restore_point(entry) if entry.kind == journal.POINT else None
        return point or _lost(journal.reason_of(entry))

    def _keep(self, context: int, texts: dict[str, Text], entry: Entry) -> None:
        text = Text.from_json(entry.said)
        if text.size <= LONG:
            texts[entry.id] = text
            self.held += text.weight
            if text.size > BRIEF:
                self._lengthy.add(context)
        if len(texts) > _TEXTS:
            self._drop_oldest(texts)
        while self.held > ROOM:
            self._drop_oldest(max(self._texts.values(), key=lambda kept: sum(text.weight for text in kept.values())))

    def _drop_oldest(self, texts: dict[str, Text]) -> None:
        self.held -= texts.pop(next(iter(texts))).weight

    def _loss_of(self, context: int, entry: Entry) -> str | None:
        """As far as the texts that are kept show it."""
        texts = self._texts.setdefault(context, {})
        if entry.kind == journal.TEXT:
            self._keep(context, texts, entry)
            return None
        name = entry.said.get("text")
        text = texts.get(str(name))
        self._announce(entry.said)
        if name is not None and text is None:
            return None
        return loss_of(parse_event(entry.said, text))

    def _announce(self, said: Mapping[str, Any]) -> None:
        objects = [each for each in said.get("objects") or () if each.get("type") in _HOLDING_ROWS and "oid" in each]
        if said.get("tag") in _MAKING:
            self.announced |= {each["oid"] for each in objects}
        else:
            self.named |= {each["oid"]: str(each.get("identity")) for each in objects}


def _lost(reason: str) -> Lost:
    return Lost(lsn=Lsn(0), reason=reason)
