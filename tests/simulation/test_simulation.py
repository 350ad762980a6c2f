"""The simulation holds: no seed breaks a promise, one seed is one run, and a defence that is taken out is missed at once.

Everything but the daemon's own code is simulated here (tests/simulation/world.py says what), because a real server
cannot be made deterministic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from archiver import manifest_log
from archiver.alignment import Alignment, Position
from archiver.archive import OpenArchive
from archiver.capture import Capture
from archiver.format.manifest import Changes, ObjectRef
from archiver.store.base import Store
from archiver.store.replicas import Replicas
from archiver.store.retry import Retry
from tests.simulation.runner import run

RUNS = 400  # 45 s on one core
AT_ONCE = 100


@pytest.mark.parametrize("first", range(1, RUNS, AT_ONCE))
def test_no_seed_breaks_a_promise(first: int) -> None:
    found = {seed: result.violations for seed in range(first, first + AT_ONCE) if (result := run(seed)).violations}
    assert found == {}


ONCE_FAILED = {
    263: "a key was missing where another writer's objects were completed",
    1125: "a lost slot was dropped when another daemon had just made a new one",
    10543: "regions with another key each for one day",
    10633: "a history that ended with a base snapshot",
    11061: "a history that ended with a fence of more",
    11128: "a history that ended with a gap",
    11317: "the slot was moved while a gap was being recorded",
    12112: "the slot was moved before the first segment",
    20303: "logs of one length that are not the same",
    200829: "the slot was lost while a daemon that another had taken over from was frozen",
}


@pytest.mark.parametrize("seed", ONCE_FAILED, ids=lambda seed: ONCE_FAILED[seed])
def test_a_seed_that_once_failed_does_so_no_more(seed: int) -> None:
    assert run(seed).violations == []


def test_one_seed_is_one_run_to_the_last_byte() -> None:
    first, again, other = run(11), run(11), run(12)
    assert first.log == again.log
    assert first.fingerprint == again.fingerprint != other.fingerprint


# --- the judge sees: each of these takes one defence out ---


def confirm_before_the_manifest_is_durable(patch: pytest.MonkeyPatch) -> None:
    append = Capture._append

    async def early(self: Capture, entry: Changes) -> None:
        self._durable = Position(entry.ordinal + 1, entry.end_lsn)
        self._confirmed.set()
        await append(self, entry)

    patch.setattr(Capture, "_append", early)


def go_on_behind_the_fence_of_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(manifest_log, "_OWNED_BY_DAEMON", ())


def append_the_manifest_while_its_object_is_on_its_way(patch: pytest.MonkeyPatch) -> None:
    store_sealed = OpenArchive.store_sealed

    async def later(self: OpenArchive, key: str, sealer: Any) -> ObjectRef:
        put, tasks = self.store.put, set()

        async def start(*arguments: Any) -> None:
            tasks.add(asyncio.create_task(put(*arguments)))

        self.store.put = start  # type: ignore[method-assign, assignment]
        try:
            return await store_sealed(self, key, sealer)
        finally:
            del self.store.put  # type: ignore[method-assign]

    patch.setattr(OpenArchive, "store_sealed", later)


def record_no_gap(patch: pytest.MonkeyPatch) -> None:
    async def silent(
        _self: Alignment, _archive: Any, _system: Any, position: Position | None, resume: Any, _reason: str, **_: Any
    ) -> Position:
        return Position(position.ordinal if position else 1, resume)

    patch.setattr(Alignment, "_bridge", silent)


def take_a_lost_answer_for_a_lost_race(patch: pytest.MonkeyPatch) -> None:
    async def put(self: Retry, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await self._persist(lambda _failures: self._store.put(key, data, if_absent=if_absent))

    async def write(self: Replicas, _objects: Any, store: Store, key: str, data: bytes) -> bool:
        await store.put(key, data, if_absent=True)
        return True

    patch.setattr(Retry, "put", put)
    patch.setattr(Replicas, "_write_after", write)


def answer_the_server_only_when_something_is_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("archiver.capture.STATUS_SECONDS", 1e6)


def let_manifests_overtake_their_objects_in_a_region_that_rejoins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(manifest_log, "_IN_ORDER", ())


DEFENCES: dict[Callable[[pytest.MonkeyPatch], None], int] = {
    confirm_before_the_manifest_is_durable: 2,
    go_on_behind_the_fence_of_another: 140,
    append_the_manifest_while_its_object_is_on_its_way: 1,
    record_no_gap: 1,
    take_a_lost_answer_for_a_lost_race: 8,
    answer_the_server_only_when_something_is_durable: 6,
    let_manifests_overtake_their_objects_in_a_region_that_rejoins: 1,
}
"""With the first seed to try: some faults must meet, and do so in few runs."""
SEEDS = 80


@pytest.mark.parametrize("remove", DEFENCES, ids=lambda remove: remove.__name__)
def test_a_defence_that_is_taken_out_does_not_go_unnoticed(
    remove: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    monkeypatch.setattr(
        "tests.simulation.world.CATCH_UP_SECONDS", 120.0
    )  # what never catches up need not be waited for
    first = DEFENCES[remove]
    assert any(run(seed).violations for seed in range(first, first + SEEDS))
