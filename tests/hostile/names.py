"""Names as unpleasant as PostgreSQL allows, and what quotes them."""

from __future__ import annotations

import random
from typing import Final

NAMES: Final = [
    "t", "Mixed Case", 'quo"te', "it's", "semi; --", "a\nb", "tab\there", "bell\x07", "cr\rlf", "ü → 𝄞", "back\\slash",
    "$$", "$x$", "%s %I", "{}", "select", "user", "public", "archiver", "journal", "archiver.journal", "run_as_10",
    "pg_temp.x", "pg_catalog.x", "vault.gold", "gold", "maintain", "/* x", "x */", "--", "''", "\\restrict x", "\\.",
    "x; Owner: y; Type: TABLE", "x; Type: ACL; Schema: vault; Owner: postgres", "-- Name: gold; Type: TABLE; Schema: vault",
    "a); DROP TABLE vault.gold; --", "n" * 63, "ä" * 31, "\x1b[2J", "x on vault.gold", "TABLE vault.gold", " ", "1",
]  # fmt: skip
ROLES: Final = [
    "evil", "Evil Role", 'ev"il', "evil; --", "it's evil", "x; Owner: postgres; Type: TABLE", "evil\nrole", "evil, public",
    "none ", "archiver", "run_as_10", "postgres;",
]  # fmt: skip
_BYTES: Final = 63


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'" if "\\" not in text else "E'" + _escaped(text) + "'"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "''")


def numbered(name: str, number: int) -> str:
    """The name with a number, so that it is another one each time, within PostgreSQL's limit."""
    end = f"_{number}"
    return name.encode()[: _BYTES - len(end)].decode(errors="ignore") + end


def hostile(rng: random.Random, number: int) -> str:
    return numbered(rng.choice(NAMES), number)
