"""The roles of a server as a base snapshot keeps them, and what of them a restore makes.

In: roles and memberships as read from the catalog. Out: JSON values, and the plan of making those that a target
lacks. Never: PostgreSQL's own roles (pg_*), or a change to a role that is there already.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Role:
    """A role. `attributes` are the words of CREATE ROLE that hold for it, such as LOGIN and CREATEDB.

    `password` is the hash that the server keeps, or None: there is none, or it could not be read. `settings` are
    those of ALTER ROLE … SET for all databases, as name=value.
    """

    name: str
    attributes: tuple[str, ...]
    connection_limit: int = -1
    valid_until: str | None = None
    password: str | None = None
    comment: str | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Membership:
    """`member` is a member of `role`. `inherit` and `set` are None where the source, before 16, did not know them."""

    role: str
    member: str
    admin: bool
    inherit: bool | None = None
    set: bool | None = None


@dataclass(frozen=True, slots=True)
class Globals:
    """What belongs to the server and not to the database. `passwords`: whether the role might read them."""

    passwords: bool
    roles: tuple[Role, ...]
    memberships: tuple[Membership, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises KeyError or TypeError for what is no such object."""
        tuples = ("attributes", "settings")
        roles = (Role(**{**role, **{name: tuple(role[name]) for name in tuples}}) for role in data["roles"])
        memberships = (Membership(**membership) for membership in data["memberships"])
        return cls(data["passwords"], tuple(roles), tuple(memberships))

    def missing(self, there: Collection[str]) -> Globals:
        """The part that a server with these roles lacks: other roles, and the memberships that involve one of them."""
        roles = tuple(role for role in self.roles if role.name not in there)
        new = {role.name for role in roles}
        memberships = tuple(each for each in self.memberships if new & {each.role, each.member})
        return Globals(self.passwords, roles, memberships)
