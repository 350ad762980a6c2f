"""A generator of random schemas, DDL and DML, and the proof that restores of what it did equal the source.

`make fuzz SECONDS=600` runs new seeds for so long, `make fuzz SEED=7` one of them; a failing one leaves its script,
which `python -m tests.fuzz --script FILE` repeats (and `--shrink` shortens).
"""
