"""What a bucket does to objects by itself: rules that expire, move or lock what lies under the archive's prefix.

In: the answers of S3 about lifecycle and Object Lock. Out: one line for each rule that would hit the archive. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_COLD = {"GLACIER", "DEEP_ARCHIVE"}  # classes from which nothing is read before it was asked for, hours earlier

Answer = Mapping[str, Any]


def lifecycle_hazards(answer: Answer, prefix: str) -> Iterator[str]:
    """docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html"""
    for rule in answer.get("Rules", ()):
        if rule.get("Status") == "Enabled" and _hits(rule, prefix):
            name = f"lifecycle rule {rule.get('ID') or 'without a name'!r}"
            expiration = rule.get("Expiration", {})
            if when := expiration.get("Days") or expiration.get("Date"):
                yield f"{name} deletes objects of the archive: {_when(when)}"
            for move in rule.get("Transitions", ()):
                if move.get("StorageClass") in _COLD:
                    yield f"{name} moves objects of the archive to {move['StorageClass']}, where they cannot be read"


def retention_hazards(answer: Answer) -> Iterator[str]:
    """docs.aws.amazon.com/AmazonS3/latest/API/API_GetObjectLockConfiguration.html"""
    default = answer.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention")
    if default:
        time = f"{default['Days']} days" if default.get("Days") else f"{default.get('Years')} years"
        mode = str(default.get("Mode", "")).lower()
        yield f"the bucket's default retention locks every object for {time} ({mode}), also what must go on time"


def _hits(rule: Answer, prefix: str) -> bool:
    """Objects of the archive bear no tags; a rule for a prefix hits what lies above or below it."""
    condition = rule.get("Filter") or {}
    condition = condition.get("And") or condition
    if condition.get("Tag") or condition.get("Tags"):
        return False
    wanted = str(condition.get("Prefix") or rule.get("Prefix") or "")
    return wanted.startswith(prefix) or prefix.startswith(wanted)


def _when(value: object) -> str:
    return f"{value} days after they were written" if isinstance(value, int) else f"on {value}"
