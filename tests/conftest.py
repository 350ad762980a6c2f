"""Fixtures live in plugins, one for each concern."""

import signal
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

# No test of ours is timed: a busy machine is no bug.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A suite that runs in the background of a shell is started with Ctrl-C ignored, and so would be the programs it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_MANY_CASES: Final = ("integration", "acceptance", "versions")
"""Folders whose tests run servers in each case."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all cases but the first of a test with many `deep`: `make test` keeps each promise once."""
    seen = set[str]()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in seen and Path(test).parts[1] in _MANY_CASES:
            item.add_marker(pytest.mark.deep)
        seen.add(test)


pytest_plugins = [
    "tests.fix_servers",
    "tests.fix_archive",
    "tests.fix_cli",
    "tests.fix_drill",
    "tests.fix_replay",
    "tests.fix_shop",
    "tests.fix_stored",
]
