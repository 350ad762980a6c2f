"""What is kept of texts while transactions are open."""

from __future__ import annotations

from archiver.policy import journal_entries
from archiver.policy.journal_entries import JournalEntries
from tests.unit.frames import JOURNAL, journal_row


def test_texts_of_all_open_transactions_together_take_bounded_memory() -> None:
    entries = JournalEntries()
    for context in range(1, 6):
        for number in range(90):
            said = {"source": f"DROP TABLE a; -- {number} \U0001f600" + "x" * 1_000_000}
            entries.said(context, JOURNAL, journal_row("text", said, identity=f"{context} {number}"))
            assert entries.held <= journal_entries.ROOM
    for context in range(1, 6):
        entries.forget(context)
    assert entries.held == 0


def test_a_transaction_that_keeps_many_texts_takes_no_room_of_another() -> None:
    entries = JournalEntries()
    entries.said(1, JOURNAL, journal_row("text", {"source": "DROP TABLE a; DROP TABLE b"}, identity="first"))
    for number in range(90):
        entries.said(2, JOURNAL, journal_row("text", {"source": "x" * 1_000_000}, identity=str(number)))
    assert "first" in entries._texts[1]
