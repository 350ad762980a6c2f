"""`python -m tests.hostile`: seeds for so many seconds, one seed, or a script that failed. Exits with 1 if any failed.

Every fourth seed is of one payload that may stop a restore, and is told of where it does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from itertools import count
from pathlib import Path
from time import monotonic

import structlog

from tests.fuzz import script
from tests.hostile.gen import of_seed, stopping
from tests.hostile.lab import HostileLab
from tests.hostile.places import PLACES, STOPPING


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="start new seeds for so long")
    parser.add_argument("--seed", type=int, help="from this one on, or this one alone without --seeds")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--place", action="append", choices=sorted(PLACES), help="these alone")
    parser.add_argument("--stopping", choices=sorted(STOPPING), help="this payload that may stop a restore, alone")
    parser.add_argument("--once", action="store_true", help="restore each moment in one way, not in all")
    parser.add_argument("--script", type=Path, help="repeat what failed")
    parser.add_argument("--out", type=Path, default=Path("hostile-failures"), help="where failing scripts go")
    parser.add_argument("--verbose", action="store_true", help="show each step")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with HostileLab(every=not arguments.once) as lab:
        return asyncio.run(_script(lab, arguments) if arguments.script else _seeds(lab, arguments))


async def _script(lab: HostileLab, arguments: argparse.Namespace) -> int:
    steps = script.parse(arguments.script.read_text(encoding="utf-8"))
    failures = await lab.attempt(lambda _: steps)
    _show(lab)
    print(*failures, *lab.stopped, sep="\n\n")
    return 1 if failures else 0


async def _seeds(lab: HostileLab, arguments: argparse.Namespace) -> int:
    end = monotonic() + arguments.seconds
    first = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    most = arguments.seeds or (1 if arguments.seed is not None else 10**9)
    done = failed = statements = passed = refused = 0
    for seed in count(first):
        if done >= most or (done and monotonic() > end):
            break
        lab.may_stop = bool(arguments.stopping) or (not arguments.place and seed % 4 == 0)
        steps = stopping(seed, arguments.stopping) if lab.may_stop else of_seed(seed, arguments.place)
        failures = await lab.attempt(lambda _, steps=steps: steps)  # type: ignore[misc]
        done += 1
        statements += len(lab.outcomes)
        passed += lab.outcomes.count("ok")
        refused += len(lab.refused)
        if arguments.verbose:
            _show(lab)
        if lab.may_stop:
            print(f"seed {seed} stopped {len(lab.stopped)} restores", *lab.stopped[:1], flush=True)
        if failures:
            failed += 1
            _report(lab, arguments.out, seed, failures)
    print(
        f"{done} seeds from {first}, {failed} failed; {statements} statements, {passed} of them succeeded; {lab.restores} restores,"
        f" {refused} of them refused because of a loss"
    )
    return 1 if failed else 0


def _show(lab: HostileLab) -> None:
    outcomes = iter(lab.outcomes)
    for step in lab.steps:
        print(f"{step}{f'   -- {next(outcomes)}' if step.connection else ''}")


def _report(lab: HostileLab, folder: Path, seed: int, failures: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{seed}.script"
    script.write(path, lab.steps, "\n".join([f"seed {seed}", *failures]).splitlines())
    print(f"seed {seed} failed: make hostile SEED={seed}; script: python -m tests.hostile --script {path}")
    print(*failures, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
