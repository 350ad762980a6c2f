"""The commands of `archiver`: each is imported when it is asked for, so that help and version need none of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

COMMANDS: Final = {
    "init": "Create the archive, the publication, the slot, the DDL triggers.",
    "check": "Check every prerequisite, and say how to meet it.",
    "run": "Archive every change until told to stop.",
    "snapshot": "Take a base snapshot now.",
    "info": "Show what can be restored, and how far the archive is.",
    "restore-point": "Name the source's position now, before a risky change.",
    "restore": "Restore into an empty database.",
    "verify": "Check the log and every object, and repair a region.",
    "drill": "Prove that the archive can be restored, and record it.",
    "uninstall": "Drop the slot, the publication and the triggers.",
    "demo": "Show the whole story on embedded servers.",
    "key": "Make key-encryption keys.",
}
"""What the help says of each."""


class Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # their names, for suggestions

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]  # noqa: ARG002
        """The command, or group of commands, in the module that is called like it."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = import_module(f"archiver.cli.{name}")
        if (group := getattr(module, "app", None)) is None:
            group = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            group.command(cmd_name)(getattr(module, name))
        return typer.main.get_command(group)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
