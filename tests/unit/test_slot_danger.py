"""When a slot that grows is lost, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from archiver.policy.slot_danger import WINDOW, SlotDanger

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
INF = float("inf")
MB, GB = 10**6, 10**9
Samples = Iterable[tuple[float, int]]


def seen(danger: SlotDanger, *samples: tuple[float, int, int | None]) -> SlotDanger:
    for seconds, retained, left in samples:
        danger.observe(NOW + timedelta(seconds=seconds), retained, left)
    return danger


def told(limit: int, samples: Samples) -> Iterator[tuple[float, float]]:
    """By second, what is said of a slot that the server lets retain `limit` bytes."""
    danger = SlotDanger(None)
    for second, retained in samples:
        danger.observe(NOW + timedelta(seconds=second), retained, limit - retained)
        yield second, danger.seconds_left()


def alarms(limit: int, samples: Samples, before: float = 3600) -> list[tuple[float, float]]:
    return [(second, left) for second, left in told(limit, samples) if left < before]


def saw(rate: int, period: int, seconds: int) -> Samples:
    """WAL is written at a steady rate, and restart_lsn follows once in a period."""
    return ((second, rate * (second % period)) for second in range(seconds))


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        ((), INF),
        (((0, 100, 1000),), INF),
        (((0, 500, 600), (10, 500, 600)), INF),
        (((0, 500, 600), (10, 400, 700)), INF),
        (((0, 100, 1000), (10, 400, 700)), 70 / 3),
        (((0, 100, None), (10, 400, None)), INF),
        (((0, 100, 50), (10, 200, -50)), 0),
        (((0, 1100, -50),), 0),
    ],
)
def test_a_slot_is_lost_when_its_growth_has_used_up_the_room(
    samples: tuple[tuple[float, int, int | None], ...], seconds: float
) -> None:
    assert seen(SlotDanger(None), *samples).seconds_left() == pytest.approx(seconds)


def test_the_nearer_of_both_limits_counts() -> None:
    assert seen(SlotDanger(400), (0, 100, 1000), (10, 200, 900)).seconds_left() == 20
    assert seen(SlotDanger(400), (0, 100, None), (10, 200, None)).seconds_left() == 20
    assert seen(SlotDanger(4000), (0, 100, 400), (10, 200, 300)).seconds_left() == 30


def test_only_late_growth_counts() -> None:
    late = WINDOW.total_seconds()
    danger = seen(SlotDanger(None), (0, 0, 10_000), (1, 5_000, 5_000), (late + 2, 5_000, 5_000))
    assert danger.seconds_left() == INF


def test_a_daemon_that_has_just_started_on_a_busy_source_raises_no_alarm() -> None:
    """2 GB, half a percent used, and 10 MB/s until the first segment is confirmed."""
    assert alarms(2 * GB, ((second, 10 * MB + 10 * MB * second) for second in range(30))) == []


@pytest.mark.parametrize("period", [2, 15, 60, 300])
@pytest.mark.parametrize("height", [0.01, 0.1, 0.2])
def test_the_jumps_of_a_slot_that_is_read_raise_no_alarm(period: int, height: float) -> None:
    rate = round(2 * GB * height / period)
    assert alarms(2 * GB, saw(rate, period, 3000), before=INF) == []


def test_growth_that_is_truly_fast_is_told_of_in_time() -> None:
    """10 GB, and 1 GB/s after a quiet time, or from the start."""
    quiet = [(second, 0) for second in range(600)]
    fast = [(second, GB * (second - 600)) for second in range(600, 610)]
    assert alarms(10 * GB, quiet + fast)[0] == (603, pytest.approx(7))
    assert alarms(10 * GB, fast)[0] == (603, pytest.approx(7))


@pytest.mark.parametrize("limit", [2 * GB, 20 * GB])
def test_a_slot_that_nobody_reads_is_told_of_an_hour_before_or_at_a_quarter(limit: int) -> None:
    lost = limit / MB
    second, left = alarms(limit, ((second, MB * second) for second in range(round(lost))))[0]
    assert left == pytest.approx(lost - second)
    assert left >= min(3590, 0.74 * lost)


def test_a_slot_whose_reader_falls_behind_in_jumps_is_told_of() -> None:
    """Of 3 MB that are written in a second it reads 2."""
    limping = [(second, MB * second + 2 * MB * (second % 30)) for second in range(1600)]
    assert alarms(2 * GB, limping)


def test_a_slot_that_is_being_caught_up_is_in_no_danger() -> None:
    """After an outage of the regions, or one of the daemon, in which it does not see the growth."""
    falling = [(second, 15 * GB - 50 * MB * (second - 300)) for second in range(300, 600)]
    growing = [(second, 50 * MB * second) for second in range(300)]
    assert alarms(20 * GB, falling) == []
    assert alarms(20 * GB, growing + falling)[-1][0] < 460  # half of it is gone again


def test_a_slot_is_given_up_at_its_limit_and_never_without_one() -> None:
    assert not seen(SlotDanger(200), (0, 199, None)).must_give_up
    assert seen(SlotDanger(200), (0, 200, None)).must_give_up
    assert not seen(SlotDanger(None), (0, 10**15, None)).must_give_up
