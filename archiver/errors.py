"""Every error a user can meet, its exit code, and the hint that goes with it.

    ArchiverError                 1
    ├── UsageError                2   a wrong argument
    │   └── ConfigError           2   an unreadable or invalid configuration
    ├── PostgresError             3   the source or the target PostgreSQL refuses or is not as needed
    │   ├── PostgresUnavailable   3   ... and may answer if asked again (transient)
    │   │   ├── InTheWay          3   somebody holds a lock, or waits for one of ours
    │   │   ├── SchemaMoved       3   DDL ran beside a base snapshot
    │   │   └── StreamBroken      3   the server ended the replication stream with an error of its own
    │   ├── Unsendable            3   the server cannot put rows of a table into words: a value is too large
    │   └── SlotLost              3   the slot is gone, was moved or is given up: the next start records the gap
    │       └── TransactionLeftOut  3   the slot goes on behind a transaction that the server cannot send
    ├── StoreError                4   an object store, or the service that holds a key, refuses
    │   ├── StoreUnavailable      4   ... and may answer if asked again (transient)
    │   ├── AccessDenied          4
    │   ├── BucketNotFound        4
    │   ├── ObjectNotFound        4
    │   └── ObjectExists          4   a conditional write found an object in its place
    ├── IntegrityError            5   altered, missing, reordered, or sealed under another key
    │   ├── WrongKey              5
    │   ├── ForeignObject         5   what stands in an object's place is none of archiver's
    │   └── RegionsDisagree       5   two regions hold different things under one name: no side is picked
    ├── TargetUnreachable         6   a recovery target outside the window or inside a gap
    ├── DrillFailed               7
    └── Fenced                    8   another writer owns the archive

Messages are lowercase without a final full stop; hints are sentences. Whether asking again may help is a
property of the class, `transient`, and the only thing that retries look at.
"""

from __future__ import annotations

from typing import ClassVar


class ArchiverError(Exception):
    """Base of all errors that end a command with a message instead of a traceback.

    `hint` says what to do; `where` names the place: an LSN, an object, a region.
    """

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.message} ({self.where})" if self.where else self.message


class UsageError(ArchiverError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class PostgresError(ArchiverError):
    exit_code = 3


class PostgresUnavailable(PostgresError):
    transient = True


class InTheWay(PostgresUnavailable):
    pass


class SchemaMoved(PostgresUnavailable):
    pass


class StreamBroken(PostgresUnavailable):
    """`state` is the SQLSTATE; `lasting`: asking again changes nothing, as far as that tells."""

    def __init__(self, message: str, *, state: str, lasting: bool) -> None:
        super().__init__(message)
        self.state = state
        self.lasting = lasting


class Unsendable(PostgresError):
    pass


class SlotLost(PostgresError):
    pass


class TransactionLeftOut(SlotLost):
    pass


class StoreError(ArchiverError):
    exit_code = 4


class StoreUnavailable(StoreError):
    transient = True


class AccessDenied(StoreError):
    pass


class BucketNotFound(StoreError):
    pass


class ObjectNotFound(StoreError):
    pass


class ObjectExists(StoreError):
    pass


class IntegrityError(ArchiverError):
    exit_code = 5


class WrongKey(IntegrityError):
    pass


class ForeignObject(IntegrityError):
    pass


class RegionsDisagree(IntegrityError):
    def __init__(self, name: str, *regions: str) -> None:
        hint = "Compare them: archiver verify. Where one holds all changes of the other: archiver verify --repair"
        super().__init__(f"regions disagree about {name}", hint=hint, where=", ".join(regions))


class TargetUnreachable(ArchiverError):
    exit_code = 6


class DrillFailed(ArchiverError):
    exit_code = 7


class Fenced(ArchiverError):
    exit_code = 8
