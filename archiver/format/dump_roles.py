"""Ownership and privileges of a dump, fitted to the roles that a target has.

In: entries and the names of the target's roles. Out: the entries without the statements that name any other
role, and a list of what was left out. Only the shapes that pg_dump writes are read, and only whole
statements go: a function body that contains GRANT is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from archiver.format.dump import IDENTIFIER, Entry, statements, unquote


@dataclass(frozen=True, slots=True)
class Skipped:
    """A statement that was left out: the entry it stood in, the roles it lacked (or the reason), and its text."""

    entry: str
    reason: str
    statement: str

    @property
    def warning(self) -> str:
        return f"{self.entry} left out: {self.reason}"


_BLANK: Final = r"(?:--.*\n|\s)*"
_TO_ROLE: Final = rf"[\s\S]* (?:TO|FROM) ({IDENTIFIER})(?: WITH GRANT OPTION)?;\s*"
_OWNER: Final = re.compile(rf"{_BLANK}ALTER [\s\S]* OWNER TO ({IDENTIFIER});\s*")
_GRANT: Final = re.compile(rf"{_BLANK}(?:GRANT|REVOKE)\b{_TO_ROLE}")
_DEFAULT_ACL: Final = re.compile(rf"{_BLANK}ALTER DEFAULT PRIVILEGES FOR ROLE ({IDENTIFIER}){_TO_ROLE}")
_SESSION: Final = re.compile(rf"{_BLANK}SET SESSION AUTHORIZATION ({IDENTIFIER});\s*")
_RESET: Final = re.compile(rf"{_BLANK}RESET SESSION AUTHORIZATION;\s*")
_USER_MAPPING: Final = re.compile(rf"^CREATE USER MAPPING FOR ({IDENTIFIER}) SERVER ", re.MULTILINE)
_POLICY: Final = re.compile(
    rf"^(CREATE POLICY {IDENTIFIER} ON {IDENTIFIER}\.{IDENTIFIER}(?: AS RESTRICTIVE)?(?: FOR [A-Z]+)?) "
    rf"TO ({IDENTIFIER}(?:, {IDENTIFIER})*)",
    re.MULTILINE,
)
_ACL_SHAPES: Final = {"ACL": _GRANT, "DEFAULT ACL": _DEFAULT_ACL}
_NO_ROLE: Final = frozenset({"PUBLIC", "CURRENT_USER", "CURRENT_ROLE", "SESSION_USER"})


def for_target(
    entries: Iterable[Entry], roles: Collection[str], *, owners: Collection[str] | None = None
) -> tuple[list[Entry], list[Skipped]]:
    """Entries that a server with only these roles can run, and what was left out of them.

    `owners` are the roles that the restoring role may give objects to; by default all of `roles`.
    """
    fitter = _Fitter(frozenset(roles), frozenset(roles if owners is None else owners))
    return [fitted for entry in entries if (fitted := fitter.fit(entry)) is not None], fitter.skipped


def lacking(entries: Iterable[Entry], roles: Collection[str]) -> set[str]:
    """The roles that entries name, and that are none of these."""
    fitter = _Fitter(frozenset(roles), frozenset(roles))
    for entry in entries:
        fitter.fit(entry)
    return fitter.lacking


def split_ownership(entry: Entry) -> tuple[Entry, list[str]]:
    """An entry without the statements that give its object away, and those statements."""
    if " OWNER TO " not in entry.text:
        return entry, []
    parts = statements(entry.text)
    given = [part for part in parts if _OWNER.fullmatch(part)]
    return replace(entry, text="".join(part for part in parts if part not in given)), given


def owner_given(statement: str) -> str | None:
    """The role that a statement gives its object to."""
    return next(iter(_matched(_OWNER, statement)), None)


class _Fitter:
    def __init__(self, roles: frozenset[str], owners: frozenset[str]) -> None:
        self.roles = roles
        self.owners = owners
        self.skipped: list[Skipped] = []
        self.lacking: set[str] = set()

    def fit(self, entry: Entry) -> Entry | None:
        if entry.type in _ACL_SHAPES:
            return self._privileges(entry)
        if entry.type == "POLICY":
            return self._policy(entry)
        if entry.type == "USER MAPPING":
            return self._user_mapping(entry)
        return self._ownership(entry)

    def _user_mapping(self, entry: Entry) -> Entry | None:
        match = _USER_MAPPING.search(entry.text)
        # reported without its options, which hold a password
        return entry if match is None or self._keep(entry, match[0], [unquote(match[1])]) else None

    def _ownership(self, entry: Entry) -> Entry:
        if " OWNER TO " not in entry.text:
            return entry
        kept = [part for part in statements(entry.text) if self._may_own(entry, part)]
        return replace(entry, text="".join(kept))

    def _may_own(self, entry: Entry, statement: str) -> bool:
        return self._keep(entry, statement, _matched(_OWNER, statement), self.owners)

    def _privileges(self, entry: Entry) -> Entry | None:
        shape = _ACL_SHAPES[entry.type]
        kept = [unit for unit, named in _acl_units(entry.text, shape) if self._keep(entry, unit, named)]
        text = "".join(kept)
        return replace(entry, text=text) if re.search(r"GRANT|REVOKE", text) else None

    def _policy(self, entry: Entry) -> Entry | None:
        """A policy stays for those of its roles that there are; one for nobody goes."""
        match = _POLICY.search(entry.text)
        if match is None:
            return entry
        named = re.findall(IDENTIFIER, match[2])
        there = [role for role in named if self._is_there(unquote(role), self.roles)]
        if len(there) < len(named):
            missing = sorted({unquote(role) for role in named} - {unquote(role) for role in there})
            self._skip(entry, match[0], missing)
        if not there:
            return None
        return replace(entry, text=_POLICY.sub(lambda m: f"{m[1]} TO {', '.join(there)}", entry.text, count=1))

    def _keep(self, entry: Entry, statement: str, named: list[str], allowed: frozenset[str] | None = None) -> bool:
        missing = [role for role in named if not self._is_there(role, self.roles if allowed is None else allowed)]
        if missing:
            self._skip(entry, statement, missing)
        return not missing

    def _is_there(self, role: str, allowed: frozenset[str]) -> bool:
        return role in _NO_ROLE or role in allowed

    def _skip(self, entry: Entry, statement: str, missing: list[str]) -> None:
        self.lacking.update(missing)
        bare = re.sub(rf"\A{_BLANK}", "", statement).strip()
        self.skipped.append(Skipped(entry.label, f"no role {', '.join(missing)}", bare))


def _matched(shape: re.Pattern[str], statement: str) -> list[str]:
    match = shape.fullmatch(statement)
    return [unquote(role) for role in match.groups()] if match else []


def _acl_units(text: str, shape: re.Pattern[str]) -> Iterator[tuple[str, list[str]]]:
    """Statements with the roles they name; one under another role's authorization is taken with its bracket."""
    bracket, named = "", list[str]()
    for statement in statements(text):
        if session := _matched(_SESSION, statement):
            bracket, named = statement, session
        elif bracket and not _RESET.fullmatch(statement):
            bracket, named = bracket + statement, named + _matched(shape, statement)
        elif bracket:
            yield bracket + statement, named
            bracket, named = "", []
        else:
            yield statement, _matched(shape, statement)
    if bracket:
        yield bracket, named
