"""What a role had, when its statement ran, by what fires no event trigger and so stands nowhere in the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self


@dataclass(frozen=True, slots=True)
class Rights:
    """`owner`: of the database. `create`: in the database. `roles`: those whose rights it had as a member."""

    superuser: bool = False
    owner: bool = False
    create: bool = False
    roles: frozenset[str] = frozenset()

    @classmethod
    def from_said(cls, said: Mapping[str, Any]) -> Self:
        """Of the triggers, which leave out what is not so. Raises TypeError."""
        superuser, owner, create = (said.get(name) is True for name in ("superuser", "owner", "create"))
        return cls(superuser, owner, create, frozenset(said.get("roles") or ()))


NO_RIGHTS: Final = Rights()
