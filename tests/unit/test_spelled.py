"""Values in statements and in texts: what was written is what is read."""

from __future__ import annotations

import pytest
from psycopg.sql import Identifier

from archiver.errors import IntegrityError
from archiver.format import ddl, ddl_drops
from archiver.format.records import copied_rows, parse_record
from archiver.postgres.spelled import inserts, spell


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('(1,,"")', (b"1", None, b"")),
        ('("a,""b\\\\)",x y,"")', (b'a,"b\\)', b"x y", b"")),
        ('("\n",é)', (b"\n", "é".encode())),
        ("()", (None,)),
    ],
)
def test_a_record_is_read_as_record_out_wrote_it(text: str, values: tuple[bytes | None, ...]) -> None:
    assert parse_record(text, len(values)) == values


@pytest.mark.parametrize("text", ["", "(1,2", "(1)", "(1,2,3)", '("1,2)', "(1,2) ", "1,2"])
def test_what_is_no_record_of_so_many_columns_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError):
        parse_record(text, 2)


def test_lines_of_copy_are_read_as_they_were_meant() -> None:
    lines = [b"1\t\\N\t", rb"a\tb\\\n" + b"\t\\b\tx"]
    assert list(copied_rows(lines)) == [(b"1", None, b""), (b"a\tb\\\n", b"\b", b"x")]


def test_values_cannot_leave_their_literals() -> None:
    found = spell(b'UPDATE "a$1" SET v = \0001\0 WHERE k = \0002\0', (b"it's", b"\\'; DROP TABLE x; --"))
    assert found == b"UPDATE \"a$1\" SET v = 'it''s' WHERE k =  E'\\\\''; DROP TABLE x; --'"
    [insert] = inserts(Identifier("s", "t"), ["a"], [(b"1",), (None,)])
    assert insert == b'INSERT INTO "s"."t" ("a") OVERRIDING SYSTEM VALUE VALUES (\'1\'), (NULL)'


@pytest.mark.parametrize("identity", ["a, b", "a; DROP TABLE b", "a;; ALTER ROLE b SUPERUSER", "("])
def test_an_identity_is_one_object(identity: str) -> None:
    event = ddl.Event("sql_drop", "DROP TABLE", "r", {}, (), objects=({"type": "table", "identity": identity},))
    with pytest.raises(IntegrityError):
        list(ddl_drops.drop_statements(event))
