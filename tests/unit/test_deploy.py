"""What is in deploy/ fits the code: metrics that exist, exit codes that mean what they say, no root, no secrets."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from archiver.errors import ConfigError, Fenced, IntegrityError
from archiver.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = (DEPLOY / "prometheus-alerts.yaml").read_text(encoding="utf-8")
UNIT = (DEPLOY / "archiver.service").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def exposed() -> set[str]:
    """Names of all series that archiver exposes, without those that prometheus-client adds of its own."""
    metrics = Metrics()
    for labelled in (
        metrics.region_up,
        metrics.region_unreplicated_segments,
        metrics.stored_bytes_total,
        metrics.missing_objects,
    ):
        labelled.labels("one")
    metrics.upload_seconds.labels("one")
    lines = metrics.render().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}


# --- alert rules ---


def expressions() -> dict[str, str]:
    """The `expr` of each alert; the file is kept so plain that a line of it can be read by itself."""
    found, alert = {}, ""
    for line in RULES.splitlines():
        if match := re.fullmatch(r"\s+- alert: (\w+)", line):
            alert = match[1]
        elif match := re.fullmatch(r"\s+expr: (.+)", line):
            found[alert] = match[1]
    return found


def test_promtool_accepts_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; the next tests look at the lines instead")
    subprocess.run([promtool, "check", "rules", DEPLOY / "prometheus-alerts.yaml"], check=True, capture_output=True)


def test_every_alert_has_what_an_alert_needs() -> None:
    blocks = RULES.split("      - alert: ")[1:]
    assert len(blocks) == len(expressions()) >= 8
    for block in blocks:
        for key in ("expr: ", "labels:", "severity: ", "annotations:", "summary: ", "description: "):
            assert block.count(key) == 1, f"{key} in {block}"


def test_the_rules_are_plain_yaml() -> None:
    """No tabs, indentation in twos, and nothing unquoted that YAML would read as something else."""
    for line in RULES.splitlines():
        content = line.lstrip(" ")
        assert "\t" not in line
        assert (len(line) - len(content)) % 2 == 0
        if content.startswith("#") or not content:
            continue
        match = re.fullmatch(r"(?:- )?(\w+):(?: (.+))?", content)
        assert match, line
        if value := match[2]:
            assert value[0] not in "{[*&!|>%@`'"
            assert value.startswith('"') or not re.search(r": |\s#|\{\{", value), line


def test_alerts_name_only_metrics_that_archiver_exposes() -> None:
    known = exposed()
    for alert, expression in expressions().items():
        named = set(re.findall(r"\barchiver_\w+", expression))
        assert named <= known, alert
        assert named or "up{" in expression


@pytest.mark.parametrize(
    "metric",
    [
        "archiver_lag_seconds",
        "archiver_recovery_point_age_seconds",
        "archiver_region_up",
        "archiver_slot_retained_bytes",
        "archiver_gaps_total",
        "archiver_last_snapshot_timestamp_seconds",
    ],
)
def test_what_must_never_go_unnoticed_has_an_alert(metric: str) -> None:
    assert any(metric in expression for expression in expressions().values())


def test_the_daemon_that_is_down_or_gone_has_an_alert() -> None:
    assert any(expression.startswith("up{") for expression in expressions().values())
    assert any(expression.startswith("absent(") for expression in expressions().values())


# --- systemd ---


def settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "archiver.service"
    unit.write_text(UNIT.replace("/opt/archiver/bin/archiver", sys.executable), encoding="utf-8")
    done = subprocess.run([analyze, "verify", unit], check=False, capture_output=True, text=True)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "archiver.service" not in done.stderr


def test_the_unit_does_not_restart_what_a_restart_cannot_mend() -> None:
    (codes,) = settings("RestartPreventExitStatus")
    assert {int(code) for code in codes.split()} == {
        ConfigError.exit_code,
        IntegrityError.exit_code,
        Fenced.exit_code,
    }


def test_the_unit_waits_longer_than_the_daemon_promises_to_take() -> None:
    assert int(settings("TimeoutStopSec")[0]) > 30


def test_the_unit_is_hardened_and_hands_the_key_over_as_a_credential() -> None:
    for name, value in {
        "DynamicUser": "yes",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "LimitCORE": "0",
    }.items():
        assert settings(name) == [value]
    assert settings("CapabilityBoundingSet") == [""]
    assert "kek:/etc/archiver/kek" in settings("LoadCredential")
    assert settings("Environment") == ["ARCHIVER_ENCRYPTION__KEYS=file:%d/kek"]


# --- Dockerfile ---


def instructions() -> list[tuple[str, str]]:
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_every_stage_is_pinned_to_one_version() -> None:
    bases = [argument.split()[0] for name, argument in instructions() if name == "FROM"]
    assert bases == ["${PYTHON_IMAGE}"] * 2
    first, default = instructions()[0]
    assert first == "ARG"  # before the first stage: it then holds for all, and may be a digest
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", default)


def test_the_image_does_not_run_as_root() -> None:
    last_stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    (user,) = re.findall(r"^USER (.+)$", last_stage, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert last_stage.index("USER ") < last_stage.index("ENTRYPOINT ")


def test_the_image_takes_in_nothing_that_may_be_secret() -> None:
    copied = [argument for name, argument in instructions() if name == "COPY" and not argument.startswith("--from")]
    sources = {source for argument in copied for source in argument.split()[:-1]}
    assert sources == {"requirements.lock", "pyproject.toml", "README.md", "LICENSE", "archiver"}
    assert all((ROOT / source).exists() for source in sources)
    assert not any(name == "ADD" for name, _ in instructions())
    assert not re.search(r"(?i)^(ARG|ENV).*(password|secret|kek|token)", DOCKERFILE, re.MULTILINE)


def test_what_is_installed_is_checked_against_the_lock() -> None:
    steps = instructions()
    runs = [place for place, (name, _) in enumerate(steps) if name == "RUN"]
    fetch = steps[runs[0]][1]
    assert "--require-hashes" in fetch
    assert "requirements.lock" in fetch
    assert any(name == "ENV" and "PIP_NO_INDEX=1" in argument for name, argument in steps[runs[0] : runs[1]])


def test_the_image_says_when_it_is_ill_and_how_to_stop_it() -> None:
    names = dict(instructions())
    assert names["STOPSIGNAL"] == "SIGTERM"
    assert "/healthz" in names["HEALTHCHECK"]
    assert names["ENTRYPOINT"] == '["archiver"]'
