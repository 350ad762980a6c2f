"""What a verification finds. In and out: plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FOREIGN = "an object that is none of archiver's"
FOREIGN_KEY = "no key of this archive"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: in which region, with which object, and what of the archive it concerns."""

    region: str
    object: str
    what: str
    concerns: str


@dataclass(slots=True)
class Report:
    """What was looked at and found; `ok` when nothing was. `silent` regions could not be asked."""

    manifests: int = 0
    objects: int = 0
    stored_bytes: int = 0
    read_data: bool = False
    head: str | None = None
    findings: list[Finding] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    repaired: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def damaged(self) -> bool:
        """Whether anything was found but that regions are silent, of each of which one finding tells."""
        return len(self.findings) > len(self.silent)

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}
