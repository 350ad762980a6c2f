"""Fixtures live in plugins, one for each concern."""

pytest_plugins = [
    "tests.fix_servers",
    "tests.fix_archive",
    "tests.fix_cli",
    "tests.fix_drill",
    "tests.fix_replay",
    "tests.fix_shop",
]
