"""What is built side by side while a database is restored, and what is not."""

from __future__ import annotations

import pytest

from archiver.format.dump import Entry
from archiver.names import TableName
from archiver.policy.builds import Builds, builds_of

SIZES = {TableName("public", "big"): 1000, TableName("public", "small"): 10, TableName("s", '"o d.d'): 100}


def index(name: str, table: str, more: str = "") -> Entry:
    return Entry(f"CREATE INDEX {name} ON {table} USING btree (a);\n{more}", name, "INDEX", "public")


def key(table: str) -> Entry:
    text = f"ALTER TABLE ONLY {table}\n    ADD CONSTRAINT k PRIMARY KEY (a);\n"
    return Entry(text, f"{table} k", "CONSTRAINT", "public")


def foreign_key(table: str, other: str, only: str = "ONLY ") -> Entry:
    text = f'ALTER TABLE {only}{table}\n    ADD CONSTRAINT f FOREIGN KEY (a, "b, c") REFERENCES {other}(x, y);\n'
    return Entry(text, f"{table} f", "FK CONSTRAINT", "public")


def order(*entries: Entry) -> list[Entry]:
    """The builds of one job."""
    builds, taken = Builds(builds_of(entries, SIZES)), []
    while build := builds.take():
        taken.append(build.entry)
        builds.finish(build)
    return taken


def beside(running: Entry, entry: Entry) -> bool:
    """Whether an entry is handed out while the first, of a table as large or larger, is being built."""
    builds = Builds(builds_of([running, entry], SIZES))
    first = builds.take()
    assert first is not None
    assert first.entry == running
    return builds.take() is not None


def test_large_tables_come_first_and_those_of_one_table_keep_their_order() -> None:
    small, first, second = key("public.small"), key("public.big"), index("i", "public.big")
    assert order(small, first, second) == [first, second, small]


def test_indexes_of_one_table_are_built_side_by_side() -> None:
    assert beside(index("i", "public.big"), index("j", "public.big"))


@pytest.mark.parametrize("running", [key("public.big"), foreign_key("public.small", "public.big")])
def test_what_locks_a_table_keeps_others_from_it_while_other_tables_go_on(running: Entry) -> None:
    assert not beside(running, index("i", "public.big"))
    assert beside(running, index("i", 's."""o d.d"'))


def test_an_index_that_also_alters_its_table_locks_it() -> None:
    altering = index("i", "public.big", "ALTER TABLE public.big CLUSTER ON i;\n")
    assert not beside(altering, index("j", "public.big"))


def test_foreign_keys_that_share_a_table_wait_for_each_other() -> None:
    there, back = foreign_key("public.big", "public.small"), foreign_key("public.small", "public.big")
    assert not beside(there, back)


@pytest.mark.parametrize(
    "entry",
    [
        key("public.partitioned"),
        foreign_key("public.partitioned", "public.big", only=""),
        foreign_key("public.big", "public.partitioned"),
        Entry("CREATE TRIGGER t AFTER INSERT ON public.big EXECUTE FUNCTION f();", "t", "TRIGGER", "public"),
    ],
)
def test_what_concerns_partitioned_tables_or_no_index_is_left_to_its_order(entry: Entry) -> None:
    assert builds_of([entry], SIZES) == []


def test_nothing_overtakes_a_view_or_function_that_it_may_need() -> None:
    view = Entry("CREATE MATERIALIZED VIEW public.v AS …", "v", "MATERIALIZED VIEW", "public")
    before, behind = key("public.big"), index("i", "public.small")
    assert [build.entry for build in builds_of([before, view, behind], SIZES)] == [before]
