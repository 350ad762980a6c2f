"""What the entries of a manifest log amount to, for whoever goes on with it. In: manifests in their order. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from archiver.format.manifest import Catalog, Changes, Drill, Fence, Gap, Lost, Signed, Snapshot, key_ids
from archiver.lsn import Lsn
from archiver.policy.sample import Sample


@dataclass
class LogState:
    """What a writer must know of the log: its end, and the last of each kind that it continues.

    `end` and `timeline` are those of the source at the log's end; `system_identifier` where it has changed since the
    archive was made. `key_ids` are those of all that is sealed, `sample` is what is looked at. `snapshot`, `lost` and
    `catalog` are forgotten where the source's history began anew.
    """

    head: Signed | None = None
    changes: Changes | None = None
    gap: Gap | None = None
    end: Lsn | None = None
    timeline: int | None = None
    system_identifier: str | None = None
    snapshot: Snapshot | None = None
    drill: Drill | None = None
    lost: Lost | None = None
    catalog: Catalog | None = None
    key_ids: set[str] = field(default_factory=set)
    sample: Sample = field(default_factory=Sample)

    def observe(self, signed: Signed) -> None:
        self.head = signed
        self.sample.observe(signed)
        self.key_ids |= key_ids(signed.entry)
        match signed.entry:
            case Changes():
                self.changes = signed.entry
                self.end, self.timeline = signed.entry.end_lsn, signed.entry.timeline
                lost = [*signed.entry.lost, *([self.lost] if self.lost else [])]
                self.lost = max(lost, key=lambda each: each.lsn, default=None)
                self.catalog = signed.entry.catalog or self.catalog
            case Gap():
                self._observe_gap(signed.entry)
            case Snapshot():
                self.snapshot = signed.entry
            case Drill():
                self.drill = signed.entry
            case Fence():
                pass

    def _observe_gap(self, gap: Gap) -> None:
        self.gap = gap
        self.end, self.timeline = gap.before_lsn, gap.timeline
        self.system_identifier = gap.system_identifier or self.system_identifier
        if gap.new_history:
            self.snapshot = self.lost = self.catalog = None
