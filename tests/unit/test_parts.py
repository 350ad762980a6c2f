"""Cutting tables into page ranges."""

from __future__ import annotations

from archiver.policy.parts import PART_PAGES, SMALLEST, PageRange, cut, halves, plan


def test_a_small_table_is_one_whole_part() -> None:
    assert cut(3) == [PageRange()]
    assert cut(3)[0].is_whole_table


def test_an_empty_table_still_has_a_part() -> None:
    assert cut(0) == [PageRange(0, None)]


def test_a_large_table_is_cut_and_its_last_range_is_open() -> None:
    assert cut(250, part_pages=100) == [PageRange(0, 100), PageRange(100, 200), PageRange(200, None)]


def test_a_part_is_about_64_mib() -> None:
    assert PART_PAGES * 8192 == 64 << 20


def test_large_parts_come_first_and_a_table_that_cannot_be_cut_counts_whole() -> None:
    order = [(part.index, part.number) for part in plan([(5, True), (250, True), (900, False)], part_pages=100)]
    assert order == [(2, 0), (1, 0), (1, 1), (1, 2), (0, 0)]


def test_a_range_is_halved_until_it_is_small_and_stays_the_same_pages() -> None:
    assert halves(PageRange(0, 1000), 5000) == [PageRange(0, 500), PageRange(500, 1000)]
    assert halves(PageRange(1000, None), 5000) == [PageRange(1000, 3000), PageRange(3000, None)]
    assert halves(PageRange(0, SMALLEST), 5000) == [PageRange(0, SMALLEST)]
    assert halves(PageRange(5000, None), 4000) == [PageRange(5000, None)]
