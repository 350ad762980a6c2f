"""The record of a drill: what was restored, how long each step took, every check, and the verdict.

In: what the drill found. Out: the plaintext of one sealed object (it names tables and may quote a query's result), and
back. No I/O; damage is an IntegrityError. docs/format.md has every key.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Self
from uuid import UUID

from pydantic import ValidationError

from archiver.errors import IntegrityError
from archiver.format.manifest import CommitRef, LsnField, Model, TimeField, canonical

Purpose = Literal["preparation", "recovery", "proof"]
Verdict = Literal["passed", "failed"]


class Phase(Model):
    """One step of a drill. Those of `recovery` are what a real restore would take as well."""

    name: str
    purpose: Purpose
    started_at: TimeField
    finished_at: TimeField

    @property
    def duration(self) -> timedelta:
        return self.finished_at - self.started_at


class Check(Model):
    """One thing that was looked at: what was expected of it, and what was found."""

    name: str
    expected: str
    found: str
    passed: bool


class Copy(Model):
    """The restored copy: where it stood, and what shows that it is gone.

    `destroyed` null: the database was given by the operator, who keeps it.
    """

    where: str
    server_version: int | None
    destroyed: bool | None
    evidence: str


class Record(Model):
    """Everything that an auditor asks about one drill. Durations are seconds; bytes are those that regions sent."""

    format: Literal[1] = 1
    drill_id: UUID
    started_at: TimeField
    finished_at: TimeField
    by: str
    tool_version: str
    archive: UUID
    archive_name: str
    database: str
    system_identifier: str
    source_version: int
    head_seq: int
    head_hash: str
    regions: dict[str, int]
    data_keys: tuple[str, ...]
    keks: tuple[str, ...]
    target: str
    target_lsn: LsnField
    last_commit: CommitRef | None
    snapshot_id: UUID
    snapshot_lsn: LsnField
    compared_lsn: LsnField | None
    stored_bytes: int
    rows_loaded: int
    transactions_replayed: int
    recovery_time: float
    recovery_time_objective: float | None
    recovery_point: float | None
    recovery_point_objective: float | None
    phases: tuple[Phase, ...]
    checks: tuple[Check, ...]
    deviations: tuple[str, ...]
    restored: Copy
    error: str | None

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def verdict(self) -> Verdict:
        """A drill passes when it came to its end and every check passed."""
        return "failed" if self.failed or self.error is not None or not self.checks else "passed"

    def encode(self) -> bytes:
        return canonical(self.model_dump(mode="json"))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises IntegrityError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as exc:
            raise IntegrityError(f"the record of a drill cannot be read: {exc.error_count()} errors") from None
