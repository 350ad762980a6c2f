"""Run the simulation: as many seeds as asked, or for as long, or one seed again with all that its daemons logged."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from tests.simulation.faults import draw
from tests.simulation.runner import Result, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--runs", type=int, help="how many runs")
    parser.add_argument("--seconds", type=float, default=60, help="how long instead")
    parser.add_argument("--first", type=int, default=random.SystemRandom().randrange(10**9), help="the first seed")
    parser.add_argument("--seed", type=int, help="this one alone, with its log")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return show(run(arguments.seed))
    return many(arguments.first, arguments.runs, arguments.seconds)


def show(result: Result) -> int:
    print(draw(result.seed))
    print(*result.log, sep="\n")
    print(result.verdict)
    print(f"fingerprint {result.fingerprint}")
    for violation in result.violations:
        print(f"violation: {violation}")
    return 1 if result.violations else 0


def many(first: int, runs: int | None, seconds: float) -> int:
    started = time.monotonic()
    counts: Counter[str] = Counter()
    failed = done = 0
    while done < runs if runs else time.monotonic() - started < seconds:
        result = run(first + done)
        done += 1
        add(counts, result)
        if result.violations:
            failed += 1
            print(f"seed {result.seed}: {result.violations[0]}", flush=True)
        if done % 500 == 0:
            print(f"{done} runs, {failed} failed, {time.monotonic() - started:.0f} s", flush=True)
    for name, count in sorted(counts.items()):
        print(f"{count:10}  {name}")
    spent = time.monotonic() - started
    print(f"{done} runs from seed {first} on, {failed} failed; {done / spent:.1f} runs a second")
    return 1 if failed else 0


def add(counts: Counter[str], result: Result) -> None:
    counts.update(result.counts)
    counts["steps"] += result.steps
    counts["virtual seconds"] += round(result.seconds)
    if result.verdict is not None:
        counts["commits compared"] += result.verdict.commits
        counts["change segments"] += result.verdict.segments
        counts["gaps, each of a lost slot"] += result.verdict.gaps


if __name__ == "__main__":
    sys.exit(main())
