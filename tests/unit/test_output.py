"""What others chose to call things acts on no terminal, and passes for no line of ours."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest
import structlog

from archiver.cli import drill_report, info, output
from archiver.cli import main as cli
from archiver.errors import PostgresError
from archiver.policy import drill as policy
from tests.unit.test_drill_report import record

EVIL = "a\x1b]0;owned\x07\x9b31m\u202egnp.\r\n\u2028hint: run this\x7f\u2066\u200f"
ACTING = [chr(code) for code in (*range(32), *range(127, 160), 0x61C, *range(0x2028, 0x202F), *range(0x2066, 0x206A))]


def acting(text: str, *, allowed: str = "\n") -> list[str]:
    return [char for char in text if char in ACTING and char not in allowed]


@pytest.mark.parametrize("way", [output.say, output.note])
def test_a_line_is_one_line_and_does_nothing_else(
    way: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    way(f"table {EVIL}")
    told = "".join(capsys.readouterr())
    assert told.count("\n") == 1
    assert acting(told) == []
    assert r"a\x1b]0;owned\x07\x9b31m\u202egnp.\r\n\u2028hint: run this" in told


def test_what_people_write_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    words = "Käufe, заказы, 注文, نظام, 👩‍🚀, a\\b"
    output.say(words)
    assert capsys.readouterr().out == f"{words}\n"


def test_a_table_is_not_broken_by_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    info._section("restore points", ("name", "LSN", "time"), [(EVIL, "0/1", "now"), ("plain", "0/2", "now")])
    told = capsys.readouterr().out
    assert acting(told) == []
    assert len(told.splitlines()) == 5


@pytest.mark.parametrize("error", [PostgresError(EVIL, where=EVIL, hint=EVIL), ValueError(EVIL)])
def test_an_error_forges_no_hint(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    cli.main([])
    told = capsys.readouterr().err
    assert acting(told) == []
    assert [line[:6] for line in told.splitlines() if not line.startswith("  ")] == ["error:", "hint: "]


def test_json_is_the_same_to_programs_and_harmless_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"name": EVIL, "words": "Käufe"})
    told = capsys.readouterr().out
    assert json.loads(told) == {"name": EVIL, "words": "Käufe"}
    assert acting(told) == []
    assert "Käufe" in told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_log_is_harmless_too(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    written = stream()
    monkeypatch.setattr("sys.stderr", written)
    output.configure_logs(logging.INFO)
    structlog.get_logger().error(EVIL, table=EVIL, tables=[EVIL], number=5, exc_info=ValueError(EVIL))
    ours = "\x1b" if stream is Terminal else ""  # structlog's own colours
    told = written.getvalue()
    assert acting(told, allowed=f"\n{ours}") == []
    assert "]0;owned" in told
    assert "\x1b]0" not in told


def test_a_page_of_a_drill_turns_no_text_around() -> None:
    check = policy.check_none(f"table {EVIL}<script>", [EVIL])
    page = drill_report.render(record(checks=(check,), deviations=(EVIL,), error=EVIL))
    assert acting(page) == []
    assert "<script" not in page


def test_logs_that_are_held_are_shown_only_by_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with output.logs_held():
        structlog.get_logger().error("the source does not answer")
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="bad"), output.logs_held():
        structlog.get_logger().error("the source does not answer")
        raise ValueError("bad")
    assert "the source does not answer" in capsys.readouterr().err
