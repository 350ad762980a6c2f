"""The daemon's real code in a simulated world: see tests/simulation/world.py, or run python -m tests.simulation."""
