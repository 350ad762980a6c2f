"""Random schemas, DDL and rows: minutes of `make fuzz`, whose restores must all equal the frozen source."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.lab import Lab, of_seed

STEPS = 150


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as opened:
        yield opened


@pytest.mark.parametrize("seed", range(1, 23))
async def test_every_restore_of_a_random_history_equals_the_source_at_that_commit(lab: Lab, seed: int) -> None:
    assert await lab.attempt(of_seed(seed, STEPS)) == []
    assert lab.outcomes.count("ok") > STEPS / 2
