"""Every page of a heap is in exactly one range, whatever it grows by."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archiver.policy.parts import PageRange, cut, plan


def holds(pages: PageRange, page: int) -> bool:
    return pages.first <= page and (pages.end is None or page < pages.end)


@given(st.integers(0, 5000), st.integers(1, 700), st.integers(0, 9000))
def test_every_page_is_in_exactly_one_range(pages: int, part: int, page: int) -> None:
    assert sum(holds(found, page) for found in cut(pages, part_pages=part)) == 1


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans()), max_size=8))
def test_the_plan_holds_every_part_of_every_table_once(tables: list[tuple[int, bool]]) -> None:
    parts = plan(tables, part_pages=500)
    assert len({(part.index, part.number) for part in parts}) == len(parts)
    assert {part.index for part in parts} == set(range(len(tables)))
    assert [part.size for part in parts] == sorted((part.size for part in parts), reverse=True)
    assert sum(part.size for part in parts) == sum(size for size, _ in tables)
