"""A generator of hostile sources, and the proof that a restore gives nobody more than the source did.

Every role of a source does what it may: an owner `evil` hides payloads wherever PostgreSQL runs an owner's code, an
outsider forges what archiver once believed, a victim, a neighbour and the superuser do ordinary things. What was
archived is restored by a superuser into the same server and into one that lacks the roles, and by an owner who is no
superuser; base snapshots are taken before, in the middle and after, so that all is both loaded and replayed.

`make hostile SECONDS=600` runs new seeds for so long, `make hostile SEED=7` one of them.
"""
