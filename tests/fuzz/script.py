"""A script: what was executed, one step a line, so that a failure can be repeated without the generator.

`[2] statement` is sent by connection 2, line breaks written as spaces by the makers; `freeze` notes the position and
dumps the source; `init` makes the archive and starts the daemon. Lines that start with # are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FREEZE = "freeze"
INIT = "init"


@dataclass(frozen=True, slots=True)
class Step:
    """`connection` 0: FREEZE or INIT."""

    connection: int
    text: str

    def __str__(self) -> str:
        return (
            f"[{self.connection}] {json.dumps(self.text, ensure_ascii=False)[1:-1]}" if self.connection else self.text
        )


def parse(text: str) -> list[Step]:
    steps = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            number, _, statement = line[1:].partition("] ")
            steps.append(Step(int(number), json.loads(f'"{statement}"')))
        else:
            steps.append(Step(0, line.strip()))
    return steps


def write(path: Path, steps: Iterable[Step], head: Sequence[str]) -> None:
    path.write_text("\n".join([*(f"# {line}" for line in head), *map(str, steps)]) + "\n", encoding="utf-8")
