"""Fixtures live in plugins, one for each concern."""

from hypothesis import settings

# No test of ours is timed: a busy machine is no bug.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = [
    "tests.fix_servers",
    "tests.fix_archive",
    "tests.fix_cli",
    "tests.fix_drill",
    "tests.fix_replay",
    "tests.fix_shop",
]
