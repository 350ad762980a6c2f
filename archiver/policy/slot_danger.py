"""How near the replication slot is to being lost, and to being given up.

In: what the slot retains, and how much more the source lets it retain, as time goes on. Out: an estimate, and a
decision. No I/O.

What a slot retains is a saw: it grows as WAL is written, and falls when `restart_lsn` moves, which it does in jumps.
The flank of one tooth says nothing of a loss, and the saw of a busy source rises fast. So there is one rule, which
asks for more the less is in danger: growth counts once it is a third of the room that is left (REACH), and until half
of it is gone again. What follows from it:

- Below a quarter of the limit nothing is said, however fast that grew: a daemon that has just started, or a source
  whose teeth are lower than that, raises no alarm.
- A slot that grows from nothing is told of at a quarter of its limit, with three quarters of its time left. A limit of
  10 GB and growth of 1 GB/s: after 2.5 s, 7.5 s before the end. No rule that waits for minutes would come in time.
- A loss is told of when it is at most three times as far away as the growth has been seen: with a WINDOW of
  20 minutes, an hour ahead.
- Where several stretches of growth count, the fastest does: after a quiet time the last seconds are what goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta

WINDOW = timedelta(minutes=20)  # growth is looked at over this long
REACH = 3  # growth tells of a loss that is at most so many times as large as itself

_Seen = tuple[datetime, int]


class SlotDanger:
    """`limit` is `[source] drop_slot_at` in bytes, None where the slot is never given up."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._seen: deque[_Seen] = deque()
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
        """Until the slot is lost or given up, if it goes on to grow as of late; infinite while no loss is in sight.

        0 where the limit is passed: the next checkpoint takes the slot.
        """
        room = self._room()
        if room is None:
            return float("inf")
        if room <= 0:
            return 0.0
        counted = [room * seconds / grown for seconds, grown in self._growth() if grown * REACH >= room]
        return min(counted, default=float("inf"))

    def _room(self) -> int | None:
        """Bytes until the nearer of both limits; None where there is none, or nothing was seen yet."""
        if not self._seen:
            return None
        until_given_up = None if self._limit is None else self._limit - self._seen[-1][1]
        return min((room for room in (self._left, until_given_up) if room is not None), default=None)

    def _growth(self) -> Iterator[tuple[float, int]]:
        """By stretch of time that ends now: its seconds, and by how many bytes more is retained than at its start."""
        now, retained = self._seen[-1]
        peak = retained
        for time, before in reversed(self._seen):
            peak = max(peak, before)
            grown = retained - before
            if grown > peak - retained and now > time:
                yield (now - time).total_seconds(), grown
