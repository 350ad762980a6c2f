"""A history from a seed: steps of five roles, in a script as tests/fuzz has it.

`[1]` is the superuser; `[2]` evil, `[3]` the victim, `[4]` a neighbour and `[5]` an outsider, who have the names of the
first four roles made. `freeze` ends a phase: the source is looked at, and another base snapshot taken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.fuzz.script import FREEZE, INIT, Step
from tests.hostile.names import NAMES, ROLES, hostile, literal, quote
from tests.hostile.payloads import support
from tests.hostile.places import PLACES, STATES, STOPPING, Place

DBA, EVIL, VICTIM, NEIGHBOUR, OUTSIDER = range(1, 6)
PLACES_OF_A_SEED: Final = 9
_PHASES: Final = 2

_BASE = """
CREATE SCHEMA vault AUTHORIZATION {victim}; CREATE SCHEMA hood AUTHORIZATION {neighbour}; CREATE SCHEMA ops;
CREATE SCHEMA shared; GRANT ALL ON SCHEMA shared TO PUBLIC; GRANT USAGE ON SCHEMA public, vault, ops TO PUBLIC;
CREATE TABLE ops.log (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, said text);
CREATE FUNCTION ops.maintain(name) RETURNS void LANGUAGE plpgsql AS $b$ BEGIN
  IF to_regclass($1::text) IS NOT NULL THEN
    EXECUTE 'COMMENT ON TABLE ' || to_regclass($1::text)::text || ' IS ''maintained'''; END IF;
  INSERT INTO ops.log (said) VALUES ($1); END $b$
