"""Restore points by their names, as a plan needs them; two of one name are no target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from archiver.errors import TargetUnreachable
from archiver.format.manifest import format_time
from archiver.lsn import Lsn


class NamedPoint(NamedTuple):
    """A restore point; `name` is None where nobody has opened it."""

    name: str | None
    lsn: Lsn
    time: datetime


def ambiguous(name: str, points: Sequence[NamedPoint]) -> TargetUnreachable:
    """The refusal of a name that several restore points have: which one is meant nobody knows."""
    meant = ", ".join(f"{point.lsn} ({format_time(point.time)})" for point in points)
    return TargetUnreachable(
        f"there are {len(points)} restore points {name!r}",
        where=meant,
        hint="Say which one: --target-lsn with one of these positions.",
    )
