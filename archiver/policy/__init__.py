"""Decisions: pure functions over what the archive holds, no I/O."""
