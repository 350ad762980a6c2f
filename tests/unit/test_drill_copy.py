"""What a place of a drill says when its server does not answer any more."""

from __future__ import annotations

from typing import Any, Self

import psycopg
import pytest

from archiver import drill_copy
from archiver.drill_copy import OwnDatabase
from archiver.errors import PostgresUnavailable


class Lost:
    """A connection that breaks between its opening and its first query."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(self, *_: object) -> Any:
        raise psycopg.OperationalError("server closed the connection unexpectedly")


async def test_a_server_that_is_lost_at_a_drills_very_end_is_an_error_that_its_record_can_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error of psycopg's own would pass by the drill, and its evidence would be lost."""

    async def connect(_dsn: str, *, purpose: str) -> Lost:
        return Lost()

    monkeypatch.setattr(drill_copy, "connect", connect)
    with pytest.raises(PostgresUnavailable, match="server closed the connection"):
        await OwnDatabase("").describe()
