"""Fixtures live in plugins, one for each concern."""

pytest_plugins = ["tests.fix_servers", "tests.fix_archive", "tests.fix_cli"]
