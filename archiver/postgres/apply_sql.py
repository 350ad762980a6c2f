"""The statements that change one table of the target. Pure: a Table in, SQL as bytes out.

Every identifier is quoted. `t` is the target's table, `s` the rows staged for it in a temporary table of the
same column types. Each is written ONLY, because the stream names every partition and every child itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from psycopg.sql import SQL, Composable, Composed, Identifier

from archiver.postgres.tables import Table

_COMMA = SQL(", ")
_AND = SQL(" AND ")


class Statements:
    """The statements of one table; `stage` is the name of its staging table, `marker` how a parameter is written."""

    def __init__(self, table: Table, stage: str, marker: str = "${}") -> None:
        self.table = table
        self._marker = marker
        relation = table.shape.relation
        self._target = Identifier(table.place.schema, table.place.name)
        self._stage = Identifier("pg_temp", stage)
        self._names = [Identifier(column.name) for column in relation.columns]
        self._key = table.shape.key or ()
        self._copies = Identifier(_free_name("copies", {column.name for column in relation.columns}))

    # --- staging

    def create_stage(self) -> bytes:
        staged = dict.fromkeys((*self.table.written, *self._key))  # a generated column may be the key
        columns = [*self._of("t", staged), SQL("1::int8 AS {}").format(self._copies)]
        return _bytes(
            "CREATE TEMPORARY TABLE {} AS SELECT {} FROM ONLY {} t WITH NO DATA",
            self._stage,
            _COMMA.join(columns),
            self._target,
        )

    def drop_stage(self) -> bytes:
        return _bytes("DROP TABLE IF EXISTS {}", self._stage)

    def clear_stage(self) -> bytes:
        return _bytes("TRUNCATE {}", self._stage)

    def copy_stage(self, columns: Iterable[int], *, copies: bool = False) -> bytes:
        names: list[Composable] = [self._names[at] for at in columns]
        return _bytes("COPY {} ({}) FROM STDIN", self._stage, _COMMA.join([*names, self._copies] if copies else names))

    # --- whole sets of rows

    def copy(self) -> bytes:
        """An empty list of columns is no valid SQL: a table without columns is copied as a whole."""
        names = _COMMA.join(self._names[at] for at in self.table.written)
        columns = SQL(" ({})").format(names) if self.table.written else SQL("")
        return _bytes("COPY {}{} FROM STDIN", self._target, columns)

    def delete_staged(self) -> bytes:
        return _bytes(
            "DELETE FROM ONLY {} t USING {} s WHERE {}",
            self._target,
            self._stage,
            self._same_key(self._of("s", self._key)),
        )

    def update_staged(self, columns: Sequence[int]) -> bytes:
        """Set these columns, which hold no key."""
        values = dict(zip(columns, self._of("s", columns), strict=True))
        return self._update(values, self._of("s", self._key), staged=True)

    def delete_staged_copies(self, narrow: int | None) -> bytes:
        """Delete as many of each staged row as it says, comparing rows by their text.

        So types without equality (json, xml, point) work. `narrow` is a column by which to look first: text of the rows
        that differ in it need not be made, and an index may find the others. No staged row may be null there.
        """
        given = [_text(self._of("s", self.table.written)), self._copies, *self._of("s", _listed(narrow))]
        return self._delete_copies(SQL("SELECT {} FROM {} s").format(_COMMA.join(given), self._stage), narrow)

    def delete_few_copies(self, rows: int, narrow: int | None) -> bytes:
        """The same with parameters: the values of each row, then how many of it."""
        width = len(self.table.written)
        given: list[Composable] = []
        for first in range(1, rows * (width + 1) + 1, width + 1):
            values = self._typed(first)
            row: list[Composable] = [_text(values), SQL("{}::int8").format(*self._parameters(first + width, 1))]
            row += [values[self.table.written.index(at)] for at in _listed(narrow)]
            given.append(SQL("({})").format(_COMMA.join(row)))
        return self._delete_copies(SQL("VALUES {}").format(_COMMA.join(given)), narrow)

    def _delete_copies(self, given: Composable, narrow: int | None) -> bytes:
        """One scan at most, and no sort of what does not match; then by place: a join would scan once more."""
        names = [SQL("r"), self._copies, *(SQL("narrow") for _ in _listed(narrow))]
        where = [
            SQL(" WHERE {} OPERATOR(pg_catalog.=) ANY (SELECT narrow FROM g)").format(each)
            for each in self._of("t", _listed(narrow))
        ]
        return _bytes(
            "WITH g ({}) AS ({}), w AS (SELECT r, pg_catalog.sum({})::int8 AS copies FROM g GROUP BY 1),"
            " f AS (SELECT c.at, w.copies, pg_catalog.row_number() OVER (PARTITION BY w.r) AS n"
            " FROM (SELECT t.ctid AS at, {} AS r FROM ONLY {} t{} OFFSET 0) c JOIN w ON w.r = c.r)"
            " DELETE FROM ONLY {} t WHERE t.ctid = ANY (ARRAY(SELECT f.at FROM f WHERE f.n <= f.copies))",
            _COMMA.join(names),
            given,
            self._copies,
            _text(self._of("t", self.table.written)),
            self._target,
            SQL("").join(where),
            self._target,
        )

    # --- single rows, with parameters

    def insert_one(self) -> bytes:
        if not self.table.written:
            return _bytes("INSERT INTO {} DEFAULT VALUES", self._target)
        names = _COMMA.join(self._names[at] for at in self.table.written)
        values = _COMMA.join(self._parameters(1, len(self.table.written)))
        return _bytes("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})", self._target, names, values)

    def delete_one(self) -> bytes:
        return _bytes(
            "DELETE FROM ONLY {} t WHERE {}", self._target, self._same_key(self._parameters(1, len(self._key)))
        )

    def delete_one_copy(self) -> bytes:
        return _bytes(
            "DELETE FROM ONLY {} t WHERE t.ctid = (SELECT t.ctid FROM ONLY {} t WHERE {} = {} LIMIT 1)",
            self._target,
            self._target,
            _text(self._of("t", self.table.written)),
            _text(self._typed(1)),
        )

    def update_one(self, columns: Sequence[int]) -> bytes:
        """Set these columns, key included or not, of the row whose old key follows their values."""
        values = dict(zip(columns, self._parameters(1, len(columns)), strict=True))
        return self._update(values, self._parameters(1 + len(columns), len(self._key)), staged=False)

    # --- parts

    def _update(self, values: dict[int, Composable], key: Sequence[Composable], *, staged: bool) -> bytes:
        source = SQL("{} s").format(self._stage) if staged else None
        if any(self.table.columns[at].always_identity for at in values):
            return self._rewrite(values, key, source)
        sets = _COMMA.join(SQL("{} = {}").format(self._names[at], value) for at, value in values.items())
        joined = SQL(" FROM {}").format(source) if source else SQL("")
        return _bytes("UPDATE ONLY {} t SET {}{} WHERE {}", self._target, sets, joined, self._same_key(key))

    def _rewrite(self, values: dict[int, Composable], key: Sequence[Composable], source: Composable | None) -> bytes:
        """UPDATE refuses to set a GENERATED ALWAYS identity column, INSERT can be told to.

        Staged values have types and are returned with the old row; parameters get theirs from the INSERT.
        """
        written = self.table.written
        names = _COMMA.join(self._names[at] for at in written)
        new = [values.get(at, Identifier("t", self.table.columns[at].name)) for at in written]
        named = [SQL("{} AS {}").format(value, self._names[at]) for value, at in zip(new, written, strict=True)]
        return _bytes(
            "WITH t AS (DELETE FROM ONLY {} t{} WHERE {} RETURNING {})"
            " INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM t",
            self._target,
            SQL(" USING {}").format(source) if source else SQL(""),
            self._same_key(key),
            _COMMA.join(named) if source else SQL("t.*"),
            self._target,
            names,
            names if source else _COMMA.join(new),
        )

    def _same_key(self, values: Sequence[Composable]) -> Composed:
        parts = []
        for at, value, (schema, operator) in zip(self._key, values, self.table.equality, strict=True):
            equals = SQL("OPERATOR({}.{})").format(Identifier(schema), SQL(operator))
            parts.append(SQL("t.{} {} {}").format(self._names[at], equals, value))
        return _AND.join(parts)

    def _typed(self, first: int) -> list[Composable]:
        """Parameters, from `$first` on, of the types of the columns."""
        return [
            SQL("{}::{}").format(parameter, SQL(self.table.columns[at].type))  # format_type() quotes it
            for parameter, at in zip(self._parameters(first, len(self.table.written)), self.table.written, strict=True)
        ]

    def _parameters(self, first: int, count: int) -> list[Composable]:
        return [SQL(self._marker.format(number)) for number in range(first, first + count)]

    def _of(self, alias: str, columns: Iterable[int]) -> list[Composable]:
        return [Identifier(alias, self.table.columns[at].name) for at in columns]


def truncate(tables: Sequence[Table], *, restart_identity: bool) -> bytes:
    """Whatever refers to these tables was emptied with them at the source, or it would have refused.

    CASCADE reaches what the stream does not name: partitioned tables, unlogged and excluded ones.
    """
    names = [SQL("ONLY {}").format(Identifier(table.place.schema, table.place.name)) for table in tables]
    restart = SQL(" RESTART IDENTITY" if restart_identity else "")
    return _bytes("TRUNCATE {}{} CASCADE", _COMMA.join(names), restart)


def _free_name(name: str, taken: Collection[str]) -> str:
    """How many of a row there are is staged beside the columns of any table, whatever their names."""
    while name in taken:
        name += "_"
    return name


def _listed(column: int | None) -> list[int]:
    return [] if column is None else [column]


def _text(values: Sequence[Composable]) -> Composed:
    return SQL("ROW({})::text").format(_COMMA.join(values))


def _bytes(template: str, *parts: Composable) -> bytes:
    return SQL(template).format(*parts).as_bytes()
