"""pg_dump of a database as text to compare: what restore promises to bring back, and nothing that is archiver's own."""

from __future__ import annotations

import re
import subprocess
from difflib import unified_diff
from pathlib import Path

import psycopg

from archiver.format import dump as dump_format
from archiver.postgres.client_programs import candidates

_UNSTABLE = re.compile(r"^(\\(un)?restrict |SELECT pg_catalog\.setval\().*\n", re.MULTILINE)
"""What pg_dump makes up for each run, and sequences, which may stand higher after a restore, never lower."""


def pg_dump(dsn: str, *options: str) -> list[str]:
    """Schema and rows, without what belongs to archiver, and without what pg_dump makes up for each run."""
    program = next(path for path in candidates("pg_dump") if "embedded" in str(path))
    text = _run(program, dsn, *options)
    entries = dump_format.split(_UNSTABLE.sub("", text))
    publication = _publication(dsn)
    return _sorted_inserts("".join(entry.text for entry in entries if not dump_format.is_own(entry, publication)))


def _run(program: Path, dsn: str, *options: str) -> str:
    command = [program, "--no-tablespaces", "--inserts", "--exclude-schema=archiver", *options, f"--dbname={dsn}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _publication(dsn: str) -> str:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT pubname FROM pg_publication WHERE pubname LIKE 'archiver%'").fetchone()
    return row[0] if row else ""


def _sorted_inserts(text: str) -> list[str]:
    """Rows have no order: each table's are sorted. The other lines stay where they are."""
    lines: list[str] = []
    rows: list[str] = []
    for line in text.splitlines():
        if line.startswith("INSERT INTO "):
            rows.append(line)
            continue
        lines += sorted(rows)
        rows = []
        lines.append(line)
    return lines + sorted(rows)


def difference(found: list[str], expected: list[str]) -> str:
    """Empty when both dumps are equal."""
    return "\n".join(unified_diff(expected, found, "source", "restored", lineterm="", n=2))
