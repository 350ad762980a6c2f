"""Fixtures live in plugins, one for each concern."""

import signal

from hypothesis import settings

# No test of ours is timed: a busy machine is no bug.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A suite that runs in the background of a shell is started with Ctrl-C ignored, and so would be the programs it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "tests.fix_servers",
    "tests.fix_archive",
    "tests.fix_cli",
    "tests.fix_drill",
    "tests.fix_replay",
    "tests.fix_shop",
    "tests.fix_stored",
]
