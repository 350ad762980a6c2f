"""The record of a drill as one HTML page that needs nothing else: no script, no font, no image from elsewhere.

In: a record. Out: text. Everything that comes from the record is escaped. The page names tables: keep it as you
keep the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from html import escape as escape_html
from typing import Final

from archiver.cli.output import seconds, shown, size
from archiver.format.drill import Check, Phase, Record
from archiver.format.manifest import format_time

WIDTH: Final = 560.0  # of the chart's bars, in SVG units
_LEFT: Final = 110  # room for the phases' names
_RIGHT: Final = 90  # and for their durations
_ROW: Final = 24
_PURPOSES: Final = {
    "recovery": "recovery: what a real restore takes",
    "proof": "proof: comparing the copy",
    "preparation": "the disposable copy: making and destroying it",
}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6472; --line: #d9dee6; --page: #fff; --band: #f5f7fa;
  --good: #12723f; --bad: #b3261e; --recovery: #2563a8; --proof: #2f8f5b; --preparation: #a3abb8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b2; --line: #353c48; --page: #14181f;
  --band: #1c222b; --good: #5fce91; --bad: #ff8a80; --recovery: #5b9be0; --proof: #58bd86; --preparation: #6b7482; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 960px;
  margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: .3rem; color: #fff; font-weight: 600; }
.passed { background: #12723f; } .failed { background: #b3261e; }
.lead { color: var(--soft); margin: 0 0 1rem; }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; }
.figure { flex: 1 1 8rem; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; }
.figure b { display: block; font-size: 1.25rem; } .figure span { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } th { color: var(--soft); font-weight: 600; }
tbody tr:nth-child(even) { background: var(--band); } td { font-size: .9rem; }
.checks { table-layout: fixed; } .checks th:nth-child(1) { width: 26%; } .checks th:nth-child(2) { width: 34%; }
.checks th:last-child { width: 6.5rem; }
.ok { color: var(--good); white-space: nowrap; } .no { color: var(--bad); font-weight: 600; white-space: nowrap; }
.facts th { width: 12rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .soft { fill: var(--soft); }
.legend span { margin-right: 1.2rem; color: var(--soft); }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .15rem; margin-right: .35rem;
  vertical-align: -.08rem; }
@media print { body { margin: 0; max-width: none; } tr { break-inside: avoid; } }
"""


def escape(text: str) -> str:
    """For the page: neither markup nor what turns the direction of text."""
    return escape_html(shown(text))


def render(record: Record) -> str:
    """The page."""
    title = f"Drill of {record.archive_name}, {record.finished_at:%Y-%m-%d}"
    body = "\n".join(
        [
            _heading(record),
            _figures(record),
            "<h2>Where the time went</h2>",
            chart(record.phases),
            _legend(),
            _troubles(record),
            f"<h2>Checks ({len(record.checks)})</h2>",
            _checks(record),
            "<h2>Evidence</h2>",
            _facts(record),
        ]
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _heading(record: Record) -> str:
    verdict = record.verdict
    against = f"base snapshot {record.compared_lsn}" if record.compared_lsn is not None else "counts and constraints"
    lead = (
        f"Base snapshot {record.snapshot_lsn} was restored and replayed to LSN {record.target_lsn}; "
        f"the copy was compared with {against}."
    )
    badge = f'<span class="verdict {verdict}">{verdict}</span>'
    name = escape(record.archive_name)
    return f'<h1>Restore drill of archive “{name}” {badge}</h1>\n<p class="lead">{escape(lead)}</p>'


def _figures(record: Record) -> str:
    failed = len(record.failed)
    figures = [
        ("recovery time", _duration(record.recovery_time), _objective(record.recovery_time_objective)),
        ("recovery point", _duration(record.recovery_point), _objective(record.recovery_point_objective)),
        ("checks", f"{len(record.checks) - failed} of {len(record.checks)}", "passed"),
        ("rows loaded", f"{record.rows_loaded:,}", f"transactions replayed: {record.transactions_replayed:,}"),
        ("the copy", _destroyed(record.restored.destroyed), ""),
    ]
    return '<div class="figures">\n' + "\n".join(_figure(*figure) for figure in figures) + "\n</div>"


def _figure(name: str, value: str, note: str) -> str:
    return f'<div class="figure"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'


def _duration(number: float | None) -> str:
    return seconds(timedelta(seconds=number)) if number is not None else "unknown"


def _objective(number: float | None) -> str:
    return f"objective: {_duration(number)}" if number is not None else "no objective is set"


def _destroyed(destroyed: bool | None) -> str:
    return {True: "destroyed", False: "NOT destroyed", None: "kept"}[destroyed]


# --- the chart ---


@dataclass(frozen=True, slots=True)
class Bar:
    """A phase in the chart: where it begins and how long it is, in SVG units of `WIDTH` for the whole drill."""

    phase: Phase
    at: float
    width: float


def bars(phases: Sequence[Phase]) -> list[Bar]:
    """To scale: a second is as wide everywhere."""
    if not phases:
        return []
    start = min(phase.started_at for phase in phases)
    total = (max(phase.finished_at for phase in phases) - start).total_seconds()
    scale = WIDTH / total if total > 0 else 0.0
    return [
        Bar(each, (each.started_at - start).total_seconds() * scale, each.duration.total_seconds() * scale)
        for each in phases
    ]


def chart(phases: Sequence[Phase]) -> str:
    """One row for each phase, in the order in which they began."""
    drawn = sorted(bars(phases), key=lambda bar: bar.at)
    height = len(drawn) * _ROW + 8
    rows = "\n".join(_row(number, bar) for number, bar in enumerate(drawn))
    grid = "".join(
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>'
        for x in (_LEFT + WIDTH * quarter / 4 for quarter in range(5))
    )
    return (
        f'<svg viewBox="0 0 {_LEFT + WIDTH + _RIGHT:.0f} {height}" role="img" aria-label="phases of the drill">\n'
        f"{grid}\n{rows}\n</svg>"
    )


def _row(number: int, bar: Bar) -> str:
    top = number * _ROW + 4
    x, width = _LEFT + bar.at, max(bar.width, 1.5)
    phase = bar.phase
    return (
        f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(phase.name)}</text>'
        f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_ROW - 7}" rx="2" fill="var(--{phase.purpose})"/>'
        f'<text class="soft" x="{x + width + 6:.1f}" y="{top + 13}">{_precise(phase.duration)}</text>'
    )


