"""The logical messages that archiver itself writes: their prefixes, and the subtransaction that wrote one.

The server gives a message the xid of its whole transaction; of a rolled back subtransaction only the content can tell.
"""

from __future__ import annotations

import json
from typing import Final

from archiver.format.pgmessages import LogicalMessage

DDL: Final = "archiver.ddl"
ROWS: Final = "archiver.rows"
LOST: Final = "archiver.ddl_lost"
RESTORE_POINT: Final = "archiver.restore_point"


def subtransaction(message: LogicalMessage) -> int | None:
    """The xid that wrote it, None where it does not say: other people's messages, and those of older triggers."""
    if message.prefix not in {DDL, ROWS}:
        return None
    try:
        found = json.loads(message.content).get("subxact")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, int) else None
