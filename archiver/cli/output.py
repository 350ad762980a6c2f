"""What commands say: results to stdout, everything else to stderr, pretty only where somebody is watching.

In: plain values. Out: text, a table, one JSON document, or progress. Never a mix of JSON and anything else on stdout.
Names are chosen by others, and so are the words of servers: no character of theirs acts on a terminal.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TextIO

import structlog
import typer
from structlog.typing import Processor

from archiver.errors import UsageError
from archiver.secret import masked

EVERY_SECONDS = 3.0  # a plain line of progress

_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls (C0, DEL, C1), separators of lines, what turns the direction of text, and halves of characters."""


def shown(text: str) -> str:
    """One line, whatever is in it: `\\x1b` for an escape, `\\n` for the end of a line, `\\u202e` for an override."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(text: str) -> None:
    """A line of the command's result."""
    typer.echo(shown(text))


def note(text: str) -> None:
    """A line about what is going on: to stderr."""
    typer.echo(shown(text), err=True)


def complain(message: str, hint: str | None) -> None:
    """An error as every command reports it. Its other lines are indented: none of them is a hint of ours."""
    first, *more = message.split("\n")
    for line in (f"error: {first}", *(f"  {line}" for line in more)):
        note(line)
    if hint:
        note(f"hint: {hint}")


def print_json(document: Any) -> None:
    """The one JSON document of a `--json` command: the same to who reads JSON, and no control to who reads text."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    typer.echo(_ACTING.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text))


@contextmanager
def logs_held() -> Iterator[None]:
    """Logs go to stderr only if this fails, and then all of them: what a story tells is not what a daemon says."""
    held = io.StringIO()
    configure_logs(to=lambda: held)
    try:
        yield
    except Exception:
        sys.stderr.write(held.getvalue())
        raise


def configure_logs(level: int = logging.WARNING, to: Callable[[], TextIO] = lambda: sys.stderr) -> None:
    """Logs go to stderr, that of the moment: for people on a terminal, otherwise one JSON object a line."""
    readable = sys.stderr.isatty()
    for_people: list[Processor] = [_harmless, structlog.dev.ConsoleRenderer()]
    for_programs: list[Processor] = [structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            masked,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            *(for_people if readable else for_programs),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_names: structlog.PrintLogger(to()),
        cache_logger_on_first_use=False,
    )


def _harmless(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A traceback alone has lines. Other values are shown as Python shows them, where they are no text."""
    return {name: _lines_of(value) if name == "exception" else _word(value) for name, value in event.items()}


def _lines_of(text: object) -> str:
    return "\n".join(map(shown, str(text).split("\n")))


def _word(value: object) -> str:
    return shown(value if isinstance(value, str) else repr(value))


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises UsageError unless the answer is yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this needs a confirmation, and nobody can be asked", hint="Give --yes to go ahead.")
    if not typer.confirm(question, err=True):
        raise UsageError("not confirmed, nothing was touched", hint="Answer y, or give --yes.")


# --- numbers ---


def size(number: float) -> str:
    """`1.5 MiB`, as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def seconds(duration: timedelta) -> str:
    """`0.8 s`, `2 min 5 s`, `3 h 10 min`."""
    total = duration.total_seconds()
    if total < 60:
        return f"{total:.1f} s"
    if total < 3600:
        return f"{int(total // 60)} min {int(total % 60)} s"
    return f"{int(total // 3600)} h {int(total % 3600 // 60)} min"


# --- tables ---


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[int] = ()) -> None:
    """A table; the columns in `numbers` are aligned to the right."""
    texts = [[shown(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headings, texts, numbers)
        return
    widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
    for row in [list(headings), *texts]:
        cells = [
            cell.rjust(width) if at in numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> None:
    from rich import box  # noqa: PLC0415 - slow to import, and only wanted on a terminal
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=box.SIMPLE)
    for at, heading in enumerate(headings):
        drawn.add_column(heading, justify="right" if at in numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


# --- progress ---

Report = Callable[[str, int, int], None]
"""Called with the phase, and what of it is done and to be done."""


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on a terminal, otherwise a line now and then; both on stderr, beside the result."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Report:
    last: dict[str, float] = {}
    finished: set[str] = set()

    def report(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total and phase not in finished:
            finished.add(phase)
            note(f"{phase}: done")
        elif done < total and now - last.setdefault(phase, now) >= EVERY_SECONDS:
            last[phase] = now
            note(f"{phase}: {100 * done // total} %")

    return report


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and only wanted on a terminal
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    bars: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as drawn:

        def report(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                bars[phase] = drawn.add_task(phase, total=total)
            drawn.update(bars[phase], completed=done, total=total)

        yield report
