"""How tables are cut into parts that are copied side by side.

In: the size of each table's heap in pages. Out: ctid ranges of about 64 MiB, the largest tables' parts first.
Never: a row in two ranges or in none. The last range of a table is open-ended, for the heap may grow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

PAGE: Final = 8192
PART_PAGES: Final = 64 * 1024 * 1024 // PAGE
"""Pages of heap in a part: some seconds of work each, so that all jobs end at about the same time."""
SMALLEST: Final = 256
"""Pages that are read in some ten milliseconds: fewer make nobody wait less."""


@dataclass(frozen=True, slots=True)
class PageRange:
    """Heap pages from `first` up to, not including, `end`; None is the end of the table."""

    first: int = 0
    end: int | None = None

    @property
    def is_whole_table(self) -> bool:
        return self.first == 0 and self.end is None


def halves(pages: PageRange, of: int) -> list[PageRange]:
    """Two ranges in place of one in a heap of so many pages; itself where it is small enough."""
    end = max(of, pages.first) if pages.end is None else pages.end
    middle = (pages.first + end) // 2
    if middle - pages.first < SMALLEST:
        return [pages]
    return [PageRange(pages.first, middle), PageRange(middle, pages.end)]


@dataclass(frozen=True, slots=True)
class Part:
    """One range of the table at `index` in the list that was cut, with the pages it is expected to have."""

    index: int
    number: int
    pages: PageRange
    size: int


def cut(pages: int, *, part_pages: int = PART_PAGES) -> list[PageRange]:
    """Ranges that cover a heap of this many pages, and whatever it grows by."""
    borders = [*range(0, max(pages, 1), part_pages), None]
    return [PageRange(first, end) for first, end in pairwise(borders) if first is not None]


def plan(tables: Iterable[tuple[int, bool]], *, part_pages: int = PART_PAGES) -> list[Part]:
    """The parts of all tables in the order of copying. A table is (pages, may be cut).

    Largest part first, so that no job starts on a long part when the others are done.
    """
    parts = [
        Part(index, number, pages, min(size - pages.first, part_pages) if cuttable else size)
        for index, (size, cuttable) in enumerate(tables)
        for number, pages in enumerate(cut(size if cuttable else 0, part_pages=part_pages))
    ]
    return sorted(parts, key=lambda part: (-part.size, part.index, part.number))
