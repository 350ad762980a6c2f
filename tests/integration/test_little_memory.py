"""Commands in 2 GiB of memory, of which they need a fraction, whatever somebody puts into one region."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable

import pytest
import zstandard

from archiver.format import layout
from tests.fix_stored import AFTER, BEFORE, Stored

GIB = 1 << 30
LISTS = b"[" + b"[]," * (10 << 20) + b"[]]"  # as values they take 700 MB
Spoil = Callable[[Stored, str], None]


def limited(stored: Stored, *arguments: str) -> str:
    """What the command says of errors, which it must not end with."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 * GIB, 2 * GIB))

    result = subprocess.run(
        stored.site.arguments(*arguments), env=stored.site.environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


def roll_ups(content: bytes) -> Spoil:
    """Of names that all begin where the log does."""

    def spoil(stored: Stored, region: str) -> None:
        packed = zstandard.ZstdCompressor(level=9).compress(content)
        assert len(packed) < 1 << 16
        for last in (2, 3, 1000, 999_999):
            stored.write(region, layout.rollup(1, last), packed)

    return spoil


def manifests_of_lists(stored: Stored, region: str) -> None:
    """As many as are read at once."""
    newest = stored.seqs(region)[-1]
    for number in range(16):
        stored.write(region, layout.manifest(newest + 2 + number), LISTS)


SPOILS: dict[str, Spoil] = {
    "roll-ups of newlines": roll_ups(b"\n" * ((256 << 20) - 1)),
    "roll-ups of lists": roll_ups(LISTS),
    "manifests of lists": manifests_of_lists,
}


@pytest.mark.parametrize("region", ["fra", "dub"])
@pytest.mark.parametrize("how", SPOILS)
def test_what_lies_in_one_region_costs_little_memory(stored: Stored, how: str, region: str) -> None:
    SPOILS[how](stored, region)
    limited(stored, "info")


def test_a_restore_in_little_memory_goes_on_with_what_is_whole(stored: Stored, empty: str) -> None:
    for spoil in SPOILS.values():
        spoil(stored, "fra")
    limited(stored, "restore", "--into", empty, "--latest", "--yes")
    assert stored.count(empty) == BEFORE + AFTER
    assert stored.run("verify").returncode == 5
