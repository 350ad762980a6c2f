"""Foreign objects in one region, on real stores: commands and the daemon go on with what is whole."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from archiver.archive import create_archive
from archiver.errors import TargetUnreachable
from archiver.format import layout
from archiver.keys import LocalKek
from archiver.policy.target import ToLatest
from archiver.recovery_plan import make_plan
from archiver.store.memory import MemoryStore
from archiver.store.mirror import Mirror
from archiver.verify import repair, verify
from tests.damage import nested
from tests.fix_archive import MakeSetup, Setup
from tests.fix_stored import AFTER, BEFORE, Stored
from tests.integration.test_crash import file_regions
from tests.unit.test_foreign_objects import FAR

LARGE = 100 << 20
VERY_LARGE = 1 << 43  # no machine reads it into its memory
FAR_SEGMENT = f"segments/{10**15:020d}-{2**50:016X}-{2**50 + 1:016X}-0123456789ab.seg"


def theirs(name: str) -> bytes:
    """archive.json of an archive of this name that another key has signed."""

    async def make() -> bytes:
        store = MemoryStore("theirs")
        key = LocalKek(bytes(32))
        await create_archive(Mirror([store]), name, [key], system_identifier="1", database="shop")
        return store.objects[layout.ARCHIVE]

    return asyncio.run(make())


def spoil(stored: Stored, region: str) -> list[str]:
    """Everything at once; the names of what was put there."""
    following = layout.manifest(stored.seqs("fra")[-1] + 1)
    name = stored.site.dsn.rpartition("_")[2]
    stored.write(region, layout.ARCHIVE, theirs(f"t{name}"))
    stored.write(region, FAR_SEGMENT, b"rubbish" * 100)
    names = ["manifests/zzz", FAR, "keys/zzz", "keys/changes-2030-01-01.json", "catalog/zzz"]
    for each in names:
        stored.write(region, each, b"rubbish")
    stored.write(region, following, b"")
    with stored.path(region, following).open("r+b") as file:
        file.truncate(LARGE)
    return [*names, following, layout.ARCHIVE]


@pytest.mark.parametrize("region", ["fra", "dub"])
def test_foreign_objects_in_one_region_stop_no_command(stored: Stored, empty: str, region: str) -> None:
    names = spoil(stored, region)
    facts = stored.json("info")
    assert any(f"{region} is damaged: archive.json is another one" in each for each in facts["warnings"])
    restored = stored.run("restore", "--into", empty, "--latest", "--yes")
    assert restored.returncode == 0, restored.stderr
    assert "a region is damaged" in restored.stderr
    assert stored.count(empty) == BEFORE + AFTER
    report = stored.json("verify")
    assert {each["object"] for each in report["findings"]} >= set(names)
    assert stored.run("verify").returncode == 5
    checked = stored.json("check")
    assert (checked["exit_code"], "damaged" in str(checked)) == (5, True)


@pytest.mark.parametrize("region", ["fra", "dub"])
def test_deep_folders_and_links_in_one_region_stop_no_command(stored: Stored, empty: str, region: str) -> None:
    with nested(stored.path(region, "manifests")):
        for number in range(30):
            stored.path(region, f"manifests/{number}").symlink_to(".")
        stored.path(region, "keys").rename(stored.path(region, "elsewhere"))
        stored.path(region, "keys").symlink_to("elsewhere")
        assert stored.run("info").returncode == 0
        restored = stored.run("restore", "--into", empty, "--latest", "--yes")
        assert restored.returncode == 0, restored.stderr
        assert stored.count(empty) == BEFORE + AFTER
        found = {each["object"] for each in stored.json("verify")["findings"]}
        assert found >= {"manifests/0", "keys", "keys/signing.json"}


def test_sealed_objects_that_somebody_made_very_large_in_one_region_are_not_read(stored: Stored, empty: str) -> None:
    region = "fra"
    sealed = [path for kind in ("segments", "snapshots") for path in stored.path(region, kind).rglob("*")]
    files = [path for path in sealed if path.is_file()]
    for path in files:
        with path.open("r+b") as file:
            file.truncate(VERY_LARGE)
    restored = stored.run("restore", "--into", empty, "--latest", "--yes")
    assert restored.returncode == 0, restored.stderr
    assert stored.count(empty) == BEFORE + AFTER
    found = {each["object"] for each in stored.json("verify")["findings"]}
    assert found >= {str(path.relative_to(stored.path(region, ""))) for path in files}
    assert stored.run("verify", "--read-data").returncode == 5


@pytest.mark.deep
def test_a_pinned_archive_is_the_only_one_that_any_command_opens(stored: Stored, empty: str) -> None:
    for region in ("fra", "dub"):
        spoil(stored, region)
    stored.site.replace("[archive]", f'[archive]\npublic_key = "{"0" * 64}"')
    for command in (
        ("info",), ("verify",), ("check",), ("run",), ("snapshot",), ("restore-point", "x"), ("drill",), ("init",),
        ("restore", "--into", empty, "--latest", "--yes"),
    ):  # fmt: skip
        result = stored.run(*command)
        assert (result.returncode, "pins" in result.stderr + result.stdout) == (5, True), (command, result.stderr)


def test_init_prints_the_public_key_and_the_line_that_pins_it(stored: Stored) -> None:
    shown = stored.run("init")
    assert shown.returncode == 0, shown.stderr
    line = next(line for line in shown.stdout.splitlines() if "public_key = " in line)
    key = line.partition('"')[2].rstrip('"')
    stored.site.replace("[archive]", f'[archive]\npublic_key = "{key}"')
    assert stored.run("info").returncode == 0
    assert "write under [archive]" not in stored.run("init").stdout


@pytest.mark.parametrize("durability", [{"ack": "all"}, {"ack": "all", "degrade_after": "2s"}, {"ack": "any"}])
@pytest.mark.parametrize("region", ["primary", "secondary"])
async def test_foreign_objects_in_one_region_stop_no_daemon(
    make_setup: MakeSetup, tmp_path: Path, region: str, durability: dict[str, str]
) -> None:
    for each in ("primary", "secondary"):
        (tmp_path / each).mkdir()
    setup = make_setup(region=file_regions(tmp_path), segment={"max_age": "200ms"}, durability=durability)
    with setup.connect() as conn:
        conn.execute("CREATE TABLE item (id int PRIMARY KEY)")
        await setup.init()
        async with setup.daemon():
            await setup.archived()
        newest = max(path.name for path in (tmp_path / region / "manifests").iterdir())
        following = layout.manifest(int(newest.partition(".")[0]) + 1)
        for name in ("manifests/zzz", FAR, "keys/zzz", following, layout.ARCHIVE):
            (tmp_path / region / name).unlink(missing_ok=True)
            (tmp_path / region / name).write_bytes(b"rubbish")
        conn.execute("SELECT pg_drop_replication_slot(%s)", [setup.config.require_source().slot])
        (tmp_path / region / "segments").mkdir(exist_ok=True)
        (tmp_path / region / FAR_SEGMENT).write_bytes(b"rubbish" * 100)
        async with setup.daemon() as daemon:  # which asks for no --accept-gap, though no slot tells it where to go on
            conn.execute("INSERT INTO item VALUES (1)")
            await setup.archived()
            async with asyncio.timeout(40):
                while not await reaches_latest(setup):
                    await asyncio.sleep(0.2)
                while daemon.metrics.registry.get_sample_value("archiver_degraded"):
                    await asyncio.sleep(0.2)
    async with setup.open() as archive:
        found = {finding.object for finding in (await verify(archive)).findings}
        assert found == {"manifests/zzz", FAR, "keys/zzz"}
        assert {finding.object for finding in (await repair(archive)).findings} == found
    dsn, _ = await setup.restore()
    assert dsn


async def reaches_latest(setup: Setup) -> bool:
    """Whether there is a base snapshot behind the gap."""
    async with setup.open() as archive:
        with suppress(TargetUnreachable):
            return bool(await make_plan(archive, ToLatest()))
    return False
