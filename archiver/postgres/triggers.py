"""The SQL that archiver puts into a source: the journal, the functions that write it, and the event triggers.

In: what is published. Out: text for one transaction, from the files in `sql/`. Functions have two kinds. Those that
PostgreSQL itself calls, and `restore_point`, run with their owner's rights and settings of their own; all others are
called by them alone, and nobody else may execute them. Nothing that a user wrote is ever run with their owner's rights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from archiver.format.ddl import SETTINGS, literal
from archiver.postgres import ddl_indexes, exclusion

_NOTING: Final = tuple(f"archiver_before_{event}" for event in ("start", "end", "drop"))
"""They fire right before those of the same event that capture: triggers fire in the order of their names."""
_NOTING_TYPES: Final = ("archiver_before_alter", "archiver_before_rewrite")
"""Without them an ALTER TABLE is a loss: nobody knows what it converted."""
_RECORDING: Final = tuple(f"archiver_capture_{event}" for event in ("start", "end", "drop", "rewrite"))
CAPTURING: Final = (*_NOTING, *_RECORDING)
"""The event triggers that write DDL into the stream: without any of them it is not captured."""
GUARDS: Final = {
    "archiver_guard_keyless": "guard_keyless",
    "archiver_guard_drop": "guard_dropped",
    "archiver_guard_others": "guard_others",
    "archiver_guard_others_drop": "guard_others_dropped",
}
_PUBLISHING: Final = {"archiver_publish_new": "publish_new", "archiver_publish_drop": "publish_dropped"}
"""Triggers and their functions. A CREATE TABLE is captured before the guard's ALTER TABLE, and that is done before the
table is published."""
NAMES: Final = (*CAPTURING, *_NOTING_TYPES, *GUARDS, *_PUBLISHING)

ROWS_LIMIT: Final = 64 << 20
"""Bytes of a table up to which rewritten rows travel in the stream: past that a base snapshot is cheaper."""

TEXT_LIMIT: Final = 16 << 20
"""Bytes of a text of DDL that travels: what is longer costs a base snapshot, where it leaves anything behind."""

SETTING_LIMIT: Final = 1 << 20
"""The same of a setting: a search_path of 270 MB can be set."""

# A few rows are looked up in large catalogs by their indexes: what that costs must not grow with the number of tables.
# Nor may the journal be read whole: a serializable transaction would then depend on everybody who writes it.
_LOOKUPS: Final = """
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
    SET plan_cache_mode = force_generic_plan"""
# What a session may have set otherwise, and our own statements, and the text that values are written as, depend on.
_PINNED: Final = f"""
    SET search_path = pg_catalog, pg_temp SET DateStyle = 'ISO, MDY' SET IntervalStyle = 'postgres' SET TimeZone = 'UTC'
    SET extra_float_digits = 3 SET bytea_output = 'hex' SET lc_monetary = 'C' SET xmloption = 'content'
    SET row_security = off SET quote_all_identifiers = off SET standard_conforming_strings = on
    SET backslash_quote = safe_encoding SET transform_null_equals = off SET array_nulls = on
    SET constraint_exclusion = off SET lock_timeout = '100ms' {_LOOKUPS}
    SET plpgsql.extra_errors = 'none' SET plpgsql.extra_warnings = 'none'
"""
_IN_ENGLISH: Final = "SET lc_messages = 'C'"
"""Translated context lines could not be read again. Only a superuser's function may set it."""

