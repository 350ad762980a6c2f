"""Which DDL a restore could not run as the source did, asked when its entry is read: a loss, so that a base snapshot
follows.

In: an end event. Out: a code of archiver.format.journal.REASONS, or None.
"""

from __future__ import annotations

from typing import Final

from pglast.parser import ParseError, parse_sql_json

from archiver.errors import IntegrityError
from archiver.format.ddl import Event
from archiver.format.ddl_moments import (
    computed_bounds,
    holds_moments,
    holds_untold_moments,
    may_hold_moments,
    sets_who_runs_it,
    settings_from_current,
)
from archiver.format.ddl_rewrite import TargetFacts, for_target
from archiver.format.ddl_told import is_described, read_with_room, statement_of, tree_of

_WALKED: Final = 4 << 20
"""Characters of a tree's JSON, of trees that are walked: past that it would take the daemon's time."""
_ANYWHERE: Final = TargetFacts(frozenset(), "")


def loss_of(event: Event) -> str | None:
    """Why a restore would not do what the source did, if so."""
    if is_described(event):
        return None
    try:
        text = statement_of(event)
        if _holds_moments(text, event):
            return "moment"
        return None if _is_repeatable(text, event) else "untold"
    except (IntegrityError, ParseError, RecursionError):
        return "untold"


def _holds_moments(text: str, event: Event) -> bool:
    if not may_hold_moments(event.tag, text):
        return False
    parsed = read_with_room(parse_sql_json, text)
    return holds_moments(parsed) and (len(parsed) > _WALKED or holds_untold_moments(tree_of(text), event))


def _is_repeatable(text: str, event: Event) -> bool:
    """As far as values of the moment are concerned."""
    if not any(word in text.lower() for word in ("values", "current", "role", "session")):
        return True
    stmt = tree_of(text)
    if sets_who_runs_it(stmt):
        return False
    bounds, settings = computed_bounds(stmt), settings_from_current(stmt)
    if (bounds and not event.bounds) or (settings and not event.configured):
        return False
    try:
        return not (bounds or settings) or bool(for_target(text, event, _ANYWHERE))
    except IntegrityError:
        return False
