"""A disposable S3 server: SeaweedFS, all of it in one process.

In: bucket names, and certificates if it is to speak https. Out: a running server on loopback with one random
identity. Sends no telemetry, opens no port beyond loopback.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from archiver.embedded.process import INSTALL, Server, free_ports
from archiver.errors import ConfigError, StoreError

# All of them, because an unset gRPC port is the HTTP port plus 10000, which may be taken.
_WEED_PORTS = tuple(f"{part}.port{kind}" for part in ("master", "filer", "volume", "s3") for kind in ("", ".grpc"))
_WEED_OPTIONS: Mapping[str, object] = {
    "ip": "127.0.0.1",
    "ip.bind": "127.0.0.1",
    "master.telemetry": "false",
    "master.electionTimeout": "1s",
    "volume.preStopSeconds": 0,
    # Each bucket takes volumes of its own, and tests make many buckets.
    "volume.max": 10_000,
    "admin.ui": "false",
    "webdav": "false",
    "s3.port.iceberg": 0,
    "s3.port.lance": 0,
    "s3.autoCreateBucket": "false",
}


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: the server's certificate and key, and the authority that a client should trust."""

    cert: Path
    key: Path
    ca: Path


class S3Server(Server):
    """An S3 server of its own: SeaweedFS, with the given `buckets` and one identity that may do everything."""

    label = "embedded S3 server"
    error = StoreError

    def __init__(self, *, buckets: Sequence[str] = (), tls: Tls | None = None) -> None:
        super().__init__()
        self.tls = tls
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)
        self._buckets = tuple(buckets)
        self._weed = _embedded_weed()
        self._s3: Any = None
        self._choose_ports()

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._ports['s3.port']}"

    def client(self) -> Any:
        """A boto3 client for this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=str(self.tls.ca) if self.tls else None,
            config=Config(
                connect_timeout=2,
                read_timeout=10,
                proxies={},
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )

    def create_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def stop(self) -> None:
        """Shut down in order."""
        with self._lock:
            self.thaw()
            self._end(signal.SIGTERM)

    def restart(self) -> None:
        with self._lock:
            self.stop()
            self.start()

    def freeze(self) -> None:
        """Keep all connections open and answer nothing, as a hung machine does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _choose_ports(self) -> None:
        self._ports = dict(zip(_WEED_PORTS, free_ports(len(_WEED_PORTS)), strict=True))
        self._s3 = None

    def _create(self) -> None:
        identity = {
            "name": "archiver",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (self.folder / "data").mkdir()
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}), "utf-8")

    def _command(self) -> Sequence[str]:
        options: dict[str, object] = {
            **_WEED_OPTIONS,
            **self._ports,
            "dir": self.folder / "data",
            "s3.config": self.folder / "s3.json",
            "s3.localSocket": self.folder / "s3.sock",
            "filer.localSocket": self.folder / "filer.sock",
        }
        if self.tls:
            options |= {"s3.cert.file": self.tls.cert, "s3.key.file": self.tls.key}
        return [self._weed, "mini", *(f"-{name}={value}" for name, value in options.items())]

    def _ping(self) -> bool:
        """Whether the buckets are there and the server knows our key."""
        try:
            self._s3 = self._s3 or self.client()
            existing = {bucket["Name"] for bucket in self._s3.list_buckets()["Buckets"]}
            for bucket in self._buckets:
                if bucket not in existing:
                    self._s3.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError):
            return False
        return True


def _embedded_weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ConfigError("no embedded S3 server found", hint=INSTALL)
    return found
