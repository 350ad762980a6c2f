"""One prerequisite, how it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from archiver.errors import PostgresError

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
