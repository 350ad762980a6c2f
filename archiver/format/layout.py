"""Where each object of an archive stands below the prefix. Names carry positions, never content.

    archive.json                                     identity, written once
    keys/<key id>.json                               wrapped keys
    segments/<ordinal>-<start>-<end>-<upload>.seg    change segments
    snapshots/<lsn>-<snapshot id>/<part>.part        base snapshots; part 0 is the index
    drills/<drill id>.rec                            records of drills
    manifests/<seq>.json                             the manifest log
    catalog/<first seq>-<last seq>.json.zst          roll-ups of the manifest log

Numbers are zero-padded decimals of 20 digits and LSNs 16 hex digits, so that byte order is log order.
"""

from __future__ import annotations

import re
from uuid import UUID

from archiver.lsn import Lsn

ARCHIVE = "archive.json"
KEYS = "keys/"
SEGMENTS = "segments/"
SNAPSHOTS = "snapshots/"
DRILLS = "drills/"
MANIFESTS = "manifests/"
CATALOG = "catalog/"

# What is read before anything vouches for its size. A manifest lists at most every part of one base snapshot.
_LIMITS = {ARCHIVE: 1 << 16, KEYS: 1 << 20, MANIFESTS: 64 << 20, CATALOG: 64 << 20}
_MANIFEST = re.compile(r"manifests/([0-9]{20})\.json")
_ROLLUP = re.compile(r"catalog/([0-9]{20})-([0-9]{20})\.json\.zst")
_LONGEST_ROLLUP = 1_000_000  # manifests; archiver writes a thousand, and what a name says must not cost memory
_SEGMENT = re.compile(r"segments/([0-9]{20})-([0-9A-F]{16})-([0-9A-F]{16})-[0-9a-f]{12}\.seg")
_PART = re.compile(r"snapshots/([0-9A-F]{16})-[0-9a-f]{12}/[0-9]{8}\.part")
_OTHERS = re.compile(
    r"archive\.json|keys/[a-z]+(-[0-9]{4}(-[0-9]{2}-[0-9]{2}(-[0-9a-f]{8})?)?)?\.json|drills/[0-9a-f-]{36}\.rec"
)
_NAMES = (_MANIFEST, _SEGMENT, _PART, _OTHERS)


def key(key_id: str) -> str:
    return f"{KEYS}{key_id}.json"


def key_id(name: str) -> str:
    """The id in a wrapped key's name."""
    return name.removeprefix(KEYS).removesuffix(".json")


def segment(ordinal: int, start: Lsn, end: Lsn, upload: UUID) -> str:
    """An id of its own keeps an upload that comes late, or from a daemon that was paused, from replacing another."""
    return f"{SEGMENTS}{ordinal:020d}-{int(start):016X}-{int(end):016X}-{upload.hex[:12]}.seg"


def segment_place(name: str) -> tuple[int, Lsn, Lsn] | None:
    """Ordinal, start and end in a change segment's name, None if it is no such name."""
    match = _SEGMENT.fullmatch(name)
    return (int(match[1]), Lsn(int(match[2], 16)), Lsn(int(match[3], 16))) if match else None


def segments_before(ordinal: int) -> str:
    """What sorts right before the names of this change segment."""
    return f"{SEGMENTS}{ordinal:020d}"


def snapshots_before(lsn: Lsn) -> str:
    """What sorts right before the names of base snapshots at this LSN."""
    return f"{SNAPSHOTS}{int(lsn):016X}"


def snapshot_lsn(name: str) -> Lsn | None:
    """The LSN in the name of a base snapshot's part, None if it is no such name."""
    match = _PART.fullmatch(name)
    return Lsn(int(match[1], 16)) if match else None


def snapshot_part(lsn: Lsn, snapshot_id: UUID, part: int) -> str:
    return f"{SNAPSHOTS}{int(lsn):016X}-{snapshot_id.hex[:12]}/{part:08d}.part"


def drill(drill_id: UUID) -> str:
    return f"{DRILLS}{drill_id}.rec"


def manifest(seq: int) -> str:
    return f"{MANIFESTS}{seq:020d}.json"


def manifest_seq(name: str) -> int | None:
    """The seq in a manifest's name, None if it is no such name."""
    match = _MANIFEST.fullmatch(name)
    return int(match[1]) or None if match else None


def rollup(first: int, last: int) -> str:
    return f"{CATALOG}{first:020d}-{last:020d}.json.zst"


def rollup_range(name: str) -> tuple[int, int] | None:
    """First and last seq in a roll-up's name, None if it is no such name."""
    match = _ROLLUP.fullmatch(name)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    return (first, last) if 0 < first <= last < first + _LONGEST_ROLLUP else None


def is_ours(name: str) -> bool:
    """Whether archiver gives such a name to anything."""
    return any(form.fullmatch(name) for form in _NAMES) or rollup_range(name) is not None


def limit(name: str) -> int | None:
    """How many bytes an object of this name has at most; None where the manifest that names it says so."""
    return next((size for start, size in _LIMITS.items() if name.startswith(start)), None)
