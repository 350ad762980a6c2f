"""The command `archiver`: which commands there are, and how every one of them ends.

In: arguments. Out: an exit code, as the table in errors.py says. Errors go to stderr as `error:` and `hint:` lines;
a traceback is shown for nothing that a user can cause, and for the rest only with ARCHIVER_DEBUG=1.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from archiver import __version__
from archiver.cli.commands import Commands
from archiver.cli.output import complain
from archiver.errors import ArchiverError, IntegrityError, PostgresError, StoreError, TargetUnreachable, UsageError

app = typer.Typer(
    cls=Commands,
    name="archiver",
    help="Point-in-time recovery for any PostgreSQL, over logical replication.",
    epilog="Example: archiver -c archiver.toml check",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"archiver {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="ARCHIVER_CONFIG", help="The configuration file, archiver.toml."),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    ctx.obj = config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        ended = app(args=arguments, prog_name="archiver", standalone_mode=False)
    except ArchiverError as error:
        complain(str(error), error.hint or _hint(error))
        return error.exit_code
    except typer.TyperException as error:
        return _usage_error(error)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        return _unexpected(error)
    return ended if isinstance(ended, int) else 0


_HINTS: tuple[tuple[type[ArchiverError], str], ...] = (
    (PostgresError, "archiver check names what PostgreSQL needs; its log says more."),
    (StoreError, "archiver check tries every region."),
    (IntegrityError, "Run archiver verify."),
    (TargetUnreachable, "archiver info shows what can be restored."),
    (UsageError, "archiver --help and docs/configuration.md say what is expected."),
)


def _hint(error: ArchiverError) -> str | None:
    """What to do about an error that does not say it itself."""
    return next((hint for kind, hint in _HINTS if isinstance(error, kind)), None)


def _usage_error(error: typer.TyperException) -> int:
    message = error.format_message().strip().rstrip(".")
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context else "archiver"
    complain(message[:1].lower() + message[1:], f"See: {command} --help")
    return 2


def _words(error: Exception) -> str:
    """Imported here, since help needs no database."""
    from psycopg import Error  # noqa: PLC0415

    from archiver.postgres.server_words import message_of  # noqa: PLC0415

    return message_of(error) if isinstance(error, Error) else str(error)


def _unexpected(error: Exception) -> int:
    if os.environ.get("ARCHIVER_DEBUG") == "1":
        traceback.print_exception(error)
    words = _words(error)
    complain(
        f"unexpected {type(error).__name__}: {words}".rstrip(": "),
        "This is a bug. ARCHIVER_DEBUG=1 shows where it happened; please report that.",
    )
    return 1
