"""`python -m tests.fuzz`: seeds for so many seconds, one seed, or a script that failed. Exits with 1 if any failed."""

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
from tests.fuzz.lab import Lab, of_seed, shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="start new seeds for so long")
    parser.add_argument("--seed", type=int, help="only this one, or with --seeds from it on")
    parser.add_argument("--seeds", type=int, default=1, help="how many from --seed on")
    parser.add_argument("--steps", type=int, default=150, help="steps of a seed")
    parser.add_argument("--script", type=Path, help="repeat what failed")
    parser.add_argument("--shrink", action="store_true", help="shorten the script")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="where failing scripts go")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with Lab() as lab:
        if arguments.script:
            steps = script.parse(arguments.script.read_text(encoding="utf-8"))
            return asyncio.run(_repeat(lab, arguments.script, steps, shorten=arguments.shrink))
        return asyncio.run(_seeds(lab, arguments))


async def _repeat(lab: Lab, path: Path, steps: list[script.Step], *, shorten: bool) -> int:
    if shorten:
        steps = await shrink(lab, steps, print)
    failures = await lab.attempt(lambda _: steps)
    if shorten:
        script.write(path.with_suffix(".short"), steps, failures[0].splitlines() if failures else ["no failure"])
        print(*steps, sep="\n")
    else:
        outcomes = iter(lab.outcomes)
        for step in lab.steps:
            print(f"{step}{f'   -- {next(outcomes)}' if step.connection else ''}")
    print(*failures, sep="\n\n")
    return 1 if failures else 0


async def _seeds(lab: Lab, arguments: argparse.Namespace) -> int:
    end = monotonic() + arguments.seconds
    first = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    done = failed = statements = passed = 0
    for seed in count(first):
        if done >= arguments.seeds if arguments.seed is not None else done and monotonic() > end:
            break
        failures = await lab.attempt(of_seed(seed, arguments.steps))
        done += 1
        statements += len(lab.outcomes)
        passed += lab.outcomes.count("ok")
        if failures:
            failed += 1
            _report(lab, arguments, seed, failures)
    print(
        f"{done} seeds from {first}, {failed} failed; {statements} statements, {passed} of them succeeded; {lab.restores} restores"
    )
    return 1 if failed else 0


def _report(lab: Lab, arguments: argparse.Namespace, seed: int, failures: list[str]) -> None:
    arguments.out.mkdir(exist_ok=True)
    path = arguments.out / f"{seed}.script"
    script.write(path, lab.steps, "\n".join([f"seed {seed}, {arguments.steps} steps", *failures]).splitlines())
    print(f"seed {seed} failed: make fuzz SEED={seed}; script: python -m tests.fuzz --script {path} [--shrink]")
    print(*failures, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
