"""A key's file: read, if it is a secret.

In: a path. Out: its text, or a ConfigError for a file that others than its owner, and the group it is given to, could
have read or put there. What counts is what the path leads to: Kubernetes mounts a secret as a link to a file of mode
0440, of root and of the pod's group, and systemd hands a credential over as one of mode 0440 with an access list.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from archiver.errors import ConfigError

_MAKE: Final = "Make one with: archiver key generate FILE"


def read_key_file(path: Path) -> str:
    """The file's text. The file that is looked at is the file that is read. Raises ConfigError."""
    try:
        _refuse_shared_folder(path)
        with path.open("rb") as file:
            _refuse_shared_file(os.fstat(file.fileno()), path)
            return file.read().decode("ascii")
    except OSError as exc:
        hint = f"{_MAKE}, or mend [encryption] keys."
        raise ConfigError(f"cannot read the key file: {exc.strerror}", where=str(path), hint=hint) from None
    except UnicodeDecodeError:
        raise ConfigError("this is not a key", where=str(path), hint=_MAKE) from None


def _refuse_shared_file(found: os.stat_result, path: Path) -> None:
    for bits, what in (
        (stat.S_IROTH | stat.S_IXOTH, "everybody on this machine may read the key file"),
        (stat.S_IWOTH, "everybody on this machine may write the key file"),
        (stat.S_IWGRP, "the key file's group may write it"),
    ):
        if found.st_mode & bits:
            hint = f"chmod 600 {path}; and make a new key if somebody may have read this one."
            raise ConfigError(what, where=f"{path}, mode {stat.S_IMODE(found.st_mode):04o}", hint=hint)


def _refuse_shared_folder(path: Path) -> None:
    """Who may write the folder can put a key of their own there. A sticky one, as /tmp, protects what is in it."""
    for folder in {path.parent.resolve(), path.resolve().parent}:
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            hint = f"chmod o-w {folder}; and make a new key if somebody may have put this one there."
            raise ConfigError("everybody on this machine may write the key file's folder", where=str(folder), hint=hint)
