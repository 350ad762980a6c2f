"""Point-in-time recovery for PostgreSQL over logical replication."""

__version__ = "0.1.0"
