"""`archiver run`: the daemon, in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Annotated

import typer

from archiver.cli.options import ConfigOption, load, run_async
from archiver.cli.output import configure_logs
from archiver.config import Config
from archiver.daemon import Daemon


def run(
    config: ConfigOption = None,
    accept_gap: Annotated[
        bool,
        typer.Option(
            "--accept-gap", help="Go on where the end of the log was cut off: the gap is recorded. Look at it first."
        ),
    ] = False,
    skip_transaction: Annotated[
        int | None,
        typer.Option(
            "--skip-transaction",
            metavar="XID",
            help="Leave this transaction out at once if the source cannot send it: a gap is recorded.",
        ),
    ] = None,
) -> None:
    """Archive every change until told to stop; take the first base snapshot if there is none.

    SIGTERM and Ctrl-C make durable what was read, and stop within 30 seconds. Logs go to stderr.

    Example: archiver run -c archiver.toml
    """
    settings = load(config)
    configure_logs(logging.INFO)
    run_async(_run(settings, accept_gap=accept_gap, skip=skip_transaction))


async def _run(config: Config, *, accept_gap: bool, skip: int | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Daemon(config, accept_gap=accept_gap, skip=skip).run(stop)
