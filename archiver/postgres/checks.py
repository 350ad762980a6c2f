"""One prerequisite, how it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, LiteralString

import psycopg
from psycopg.rows import dict_row

from archiver.errors import PostgresError
from archiver.postgres.session import postgres_error

Conn = psycopg.AsyncConnection[Any]
_SHOWN: Final = 5

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One prerequisite: `detail` says how it is, `hint` what to do if it is not as it should be."""

    name: str
    status: Status
    detail: str
    hint: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def require(checks: Sequence[Check]) -> None:
    """Raise PostgresError for those that fail, with what to do about each."""
    failed = [check for check in checks if check.status == "fail"]
    hints = dict.fromkeys(check.hint for check in failed if check.hint)
    if failed:
        raise PostgresError("; ".join(f"{each.name}: {each.detail}" for each in failed), hint="; ".join(hints))


def listed(names: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


async def look_up(
    conn: Conn, query: LiteralString, params: Sequence[Any] | Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The rows of a query, by column. Raises PostgresError."""
    try:
        async with conn.cursor(row_factory=dict_row) as cursor:
            return await (await cursor.execute(query, params)).fetchall()
    except psycopg.Error as exc:
        raise postgres_error(exc, "looking at the source") from exc
