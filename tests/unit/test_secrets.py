"""Secrets in wrong places, or shown by accident: no message, no repr and no log repeats them."""

from __future__ import annotations

import base64
import io
import os
import traceback
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import structlog

from archiver.cli.output import configure_logs
from archiver.config import Config, load
from archiver.errors import ConfigError
from archiver.format.wrap import format_kek
from archiver.keys import open_kek
from archiver.regions import open_keks, open_regions
from archiver.secret import Secret

BARE = base64.b64encode(bytes(range(100, 132))).decode()
TAGGED = format_kek(bytes(range(100, 132)))
CONFIG = """
[archive]
name = "shop"
[source]
dsn = "postgresql://archiver:geheim@db/shop"
[encryption]
keys = ["file:/etc/archiver/kek"]
[drill]
dsn = "postgresql://drill:geheim@db/postgres"
[[region]]
name = "primary"
url = "s3://fra/shop"
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(old: str = "", new: str = "") -> Path:
        assert old in CONFIG
        (tmp_path / "archiver.toml").write_text(CONFIG.replace(old, new) if old else CONFIG)
        return tmp_path / "archiver.toml"

    return write


def told(error: BaseException) -> str:
    """All that a user, a log or a debugging session may come to see of an error."""
    return f"{error} {error!r} {vars(error)} {''.join(traceback.format_exception(error))}"


@pytest.mark.parametrize("key", [BARE, TAGGED, f"file:{BARE}", f"file:{TAGGED}", f"env:{BARE}", f"env:{TAGGED}", f"kms:{BARE}",
                                 f"file:{bytes(range(32)).hex()}", f"env:{bytes(range(200, 232)).hex()}"])  # fmt: skip
@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_key_that_is_pasted_where_its_place_belongs_is_not_repeated(write: Any, key: str, way: str) -> None:
    variables = {"ARCHIVER_ENCRYPTION__KEYS": f"env:KEK,{key}"} if way == "environment" else {}
    path = write() if variables else write('["file:/etc/archiver/kek"]', f'["env:KEK", "{key}"]')
    with pytest.raises(
        ConfigError, match=r"encryption\.keys: entry 2 .* file:PATH, env:NAME or aws-kms:ARN"
    ) as refused:
        load(path, variables)
    secret = key.rpartition(":")[2]
    assert secret not in told(refused.value)
    assert secret[:12] not in told(refused.value)


def test_a_name_that_is_as_long_as_a_key_is_told_by_its_place(write: Any) -> None:
    name = "A" * 50
    with pytest.raises(ConfigError, match="not set") as refused:
        open_keks(load(write("file:/etc/archiver/kek", f"env:{name}"), {}))
    assert name not in told(refused.value)
    assert refused.value.where == "[encryption] keys, entry 1"


@pytest.mark.parametrize("setting", ["access_key_env", "secret_key_env"])
@pytest.mark.parametrize("pasted", ["AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"])
def test_credentials_that_are_pasted_where_their_variable_belongs_are_not_repeated(
    write: Any, setting: str, pasted: str
) -> None:
    path = write('url = "s3://fra/shop"', f'url = "s3://fra/shop"\n{setting} = "{pasted}"')
    with pytest.raises(ConfigError, match=setting) as refused:
        open_regions(load(path, {}))
    assert pasted not in told(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('dsn = "postgresql://archiver:geheim@db/shop"', 'dsn = ["postgresql://archiver:geheim@db/shop"]'),
        ("[drill]\n", '[drill]\nexpect = "geheim"\n'),
        ("[encryption]\n", '[encryption]\n"geheim" = 1\n'),
        ('name = "shop"', 'name = "geheim!"'),
    ],
)
def test_a_wrong_value_is_not_repeated(write: Any, old: str, new: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(old, new), {})
    assert "geheim@" not in told(refused.value)
    assert "geheim!" not in told(refused.value)
    assert "input_value" not in told(refused.value)


def test_a_validation_error_of_pydantics_own_does_not_repeat_it_either() -> None:
    with pytest.raises(ValueError, match="dsn") as refused:
        Config.model_validate({"source": {"dsn": ["geheim"]}})
    assert "geheim" not in str(refused.value)


def test_a_configuration_shows_no_password_however_it_is_shown(write: Any) -> None:
    config = load(write(), {})
    shown = [
        repr(config), str(config), f"{config}", str(config.model_dump()), config.model_dump_json(),
        str(config.model_dump(mode="json")), repr(config.drill), str(vars(config)), str(config.source.__dict__),
    ]  # fmt: skip
    assert not [text for text in shown if "geheim" in text]
    assert config.require_source().dsn == "postgresql://archiver:geheim@db/shop"
    assert config.drill.dsn == "postgresql://drill:geheim@db/postgres"
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("value", [Secret("geheim"), {"dsn": Secret("geheim")}])
def test_a_log_shows_no_secret(value: object) -> None:
    written = io.StringIO()
    with redirect_stderr(written):
        configure_logs()
        structlog.get_logger().error("something failed", dsn=value)
    assert "something failed" in written.getvalue()
    assert "geheim" not in written.getvalue()


# --- key files ---


@pytest.fixture
def kek(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "kek"
    path.parent.mkdir(mode=0o755)
    path.write_text(TAGGED + "\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_a_key_file_of_its_owner_and_of_a_group_that_may_read_is_used(kek: Path, mode: int) -> None:
    kek.chmod(mode)  # 0440 is what Kubernetes mounts for a pod's group, and systemd for a service
    assert open_kek(f"file:{kek}")


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o606, 0o660, 0o620, 0o666, 0o601, 0o777])
def test_a_key_file_that_others_may_read_or_change_is_refused(kek: Path, mode: int) -> None:
    kek.chmod(mode)
    with pytest.raises(ConfigError, match="key file") as refused:
        open_kek(f"file:{kek}")
    assert f"chmod 600 {kek}" in str(refused.value.hint)
    assert refused.value.exit_code == 2
    assert TAGGED not in told(refused.value)


def test_the_file_behind_a_link_counts_and_not_the_link(kek: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: kek -> ..data/kek, ..data -> ..2026_11_28."""
    mount = tmp_path / "mount"
    (mount / "..2026_11_28").mkdir(parents=True)
    (mount / "..data").symlink_to("..2026_11_28")
    (mount / "kek").symlink_to("..data/kek")
    kek.rename(mount / "..2026_11_28" / "kek")
    (mount / "..2026_11_28" / "kek").chmod(0o440)
    assert open_kek(f"file:{mount / 'kek'}")
    (mount / "..2026_11_28" / "kek").chmod(0o444)
    with pytest.raises(ConfigError, match="everybody on this machine may read"):
        open_kek(f"file:{mount / 'kek'}")


@pytest.mark.parametrize("which", ["its folder", "the link's folder"])
def test_a_folder_in_which_everybody_may_put_a_key_is_refused(kek: Path, tmp_path: Path, which: str) -> None:
    link = tmp_path / "links" / "kek"
    link.parent.mkdir()
    link.symlink_to(kek)
    folder = kek.parent if which == "its folder" else link.parent
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="folder") as refused:
        open_kek(f"file:{link}")
    assert refused.value.where == str(folder)
    folder.chmod(0o1777)  # as /tmp is: what is in it is safe from others
    assert open_kek(f"file:{link}")


def test_a_key_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the key file") as refused:
        open_kek(f"file:{tmp_path}/none/kek")
    assert refused.value.where == f"{tmp_path}/none/kek"


def test_new_keys_are_in_files_that_are_accepted(tmp_path: Path) -> None:
    from archiver.cli.key import write_key

    before = os.umask(0)
    try:
        write_key(tmp_path / "kek")
    finally:
        os.umask(before)
    assert open_kek(f"file:{tmp_path}/kek")
