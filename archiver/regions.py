"""From the configuration to the stores: the one place, with the tests, that names concrete ones.

In: a checked configuration. Out: a Mirror over all regions, each of which retries by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from archiver.archive import OpenArchive, open_archive
from archiver.config import Config, DurabilitySection, RegionSection
from archiver.errors import ConfigError
from archiver.format import layout
from archiver.keys import Kek, open_kek
from archiver.metrics import Metrics
from archiver.store.base import Store
from archiver.store.file import FileStore
from archiver.store.mirror import Mirror
from archiver.store.observed import Observed
from archiver.store.replicas import WritePolicy
from archiver.store.retry import Retry
from archiver.store.s3 import S3Store

COMMAND_PATIENCE = timedelta(seconds=3)  # a dead region must not hold up who reads: the other one is asked
ANY_PATIENCE = timedelta(seconds=10)  # ack = "any": how long a write that counts already may go on elsewhere


def open_keks(config: Config) -> list[Kek]:
    """The configured KEKs; the first wraps. Raises ConfigError."""
    return [
        open_kek(source, where=f"[encryption] keys, entry {number}")
        for number, source in enumerate(config.encryption.keys, 1)
    ]


def open_regions(
    config: Config,
    *,
    patience: timedelta | None = COMMAND_PATIENCE,
    prefer: str | None = None,
    metrics: Metrics | None = None,
    on_read: Callable[[str, int], None] | None = None,
) -> Mirror:
    """All regions as one store. `patience` None retries for ever, as the daemon does. Raises ConfigError.

    `on_read` is called with the region and the bytes of every object that was read from it.
    """
    names = [region.name for region in config.region]
    if prefer is not None and prefer not in names:
        raise ConfigError(f"there is no region {prefer!r}", hint=f"The configuration has: {', '.join(names)}.")
    adapters = [_adapter(region, config.residency.allowed) for region in config.region]
    stores = [_retrying(adapter, patience, metrics, on_read) for adapter in adapters]
    reading = COMMAND_PATIENCE if patience is None else None
    policy = _daemons_policy(config.durability) if patience is None else WritePolicy()
    return Mirror(stores, prefer=prefer, policy=policy, patience=reading)


def _daemons_policy(durability: DurabilitySection) -> WritePolicy:
    """A command, beside a daemon, waits for every region: going on without one, the two might part."""
    if durability.ack == "any":
        return WritePolicy(first=True, patience=ANY_PATIENCE)
    return WritePolicy(patience=durability.degrade_after)


async def open_configured(config: Config, store: Mirror, keks: Sequence[Kek] | None = None) -> OpenArchive:
    """The archive that the configuration means, and pins if it gives its public key. Raises as `open_archive`."""
    section = config.archive
    keks = open_keks(config) if keks is None else keks
    return await open_archive(store, section.name, keks, public_key=section.public_key)


async def bucket_hazards(config: Config, region: RegionSection) -> Sequence[str]:
    """What a bucket's own rules would do to the archive; a folder has none. Raises StoreError where nobody says."""
    store = _adapter(region, config.residency.allowed)
    try:
        return await store.hazards() if isinstance(store, S3Store) else []
    finally:
        await store.close()


def only(mirror: Mirror, region: str) -> Mirror:
    """The same archive as one region alone holds it."""
    return Mirror([store for store in mirror.stores if store.name == region])


def _retrying(
    store: Store,
    patience: timedelta | None,
    metrics: Metrics | None,
    on_read: Callable[[str, int], None] | None,
) -> Store:
    name = store.name
    if on_read is not None:
        store = Observed(store, on_get=partial(on_read, name))
    if metrics is None:
        return Retry(store, deadline=patience)
    up = metrics.region_up.labels(name)
    stored = metrics.stored_bytes_total.labels(name)
    seconds = metrics.upload_seconds.labels(name)

    def on_put(size: int, duration: float) -> None:
        stored.inc(size)
        seconds.observe(duration)

    return Retry(Observed(store, on_put=on_put), deadline=patience, on_result=lambda ok: up.set(1 if ok else 0))


def _adapter(region: RegionSection, allowed: Sequence[str], environ: Mapping[str, str] = os.environ) -> Store:
    url = urlsplit(region.url)
    if url.scheme == "file":
        return FileStore(region.name, Path(unquote(url.path)), limit=layout.limit)
    return S3Store(
        region.name,
        url.netloc,
        url.path.strip("/"),
        aws_region=region.aws_region,
        endpoint=region.endpoint,
        access_key=_from_environment(region, "access_key_env", environ),
        secret_key=_from_environment(region, "secret_key_env", environ),
        ca_bundle=region.ca_bundle,
        allow_plaintext=region.allow_plaintext,
        allowed_regions=allowed,
        limit=layout.limit,
    )


def _from_environment(
    region: RegionSection, setting: Literal["access_key_env", "secret_key_env"], environ: Mapping[str, str]
) -> str | None:
    """What the variable holds. A message names the setting alone: who pastes a key there must not see it in a log."""
    name: str | None = getattr(region, setting)
    if name is None:
        return None
    if name not in environ:
        raise ConfigError(
            "the variable that should hold the region's credentials is not set",
            where=f"{region.name}: {setting}",
            hint="Set it, or leave access_key_env and secret_key_env out to use the usual AWS sources.",
        )
    return environ[name]
