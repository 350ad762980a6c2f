"""`archiver restore`: the plan, a question, and an empty database becomes the source as it was.

The plan is shown before anything is touched; a target that is not empty, or is the source itself, is refused
before the question. `--json` prints plan and result as one document.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import psycopg
import typer

from archiver.archive import OpenArchive
from archiver.cli.options import (
    ConfigOption,
    ExpectHeadOption,
    JobsOption,
    JsonOption,
    LatestOption,
    RegionOption,
    TargetLsnOption,
    TargetNameOption,
    TargetTimeOption,
    YesOption,
    given_targets,
    load,
    one_target,
    opened,
    run_async,
    target_of,
)
from archiver.cli.output import confirm, note, print_json, progress, say, size
from archiver.config import Config
from archiver.errors import UsageError
from archiver.format.manifest import CommitRef, format_time
from archiver.policy.target import Plan, Target
from archiver.postgres.checks import listed
from archiver.postgres.load import existing_roles
from archiver.postgres.session import connect, postgres_error
from archiver.recovery_plan import make_plan, missing_roles, settle_plan
from archiver.restore import Summary, run_restore
from archiver.snapshots import Index, read_index
from archiver.survey import Head, require_head, survey


def restore(
    into: Annotated[
        str, typer.Option("--into", metavar="DSN", help="The target: an empty database, as a connection string.")
    ],
    *,
    config: ConfigOption = None,
    target_time: TargetTimeOption = None,
    target_lsn: TargetLsnOption = None,
    target_name: TargetNameOption = None,
    latest: LatestOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    with_globals: Annotated[
        bool, typer.Option("--globals", help="First create the roles that the target's server lacks.")
    ] = False,
    region: RegionOption = None,
    expect_head: ExpectHeadOption = None,
    jobs: JobsOption = 2,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Restore into an empty database, to exactly one of: a time, an LSN, a restore point, the latest state.

    Shows the plan first and asks. A restore that was interrupted goes on when the same command is repeated.
    While a region does not answer, --latest and --target-name need --region, which says which one to trust.

    Example:

    \b
      archiver restore --into postgresql://postgres@127.0.0.1/shop_restored \\
        --target-time 2026-11-22T03:00:00Z -c archiver.toml
    """
    target = one_target(given_targets(target_time, target_lsn, target_name, latest=latest))
    head = Head.parse(expect_head) if expect_head is not None else None
    order = Order(
        load(config),
        target,
        target_of(into),
        region,
        head,
        jobs,
        with_globals,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
    run_async(_restore(order))


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for."""

    config: Config
    target: Target
    into: str
    region: str | None
    expected: Head | None
    jobs: int
    with_globals: bool
    dry_run: bool
    yes: bool
    as_json: bool


async def _restore(order: Order) -> None:
    async with opened(order.config, order.region) as archive:
        found = await survey(archive)
        require_head(found.log, order.expected)
        found.require_answers(order.target)
        for warning in found.warnings:
            note(f"warning: {warning}")
        history = found.history
        plan = await make_plan(archive, order.target, history)
        await _refuse_source(order, archive, history.system_identifier or archive.identity.system_identifier)
        plan, resumes = await settle_plan(archive, plan, order.into)
        index = await read_index(archive, plan.snapshot)
        described = describe(plan, archive) | {
            "roles": await _roles(order, index),
            "unarchived_tables": unarchived(index, plan),
        }
        if not order.as_json:
            _show_plan(described, resumes=resumes)
        summary = None if order.dry_run else await _carry_out(order, archive, plan)
    result = _result(summary) if summary else None
    if order.as_json:
        print_json(
            {
                "dry_run": order.dry_run,
                "resumes": resumes,
                "plan": described,
                "warnings": found.warnings,
                "result": result,
            }
        )
    elif result:
        _show_result(result)


async def _carry_out(order: Order, archive: OpenArchive, plan: Plan) -> Summary:
    confirm("Restore now?", yes=order.yes)
    try:
        with progress() as report:
            return await run_restore(
                archive, plan, order.into, jobs=order.jobs, with_globals=order.with_globals, progress=report
            )
    except asyncio.CancelledError:
        note("interrupted; the same command goes on where this one stopped")
        raise


async def _refuse_source(order: Order, archive: OpenArchive, source: str) -> None:
    """Raise UsageError when the target is the very database that is archived; `source` is its system identifier."""
    async with await connect(order.into, purpose="restore") as conn:
        if conn.info.dbname != archive.identity.database:
            return
        try:
            row = await (await conn.execute("SELECT system_identifier FROM pg_catalog.pg_control_system()")).fetchone()
        except psycopg.Error as exc:  # a managed service may not let us ask
            note(f"cannot compare the target with the source: {postgres_error(exc).message}")
            return
    if row and str(row[0]) == source:
        raise UsageError(
            "the target is the source database itself",
            where=archive.identity.database,
            hint="Restore into a new database beside it, look at it, and rename it then: ALTER DATABASE … RENAME TO.",
        )


def unarchived(index: Index, plan: Plan) -> list[str]:
    """Tables that come back with old rows or none; the archive knows names only of those in the base snapshot."""
    others = plan.unarchived - len(index.unarchived)
    return [*index.unarchived, *([f"{others} that came after the base snapshot"] if others > 0 else [])]


async def _roles(order: Order, index: Index) -> dict[str, list[str]]:
    """The source's roles: which the restore creates, which are there and stay as they are, which will be missing."""
    async with await connect(order.into, purpose="restore") as conn:
        there = await existing_roles(conn)
    if order.with_globals:
        wanted, kept = missing_roles(index, there)
        return {"create": [role.name for role in wanted.roles], "keep": kept, "missing": []}
    names = index.database.roles
    kept = [name for name in names if name in there]
    return {"create": [], "keep": kept, "missing": [name for name in names if name not in there]}


# --- the plan ---


def describe(plan: Plan, archive: OpenArchive) -> dict[str, Any]:
    """A plan as `--json` shows it."""
    return {
        "target": str(plan.target),
        "snapshot": {
            "id": str(plan.snapshot.snapshot_id),
            "lsn": str(plan.snapshot.lsn),
            "consistent_at": format_time(plan.snapshot.consistent_at),
            "tables": plan.snapshot.tables,
            "rows": plan.snapshot.rows,
        },
        "segments": len(plan.segments),
        "stored_bytes": plan.stored_bytes,
        "regions": [store.name for store in archive.store.stores],
        "commits": plan.commits,
        "stop_lsn": str(plan.stop),
        "last_commit": _commit(plan.last_commit),
        "estimate_seconds": plan.estimate.total_seconds(),
    }


def _commit(commit: CommitRef | None) -> dict[str, Any] | None:
    if commit is None:
        return None
    return {"xid": commit.xid, "lsn": str(commit.lsn), "time": format_time(commit.time)}


def _show_plan(plan: dict[str, Any], *, resumes: bool) -> None:
    snapshot = plan["snapshot"]
    say("plan:")
    say(f"  target           {plan['target']}")
    say(f"  base snapshot    {snapshot['lsn']} of {snapshot['consistent_at']}: {_tables(snapshot)}")
    say(f"  change segments  {plan['segments']}, at most {plan['commits']} commits")
    say(f"  to read          {size(plan['stored_bytes'])} from {', '.join(plan['regions'])}")
    say(f"  last commit      {_last(plan['last_commit'])}")
    say(f"  stops at LSN     {plan['stop_lsn']}")
    say(f"  estimate         {plan['estimate_seconds']:.0f} s")
    _show_roles(plan["roles"])
    if names := plan["unarchived_tables"]:
        say(f"  NOT ARCHIVED     {listed(names)}: rows as old as the base snapshot, or none")
    if resumes:
        say("  the target holds this restore, interrupted: it goes on where it stopped")


def _show_roles(roles: dict[str, list[str]]) -> None:
    if roles["create"]:
        say(f"  roles to create  {', '.join(roles['create'])}")
    if roles["missing"]:
        say(f"  roles missing    {', '.join(roles['missing'])}: what is theirs or names them is left out")
        say("                   hint: create them first, or restore with --globals")


def _tables(snapshot: dict[str, Any]) -> str:
    return f"{snapshot['tables']} tables, {snapshot['rows']} rows"


def _last(commit: dict[str, Any] | None) -> str:
    return (
        f"LSN {commit['lsn']} of {commit['time']}, xid {commit['xid']}" if commit else "none: the base snapshot alone"
    )


# --- the result ---


def _result(summary: Summary) -> dict[str, Any]:
    return {
        "last_commit": _commit(summary.last_commit),
        "tables": summary.tables,
        "rows_loaded": summary.rows_loaded,
        "transactions_replayed": summary.transactions_replayed,
        "resumed": summary.resumed,
        "roles_created": summary.roles_created,
        "roles_kept": summary.roles_kept,
        "phases": {name: round(time.total_seconds(), 3) for name, time in summary.phases.items()},
        "seconds": round(sum(time.total_seconds() for time in summary.phases.values()), 3),
        "warnings": summary.warnings,
    }


def _show_result(result: dict[str, Any]) -> None:
    say("restored:")
    say(f"  last commit      {_last(result['last_commit'])}")
    say(f"  loaded           {result['tables']} tables, {result['rows_loaded']} rows")
    say(f"  replayed         {result['transactions_replayed']} transactions")
    if result["roles_created"] or result["roles_kept"]:
        say(f"  roles created    {', '.join(result['roles_created']) or 'none'}")
        say(f"  roles left alone {', '.join(result['roles_kept']) or 'none'}")
    phases = ", ".join(f"{name} {time:.1f} s" for name, time in result["phases"].items())
    say(f"  took             {result['seconds']:.1f} s: {phases}")
    for warning in result["warnings"]:
        say(f"  warning          {warning}")