_TAGS: Final = ("CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "CREATE SCHEMA", "ALTER TABLE")
"""What can make a table, or name one whose key it takes away; what goes with others the events of sql_drop tell."""
_STARTS: Final = ("CREATE TABLE AS", "SELECT INTO", "CREATE EXTENSION", "ALTER EXTENSION")
_COMPUTING: Final = (
    *(
        "ALTER DOMAIN",
        "ALTER FOREIGN TABLE",
        "ALTER POLICY",
        "ALTER PUBLICATION",
        "ALTER TABLE",
        "ALTER TYPE",
        "ALTER VIEW",
    ),
    *("CREATE AGGREGATE", "CREATE DOMAIN", "CREATE FOREIGN TABLE", "CREATE FUNCTION", "CREATE INDEX", "CREATE POLICY"),
    *("CREATE MATERIALIZED VIEW", "CREATE PROCEDURE", "CREATE PUBLICATION", "CREATE RULE", "CREATE SCHEMA"),
    *("CREATE STATISTICS", "CREATE TABLE", "CREATE TABLE AS", "CREATE TRIGGER", "CREATE VIEW"),
    *("REFRESH MATERIALIZED VIEW", "SELECT INTO"),
)
"""What may run users' code before its end event: in an expression, or while a literal is read (a domain's CHECK)."""
_EVENTS: Final = {
    "start": "ddl_command_start",
    "end": "ddl_command_end",
    "drop": "sql_drop",
    "rewrite": "table_rewrite",
}


@dataclass(frozen=True, slots=True)
class ListedPublication:
    """A publication that lists its tables: not the `excluded` nor, without `guard`, keyless ones."""

    name: str
    excluded: Sequence[str]
    guard: bool


@cache
def _file(name: str) -> str:
    return (files("archiver.postgres") / "sql" / name).read_text("utf-8")


def journal_statements() -> str:
    """The schema and its tables; they stay what they are where they are there."""
    return _file("journal.sql")


def function_statements(listed: ListedPublication | None, *, superuser: bool) -> str:
    """All functions, in a schema that has none. `listed`: the publication, where it is not for all tables."""
    guard, publish = _looks_after(listed)
    names = ["functions.sql", "texts.sql", "sessions.sql", "rights.sql", "capture.sql", "rewrites.sql", "tables.sql"]
    text = "".join(map(_file, names))
    if guard:
        own = "pg_has_role(c.relowner, 'USAGE')"
        text += _looking("guard.sql", "guard_keyless", "end", whose=own)
        text += _looking("guard.sql", "guard_others", "end", rights="SECURITY DEFINER")
        text += _looking("guard.sql", "guard_dropped", "drop", whose=own)
        text += _looking("guard.sql", "guard_others_dropped", "drop", rights="SECURITY DEFINER")
    if publish:
        text += _looking("publish.sql", "publish_new", "end") + _looking("publish.sql", "publish_dropped", "drop")
    return _filled(text, listed, superuser=superuser)


def _looking(file: str, function: str, event: str, *, whose: str = "true", rights: str = "") -> str:
    """One that looks at the tables which a statement may have changed: those it names, or took something from."""
    filling = {
        "__FUNCTION__": function,
        "__TOUCHED__": _file(f"touched_{event}.sql"),
        "__WHOSE__": whose,
        "__RIGHTS__": rights,
    }
    return re.sub("|".join(filling), lambda found: filling[found[0]], _file(file))


def trigger_statements(listed: ListedPublication | None) -> str:
    """The event triggers, for a role that may create any."""
    guard, publish = _looks_after(listed)
    text = "".join(_trigger(name, "note_session") for name in _NOTING)
    text += "".join(_trigger(name, "note_types") for name in _NOTING_TYPES)
    text += "".join(_trigger(name, "capture_ddl") for name in _RECORDING)
    looking = {**(GUARDS if guard else {}), **(_PUBLISHING if publish else {})}
    return text + "".join(_trigger(name, function) for name, function in looking.items())


def drop_statements() -> str:
    """Take all event triggers out; their functions stay."""
    return "".join(f"DROP EVENT TRIGGER IF EXISTS {name};\n" for name in NAMES)


_FUNCTION: Final = re.compile(r"CREATE FUNCTION archiver\.(\w+)\(.*?\bAS (\$\w+\$)(.*?)\2", re.DOTALL)


def function_bodies(listed: ListedPublication | None) -> dict[str, str]:
    """The body of each function as it should stand in pg_proc, by name."""
    text = function_statements(listed, superuser=True)
    return {name: body for name, _, body in _FUNCTION.findall(text)}


def _looks_after(listed: ListedPublication | None) -> tuple[bool, bool]:
    """Whether keyless tables are guarded, and whether new ones must be published."""
    return listed is None or listed.guard, listed is not None


def _filled(text: str, listed: ListedPublication | None, *, superuser: bool) -> str:
    schemas, tables = exclusion.arrays(listed.excluded if listed else ())
    filling = {
        "__NAME__": literal(listed.name) if listed else "NULL",
        "__CAPTURING__": f"{_PINNED}    {_IN_ENGLISH if superuser else ''}",
        "__PINNED__": _PINNED,
        "__LOOKUPS__": _LOOKUPS,
        "__SETTINGS__": ", ".join(map(literal, SETTINGS)),
        "__STARTS__": ", ".join(map(literal, _STARTS)),
        "__COMPUTING__": ", ".join(map(literal, _COMPUTING)),
        "__LIMIT__": str(ROWS_LIMIT),
        "__TEXT_LIMIT__": str(TEXT_LIMIT),
        "__SETTING_LIMIT__": str(SETTING_LIMIT),
        "__REST__": ddl_indexes.REST,
        "__SCHEMAS__": schemas,
        "__TABLES__": tables,
    }
    return re.sub("|".join(filling), lambda found: filling[found[0]], text)


def _trigger(name: str, function: str) -> str:
    event = name.rpartition("_")[2]
    tags = {
        "start": tuple(dict.fromkeys((*_STARTS, "ALTER DEFAULT PRIVILEGES", *_COMPUTING))),
        "keyless": _TAGS,
        "others": ("ALTER TABLE",),
        "new": _TAGS,
        "alter": ("ALTER TABLE",),
    }.get(event)
    when = f"WHEN TAG IN ({', '.join(map(literal, tags))})" if tags else ""
    return f"""
CREATE EVENT TRIGGER {name} ON {_EVENTS.get(event, "ddl_command_end")} {when}
    EXECUTE FUNCTION archiver.{function}();
ALTER EVENT TRIGGER {name} ENABLE ALWAYS;
"""
