"""pg_dump's plain schema output as a list of entries, and as the three steps of a restoration.

In: the text that `pg_dump --schema-only` writes. Out: entries, each with its header's fields; joined again
they are the text, byte for byte. `for_restore` leaves out what psql or archiver owns and sorts the rest into
what comes before the rows, what replay needs beside them, and what must not fire while rows are loaded.
Never: an entry border inside a string, a function body or a quoted name, whatever these contain.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

from pglast.parser import scan

from archiver.names import ConstraintName, TableName

PREAMBLE: Final = "PREAMBLE"
END: Final = "END"
OWN_SCHEMA: Final = "archiver"
OWN_EVENT_TRIGGER_PREFIX: Final = "archiver_"

Step = Literal["pre", "keys", "late"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a dump: its text, the fields of its header, and the settings pg_dump had in force.

    `name` and `schema` are spelled as in the header: not quoted for an object, quoted by the rules of SQL in
    the name of a COMMENT or ACL (`SCHEMA "shop"`). No schema is `-`.
    """

    text: str
    name: str = ""
    type: str = ""
    schema: str = "-"
    owner: str = ""
    state: tuple[str, ...] = ()

    @property
    def sql(self) -> str:
        """The statements to run, whichever entries ran before this one."""
        return "".join(f"{line}\n" for line in self.state) + self.text

    @property
    def label(self) -> str:
        """How messages name the entry: `TABLE shop.orders`."""
        return f"{self.type} {self.name}" if self.schema == "-" else f"{self.type} {self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Script:
    """A schema in the order of restoration: `pre`, the rows, `keys`, `late`, replay.

    `preamble` holds settings; it is run first on every connection that runs one of the others. What `late` makes
    must not fire during replay: session_replication_role holds it back, or it is disabled and dropped meanwhile.
    """

    preamble: Entry
    pre: list[Entry]
    keys: list[Entry]
    late: list[Entry]


# --- Reading SQL ---------------------------------------------------------------------------------------

IDENTIFIER: Final = r'(?:"(?:[^"]|"")*"|[\w$]+)'

_HEADER: Final = re.compile(
    r"--\n-- (?:Name: (?P<fields>.*; Type: [A-Z][A-Z ]*; Schema: .*; Owner: .*)"
    r"|(?P<end>PostgreSQL database dump complete))\n--\n"
)
_TOKEN: Final = re.compile(
    r"""
      (?P<header>^--\n--\ (?:Name:\ .*;\ Type:\ [A-Z][A-Z\ ]*;\ Schema:\ .*;\ Owner:\ .*
                           |PostgreSQL\ database\ dump\ complete)\n--\n)
    | (?<![\w$])[eE]'(?:[^'\\]|\\[\s\S]|'')*'
    | '[^']*'
    | "[^"]*"
    | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$[\s\S]*?\$(?P=tag)\$
    | --.*
    | /\*[\s\S]*?\*/
    | (?P<stop>;\n*)
    """,
    re.VERBOSE | re.MULTILINE,
)
"""A doubled quote needs no care of its own: 'a''b' reads as two literals that touch."""

_STATE: Final = re.compile(rf"(SET (default_tablespace|default_table_access_method) = (?:''|{IDENTIFIER});)\n\n?")
"""A whole statement of pg_dump's, as it follows another one: a name that looks like it stands in quotes."""


def split(dump: str) -> list[Entry]:
    """The entries of a dump. The first is the preamble, the last, as a rule, pg_dump's closing comment."""
    borders = [0, *_starts(dump), len(dump)]
    pieces = [dump[begin:end] for begin, end in pairwise(borders)]
    first = Entry(pieces[0], type=PREAMBLE)
    return [first, *_with_state(_entry(piece) for piece in pieces[1:])]


def statements(text: str) -> list[str]:
    """The statements of a text, each with the comments before it and its `;`. Joined they are the text.

    The body of a BEGIN ATOMIC function falls into several pieces.
    """
    borders = [0, *(match.end() for match in _tokens(text, "stop")), len(text)]
    return [text[begin:end] for begin, end in pairwise(borders) if begin < end]


