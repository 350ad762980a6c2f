"""Transactions that the server cannot send, and when to leave one out.

In: where the stream broke, and how lasting that is. Out: a decision. No I/O.

A stream that breaks again and again within one transaction will never come past it: the source keeps its WAL, until the
slot is lost, and nothing is archived meanwhile. So that transaction is left out, which is a gap, and tells so. A large
transaction may break the stream while it is in progress, when nobody knows whether it will be committed; from then on
transactions are sent when they are: those before its commit come through, and it may be rolled back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from archiver.errors import StreamBroken
from archiver.lsn import Lsn

TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Sending:
    """A transaction on its way. `commit` is where its commit record begins, None while it is in progress."""

    xid: int
    commit: Lsn | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A transaction that is left out. Streaming goes on at `resume`, the first LSN from which it is not sent."""

    xid: int
    resume: Lsn
    state: str

    @property
    def reason(self) -> str:
        return f"transaction {self.xid} was left out: the source could not send it (SQLSTATE {self.state})"


class Breaks:
    """How often in a row the stream broke within one transaction. `skip`: an xid that is to be left out at once."""

    def __init__(self, skip: int | None = None) -> None:
        self._skip = skip
        self._state = ""
        self._lasting = False
        self._place: Lsn | None = None
        self.sending: Sending | None = None
        self.times = 0

    def observe(self, error: StreamBroken, sending: Sending | None, position: Lsn) -> None:
        """`sending` is the transaction that the stream broke in, if any, and all commits up to `position` had come."""
        is_same = (sending.xid if sending else None) == (self.sending.xid if self.sending else None)
        self.times = self.times + 1 if is_same else 1
        self.sending, self._state, self._lasting = sending, error.state, error.lasting
        self._place = sending.commit if sending else position

    def passed(self, lsn: Lsn) -> None:
        """All commits up to `lsn` have come. It counts where the stream came past what broke it."""
        if self._place is not None and lsn > self._place:
            self.sending, self._place, self.times = None, None, 0

    def times_in_one(self) -> int:
        """How often in a row it broke within the same transaction."""
        return self.times if self.sending is not None else 0

    @property
    def left_out(self) -> LeftOut | None:
        """The transaction that is to be left out by now."""
        sending = self.sending
        if sending is None or sending.commit is None:
            return None
        if sending.xid != self._skip and not (self._lasting and self.times >= TRIES):
            return None
        return LeftOut(sending.xid, Lsn(sending.commit + 1), self._state)
