"""The page of a drill: everything escaped, nothing from elsewhere, and a chart that is to scale."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from uuid import UUID

import pytest

from archiver.cli.drill_report import WIDTH, bars, render
from archiver.drill import require_passed
from archiver.errors import DrillFailed, IntegrityError
from archiver.format.drill import Check, Copy, Phase, Record
from archiver.lsn import Lsn

START = datetime(2026, 11, 22, 3, tzinfo=UTC)
NASTY = "<script>alert('x')</script> & \"more\""


def phase(name: str, start: float, end: float, purpose: str = "recovery") -> Phase:
    at, to = START + timedelta(seconds=start), START + timedelta(seconds=end)
    return Phase.model_validate({"name": name, "purpose": purpose, "started_at": at, "finished_at": to})


PHASES = (
    phase("plan", 0, 1),
    phase("server", 1, 3, "preparation"),
    phase("rows", 3, 7),
    phase("digests", 7.5, 9.5, "proof"),
    phase("destroy", 9.5, 10, "preparation"),
)
PASSED = Check(name="table public.item", expected="3 rows", found="3 rows", passed=True)
FAILED = Check(name="sequence public.item_id_seq", expected="at least 7", found="3", passed=False)


def record(**changes: object) -> Record:
    made = Record(
        drill_id=UUID(int=1),
        started_at=START,
        finished_at=START + timedelta(seconds=10),
        by="ops@restore-1 pid 7",
        tool_version="0.1.0",
        archive=UUID(int=2),
        archive_name="shop",
        database="shop",
        system_identifier="7559847612340000001",
        source_version=150006,
        head_seq=12,
        head_hash="ab" * 32,
        regions={"primary": 4096},
        data_keys=("changes-2026-11-22", "snapshots-2026-11-22"),
        keks=("0011223344556677",),
        target="LSN 0/2000",
        target_lsn=Lsn(0x2000),
        last_commit=None,
        snapshot_id=UUID(int=3),
        snapshot_lsn=Lsn(0x1000),
        compared_lsn=Lsn(0x2000),
        stored_bytes=4096,
        rows_loaded=3,
        transactions_replayed=1,
        recovery_time=5.0,
        recovery_time_objective=14400.0,
        recovery_point=None,
        recovery_point_objective=None,
        phases=PHASES,
        checks=(PASSED,),
        deviations=(),
        restored=Copy(where="disposable server", server_version=180001, destroyed=True, evidence="gone"),
        error=None,
    )
    return made.model_copy(update=changes)


def text(page: str) -> str:
    """What a browser would show."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    Reader().feed(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    return " ".join(" ".join(found).split())


def test_everything_from_the_record_is_escaped() -> None:
    nasty = Check(name=NASTY, expected=NASTY, found=NASTY + "!", passed=False)
    copy = Copy(where=NASTY, server_version=None, destroyed=None, evidence=NASTY)
    phases = (*PHASES, phase(NASTY, 9, 10))
    made = record(
        by=NASTY, archive_name=NASTY, database=NASTY, target=NASTY, error=NASTY, deviations=(NASTY,),
        checks=(nasty,), restored=copy, phases=phases, regions={NASTY: 1}, keks=(NASTY,), data_keys=(NASTY,),
    )  # fmt: skip
    page = render(made)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 12
    assert NASTY in text(page)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render(record())
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|<script|<link", page)


def test_the_page_says_what_was_found_failures_first() -> None:
    shown = text(render(record(checks=(PASSED, FAILED), deviations=("one role is missing",))))
    assert "failed" in shown
    assert shown.index("sequence public.item_id_seq") < shown.index("table public.item ")
    assert "expected 3 rows" not in shown
    assert "1 of 2" in shown
    assert "one role is missing" in shown
    assert "source 15.6, copy 18.1" in shown
    assert "objective: 4 h 0 min" in shown


def test_the_chart_adds_up() -> None:
    """Phases that follow each other fill the width but for the half second in between."""
    drawn = bars(PHASES)
    assert sum(bar.width for bar in drawn) == pytest.approx(WIDTH * 9.5 / 10)
    assert [bar.at / WIDTH for bar in drawn] == pytest.approx([0, 0.1, 0.3, 0.75, 0.95])
    assert max(bar.at + bar.width for bar in drawn) == pytest.approx(WIDTH)


def test_a_chart_of_nothing_or_of_no_time_can_be_drawn() -> None:
    assert bars(()) == []
    assert [bar.width for bar in bars([phase("plan", 1, 1)])] == [0]


# --- the verdict ---


@pytest.mark.parametrize(
    "changes", [{"checks": (PASSED, FAILED)}, {"checks": (PASSED,), "error": "no such part"}, {"checks": ()}]
)
def test_a_drill_passes_only_with_checks_of_which_none_failed(changes: dict[str, object]) -> None:
    assert record().verdict == "passed"
    require_passed(record())
    with pytest.raises(DrillFailed):
        require_passed(record(**changes))


def test_a_record_comes_back_as_it_was_stored() -> None:
    made = record(checks=(PASSED, FAILED), error="it broke")
    assert Record.decode(made.encode()) == made
    with pytest.raises(IntegrityError):
        Record.decode(made.encode()[:-1])