def _tokens(text: str, group: str) -> Iterator[re.Match[str]]:
    return (match for match in _TOKEN.finditer(text) if match[group] is not None)


def _starts(dump: str) -> Iterator[int]:
    """Where entries start: pg_dump writes a change of default_tablespace and its like before the header it is for."""
    state = stop = 0
    for match in _TOKEN.finditer(dump):
        if match["header"] is not None:
            yield state if stop == match.start() else match.start()
        if match["stop"] is not None:
            is_state = _STATE.fullmatch(dump, stop, match.end()) is not None
            state, stop = state if is_state else match.end(), match.end()


def _entry(piece: str) -> Entry:
    header = _HEADER.search(piece)
    if header is None or header["end"]:
        return Entry(piece, type=END)
    found = list(_readings(header["fields"]))
    name, kind, schema, owner = found[0] if len(found) == 1 else _right_one(found, piece[header.end() :])
    return Entry(piece, name, kind, schema, owner.partition("; Tablespace: ")[0])


_Reading = tuple[str, str, str, str]


def _readings(fields: str) -> Iterator[_Reading]:
    """What a header may mean: name, type, schema and owner. Names may hold what stands between them."""
    for middle in re.finditer(r"(?=; Type: ([A-Z][A-Z ]*); Schema: )", fields):
        rest = fields[middle.end(1) + len("; Schema: ") :]
        for border in re.finditer(r"(?=; Owner: )", rest):
            yield fields[: middle.start()], middle[1], rest[: border.start()], rest[border.start() + len("; Owner: ") :]


def _right_one(found: Sequence[_Reading], body: str) -> _Reading:
    """The one that the statement bears out: its first name with a schema is that of what it is about."""
    tokens = scan(body)
    names = [unquote(body[token.start : token.end + 1]) for token in tokens]
    names = [re.sub(r"[\r\n]", " ", name) for name in names]  # as in a header
    dotted = next((name for name, after in pairwise(names) if after == "."), "-")
    stands = [each for each in found if each[2] == dotted] or [each for each in found if each[2] == "-"] or found
    return next((each for each in reversed(stands) if each[0] in names), stands[-1])


def _with_state(entries: Iterator[Entry]) -> Iterator[Entry]:
    state: dict[str, str] = {}
    for entry in entries:
        at = 0
        while (match := _STATE.match(entry.text, at)) is not None:
            state[match[2]], at = match[1], match.end()
        yield replace(entry, state=tuple(state.values())) if state else entry


# --- What a restoration leaves out ---------------------------------------------------------------------

_SETTING: Final = re.compile(r"^SET (\w+) = .*;\n", re.MULTILINE)

_META_COMMAND: Final = re.compile(r"^\\.*\n?", re.MULTILINE)


def for_restore(entries: Sequence[Entry], *, publication: str, settings: Collection[str]) -> Script:
    """The steps of a restoration into a server that knows these settings, without what is archiver's own."""
    kept = _rights_at_once(_namesakes_first([entry for entry in entries if not is_own(entry, publication)]))
    steps: dict[Step, list[Entry]] = {"pre": [], "keys": [], "late": []}
    for entry, step in zip(kept, _steps(kept), strict=True):
        if step is not None:
            steps[step].append(_in_a_fresh_database(entry))
    return Script(_preamble(kept[0], settings), **steps)


