"""Every setting that a statement of DDL may read is told of it, or does not change what it makes."""

from __future__ import annotations

from typing import Final

import pytest

from archiver.embedded import PostgresServer
from archiver.format.ddl import SETTINGS

WITHOUT_CATEGORIES: Final = {
    "Query Tuning": "how a result is found, not which",
    "Reporting and Logging": "what the server writes into its log",
    "Statistics": "what the server counts",
    "Resource Usage": "how much of the machine a session takes",
    "Vacuuming": "VACUUM is no DDL",
    "Write-Ahead Log": "how durable a commit is",
    "Error Handling": "when a session ends",
    "Lock Management": "when a statement waits",
    "Replication": "who is told of a commit",
    "Connections and Authentication": "how a session came about; passwords are no DDL",
}
WITHOUT: Final = {
    "check_function_bodies": "bodies were checked at the source, or not: a restore sets it off",
    "default_tablespace": "tablespaces are the source's own",
    "temp_tablespaces": "temporary tables are not archived",
    "client_encoding": "texts arrive in the encoding of the database",
    "client_min_messages": "messages",
    "application_name": "a name",
    "lc_messages": "words of messages",
    "icu_validation_level": "how loudly an unknown locale is refused",
    "row_security": "whether hidden rows are an error: what is read at a restore is read by the role that read it",
    "gin_fuzzy_search_limit": "a random part of a result, of which no two are alike",
    "gin_pending_list_limit": "how, not what",
    "synchronize_seqscans": "the order of rows alone",
    "escape_string_warning": "a warning",
    "md5_password_warnings": "a warning",
    "statement_timeout": "what took too long failed at the source",
    "lock_timeout": "what waited too long failed at the source",
    "transaction_timeout": "what took too long failed at the source",
    "idle_in_transaction_session_timeout": "when a session ends",
    "idle_session_timeout": "when a session ends",
    "default_transaction_isolation": "of transactions: a restore runs them one after the other",
    "default_transaction_read_only": "DDL that was run was none of a read-only transaction",
    "default_transaction_deferrable": "when a transaction waits",
    "transaction_isolation": "of transactions: a restore runs them one after the other",
    "transaction_read_only": "DDL that was run was none of a read-only transaction",
    "transaction_deferrable": "when a transaction waits",
    "session_replication_role": "which triggers fire for rows: those that they wrote are in the stream",
    "event_triggers": "a superuser's, who hides DDL from everything that listens",
    "restrict_nonsystem_relation_kind": "what it refuses failed at the source",
    "dynamic_library_path": "where the administrator keeps libraries",
    "extension_control_path": "where the administrator keeps extensions",
    "extension_destdir": "where the administrator keeps extensions",
    "local_preload_libraries": "libraries of the administrator's",
    "session_preload_libraries": "libraries of the administrator's",
    "output_plugin_libraries": "which output plugins the administrator allows",
    "lo_compat_privileges": "of large objects, which are not archived",
    "update_process_title": "what ps shows",
    "allow_in_place_tablespaces": "a developer's; tablespaces are the source's own",
    "allow_system_table_mods": "a superuser's, who changes the catalog itself",
    "backtrace_functions": "what the server writes into its log",
    "force_parallel_mode": "how, not what",
    "ignore_checksum_failure": "a superuser's, who reads past damage on purpose",
    "ignore_system_indexes": "how, not what",
    "post_auth_delay": "a developer's",
    "trace_notify": "what the server writes into its log",
    "trace_sort": "what the server writes into its log",
    "wal_consistency_checking": "more WAL",
    "zero_damaged_pages": "a superuser's, who loses rows on purpose",
}
_HOW: Final = ("debug_", "jit_", "vacuum_")
_SETTINGS: Final = """
SELECT name, category FROM pg_settings WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend')
"""


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
def test_every_setting_is_told_or_does_not_matter_for_a_reason(request: pytest.FixtureRequest, fixture: str) -> None:
    server: PostgresServer = request.getfixturevalue(fixture)
    unknown = [
        name
        for name, category in server.execute(_SETTINGS)
        if name not in {*SETTINGS, *WITHOUT}
        and category.partition(" /")[0] not in WITHOUT_CATEGORIES
        and not name.startswith(_HOW)
    ]
    assert unknown == []