def _precise(duration: timedelta) -> str:
    return f"{duration.total_seconds() * 1000:.0f} ms" if duration < timedelta(seconds=1) else seconds(duration)


def _legend() -> str:
    items = "".join(f'<span><i style="background:var(--{key})"></i>{text}</span>' for key, text in _PURPOSES.items())
    return f'<p class="legend">{items}</p>'


# --- tables ---


def _troubles(record: Record) -> str:
    """What went wrong, and what was not as it should be: above the long table of checks."""
    parts = []
    if record.error is not None:
        parts.append(f'<h2>It ended early</h2>\n<p class="no" style="white-space:normal">{escape(record.error)}</p>')
    if record.deviations:
        items = "".join(f"<li>{escape(deviation)}</li>" for deviation in record.deviations)
        parts.append(f"<h2>Deviations</h2>\n<ul>{items}</ul>")
    return "\n".join(parts)


def _checks(record: Record) -> str:
    ordered = sorted(record.checks, key=lambda check: check.passed)  # the failed ones first
    rows = "\n".join(map(_check, ordered))
    head = "<tr><th>check</th><th>expected</th><th>found</th><th>result</th></tr>"
    return f'<table class="checks">\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>'


def _check(check: Check) -> str:
    found = "as expected" if check.found == check.expected else check.found
    result = '<td class="ok">✓ passed</td>' if check.passed else '<td class="no">✗ FAILED</td>'
    return f"<tr><td>{escape(check.name)}</td><td>{escape(check.expected)}</td><td>{escape(found)}</td>{result}</tr>"


def _facts(record: Record) -> str:
    commit = record.last_commit
    facts = [
        ("drill", str(record.drill_id)),
        ("started", format_time(record.started_at)),
        ("finished", format_time(record.finished_at)),
        ("by", record.by),
        ("archiver", record.tool_version),
        ("archive", f"{record.archive_name}, {record.archive}"),
        ("source", f"database {record.database} of system {record.system_identifier}"),
        (
            "server versions",
            f"source {_version(record.source_version)}, copy {_version(record.restored.server_version)}",
        ),
        ("read from", ", ".join(f"{name}: {size(read)}" for name, read in record.regions.items()) or "unknown"),
        ("data keys", ", ".join(record.data_keys)),
        ("opened by KEKs", ", ".join(record.keks)),
        ("head of the log", f"manifest {record.head_seq}, SHA-256 {record.head_hash}"),
        ("target", f"{record.target}, LSN {record.target_lsn}"),
        ("last commit", f"LSN {commit.lsn} of {format_time(commit.time)}, xid {commit.xid}" if commit else "none"),
        ("base snapshot", f"{record.snapshot_lsn}, {record.snapshot_id}"),
        ("compared with", f"base snapshot {record.compared_lsn}" if record.compared_lsn is not None else "none"),
        ("sealed bytes", size(record.stored_bytes)),
        ("copy", record.restored.where),
        ("its end", record.restored.evidence),
    ]
    return f'<table class="facts">\n{"".join(_rows(facts))}</table>'


def _rows(facts: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in facts)


def _version(number: int | None) -> str:
    """From server_version_num: 180001 is 18.1."""
    return f"{number // 10000}.{number % 10000}" if number is not None else "unknown"
