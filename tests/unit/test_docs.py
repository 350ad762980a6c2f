"""The documents say what is true: every key, metric and command is in them, examples load, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client import Metric
from pydantic import BaseModel

from archiver import errors
from archiver.cli.main import app
from archiver.config import Config, load
from archiver.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").glob("*.md")])
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- configuration ---


def sections() -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in Config.model_fields.items():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        found[name] = next(each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel))
    return found


def section_text(name: str) -> str:
    match = re.search(rf"^## `\[+{name}\]+`\n(.*?)(?=^## |\Z)", CONFIGURATION, re.MULTILINE | re.DOTALL)
    assert match, f"docs/configuration.md has no section {name}"
    return match[1]


@pytest.mark.parametrize("name", sections())
def test_every_configuration_key_is_described_in_its_section(name: str) -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", section_text(name), re.MULTILINE)
    described = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert described == set(sections()[name].model_fields)


def toml_blocks() -> list[tuple[str, str]]:
    return [
        (relative(path), block)
        for path in DOCUMENTS
        for block in re.findall(r"^```toml\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ]


def test_there_are_examples_to_load() -> None:
    assert {path for path, _ in toml_blocks()} >= {"README.md", "docs/configuration.md"}


@pytest.mark.parametrize(("path", "block"), toml_blocks())
def test_every_example_in_a_document_loads(path: str, block: str, tmp_path: Path) -> None:
    file = tmp_path / "archiver.toml"
    file.write_text(block, encoding="utf-8")
    assert load(file, {}).archive.name == "shop", path


def test_the_example_file_loads_and_says_what_the_defaults_are() -> None:
    config = load(ROOT / "archiver.toml", {})
    assert len(config.region) == 2
    assert config.segment == type(config.segment)()
    assert config.snapshot == type(config.snapshot)()
    assert config.http == type(config.http)()


def test_variables_in_the_documents_are_settings_that_exist() -> None:
    for path in DOCUMENTS:
        for section, key in re.findall(r"ARCHIVER_([A-Z]+)__(?:\d+__)?([A-Z_]+)\b", path.read_text(encoding="utf-8")):
            if (section, key) != ("SECTION", "KEY"):
                assert key.lower() in sections()[section.lower()].model_fields, f"{section} {key} in {relative(path)}"


# --- metrics, commands, exit codes ---


def metric_names() -> set[str]:
    families: list[Metric] = list(Metrics().registry.collect())
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_every_metric_is_described_and_no_other() -> None:
    described = set(re.findall(r"^\| `(archiver_\w+)` \|", OPERATIONS, re.MULTILINE))
    assert described == metric_names()


def commands() -> set[str]:
    group: Any = typer.main.get_command(app)
    names = set()
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        children = getattr(command, "commands", None)
        names |= {f"{name} {child}" for child in children} if children else {name}
    return names


def test_every_command_is_in_the_table_of_commands_and_no_other() -> None:
    described = set(re.findall(r"^\| `archiver ([\w -]+)` \|", OPERATIONS, re.MULTILINE))
    assert described == commands()


def test_every_command_line_in_the_documents_names_a_command() -> None:
    known = {name.split()[0] for name in commands()}
    for path in [*DOCUMENTS, ROOT / "archiver.toml"]:
        for line in re.findall(
            r"(?:^|`)archiver (?:-c \S+ )?([a-z][\w-]*)", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert line in known, f"archiver {line} in {relative(path)}"


def test_every_exit_code_is_in_the_table() -> None:
    classes = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ArchiverError)
    ]
    table = OPERATIONS[OPERATIONS.index("## Exit codes") :]
    described = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert described == {each.exit_code for each in classes} | {0, 130, 143}


# --- links and words ---


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def links() -> list[tuple[Path, str]]:
    found = []
    for path in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found += [(path, " ".join(link.split())) for link in re.findall(r"\]\(([^)]+)\)", text)]
    return [(path, link) for path, link in found if not link.startswith("https://")]


@pytest.mark.parametrize(("path", "link"), [(relative(path), link) for path, link in links()])
def test_no_link_is_broken(path: str, link: str) -> None:
    name, _, anchor = link.partition("#")
    target = (ROOT / path).parent / name if name else ROOT / path
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}


@pytest.mark.parametrize("path", [relative(path) for path in DECISIONS])
def test_a_decision_says_what_was_rejected(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.startswith(f"# {Path(path).name[:4]}: ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Rejected", "Consequences"]


def test_decisions_are_numbered_without_a_hole() -> None:
    assert [path.name[:4] for path in DECISIONS] == [f"{number:04d}" for number in range(1, len(DECISIONS) + 1)]


def test_the_readme_names_the_two_commands_that_are_all_the_set_up() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert re.search(rf"^make {target}\b", README, re.MULTILINE)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_module_s_document_is_there() -> None:
    """Hints and docstrings send people to documents."""
    for path in (ROOT / "archiver").rglob("*.py"):
        for name in re.findall(r"docs/[\w/.-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{name} in {relative(path)}"


def test_every_fault_in_the_table_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    last_columns = re.findall(r"^\| .+ \| ([^|]+) \|$", text, re.MULTILINE)
    rows = [re.findall(r"`(test_\w+)`", column) for column in last_columns if column != "test"]
    there = {
        name for path in ROOT.glob("tests/**/*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
    }
    assert len(rows) >= 40
    assert all(rows), "each row names a test"
    assert {name for row in rows for name in row} <= there


def test_every_item_of_what_comes_back_names_a_test_that_is_there() -> None:
    text = (ROOT / "docs/fidelity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `(test_\w+)(?:\[([^\]]+)\])?` \|$", text, re.MULTILINE)
    sources = [path.read_text("utf-8") for path in ROOT.glob("tests/**/*.py")]
    missing = [
        row
        for row in rows
        if not any(f"def {row[0]}(" in each and (not row[1] or f'"{row[1]}"' in each) for each in sources)
    ]
    assert missing == []
    assert len(rows) == len(re.findall(r"`test_", text)) >= 60


def test_every_attack_has_a_defence_and_a_test_that_is_there() -> None:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    rows = [line for line in text[text.index("## Rights at the source") :].splitlines() if line.startswith("| ")]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        attack, defence, test = (cell.strip() for cell in row.strip("|").split(" | "))
        if attack not in {"attack", "---"} and test != "the same":
            assert defence
            for name in re.findall(r"`(\w+)`", test):
                assert f"def {name}(" in sources, name
