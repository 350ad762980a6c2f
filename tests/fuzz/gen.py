"""What all makers of statements share: chance, names, types, values. A maker is a function of a Gen to one statement.

A maker that finds nothing to work on lets IndexError out (an empty choice), and another one is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from tests.fuzz.world import Column, Named, Table, World

T = TypeVar("T")

NAMES: Final = [
    "a", "b", "c", "d", "item", "note", "order_line", "customer", "size", "v", "total",
    '"Mixed Case"', '"quo""te"', '"select"', '"naïve ü"', '"dot.ted"', '"semi;colon"', '"back\\slash"', '"it\'s"',
    '"$1"', '"(x)"', "ä_1", '"%s"', '"1"',
]  # fmt: skip
ROLES: Final = ("fuzz_owner", "fuzz_reader")

_TYPES: Final[Mapping[str, str]] = {
    # a value that depends on the number i, as an expression
    "integer": "({i})::int", "bigint": "{i} * 10000000000", "smallint": "{i} % 30000", "numeric": "{i} / 7.0",
    "numeric(12,3)": "{i} / 8.0", "real": "{i} / 3.0::real", "double precision": "{i} / 3.0::float8",
    "text": "'text ' || {i}", "character varying(30)": "'vc ' || {i}", "character(8)": "({i} % 99)::text",
    "bytea": "decode(md5(({i})::text), 'hex')", "boolean": "{i} % 2 = 0", "date": "date '2026-01-01' + ({i} % 999)::int",
    "timestamp without time zone": "timestamp '2026-01-01' + {i} * interval '1.5 s'",
    "timestamp with time zone": "timestamptz '2026-01-01 00:00+00' + {i} * interval '1 h'",
    "time without time zone": "time '00:00' + {i} * interval '1 min'", "interval": "{i} * interval '1 day 2 s'",
    "json": "json_build_object('a', {i}, 'b', null)", "jsonb": "jsonb_build_array({i}, 'x')",
    "uuid": "md5(({i})::text)::uuid", "inet": "inet '10.0.0.0' + ({i} % 1000)", "money": "({i})::int::money",
    "bit(3)": "({i} % 8)::int::bit(3)", "bit varying": "({i})::int::bit(9)::varbit", "point": "point({i}, 1)",
    "tsvector": "to_tsvector('simple', 'w' || {i})", "integer[]": "ARRAY[{i}, NULL, 3]::int[]",
    "text[]": "ARRAY['x', NULL, ({i})::text]", "int4range": "int4range(({i})::int, ({i})::int + 5)",
    "int4multirange": "int4multirange(int4range(1, 2), int4range(5, 9))", "name": "('n' || {i})::name",
    "timestamp(0) without time zone": "timestamp '2026-01-01' + {i} * interval '1 s'",
    "timestamp with time zone[]": "ARRAY[timestamptz '2026-01-01 00:00+00']", "oid": "({i})::int::oid",
    "macaddr": "macaddr '08:00:2b:01:02:03'", "regclass": "'pg_class'::regclass", "pg_lsn": "'0/0'::pg_lsn + {i}",
}  # fmt: skip
KEY_TYPES: Final = ("integer", "bigint", "text", "uuid", "character varying(30)", "numeric", "smallint")
CONSTANTS: Final[Mapping[str, Sequence[str]]] = {
    "integer": ("0", "-2147483648", "2147483647"), "numeric": ("'NaN'", "'Infinity'", "1e-30", "'-0.00'"),
    "real": ("'NaN'", "'-Infinity'", "1e-40", "-0.0"), "double precision": ("'NaN'", "'Infinity'", "0.1", "-0.0"),
    "text": ("''", "'it''s'", "'ü → 𝄞'", "'a\tb;c'", "'\\.'", "'\\N'", "'NULL'", "repeat('long ', 900)"),
    "bytea": ("''", "decode('00ff5c27', 'hex')"), "date": ("'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'"),
    "timestamp with time zone": ("'infinity'", "'2026-03-29 02:30 Europe/Berlin'", "'1900-01-01 00:00:00.123456+00'"),
    "timestamp without time zone": ("'-infinity'", "'2026-06-30 23:59:60'"), "interval": ("'-1 mon +1 day -00:00:00.5'",),
    "json": ("'{}'", "' [1 , 2]'", "'null'", "'{\"a\":\"\\u00fc\",\"a\":1}'"), "jsonb": ("'null'", "'{\"a\": [1.0, \"\\\\\"]}'"),
    "integer[]": ("'{}'", "'[0:1]={1,2}'", "'{{1,2},{3,NULL}}'"), "text[]": ("'{}'", "'{\"\",\"a,b\",NULL,\"NULL\",\"q\\\"\"}'"),
    "int4range": ("'empty'", "'(,)'", "'[1,)'"), "point": ("'(NaN,-0)'",), "tsvector": ("'a:1A b:2,3'",), "inet": ("'::1/64'",),
    "money": ("'-12.34'",), "boolean": ("true", "false"), "uuid": ("'00000000-0000-0000-0000-000000000000'",),
    "character(8)": ("''", "'  x'"), "bit varying": ("''",), "numeric(12,3)": ("'NaN'", "'-0.001'"),
}  # fmt: skip


@dataclass(slots=True)
class Gen:
    """`idle`: outside a transaction, and a single statement; `inside`: the connection's transaction goes on after it.

    `busy`: some connection is inside one; `archived`: a base snapshot was taken.
    `number` counts statements, and makes names unique where they should be.
    """

    rng: random.Random
    world: World
    idle: bool
    number: int
    server_version: int
    inside: bool = False
    busy: bool = False
    archived: bool = True

    # --- chance

    def pick(self, among: Sequence[T]) -> T:
        return self.rng.choice(among)

    def chance(self, percent: float) -> bool:
        return self.rng.random() * 100 < percent

    def some(self, among: Sequence[T], least: int = 1, most: int = 3) -> list[T]:
        most = min(most, len(among))
        if most < least:
            raise IndexError
        return self.rng.sample(among, self.rng.randint(least, most))

    def number_up_to(self, most: int) -> int:
        return self.rng.randint(0, most)

    def opt(self, percent: float, text: str) -> str:
        return text if self.chance(percent) else ""

    # --- names

    def name(self) -> str:
        word = self.pick(NAMES)
        return (
            word
            if self.chance(60)
            else f'{word[:-1]}_{self.number}"'
            if word.endswith('"')
            else f"{word}_{self.number}"
        )

    def schema(self) -> str:
        return self.pick(self.world.named("SCHEMA")).full

    def new(self) -> str:
        """A new qualified name."""
        return self.name() if self.chance(20) else f"{self.schema()}.{self.name()}"

    def ref(self, table: Table) -> str:
        return table.name if table.visible and self.chance(40) else table.full

    def table(self, kinds: str = "rp", persistence: str = "pu") -> Table:
        return self.pick(self.world.of(kinds, persistence))

    def named(self, *kinds: str) -> Named:
        return self.pick(self.world.named(*kinds))

    def on(self, kind: str) -> Named:
        """Something that belongs to a table that is still there."""
        return self.named(kind)

    # --- types and values

    def type(self) -> str:
        own = self.world.named("TYPE", "DOMAIN")
        if own and self.chance(25):
            return self.pick(own).full + self.opt(15, "[]")
        return self.pick(tuple(_TYPES)) if self.chance(50) else self.pick(KEY_TYPES)

    def value(self, type_name: str, number: str | None = None) -> str:
        """An expression of about this type; `number` is an expression for a number to derive it from."""
        if number is None and self.chance(8):
            return "NULL"
        if number is None and type_name in CONSTANTS and self.chance(25):
            return f"{self.pick(CONSTANTS[type_name])}::{type_name}"
        if type_name in _TYPES:
            return _TYPES[type_name].format(i=number or str(self.rng.randint(1, 500)))
        bare = type_name.removesuffix("[]")
        for own in self.world.named("TYPE", "DOMAIN"):
            if bare in {own.full, own.name}:
                value = self._own_value(own, number)
                return f"ARRAY[{value}, NULL]::{type_name}" if type_name.endswith("[]") else value
        return "NULL"

    def _own_value(self, own: Named, number: str | None) -> str:
        if own.on == "e":
            return f"{self.pick(own.detail)}::{own.full}" if own.detail else "NULL"
        if own.on == "d":
            return f"({number or self.rng.randint(1, 500)})::int::{own.full}"
        return f"NULL::{own.full}" if self.chance(20) else f"jsonb_populate_record(NULL::{own.full}, '{{}}')"

    def default(self, type_name: str) -> str:
        """A default, sometimes one that is computed at each use."""
        volatile = {
            "double precision": ("random()",), "uuid": ("gen_random_uuid()",),
            "timestamp with time zone": ("now()", "clock_timestamp()", "'now'", "'today'::timestamptz"),
            "timestamp without time zone": ("localtimestamp", "now()"), "date": ("current_date", "'tomorrow'"),
            "text": ("current_user", "md5(random()::text)", "timeofday()", "current_setting('search_path')"),
            "integer": ("(random() * 1000)::int", "pg_backend_pid()"),
            "numeric": ("random()::numeric", "extract(epoch FROM now())"),
        }  # fmt: skip
        if type_name in volatile and self.chance(40):
            return self.pick(volatile[type_name])
        sequences = self.world.of("S", "p")
        if type_name in {"integer", "bigint"} and sequences and self.chance(25):
            return f"nextval('{self.pick(sequences).full.replace(chr(39), chr(39) * 2)}')"
        return self.value(type_name)

    def predicate(self, column: Column) -> str:
        return self.pick(
            [f"{column.name} IS NOT NULL", f"length({column.name}::text) > 0", f"({column.name})::text <> 'x'"]
        )


Maker = Callable[[Gen], str]
Weighted = Mapping[Maker, int]


def choose(gen: Gen, makers: Weighted) -> str:
    """A statement of one of the makers. Raises IndexError when they find nothing to work on."""
    for make in gen.rng.choices(list(makers), list(makers.values()), k=20):
        with suppress(IndexError):
            return make(gen)
    raise IndexError
