"""pg_dump of a database as text to compare: what restore promises to bring back, and nothing that is archiver's own."""

from __future__ import annotations

import re
import subprocess
from difflib import unified_diff
from pathlib import Path

import psycopg

from archiver.format import dump as dump_format
from archiver.format.dump import Entry
from archiver.postgres.client_programs import candidates

_UNSTABLE = re.compile(r"^(\\(un)?restrict |SELECT pg_catalog\.setval\().*\n", re.MULTILINE)
"""What pg_dump makes up for each run, and sequences, which may stand higher after a restore, never lower."""
_STATE = re.compile(r"^SET default_table_access_method = .*;\n\n?", re.MULTILINE)
_USUAL = "SET default_table_access_method = heap;"
_STORED = {"TABLE", "MATERIALIZED VIEW"}
"""Types of entries that mean something else under another default_table_access_method."""


def pg_dump(dsn: str, *options: str) -> list[str]:
    """Schema and rows, without what belongs to archiver, and without what pg_dump makes up for each run.

    Entries are sorted: their order in a dump also depends on other sessions' temporary objects.
    """
    program = next(path for path in candidates("pg_dump") if "embedded" in str(path))
    # Rows are entries of their own here, whichever table's definition they happen to follow.
    text = _run(program, dsn, *options).replace("\n-- Data for Name: ", "\n-- Name: ")
    entries = dump_format.split(_UNSTABLE.sub("", text))
    publication = _publication(dsn)
    own = [entry for entry in entries if not dump_format.is_own(entry, publication)]
    own.sort(key=lambda entry: (entry.type, entry.schema, entry.name, _STATE.sub("", entry.text)))
    return [line for entry in own for line in _lines(entry)]


def _run(program: Path, dsn: str, *options: str) -> str:
    command = [program, "--no-tablespaces", "--inserts", "--exclude-schema=archiver", *options, f"--dbname={dsn}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _publication(dsn: str) -> str:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT pubname FROM pg_publication WHERE pubname LIKE 'archiver%'").fetchone()
    return row[0] if row else ""


def _lines(entry: Entry) -> list[str]:
    """Rows have no order: each table's are sorted, whole, for a value may hold newlines."""
    text = _STATE.sub("", entry.text)
    lines = [line for line in entry.state if entry.type in _STORED and line != _USUAL]
    if "INSERT INTO " not in text:
        return lines + text.splitlines()
    rows: list[str] = []
    for statement in dump_format.statements(text):
        before, insert, row = statement.partition("INSERT INTO ")
        if _is_comment(before) and insert:
            lines, rows = (lines + sorted(rows), []) if before.strip() else (lines, rows)
            lines += before.splitlines()
            rows.append(insert + row.rstrip("\n"))
        else:
            lines, rows = lines + sorted(rows) + statement.splitlines(), []
    return lines + sorted(rows)


def _is_comment(text: str) -> bool:
    return all(line.startswith("--") for line in text.splitlines() if line)


def difference(found: list[str], expected: list[str]) -> str:
    """Empty when both dumps are equal."""
    return "\n".join(unified_diff(expected, found, "source", "restored", lineterm="", n=2))
