"""Names of NOT NULL constraints that pg_dump leaves out."""

from __future__ import annotations

import pytest

from archiver.format.dump import Entry, for_restore, split
from archiver.format.dump_not_null import chosen_name, means_names, with_not_null_names

PREAMBLE = (
    "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version {}\n-- Dumped by pg_dump version 18.6\n"
)


@pytest.mark.parametrize(
    ("version", "means"), [("18.6", True), ("19beta1", True), ("17.10 (Debian)", False), ("14.1", False)]
)
def test_only_a_server_that_has_names_means_some(version: str, means: bool) -> None:
    script = for_restore(split(PREAMBLE.format(version)), publication="p", settings=())
    assert means_names(script.preamble) is means


def test_a_dump_that_does_not_tell_its_version_means_none() -> None:
    assert not means_names(Entry("SET lock_timeout = 0;\n"))


def test_every_not_null_without_a_name_gets_one() -> None:
    text = "CREATE TABLE s.t (a int NOT NULL, b int CONSTRAINT c NOT NULL, CHECK (a > 0));\n"
    named = with_not_null_names(Entry(text, type="TABLE")).text
    assert named == text.replace("int NOT NULL", 'int CONSTRAINT "t_a_not_null" NOT NULL')


def test_a_name_that_the_server_would_shorten_is_not_given() -> None:
    """Two of them could be one. ä is two bytes."""
    fits, long = "a" * 52, "ä" + "a" * 51
    text = f"CREATE TABLE t ({fits} int NOT NULL, {long} int NOT NULL);\n"
    named = with_not_null_names(Entry(text, type="TABLE")).text
    assert named == text.replace(f"{fits} int NOT NULL,", f'{fits} int CONSTRAINT "t_{fits}_not_null" NOT NULL,')


@pytest.mark.parametrize(
    ("table", "column", "name"),
    [
        ("t", "a", "t_a_not_null"),
        ("t" * 60, "a", f"{'t' * 52}_a_not_null"),
        ("t" * 40, "c" * 40, f"{'t' * 27}_{'c' * 26}_not_null"),
        ("ä" * 31, "c", f"{'ä' * 26}_c_not_null"),
        ("ä" * 31, "cc", f"{'ä' * 25}_cc_not_null"),
    ],
)
def test_the_name_that_a_server_chooses_is_cut_to_fit(table: str, column: str, name: str) -> None:
    assert chosen_name(table, column) == name
