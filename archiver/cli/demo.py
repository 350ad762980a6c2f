"""`archiver demo`"""

from __future__ import annotations

from archiver.errors import UsageError


def demo() -> None:
    """The whole story."""
    raise UsageError("demo is not there yet")