def _namesakes_first(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Sequences before types of the same name: a server refuses them in the order in which pg_dump writes them."""
    types = {(entry.schema, entry.name) for entry in entries if entry.type in _TYPES}
    early = [entry for entry in entries if entry.type == "SEQUENCE" and (entry.schema, entry.name) in types]
    if not early:
        return entries
    rest = [entry for entry in entries if entry not in early]
    border = next(number for number, entry in enumerate(rest) if entry.type in _TYPES)
    return [*rest[:border], *early, *rest[border:]]


def _rights_at_once(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Rights on what PUBLIC may use by default right after it, before any code of users runs: REVOKE may be meant.

    What the dump does not make is there by the last extension.
    """
    early = {id(entry): key for entry in entries if (key := _open_to_all(entry)) is not None}
    made = {_key(entry): number for number, entry in enumerate(entries)}
    there = max((number for number, entry in enumerate(entries) if entry.type in {PREAMBLE, "EXTENSION"}), default=0)
    behind: dict[int, list[Entry]] = {}
    for entry in entries:
        if (key := early.get(id(entry))) is not None:
            behind.setdefault(made.get(key, there), []).append(entry)
    rest = ((number, entry) for number, entry in enumerate(entries) if id(entry) not in early)
    return [each for number, entry in rest for each in (entry, *behind.get(number, ()))]


def _open_to_all(entry: Entry) -> tuple[str, str, str] | None:
    """What an ACL is about, as `_key` of the entry that makes it; None for all that nobody may use by default."""
    about = _GRANTED.fullmatch(entry.name) if entry.type == "ACL" else None
    if about is None:
        return None
    kind = _OPEN[about[1]]
    return kind, entry.schema, about[2] if kind == "FUNCTION" else unquote(about[2])


def _key(entry: Entry) -> tuple[str, str, str]:
    """Routines by their arguments as ACLs spell them."""
    kind = _MADE_AS.get(entry.type, entry.type)
    return kind, entry.schema, _signature(entry) if kind == "FUNCTION" else entry.name


def _signature(entry: Entry) -> str:
    """As it would stand in a header."""
    owned = [found for each in statements(entry.text) if (found := _ROUTINE_OWNED.fullmatch(each)) is not None]
    return re.sub(r"[\r\n]", " ", owned[-1][1]) if owned else entry.name


_OPEN: Final = {
    "FUNCTION": "FUNCTION",
    "PROCEDURE": "FUNCTION",
    "SCHEMA": "SCHEMA",
    "TYPE": "TYPE",
    "LANGUAGE": "LANGUAGE",
    "FOREIGN DATA WRAPPER": "FOREIGN DATA WRAPPER",
    "FOREIGN SERVER": "SERVER",
}
"""By the words of an ACL, the kind of what it is about."""
_MADE_AS: Final = {
    "PROCEDURE": "FUNCTION",
    "AGGREGATE": "FUNCTION",
    "DOMAIN": "TYPE",
    "PROCEDURAL LANGUAGE": "LANGUAGE",
}
_GRANTED: Final = re.compile(rf"({'|'.join(_OPEN)}) (.*)", re.DOTALL)
_ROUTINE_OWNED: Final = re.compile(
    rf"\s*ALTER (?:FUNCTION|PROCEDURE|AGGREGATE) {IDENTIFIER}\.(.*) OWNER TO {IDENTIFIER};\s*", re.DOTALL
)

_TYPES: Final = frozenset({"TYPE", "SHELL TYPE", "DOMAIN"})


def is_own(entry: Entry, publication: str) -> bool:
    """Whether an entry is archiver's: schema `archiver`, event triggers `archiver_*`, this publication."""
    kind, described = _described(entry)
    if entry.schema == OWN_SCHEMA or (kind == "SCHEMA" and described == OWN_SCHEMA):
        return True
    if kind == "EVENT TRIGGER":
        return described.startswith(OWN_EVENT_TRIGGER_PREFIX)
    if entry.type.startswith("PUBLICATION TABLE"):  # the header runs both names together
        return _altered_publication(entry) == publication
    return kind == "PUBLICATION" and described == publication


_ABOUT: Final = re.compile(rf"(SCHEMA|EVENT TRIGGER|PUBLICATION) ({IDENTIFIER})")
_ALTER_PUBLICATION: Final = re.compile(rf"^ALTER PUBLICATION ({IDENTIFIER}) ADD ", re.MULTILINE)


def _described(entry: Entry) -> tuple[str, str]:
    """Kind and name of the object that an entry creates, comments on or grants."""
    if entry.type in {"COMMENT", "ACL", "SECURITY LABEL"}:
        about = _ABOUT.fullmatch(entry.name)
        return (about[1], unquote(about[2])) if about else ("", "")
    return entry.type, entry.name


def _altered_publication(entry: Entry) -> str | None:
    match = _ALTER_PUBLICATION.search(entry.text)
    return unquote(match[1]) if match else None


def holds_rows(entry: Entry) -> bool:
    """Whether an entry creates a table that has rows of its own: a partitioned one has not."""
    return entry.type == "TABLE" and re.search(r"^\)\nPARTITION BY ", entry.text, re.MULTILINE) is None


def constraint_of(entry: Entry) -> ConstraintName | None:
    """The constraint that an entry adds to a table or a domain."""
    match = _ADDS_CONSTRAINT.search(entry.text)
    if match is None:
        return None
    schema, table, name = map(unquote, match.groups())
    return ConstraintName(TableName(schema, table), name)


_ADDS_CONSTRAINT: Final = re.compile(
    rf"^ALTER (?:(?:FOREIGN )?TABLE(?: ONLY)?|DOMAIN) ({IDENTIFIER})\.({IDENTIFIER})\s+ADD CONSTRAINT ({IDENTIFIER}) ",
    re.MULTILINE,
)


def unquote(identifier: str) -> str:
    """The name that an SQL identifier stands for."""
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier


def _preamble(entry: Entry, settings: Collection[str]) -> Entry:
    """A newer pg_dump sets what its own version knows, such as transaction_timeout, which came with 17."""
    text = _META_COMMAND.sub("", entry.text)
    return replace(entry, text=_SETTING.sub(lambda found: found[0] if found[1] in settings else "", text))


def _in_a_fresh_database(entry: Entry) -> Entry:
    """Schema `public` is in every new database."""
    if (entry.type, entry.name) != ("SCHEMA", "public"):
        return entry
    return replace(
        entry, text=re.sub(r'^CREATE SCHEMA (?="?public"?;)', "CREATE SCHEMA IF NOT EXISTS ", entry.text, flags=re.M)
    )


# --- The order of restoration --------------------------------------------------------------------------

_STEP_OF: Final[dict[str, Step]] = {
    "CONSTRAINT": "keys",
    "CHECK CONSTRAINT": "keys",
    "INDEX": "keys",
    "INDEX ATTACH": "keys",
    "STATISTICS": "keys",
    "FK CONSTRAINT": "late",
    "TRIGGER": "late",
    "RULE": "late",
    "POLICY": "late",
    "ROW SECURITY": "late",
    "ACL": "late",  # after what hides rows; before replay, which may hold GRANT and REVOKE of its own
    "DEFAULT ACL": "late",
    "EVENT TRIGGER": "late",
    "PUBLICATION": "late",
    "PUBLICATION TABLE": "late",
    "PUBLICATION TABLES IN SCHEMA": "late",
    "SUBSCRIPTION": "late",
    "SUBSCRIPTION TABLE": "late",
}
"""Types of the post-data section. All others stand before the rows, unless pg_dump had to postpone them."""

_ABOUT_LATE: Final = re.compile(r"(CONSTRAINT|TRIGGER|RULE|POLICY|EVENT TRIGGER|PUBLICATION|SUBSCRIPTION) ")


def _steps(entries: Sequence[Entry]) -> Iterator[Step | None]:
    """The step of each entry; None for the preamble and the closing comment.

    A view or function that needs a primary key (GROUP BY it) comes behind that key in pg_dump's order: from the first
    object of the post-data section on, nothing goes back before the rows. A comment is where its object's is, which
    may be a CHECK within a table.
    """
    default: Step = "pre"
    for entry in entries:
        step = _step(entry, default)
        if step is not None and step != "pre" and entry.type not in {"COMMENT", "SECURITY LABEL"}:
            default = "keys"
        yield step


def _step(entry: Entry, default: Step) -> Step | None:
    if entry.type in {PREAMBLE, END}:
        return None
    if entry.type == "RULE" and entry.name.endswith(" _RETURN"):
        return "keys"  # the real definition of a view that pg_dump first created as a stub
    if _open_to_all(entry) is not None:
        return default
    if entry.type in {"COMMENT", "SECURITY LABEL"} and _ABOUT_LATE.match(entry.name):
        return "late"
    return _STEP_OF.get(entry.type, default)
