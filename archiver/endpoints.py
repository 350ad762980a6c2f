"""Where requests to AWS, and to servers that speak as it does, may go: encrypted, or not beyond this machine.

In: a URL as it was found, wherever the SDK had it from: our configuration, AWS_ENDPOINT_URL and its like, a profile.
Out: nothing, or a ConfigError. A session that is guarded asks for each request of every client made from it, also of
those that it makes by itself to fetch credentials (STS, SSO).
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from archiver.errors import ConfigError


def require_private(url: str, where: str, *, allow_plaintext: bool = False) -> None:
    """Raise ConfigError for what is no http url, and for a plain one that leaves this machine."""
    scheme = urlsplit(url).scheme
    if scheme not in {"http", "https"}:
        raise ConfigError(f"the endpoint {url} is not an http or https url", where=where, hint=_HINT)
    if is_plain(url) and not (allow_plaintext or is_loopback(url)):
        raise ConfigError(f"the endpoint {_server(url)} would send secrets in the clear", where=where, hint=_HINT)


_HINT = (
    "Use an https endpoint; plain http is for servers on this machine. It may come from the configuration, "
    "from AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_<SERVICE>, or from endpoint_url in AWS's configuration file."
)


def is_plain(url: str) -> bool:
    return urlsplit(url).scheme == "http"


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def guard(session: Any, where: str, *, plaintext_for: str | None = None) -> None:
    """Refuse, before it is sent, whatever a botocore session would send in the clear.

    `plaintext_for` is a service, such as s3, that the configuration lets go plain in so many words.
    """

    def look(request: Any, event_name: str, **_: Any) -> None:
        allowed = plaintext_for is not None and event_name.startswith(f"before-send.{plaintext_for}.")
        require_private(request.url, where, allow_plaintext=allowed)

    session.register("before-send", look)


def _server(url: str) -> str:
    """Without path and query, which name objects, and without what may be a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
