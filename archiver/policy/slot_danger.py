"""How near the replication slot is to being lost, and to being given up.

In: what the slot retains, and how much more the source lets it retain, as time goes on. Out: an estimate, and a
decision. No I/O.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta

WINDOW = timedelta(minutes=10)  # growth is looked at over this long: checkpoints and bursts even out


class SlotDanger:
    """`limit` is `[source] drop_slot_at` in bytes, None where the slot is never given up."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._seen: deque[tuple[datetime, int]] = deque()
        self._left: int | None = None

    def observe(self, time: datetime, retained: int, left: int | None) -> None:
        """`left`: bytes of WAL until the server invalidates the slot (`safe_wal_size`); None where it never does."""
        self._seen.append((time, retained))
        self._left = left
        while time - self._seen[0][0] > WINDOW:
            self._seen.popleft()

    @property
    def must_give_up(self) -> bool:
        return self._limit is not None and bool(self._seen) and self._seen[-1][1] >= self._limit

    def seconds_left(self) -> float:
        """Until the slot is lost or given up, if it goes on to grow as of late; infinite while it does not grow."""
        if len(self._seen) < 2:
            return float("inf")
        (since, before), (now, retained) = self._seen[0], self._seen[-1]
        rate = (retained - before) / max(1.0, (now - since).total_seconds())
        room = [room for room in (self._left, self._limit and self._limit - retained) if room is not None]
        if rate <= 0 or not room:
            return float("inf")
        return max(0.0, min(room) / rate)
