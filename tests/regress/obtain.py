"""Gets PostgreSQL's regression tests from Debian's source package: `python -m tests.regress.obtain FOLDER`.

apt-get takes it from the machine's own sources, in folders of ours; git ignores what it brings. Only `sql`, `data` and
the schedule are kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

MAJOR: Final = 15
_LISTS: Final = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
_WANTED: Final = re.compile(r"[^/]+/src/test/regress/((?:sql|data)/[^/]+|parallel_schedule)")


def obtain(folder: Path) -> Path:
    """The folder that holds `sql`, `data` and `parallel_schedule`, fetched if it is not there yet."""
    folder = folder.absolute()  # apt-get takes others as its own configuration's
    home = folder / f"regress-{MAJOR}"
    if not home.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _unpack(_download(Path(scratch)), Path(scratch) / "tests").rename(home)
    return home


def _download(scratch: Path) -> Path:
    """The tarball. Of several versions that are offered the first that can be had: mirrors lag behind."""
    (scratch / "lists" / "partial").mkdir(parents=True)
    (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
    (scratch / "parts").mkdir()
    for number, source in enumerate(_sources()):
        (scratch / "parts" / f"{number}{source.suffix}").write_text(_of_sources(source.read_text("utf-8")), "utf-8")
    own = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": scratch / "parts",
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in own.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    package = f"postgresql-{MAJOR}"
    shown = subprocess.run(
        ["apt-cache", *options, "showsrc", package], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    for version in re.findall(r"^Version: (\S+)$", shown, re.MULTILINE):
        command = ["apt-get", *options, "-qq", "source", "--download-only", f"{package}={version}"]
        if subprocess.run(command, cwd=scratch, check=False).returncode == 0:
            return next(scratch.glob("*.orig.tar.*"))
    raise SystemExit(f"no source package of {package} can be had")


def _sources() -> list[Path]:
    listed, folder = _LISTS
    return [*([listed] if listed.exists() else []), *folder.glob("*.list"), *folder.glob("*.sources")]


def _of_sources(text: str) -> str:
    text = re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE)
    return re.sub(r"^deb ", "deb-src ", text, flags=re.MULTILINE)


def _unpack(tarball: Path, into: Path) -> Path:
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.isfile() and (found := _WANTED.fullmatch(member.name)):
                member.name = found[1]
                archive.extract(member, into, filter="data")
    return into


if __name__ == "__main__":
    print(obtain(Path(sys.argv[1])))
