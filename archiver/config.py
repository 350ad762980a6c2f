"""The configuration: `archiver.toml` plus environment variables, checked as a whole before anything is done.

In: a path and the environment. Out: a frozen `Config`, or a ConfigError that names the key and what it may be.
It opens no connection and reads no key.
"""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from archiver.errors import ConfigError
from archiver.secret import SecretText

_DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZE_UNITS = {
    "": 1, "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_NUMBER_WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_duration(value: object) -> timedelta:
    """`"5s"`, `"24h"`, `"30d"`, `"500ms"`. A bare number is refused: it would leave the unit to guessing."""
    if isinstance(value, timedelta):
        return value
    number, unit = _split(value)
    if unit not in _DURATION_UNITS:
        raise ValueError(f"not a duration: {value!r} (write for example 500ms, 5s, 10m, 24h or 30d)")
    try:
        return timedelta(seconds=number * _DURATION_UNITS[unit])
    except OverflowError:
        raise ValueError(f"too long a duration: {value!r}") from None


def parse_size(value: object) -> int:
    """Bytes from `"16MiB"`, `"1GB"` or a bare number of bytes."""
    number, unit = _split(value)
    if unit not in _SIZE_UNITS:
        raise ValueError(f"not a size: {value!r} (write for example 16MiB, 1GB or a number of bytes)")
    return int(number * _SIZE_UNITS[unit])


def _split(value: object) -> tuple[float, str]:
    match = _NUMBER_WITH_UNIT.fullmatch(str(value).strip())
    return (float(match[1]), match[2]) if match else (0.0, "?")


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[
    timedelta | None, BeforeValidator(lambda value: None if value is None else parse_duration(value))
]
Size = Annotated[int, BeforeValidator(parse_size)]


_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY_SOURCES: Final = {"file": re.compile(r".+"), "env": _VARIABLE, "aws-kms": re.compile(r".+")}
_A_KEY: Final = re.compile(r"(?:[\w.-]+:)?(?:[A-Za-z0-9+/]{43}=?|[0-9A-Fa-f]{64})")
"""What a key looks like, with or without its tag: 32 bytes in base64 or in hexadecimal digits."""


def _name_of_variable(value: str) -> str:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("this is the name of an environment variable, and never what it holds")
    return value


VariableName = Annotated[str, AfterValidator(_name_of_variable)]


class _Section(BaseModel):
    # A wrong value may be a password in the wrong place: it is not repeated.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ArchiveSection(_Section):
    """`public_key` pins the archive: any other one in its place is refused."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")
    public_key: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class SourceSection(_Section):
    dsn: SecretText
    slot: str = Field(default="", pattern=r"^[a-z0-9_]{1,63}$")
    publication: str = Field(default="", min_length=1)
    exclude: tuple[str, ...] = ()
    drop_slot_at: Annotated[Size, Field(ge=2**20)] | None = None


class RegionSection(_Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    url: str
    aws_region: str | None = None
    endpoint: str | None = None
    access_key_env: VariableName | None = None
    secret_key_env: VariableName | None = None
    ca_bundle: str | None = None
    allow_plaintext: bool = False

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if not re.match(r"s3://[^/]{3,}|file:///.", url):
            raise ValueError("a region's url is s3://bucket/prefix or file:///folder")
        return url

    @property
    def place(self) -> tuple[str, str]:
        """What two regions may not share: the stores do not tell a slash at the end either."""
        return self.url.rstrip("/"), (self.endpoint or "").rstrip("/")


class DurabilitySection(_Section):
    """When a write counts. `degrade_after` None is "never"; it has no meaning with ack = "any"."""

    ack: Literal["all", "any"] = "all"
    degrade_after: Annotated[Duration, Field(ge=timedelta(seconds=1))] | None = None

    @field_validator("degrade_after", mode="before")
    @classmethod
    def _never(cls, value: object) -> object:
        return None if value == "never" else value

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.ack == "any" and self.degrade_after is not None:
            raise ValueError('degrade_after goes with ack = "all"; with "any" one region is enough at once')
        return self


class SegmentSection(_Section):
    max_bytes: Annotated[Size, Field(ge=64 * 2**10, le=2**30)] = 16 * 2**20
    max_age: Annotated[Duration, Field(ge=timedelta(milliseconds=100), le=timedelta(hours=1))] = timedelta(seconds=5)


class EncryptionSection(_Section):
    keys: tuple[str, ...] = Field(min_length=1)

    @field_validator("keys")
    @classmethod
    def _known_sources(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for number, key in enumerate(keys, 1):
            scheme, _, rest = key.partition(":")
            if scheme not in _KEY_SOURCES or not _KEY_SOURCES[scheme].fullmatch(rest) or _A_KEY.fullmatch(rest):
                raise ValueError(
                    f"entry {number} does not say where a key is: write file:PATH, env:NAME or aws-kms:ARN, "
                    "never the key itself"
                )
        return keys


class SnapshotSection(_Section):
    every: Annotated[Duration, Field(ge=timedelta(minutes=1))] = timedelta(hours=24)
    jobs: int = Field(default=2, ge=1, le=64)
    pg_dump: str | None = None


class RetentionSection(_Section):
    window: Duration = timedelta(days=30)
    purge_within: Duration = timedelta(days=60)


class ResidencySection(_Section):
    allowed: tuple[str, ...] = ()


class DrillSection(_Section):
    dsn: SecretText | None = None
    user: str = Field(default="nobody", min_length=1)
    query: str | None = None
    expect: str | None = None
    recovery_time_objective: OptionalDuration = None
    recovery_point_objective: OptionalDuration = None

    @model_validator(mode="after")
    def _expects_something(self) -> DrillSection:
        if self.expect is not None and self.query is None:
            raise ValueError("expect is what a query must return: give query too")
        return self


class HttpSection(_Section):
    listen: str = Field(default="127.0.0.1:9187", pattern=r"^\S+:\d{1,5}$")
    ready_lag: Duration = timedelta(seconds=60)

    @field_validator("listen")
    @classmethod
    def _port_exists(cls, listen: str) -> str:
        if int(listen.rpartition(":")[2]) > 65535:
            raise ValueError("a port is at most 65535")
        return listen

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Config(_Section):
    """Everything a command may need. `source` may be left out on a host that only restores."""

    archive: ArchiveSection
    source: SourceSection | None = None
    region: tuple[RegionSection, ...] = Field(min_length=1)
    durability: DurabilitySection = DurabilitySection()
    segment: SegmentSection = SegmentSection()
    encryption: EncryptionSection
    snapshot: SnapshotSection = SnapshotSection()
    retention: RetentionSection = RetentionSection()
    residency: ResidencySection = ResidencySection()
    drill: DrillSection = DrillSection()
    http: HttpSection = HttpSection()

    @model_validator(mode="before")
    @classmethod
    def _derived_names(cls, data: Any) -> Any:
        """Slot and publication are called after the archive unless said otherwise."""
        source = data.get("source") if isinstance(data, dict) else None
        if isinstance(source, dict) and isinstance(data.get("archive"), dict):
            derived = "archiver_" + str(data["archive"].get("name", "")).replace("-", "_")
            data = data | {"source": {"slot": derived, "publication": derived} | source}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        names = [region.name for region in self.region]
        if len(set(names)) < len(names):
            raise ValueError("two regions have the same name")
        if len({region.place for region in self.region}) < len(names):
            raise ValueError("two regions have the same url")
        for region in self.region:
            allowed = self.residency.allowed
            if allowed and not region.url.startswith("file:") and region.aws_region not in allowed:
                raise ValueError(
                    f"region {region.name!r} is in {region.aws_region}, which residency.allowed does not list"
                )
        return self

    def require_source(self) -> SourceSection:
        """The source, for commands that cannot do without. Raises ConfigError."""
        if self.source is None:
            raise ConfigError(
                "this command needs the source database", hint='Add [source] dsn = "…" to the configuration.'
            )
        return self.source


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read, override from the environment, and check. Raises ConfigError."""
    data: dict[str, Any] = {} if path is None else _read_toml(path)
    _override(data, environ)
    if not data:
        raise ConfigError(
            "no configuration",
            hint="Give --config archiver.toml or set ARCHIVER_CONFIG; docs/configuration.md has an example.",
        )
    try:
        return Config.model_validate(data)
    except ValidationError as exc:
        raise ConfigError(_explain(exc), where=str(path) if path else "environment", hint=_HINT) from None


_HINT = "Every key is described in docs/configuration.md; unknown keys are refused so that a typo cannot pass."


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"cannot read the configuration: {exc.strerror}", where=str(path), hint="Check --config."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the configuration is not TOML: {exc}", where=str(path), hint=_HINT) from None


def _override(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Set `ARCHIVER_SECTION__KEY` (and `ARCHIVER_REGION__0__KEY`) over what the file says.

    A name without `__` is not ours: `env:ARCHIVER_KEK` is a good name for a key.
    """
    for name, value in sorted(environ.items()):
        path = name.removeprefix("ARCHIVER_").lower().split("__")
        if not name.startswith("ARCHIVER_") or len(path) < 2:
            continue
        try:
            _assign(data, path, value)
        except (ValueError, TypeError, IndexError, AttributeError):
            raise ConfigError("cannot apply an environment variable", where=name, hint=_HINT) from None


def _assign(node: Any, path: list[str], value: str) -> None:
    for part, following in itertools.pairwise(path):
        if isinstance(node, list):
            index = int(part)
            if index == len(node):
                node.append({})
            node = node[index]
        else:
            node = node.setdefault(part, [] if following.isdigit() else {})
    if isinstance(node, list):
        raise TypeError
    node[path[-1]] = _LISTS[tuple(path)](value) if tuple(path) in _LISTS else value


def _comma_list(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


_LISTS: dict[tuple[str, ...], Callable[[str], list[str]]] = {
    ("source", "exclude"): _comma_list,
    ("encryption", "keys"): _comma_list,
    ("residency", "allowed"): _comma_list,
}


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "configuration"
        what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {what[0].lower()}{what[1:]}")
    return "; ".join(lines)
