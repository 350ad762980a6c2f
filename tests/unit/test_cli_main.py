"""How commands end, and what their options refuse, without any server."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from archiver.cli import commands
from archiver.cli import main as cli
from archiver.cli.commands import COMMANDS
from archiver.cli.output import seconds, size
from archiver.errors import DrillFailed, Fenced, PostgresError, StoreError, WrongKey
from archiver.keys import open_kek


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCHIVER_CONFIG", raising=False)
    monkeypatch.delenv("ARCHIVER_DEBUG", raising=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "missing command"),
        (["frobnicate"], "frobnicate"),
        (["info", "--frobnicate"], "--frobnicate"),
        (["init", "--keyless", "perhaps"], "perhaps"),
        (["init", "--wait", "5"], "not a duration"),
        (["key", "generate"], "FILE"),
        (["restore", "--latest"], "--into"),
        (["restore", "--into", "x"], "exactly one"),
        (["restore", "--into", "x", "--latest", "--target-lsn", "0/1"], "exactly one"),
        (["restore", "--into", "x", "--target-lsn", "tomorrow"], "not an LSN"),
        (["restore", "--into", "x", "--target-time", "2026-11-22T03:00:00"], "no offset"),
        (["restore", "--into", "x", "--latest", "--jobs", "0"], "--jobs"),
        (["restore-point", ""], "restore point"),
        (["info"], "no configuration"),
        (["info", "-c", "/no/such/file"], "/no/such/file"),
        (["-c", "/no/such/file", "info"], "/no/such/file"),
    ],
)
def test_wrong_arguments_end_with_2_and_a_hint(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert words in output.err
    assert "\nhint: " in output.err
    assert output.out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example:" in shown
    assert "--help" in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [(PostgresError("x"), 3), (StoreError("x"), 4), (WrongKey("x"), 5), (DrillFailed("x"), 7), (Fenced("x"), 8)],
)
def test_each_error_ends_with_the_code_of_its_class(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main_raising(error, monkeypatch) == code
    assert capsys.readouterr().err.startswith("error: x\n")


def test_what_nobody_expected_shows_a_traceback_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main_raising(ZeroDivisionError("by zero"), monkeypatch) == 1
    plain = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in plain
    assert "ARCHIVER_DEBUG=1" in plain
    assert "Traceback" not in plain
    monkeypatch.setenv("ARCHIVER_DEBUG", "1")
    assert _main_raising(ZeroDivisionError("by zero"), monkeypatch) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_is_no_failure_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main_raising(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == ""


def _main_raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    return cli.main([])


def test_a_new_key_is_private_and_usable(tmp_path: Path) -> None:
    file = tmp_path / "kek"
    assert cli.main(["key", "generate", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert open_kek(f"file:{file}")
    before = file.read_text()
    assert cli.main(["key", "generate", str(file)]) == 2
    assert file.read_text() == before


def test_a_key_in_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "generate", str(tmp_path / "none" / "kek")]) == 2
    assert "hint:" in capsys.readouterr().err


def test_check_prints_one_json_document_even_without_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["checks"][0]["name"] == "configuration"


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_sizes_are_readable(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(("duration", "text"), [(0.84, "0.8 s"), (125, "2 min 5 s"), (11_400, "3 h 10 min")])
def test_durations_are_readable(duration: float, text: str) -> None:
    assert seconds(timedelta(seconds=duration)) == text


def test_help_and_version_import_no_database_and_no_store() -> None:
    program = "import sys, archiver.cli.main as m; m.main(['--help']); m.main(['--version']); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in shown.splitlines()[-1].split()}
    assert loaded & {"psycopg", "pglast", "aiobotocore", "aiohttp", "botocore", "cryptography"} == set()


def test_every_command_that_the_help_names_can_be_asked_for_its_own() -> None:
    assert {file.stem.replace("_", "-") for file in Path(commands.__file__).parent.glob("*.py")} >= set(COMMANDS)
    assert [name for name in COMMANDS if cli.main([name, "--help"]) != 0] == []
