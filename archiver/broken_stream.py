"""What a daemon says of a stream that the server ends with an error of its own, and when it stops trying.

In: how often the stream broke, and where. Out: a line of the log, and the transaction to leave out, if any.
"""

from __future__ import annotations

import structlog

from archiver.errors import StreamBroken
from archiver.policy.breaks import TRIES, Breaks, LeftOut

log = structlog.get_logger()


def weigh(breaks: Breaks, error: StreamBroken) -> LeftOut | None:
    """Name the transaction, and what to do about it. Returns it once it is plain that trying again is no help."""
    sending = breaks.sending
    say = log.error if breaks.times >= TRIES else log.warning
    say(
        "the source cannot send a transaction" if sending else "the source ended the stream",
        error=str(error),
        xid=sending.xid if sending else None,
        commit=str(sending.commit) if sending and sending.commit is not None else None,
        times=breaks.times,
        hint=_hint(breaks, error),
    )
    return breaks.left_out


def _hint(breaks: Breaks, error: StreamBroken) -> str:
    sending = breaks.sending
    if sending is None:
        return "Look at the source's log. A slot that is dropped is made anew: a gap, and a base snapshot."
    if sending.commit is None:
        return "It is in progress. What others commit goes on; if it is rolled back, nothing is lost."
    if error.lasting:
        return f"After {TRIES} times it is left out: a gap, and a base snapshot. Look for values of more than 500 MB."
    return f"archiver run --skip-transaction {sending.xid} leaves it out: a gap, and a base snapshot."
