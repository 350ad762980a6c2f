"""What of our environment a program that we start gets to see.

In: our environment. Out: a small one. It holds secrets: `env:` KEKs, keys of the regions, webhooks. A child needs none
of them, and whoever gets into a child can read what it holds. So the list says what may pass, never what may not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

_PLAIN: Final = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
_LOCALE: Final = ("LC_",)
_CONNECTING: Final = ("PG", "SSL_CERT_", "OPENSSL_CONF", "KRB5")
"""libpq's variables (PostgreSQL documentation, 34.15), and those of the libraries that it encrypts and logs in with."""


def child_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For a program that connects to nothing."""
    return _passing(environ, _LOCALE)


def client_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For a client program of PostgreSQL, which finds its server and its password as we do."""
    return _passing(environ, _LOCALE + _CONNECTING)


def server_environment(home: str) -> dict[str, str]:
    """For a server of our own: nothing of ours, for PG* and AWS_* would change what it does as well."""
    return {"PATH": os.defpath, "HOME": home, "LC_ALL": "C.UTF-8"}


def _passing(environ: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in _PLAIN or name.startswith(prefixes)}
