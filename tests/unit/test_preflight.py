"""What `check` says of the server's version."""

from __future__ import annotations

import pytest

from archiver.postgres.preflight import NEWEST_TESTED_MAJOR, _version


@pytest.mark.parametrize(
    ("version", "status", "detail"),
    [
        (130021, "fail", "PostgreSQL 13 cannot stream transactions in progress"),
        (140000, "ok", "PostgreSQL 14"),
        (NEWEST_TESTED_MAJOR * 10000 + 99, "ok", f"PostgreSQL {NEWEST_TESTED_MAJOR}"),
        (190000, "warn", "PostgreSQL 19: not tested with this version of archiver"),
        (1000001, "warn", "PostgreSQL 100: not tested with this version of archiver"),
    ],
)
def test_a_newer_server_is_refused_by_nothing_and_called_untested(version: int, status: str, detail: str) -> None:
    check = _version(version)
    assert (check.status, check.detail) == (status, detail)
    assert (check.hint is None) == (status == "ok")
