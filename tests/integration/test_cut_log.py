"""A log whose end was cut off in a region: nobody takes the rest for all there was."""

from __future__ import annotations

import pytest

from tests.fix_stored import AFTER, BEFORE, Stored

ALL = BEFORE + AFTER


def restore(stored: Stored, empty: str, *arguments: str) -> tuple[int, str]:
    result = stored.run("restore", "--into", empty, "--yes", *arguments)
    return result.returncode, result.stderr


@pytest.mark.parametrize("how", [(), ("--dry-run",)], ids=["restore", "dry run"])
@pytest.mark.parametrize("cut", ["fra", "dub"])
def test_the_latest_state_is_not_taken_from_a_region_alone_while_another_is_silent(
    stored: Stored, empty: str, cut: str, how: tuple[str, ...]
) -> None:
    stored.cut(cut)
    stored.silence("dub" if cut == "fra" else "fra")
    code, errors = restore(stored, empty, "--latest", *how)
    assert code == 4, errors
    assert f"not asked: {'dub' if cut == 'fra' else 'fra'}" in errors
    assert f"--region {cut}" in errors


def test_a_region_that_is_trusted_by_name_is_restored_from_with_a_warning(stored: Stored, empty: str) -> None:
    stored.cut("fra")
    stored.silence("dub")
    code, errors = restore(stored, empty, "--latest", "--region", "fra")
    assert code == 0, errors
    assert "dub could not be asked" in errors
    assert stored.count(empty) == BEFORE


def test_a_region_that_is_trusted_by_name_and_lacks_the_end_of_the_log_is_told_of(stored: Stored, empty: str) -> None:
    end, newest = stored.cut("fra"), stored.seqs("dub")[-1]
    code, errors = restore(stored, empty, "--latest", "--region", "fra")
    assert code == 0, errors
    assert f"dub holds manifests {end + 1} to {newest}, which fra lacks" in errors


@pytest.mark.parametrize("cut", ["fra", "dub"])
def test_of_two_regions_that_answer_the_longer_log_wins(stored: Stored, empty: str, cut: str) -> None:
    stored.cut(cut)
    code, errors = restore(stored, empty, "--latest")
    assert code == 0, errors
    assert stored.count(empty) == ALL


def test_a_restore_point_is_not_looked_for_in_one_region_alone(stored: Stored, empty: str) -> None:
    """A later one of that name, or the only one, may stand in what was cut off."""
    stored.cut("fra")
    stored.silence("dub")
    code, errors = restore(stored, empty, "--target-name", "any")
    assert code == 4, errors


def test_a_time_that_the_log_covers_is_proven_by_one_region(stored: Stored, empty: str) -> None:
    """What the log says of a time before its end, no cut can change; behind its end it says so."""
    facts = stored.json("info")
    stored.silence("dub")
    earliest, latest = facts["window"]["earliest"], facts["window"]["latest"]
    code, errors = restore(stored, empty, "--target-time", latest, "--dry-run")
    assert code == 0, errors
    stored.cut("fra")
    assert restore(stored, empty, "--target-time", latest, "--dry-run")[0] == 6
    assert restore(stored, empty, "--target-lsn", facts["window"]["end_lsn"], "--dry-run")[0] == 6
    assert earliest < latest


def test_info_says_that_a_silent_region_may_know_more(stored: Stored) -> None:
    end = stored.cut("fra")
    stored.silence("dub")
    facts = stored.json("info")
    assert (facts["complete"], facts["archive"]["head_seq"]) == (False, end)
    assert any("dub could not be asked" in warning for warning in facts["warnings"])
    assert "dub could not be asked: the log may go on there" in stored.run("info").stdout


def test_a_drill_of_the_latest_state_needs_every_region(stored: Stored) -> None:
    stored.cut("fra")
    stored.silence("dub")
    result = stored.run("drill", "--latest")
    assert result.returncode == 4, result.stderr
    assert "--region fra" in result.stderr


# --- an end of the log that was noted ---


def noted(stored: Stored) -> str:
    head: str = stored.json("info")["archive"]["head"]
    seq, _, digest = head.partition(":")
    assert int(seq) == stored.seqs("fra")[-1]
    assert len(digest) == 64
    return head


def test_the_end_of_the_log_is_shown_to_be_noted(stored: Stored) -> None:
    head = noted(stored)
    assert head in stored.run("info").stdout
    assert head in stored.run("verify").stdout
    assert stored.json("verify")["head"] == head
    for command in ("restore", "verify"):
        assert "--expect-head 1042:9f86d081" in stored.run_help(command)


def test_a_log_that_ends_before_a_noted_one_is_refused(stored: Stored, empty: str) -> None:
    head = noted(stored)
    assert restore(stored, empty, "--latest", "--expect-head", head, "--dry-run")[0] == 0
    assert stored.run("verify", "--expect-head", head).returncode == 0
    for region in ("fra", "dub"):
        stored.cut(region)
    code, errors = restore(stored, empty, "--latest", "--expect-head", head)
    assert (code, "the log ends before" in errors) == (5, True), errors
    result = stored.run("verify", "--expect-head", head)
    assert (result.returncode, "the log ends before" in result.stderr) == (5, True), result.stderr


def test_another_log_than_the_noted_one_is_refused(stored: Stored, empty: str) -> None:
    other = f"{stored.newest('snapshot')}:{'0' * 64}"
    code, errors = restore(stored, empty, "--latest", "--expect-head", other)
    assert (code, "is another one" in errors) == (5, True), errors
    assert stored.run("verify", "--expect-head", other).returncode == 5


@pytest.mark.parametrize("text", ["7", "x:y", f"0:{'0' * 64}", f"3:{'0' * 63}", ":"])
def test_what_is_no_end_of_a_log_is_a_wrong_argument(stored: Stored, empty: str, text: str) -> None:
    assert restore(stored, empty, "--latest", "--expect-head", text)[0] == 2
