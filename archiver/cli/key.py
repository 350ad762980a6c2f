"""`archiver key`: key-encryption keys. `generate` writes a new one and never touches one that is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from archiver.cli.output import say
from archiver.errors import UsageError
from archiver.format.wrap import format_kek, new_kek
from archiver.store.file import sync_folder

app = typer.Typer(
    help="Key-encryption keys: without one, an archive cannot be read by anybody.",
    rich_markup_mode=None,
    epilog="Example: archiver key generate /etc/archiver/kek",
)


@app.callback()
def _group() -> None:
    """A group even while it has one command."""


@app.command(epilog="Example: archiver key generate /etc/archiver/kek")
def generate(file: Annotated[Path, typer.Argument(help="Where to write the new key.", metavar="FILE")]) -> None:
    """Write a new key-encryption key to FILE, readable by its owner only.

    An existing file is never overwritten. Keep a copy where a fire here cannot reach it: without the key, nobody
    can restore from the archive.
    """
    write_key(file)
    say(f"wrote a new key to {file}: keep a copy of it somewhere else")
    say(f'next: [encryption] keys = ["file:{file.absolute()}"] in the configuration, then archiver init')


def write_key(file: Path) -> None:
    """A new KEK in a new file of mode 0600, on disk when this returns. Raises UsageError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(
            "there is a file of that name, and it may be a key", where=str(file), hint="Choose another name."
        ) from None
    except OSError as exc:
        hint = "Choose a folder that exists and that you may write to."
        raise UsageError(f"cannot write the key: {exc.strerror}", where=str(file), hint=hint) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(format_kek(new_kek()) + "\n")
        out.flush()
        os.fsync(out.fileno())
    sync_folder(file.absolute().parent)
