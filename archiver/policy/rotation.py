"""When a change segment is cut. A pure decision; capture.py acts on it."""

from __future__ import annotations

from datetime import timedelta


def is_due(size: int, age: timedelta, *, max_bytes: int, max_age: timedelta) -> bool:
    """True when the open change segment is full, or old: then even an empty one is cut, to prove time has passed."""
    return size >= max_bytes or age >= max_age
