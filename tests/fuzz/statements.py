"""The next step of one connection: a statement, several in one text, DDL inside a DO block or a function, or the
borders of transactions and savepoints."""

from __future__ import annotations

import re

from tests.fuzz import alterations, objects, rows, tables
from tests.fuzz.gen import ROLES, Gen, choose

_ROWS, _TABLES, _ALTERATIONS, _OBJECTS = rows.MAKERS, tables.MAKERS, alterations.MAKERS, objects.MAKERS


def _plain(g: Gen) -> str:
    share = g.rng.random()
    makers = _ROWS if share < 0.42 else _TABLES if share < 0.6 else _ALTERATIONS if share < 0.82 else _OBJECTS
    return choose(g, makers)


def _several(g: Gen) -> str:
    """One text of several statements is one implicit transaction."""
    g.idle = False
    return "; ".join(_plain(g) for _ in range(g.rng.randint(2, 4)))


def _do(g: Gen) -> str:
    g.idle = False
    inner = "; ".join(_plain(g) for _ in range(g.rng.randint(1, 3)))
    if "$$" in inner or "SELECT nextval" in inner or "SELECT setval" in inner:
        raise IndexError
    caught = "EXCEPTION WHEN OTHERS THEN RAISE NOTICE 'caught';" if g.chance(50) else ""
    quoted = f"EXECUTE $x${inner}$x$;" if g.chance(50) or "INTO" in inner else f"{inner};"
    return f"DO $do$ BEGIN {quoted} {caught} END $do$"


def _by_function(g: Gen) -> str:
    g.idle = False
    inner = _plain(g)
    if "$$" in inner or "$f$" in inner:
        raise IndexError
    name = f"public.ddl_{g.number}"
    path = g.opt(30, " SET search_path = public")
    return g.pick(
        [f"CREATE FUNCTION {name}() RETURNS void LANGUAGE plpgsql{path} AS $b$ BEGIN EXECUTE $x${inner}$x$; END $b$; SELECT {name}()",
         f"CREATE FUNCTION {name}() RETURNS void LANGUAGE sql{path} AS $b$ {inner}; SELECT $b$; SELECT {name}()"]
    )  # fmt: skip


def _session(g: Gen) -> str:
    known = g.world.named("SCHEMA")
    path = ", ".join(each.full for each in g.some(known, 1, 3))
    return g.pick(
        [f"SET search_path = {path}", f"SET LOCAL search_path = {path}", "RESET search_path",
         "SET search_path = \"$user\", public", "SET DateStyle = 'SQL, DMY'", "SET DateStyle = 'German'", "RESET DateStyle",
         "SET IntervalStyle = 'iso_8601'", "SET TimeZone = 'Asia/Tokyo'", "SET TimeZone = 'America/New_York'",
         "SET standard_conforming_strings = off", "RESET standard_conforming_strings", "SET bytea_output = 'escape'",
         "SET check_function_bodies = off", "SET constraint_exclusion = on", "SET default_toast_compression = 'pglz'",
         f"SET ROLE {g.pick(ROLES)}", "RESET ROLE", "RESET ROLE", "DISCARD TEMP", "RESET ALL", "SET extra_float_digits = 0",
         "SET lc_messages = 'C'", "SET quote_all_identifiers = on", "SET row_security = off", "SET array_nulls = on"]
    )  # fmt: skip


_KINDS = {_plain: 86, _several: 5, _do: 5, _by_function: 2, _session: 3}


def statement(g: Gen) -> str:
    """Any statement; IndexError is another maker's turn."""
    idle = g.idle
    while True:
        try:
            text = g.rng.choices(list(_KINDS), list(_KINDS.values()))[0](g)
        except IndexError:
            g.idle = idle
            continue
        if not _is_refused(text):
            return text
        g.idle = idle


def _is_refused(text: str) -> bool:
    """A literal that is a moment, elsewhere than in a default, costs a base snapshot: targets before it are refused."""
    return bool(re.search(r"'(today|tomorrow|now)'", text) and re.search(r"(?i)\b(check|for values|using)\b", text))


def next_step(g: Gen, status: str, savepoints: int) -> str:
    """`status`: idle, open, or aborted; `savepoints`: how many the connection's transaction has."""
    if status == "aborted":
        return f"ROLLBACK TO s{g.rng.randint(1, savepoints)}" if savepoints and g.chance(75) else "ROLLBACK"
    if status == "idle":
        return "BEGIN" if g.chance(30) else statement(g)
    share = g.rng.random() * 100
    borders = [
        (9, f"SAVEPOINT s{savepoints + 1}"), (16, "COMMIT"), (19, "ROLLBACK"),
        (23, f"ROLLBACK TO s{g.rng.randint(1, max(1, savepoints))}" if savepoints else "COMMIT"),
        (25, f"RELEASE s{g.rng.randint(1, max(1, savepoints))}" if savepoints else "SET CONSTRAINTS ALL IMMEDIATE"),
        (26, f"PREPARE TRANSACTION 'fuzz_{g.number}'"),
    ]  # fmt: skip
    return next((text for border, text in borders if share < border), "") or statement(g)
