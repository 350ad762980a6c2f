"""The configuration: what may be left out, what overrides what, and that nothing wrong gets through unnamed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from archiver.config import Config, load, parse_duration, parse_size
from archiver.errors import ConfigError

MINIMAL = """
[archive]
name = "shop"

[source]
dsn = "postgresql://archiver@db.internal/shop"

[[region]]
name = "primary"
url = "s3://fra/shop"

[encryption]
keys = ["file:/etc/archiver/kek"]
"""
SECOND_REGION = '\n[[region]]\nname = "secondary"\nurl = "s3://dub/shop"\naws_region = "eu-west-1"\n'


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "archiver.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def read(path: Path | None, **environ: str) -> Config:
    return load(path, environ)


# --- defaults and units ---


def test_what_is_left_out_has_the_documented_default(write: Any) -> None:
    config = read(write(MINIMAL))
    assert config.segment.max_bytes == 16 * 1024 * 1024
    assert config.segment.max_age == timedelta(seconds=5)
    assert (config.durability.ack, config.durability.degrade_after) == ("all", None)
    assert (config.snapshot.every, config.snapshot.jobs, config.snapshot.pg_dump) == (timedelta(hours=24), 2, None)
    assert (config.retention.window, config.retention.purge_within) == (timedelta(days=30), timedelta(days=60))
    assert config.residency.allowed == ()
    assert (config.http.address, config.http.ready_lag) == (("127.0.0.1", 9187), timedelta(seconds=60))
    assert config.require_source().exclude == ()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5),
        ("1.5s", 1.5),
        ("10m", 600),
        ("10min", 600),
        ("24h", 86400),
        ("30d", 2592000),
        (" 5 s ", 5),
    ],
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["5", 5, "", "s", "-5s", "5 parsecs", "5S", "1h30m", True])
def test_a_duration_without_a_unit_that_is_known_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("1B", 1),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("16MiB", 1 << 24),
        ("1.5GiB", 3 << 29),
        ("1GB", 10**9),
    ],
)
def test_a_size_is_a_number_of_bytes_or_has_its_unit(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "MiB", "16mib", "16 buckets", "-1", True])
def test_a_size_with_an_unknown_unit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(value)


@pytest.mark.parametrize(
    ("listen", "address"), [("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:9187", ("::1", 9187)), ("host:0", ("host", 0))]
)
def test_the_listen_address_is_host_and_port(write: Any, listen: str, address: tuple[str, int]) -> None:
    assert read(write(MINIMAL), ARCHIVER_HTTP__LISTEN=listen).http.address == address


# --- derived names and sections that may be missing ---


def test_slot_and_publication_are_named_after_the_archive(write: Any) -> None:
    source = read(write(MINIMAL.replace('"shop"', '"shop-eu_1"', 1))).require_source()
    assert (source.slot, source.publication) == ("archiver_shop_eu_1", "archiver_shop_eu_1")


def test_a_slot_that_is_named_keeps_its_name_and_the_publication_its_default(write: Any) -> None:
    source = read(write(MINIMAL), ARCHIVER_SOURCE__SLOT="mine").require_source()
    assert (source.slot, source.publication) == ("mine", "archiver_shop")


def test_a_host_that_only_restores_needs_no_source(write: Any) -> None:
    text = MINIMAL.replace('[source]\ndsn = "postgresql://archiver@db.internal/shop"\n', "")
    config = read(write(text))
    assert config.source is None
    with pytest.raises(ConfigError, match="needs the source"):
        config.require_source()


@pytest.mark.parametrize("section", ["archive", "region", "encryption"])
def test_a_section_that_must_be_there_is_named_when_it_is_missing(write: Any, section: str) -> None:
    parts = MINIMAL.split("\n\n")
    text = "\n\n".join(part for part in parts if f"[{section}]" not in part)
    with pytest.raises(ConfigError, match=section):
        read(write(text))


# --- the environment ---


def test_the_environment_overrides_the_file(write: Any) -> None:
    config = read(
        write(MINIMAL),
        ARCHIVER_SOURCE__DSN="service=other",
        ARCHIVER_SEGMENT__MAX_AGE="2s",
        ARCHIVER_SNAPSHOT__JOBS="4",
    )
    assert config.require_source().dsn == "service=other"
    assert (config.segment.max_age, config.snapshot.jobs) == (timedelta(seconds=2), 4)


def test_the_environment_reaches_into_a_region_and_adds_one(write: Any) -> None:
    config = read(
        write(MINIMAL),
        ARCHIVER_REGION__0__URL="s3://other/shop",
        ARCHIVER_REGION__0__ALLOW_PLAINTEXT="true",
        ARCHIVER_REGION__1__NAME="second",
        ARCHIVER_REGION__1__URL="file:///var/lib/archive",
    )
    assert [(region.name, region.url) for region in config.region] == [
        ("primary", "s3://other/shop"),
        ("second", "file:///var/lib/archive"),
    ]
    assert config.region[0].allow_plaintext


def test_lists_in_the_environment_are_separated_by_commas(write: Any) -> None:
    config = read(
        write(MINIMAL),
        ARCHIVER_SOURCE__EXCLUDE="public.sessions, public.cache,",
        ARCHIVER_ENCRYPTION__KEYS="env:KEK,file:/spare",
        ARCHIVER_RESIDENCY__ALLOWED="",
    )
    assert config.require_source().exclude == ("public.sessions", "public.cache")
    assert config.encryption.keys == ("env:KEK", "file:/spare")
    assert config.residency.allowed == ()


def test_the_environment_alone_is_enough() -> None:
    config = read(
        None,
        ARCHIVER_ARCHIVE__NAME="shop",
        ARCHIVER_SOURCE__DSN="service=shop",
        ARCHIVER_REGION__0__NAME="one",
        ARCHIVER_REGION__0__URL="file:///var/lib/archive",
        ARCHIVER_ENCRYPTION__KEYS="env:ARCHIVER_KEK",
    )
    assert config.require_source().slot == "archiver_shop"


def test_a_variable_without_two_underscores_is_not_ours(write: Any) -> None:
    assert read(write(MINIMAL), ARCHIVER_KEK="a key", ARCHIVER_CONFIG="x", ARCHIVER_DEBUG="1", OTHER__THING="x")


@pytest.mark.parametrize(
    "name", ["ARCHIVER_REGION__7__URL", "ARCHIVER_REGION__X__URL", "ARCHIVER_REGION__0", "ARCHIVER_ARCHIVE__NAME__X__Y"]
)
def test_a_variable_that_fits_nowhere_is_named(write: Any, name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(write(MINIMAL), **{name: "x"})
    assert name in str(refused.value)


def test_a_misspelt_variable_is_refused_as_a_misspelt_key_is(write: Any) -> None:
    with pytest.raises(ConfigError, match=r"segment\.max_agee: unknown key"):
        read(write(MINIMAL), ARCHIVER_SEGMENT__MAX_AGEE="2s")


# --- what is refused ---


@pytest.mark.parametrize("key", ["slot", "publication"])
def test_an_empty_name_is_refused_rather_than_derived(write: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"source\.{key}"):
        read(write(MINIMAL), **{f"ARCHIVER_SOURCE__{key.upper()}": ""})


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("[sorce]\ndsn = 'x'", r"sorce: unknown key"),
        ("[segment]\nmax_size = 1", r"segment\.max_size: unknown key"),
        ("[segment]\nmax_bytes = '1KiB'", r"segment\.max_bytes: .*65536"),
        ("[segment]\nmax_bytes = '2GiB'", r"segment\.max_bytes"),
        ("[segment]\nmax_age = 5", r"segment\.max_age: not a duration"),
        ("[segment]\nmax_age = '10ms'", r"segment\.max_age"),
        ("[segment]\nmax_age = '2h'", r"segment\.max_age"),
        ("[durability]\nack = 'some'", r"durability\.ack: .*'all' or 'any'"),
        ("[durability]\ndegrade_after = 60", r"durability\.degrade_after: not a duration"),
        ("[durability]\ndegrade_after = '10ms'", r"durability\.degrade_after"),
        ("[durability]\nack = 'any'\ndegrade_after = '60s'", r"durability: .*degrade_after goes with ack = \"all\""),
        ("[snapshot]\nevery = '1s'", r"snapshot\.every"),
        ("[snapshot]\njobs = 0", r"snapshot\.jobs"),
        ("[http]\nlisten = '9187'", r"http\.listen"),
        ("[retention]\nwindow = 30", r"retention\.window: not a duration"),
        ("[[region]]\nname = 'b'\nurl = 'http://x/y'", r"region\.1\.url: a region's url is s3://"),
        ("[[region]]\nname = 'b'\nurl = 'file://relative'", r"region\.1\.url"),
        ("[[region]]\nname = 'a b'\nurl = 's3://bucket'", r"region\.1\.name"),
        ("[[region]]\nname = 'b'", r"region\.1\.url: field required"),
        ("[[region]]\nname = 'b'\nurl = 's3://bucket'\nregion = 'x'", r"region\.1\.region: unknown key"),
        ("[[region]]\nname = 'primary'\nurl = 's3://bucket'", r"two regions have the same name"),
        ("[[region]]\nname = 'b'\nurl = 's3://fra/shop'", r"two regions have the same url"),
        ("[[region]]\nname = 'b'\nurl = 's3://fra/shop/'", r"two regions have the same url"),
    ],
)
def test_a_bad_value_is_named_with_its_key(write: Any, extra: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        read(write(f"{MINIMAL}\n{extra}\n"))
    assert refused.value.exit_code == 2
    assert refused.value.hint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("url = 'file:///a'", "url = 'file:///a/'"),
        ("url = 's3://fra/a'\nendpoint = 'http://127.0.0.1:1'", "url = 's3://fra/a'\nendpoint = 'http://127.0.0.1:1/'"),
    ],
)
def test_one_place_that_is_written_in_two_ways_is_not_two_regions(write: Any, one: str, other: str) -> None:
    with pytest.raises(ConfigError, match="two regions have the same url"):
        read(write(f"{MINIMAL}\n[[region]]\nname = 'b'\n{one}\n[[region]]\nname = 'c'\n{other}\n"))


def test_one_bucket_and_prefix_at_two_endpoints_are_two_regions(write: Any) -> None:
    text = "[[region]]\nname = '{0}'\nurl = 's3://fra/a'\nendpoint = 'http://127.0.0.1:{1}'\n"
    assert len(read(write(MINIMAL + text.format("b", 1) + text.format("c", 2))).region) == 3


@pytest.mark.parametrize("name", ["", "Shop", "-shop", "a" * 42, "shop/eu", "shop eu"])
def test_an_archive_name_that_no_slot_could_be_named_after_is_refused(write: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=r"archive\.name"):
        read(write(MINIMAL.replace('"shop"', f'"{name}"', 1)))


@pytest.mark.parametrize("key", ["/etc/archiver/kek", "file:", "vault:x"])
def test_a_key_source_of_an_unknown_kind_is_refused(write: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=r"encryption\.keys"):
        read(write(MINIMAL.replace("file:/etc/archiver/kek", key)))


def test_all_that_is_wrong_is_told_at_once(write: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        read(write(f"{MINIMAL}\n[segment]\nmax_age = 5\n[snapshot]\njobs = 0\n[unknown]\n"))
    assert all(key in str(refused.value) for key in ("segment.max_age", "snapshot.jobs", "unknown"))


def test_a_region_outside_of_the_allowed_ones_is_refused(write: Any) -> None:
    text = MINIMAL + SECOND_REGION + '\n[residency]\nallowed = ["eu-west-1"]\n'
    with pytest.raises(ConfigError, match="'primary' is in None, which residency"):
        read(write(text))
    assert read(write(text), ARCHIVER_REGION__0__AWS_REGION="eu-west-1")


def test_a_folder_on_this_machine_is_everywhere_allowed(write: Any) -> None:
    text = MINIMAL.replace("s3://fra/shop", "file:///var/lib/archive") + '\n[residency]\nallowed = ["eu-west-1"]\n'
    assert read(write(text)).region[0].url == "file:///var/lib/archive"


# --- the file itself ---


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="No such file") as refused:
        read(Path("/nowhere/archiver.toml"))
    assert refused.value.where == "/nowhere/archiver.toml"


def test_a_folder_in_place_of_the_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"name = shop", b"[archive\n", b"\xff\xfe"])
def test_what_is_not_toml_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "archiver.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not TOML") as refused:
        read(path)
    assert refused.value.where == str(path)


def test_no_configuration_at_all_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="no configuration") as refused:
        read(None)
    assert "--config" in str(refused.value.hint)