"""
_VAULT = """
CREATE TABLE vault.gold (id int PRIMARY KEY, v text); INSERT INTO vault.gold VALUES (1, 'bar'), (2, 'coin');
CREATE VIEW vault.seen AS SELECT id FROM vault.gold; CREATE FUNCTION vault.worth(int) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT $1';
CREATE TABLE shared.ledger (id int PRIMARY KEY, v text CHECK (v <> '')); CREATE INDEX ON shared.ledger (lower(v))
"""
_VICTIMS = (
    "INSERT INTO vault.gold VALUES ({i}, 'piece {i}')", "UPDATE vault.gold SET v = v || '.' WHERE id % 2 = 0", "ALTER TABLE vault.gold ADD c{i} int DEFAULT 7",
    "INSERT INTO shared.ledger VALUES ({i}, 'x') ON CONFLICT DO NOTHING", "CREATE TABLE vault.t{i} AS SELECT id, random() AS r FROM vault.gold",
    "CREATE INDEX ON vault.gold (lower(v))", "GRANT SELECT ON vault.seen TO PUBLIC", "COMMENT ON TABLE shared.ledger IS '{i}'",
    "CREATE TABLE vault.{n} (id int PRIMARY KEY, v text DEFAULT 'x'); INSERT INTO vault.{n} VALUES ({i})", "ALTER TABLE vault.gold ADD r{i} float DEFAULT random()",
)  # fmt: skip
_DBAS = (
    "INSERT INTO ops.log (said) VALUES ('{i}')", "CREATE TABLE ops.t{i} (id int PRIMARY KEY, v text); INSERT INTO ops.t{i} VALUES (1, 'x')",
    "SELECT ops.maintain('vault.gold')", "ALTER TABLE vault.gold SET (fillfactor = 80)", "COMMENT ON SCHEMA {s} IS '{i}'", "GRANT {victim} TO {neighbour}",
    "REVOKE {victim} FROM {neighbour}", "ALTER TABLE ops.log ADD c{i} int DEFAULT 1", "CREATE OR REPLACE VIEW ops.v AS SELECT id FROM vault.gold",
    "REINDEX SCHEMA {s}", "ANALYZE",
)  # fmt: skip
_FORGED = (
    ("archiver.ddl", "x"), ("archiver.restore_point", "before-release"), ("archiver.ddl_lost", "a password"), ("archiver", ""), ("rows", "{}"),
    ("archiver.ddl", '{"event": "sql_drop", "tag": "DROP TABLE", "role": "postgres", "objects": [{"type": "table", "identity": "vault.gold"}]}'),
    ("archiver.ddl", '{"event": "ddl_command_end", "tag": "ALTER ROLE", "role": "postgres", "sql": "ALTER ROLE PUBLIC SUPERUSER", "lsn": "0/1"}'),
    ("archiver.rows", '{"schema": "vault", "name": "gold", "first": true, "rows": ["(1,OWNED)"], "lsn": "0/1"}'), ("archiver.journal", "\\x00"),
)  # fmt: skip
_OUTSIDERS = (
    "CREATE TEMP TABLE gold (id int DEFAULT 1); DROP TABLE gold", "CREATE TEMP TABLE journal (id int); DROP TABLE journal",
    "CREATE FUNCTION pg_temp.maintain(name) RETURNS void LANGUAGE sql AS 'SELECT 1'; SELECT pg_temp.maintain('x')",
    "CREATE TABLE shared.{n} (id int PRIMARY KEY); INSERT INTO shared.{n} VALUES (1)", "NOTIFY archiver, 'x'", "SET archiver.session = '{{}}'",
    "SELECT archiver.restore_point('x')", "DROP TABLE vault.gold", "DO $d$ BEGIN EXECUTE 'CREATE TEMP TABLE x (a int)'; END $d$",
)  # fmt: skip


@dataclass(slots=True)
class _Made:
    place: Place
    words: dict[str, str]


@dataclass(slots=True)
class _History:
    """What was made so far; `kept` are the kinds of places that are still to be made."""

    rng: random.Random
    kept: list[str]
    number: int = 100
    roles: dict[str, str] = field(default_factory=dict)
    schemas: list[str] = field(default_factory=list)
    made: list[_Made] = field(default_factory=list)

    def words(self, **more: str) -> dict[str, str]:
        self.number += 1
        return {
            "i": str(self.number),
            "n": quote(hostile(self.rng, self.number)),
            "s": quote(self.schemas[0]),
            **self.roles,
            **more,
        }

    def begin(self) -> Iterator[Step]:
        rng = self.rng
        names = [
            rng.choice(ROLES),
            *(f"{word} {rng.choice(NAMES)}"[:40].rstrip() for word in ("victim", "neighbour", "outsider")),
        ]
        words = ("evil", "victim", "neighbour", "outsider")
        for word, name in zip(words, names, strict=True):
            self.roles[word] = quote(name)
            yield Step(DBA, f"CREATE ROLE {quote(name)} LOGIN")
        yield Step(DBA, _BASE.format(**self.roles))
        yield Step(VICTIM, _VAULT)
        for number in range(2):
            schema = hostile(rng, number)
            self.schemas.append(schema)
            yield Step(DBA, f"CREATE SCHEMA {quote(schema)} AUTHORIZATION {self.roles['evil']}")
            yield Step(EVIL, support(rng, schema, names[0], names[1]))

    def make(self) -> Iterator[Step]:
        kind = self.kept.pop()
        schema = quote(self.rng.choice(self.schemas))
        place = PLACES[kind]
        words = {
            "s": schema,
            "s_text": schema.replace("'", "''"),
            "c": quote(hostile(self.rng, self.number)),
            "victim": self.roles["victim"],
        }
        for letter in "tuvw":
            self.number += 1
            words[letter] = f"{schema}.{quote(hostile(self.rng, self.number))}"
        words["t_text"] = literal(words["t"])
        made = _Made(place, words)
        self.made.append(made)
        yield from self.done(place.make, made)

    def touch(self) -> Iterator[Step]:
        if self.made:
            made = self.rng.choice(self.made)
            yield from self.done(self.rng.choice(made.place.touch), made)

    def done(self, text: str, made: _Made) -> Iterator[Step]:
        self.number += 1
        name = hostile(self.rng, self.number)
        who = DBA if text.startswith("dba: ") else EVIL
        text = text.removeprefix("dba: ").format(**made.words, i=self.number, n=quote(name), n_text=literal(name))
        yield Step(who, text if who == DBA else _wrapped(self.rng, text))
        if self.rng.random() < 0.4:
            yield Step(EVIL, "DISCARD ALL")

    def noise(self) -> Iterator[Step]:
        rng = self.rng
        who, texts = rng.choice([(VICTIM, _VICTIMS), (DBA, _DBAS), (OUTSIDER, _OUTSIDERS)])
        yield Step(who, rng.choice(texts).format(**self.words()))
        prefix, content = rng.choice(_FORGED)
        forger = rng.choice((EVIL, OUTSIDER))
        yield Step(
            forger, f"SELECT pg_logical_emit_message({rng.random() < 0.5}, '{prefix}', {literal(content)}::text)"
        )


def _neighbours() -> Iterator[Step]:
    yield Step(NEIGHBOUR, "")  # what he does depends on what he sees then


def _wrapped(rng: random.Random, text: str) -> str:
    """The same statements, as a client may send them."""
    ways: list[Callable[[str], str]] = [
        lambda it: f"DO $do$ BEGIN EXECUTE $e${it}$e$; END $do$",
        lambda it: f"DO $do$ BEGIN EXECUTE $e$DO $in$ BEGIN EXECUTE $x2${it}$x2$; END $in$ $e$; END $do$",
        lambda it: f"/* ' \" $$ */ {it} -- it's \"odd\"",
        lambda it: f"SELECT 'a;\"b'; {it}; SELECT $q$;--$q$",
        lambda it: f"CREATE FUNCTION pg_temp.go() RETURNS void LANGUAGE plpgsql AS $go$ BEGIN EXECUTE $e${it}$e$; END $go$; SELECT pg_temp.go(); DROP FUNCTION pg_temp.go()",
    ]  # fmt: skip
    plain = rng.random() < 0.5 or text.startswith(("CALL", "REINDEX"))
    return text if plain else rng.choice(ways)(text)


def of_seed(seed: int, only: list[str] | None = None) -> Iterator[Step]:
    """Places of a seed, with everything that others do meanwhile; `only` those kinds, if given."""
    rng = random.Random(seed)
    kept = only or rng.sample(sorted(PLACES), PLACES_OF_A_SEED)
    history = _History(rng, list(kept))
    yield from history.begin()
    share = -(-len(kept) // (_PHASES + 1))
    for phase in range(_PHASES + 1):
        for _ in range(min(share, len(history.kept))):
            yield from history.make()
        if not phase:
            yield Step(0, INIT)
            continue
        for _ in range(2 * share + 3):
            yield from history.touch()
            yield from history.noise() if rng.random() < 0.6 else _neighbours()
        yield Step(0, FREEZE)


def stopping(seed: int, kind: str | None = None) -> Iterator[Step]:
    """One payload that may stop a restore, in one place."""
    rng = random.Random(seed)
    history = _History(rng, [])
    yield from history.begin()
    schema = quote(history.schemas[0])
    words = {"s": schema, "s_text": schema.replace("'", "''"), "state": rng.choice(STATES)}
    words["t"] = f"{schema}.{quote(hostile(rng, 7))}"
    words["t_text"] = words["t"].replace("'", "''")
    body = STOPPING[kind or rng.choice(sorted(STOPPING))].format(**words)
    yield Step(EVIL, f"CREATE SEQUENCE {schema}.tries")
    yield Step(
        EVIL, f"CREATE OR REPLACE FUNCTION {schema}.pay() RETURNS int LANGUAGE plpgsql AS $b$ BEGIN {body} END $b$"
    )
    table = f"CREATE TABLE {words['t']} (id int PRIMARY KEY, v int CHECK ({schema}.pay() > 0) DEFAULT {schema}.pay()); INSERT INTO {words['t']} VALUES (1)"
    loaded = rng.random() < 0.5
    if loaded:
        yield Step(EVIL, table)
    yield Step(0, INIT)
    if not loaded:
        yield Step(EVIL, table)
    for number in range(2):
        yield Step(EVIL, f"INSERT INTO {words['t']} (id) VALUES ({number + 7})")
        yield Step(EVIL, f"ALTER TABLE {words['t']} ADD c{number} int DEFAULT {schema}.pay()")
        yield from history.noise()
        yield Step(0, FREEZE)
