"""When a slot that grows is lost, and when it is given up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from archiver.policy.slot_danger import WINDOW, SlotDanger

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
INF = float("inf")


def seen(danger: SlotDanger, *samples: tuple[float, int, int | None]) -> SlotDanger:
    for seconds, retained, left in samples:
        danger.observe(NOW + timedelta(seconds=seconds), retained, left)
    return danger


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        ((), INF),
        (((0, 100, 1000),), INF),
        (((0, 100, 1000), (10, 100, 1000)), INF),
        (((0, 100, 1000), (10, 50, 1050)), INF),
        (((0, 100, 1000), (10, 200, 900)), 90),
        (((0, 100, None), (10, 200, None)), INF),
        (((0, 100, 50), (10, 200, -50)), 0),
    ],
)
def test_a_slot_is_lost_when_its_growth_has_used_up_the_room(
    samples: tuple[tuple[float, int, int | None], ...], seconds: float
) -> None:
    assert seen(SlotDanger(None), *samples).seconds_left() == seconds


def test_the_nearer_of_both_limits_counts() -> None:
    assert seen(SlotDanger(400), (0, 100, 1000), (10, 200, 900)).seconds_left() == 20
    assert seen(SlotDanger(400), (0, 100, None), (10, 200, None)).seconds_left() == 20
    assert seen(SlotDanger(4000), (0, 100, 1000), (10, 200, 900)).seconds_left() == 90


def test_only_late_growth_counts() -> None:
    late = WINDOW.total_seconds()
    danger = seen(SlotDanger(None), (0, 0, 10_000), (1, 5_000, 5_000), (late + 2, 5_000, 5_000))
    assert danger.seconds_left() == INF


def test_a_slot_is_given_up_at_its_limit_and_never_without_one() -> None:
    assert not seen(SlotDanger(200), (0, 199, None)).must_give_up
    assert seen(SlotDanger(200), (0, 200, None)).must_give_up
    assert not seen(SlotDanger(None), (0, 10**15, None)).must_give_up
