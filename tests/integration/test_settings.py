"""No setting of a server, a database or a role ends a session of ours, or bends what it reads and writes."""

from __future__ import annotations

import re
from typing import Final

import psycopg
import pytest

from archiver.embedded import PostgresServer
from archiver.postgres.session import connect
from archiver.postgres.session_settings import SESSION
from tests.dumps import difference, pg_dump
from tests.fix_archive import MakeSetup

HARMLESS_CATEGORIES: Final = {
    "Query Tuning": "how a result is found, not which",
    "Reporting and Logging": "what the server writes into its log",
    "Statistics": "what the server counts",
    "Resource Usage": "how much of the machine a session takes: the server's own affair",
    "Vacuuming": "our sessions do not vacuum; autovacuum's own sessions have their own",
    "Write-Ahead Log": "how durable a target is until it is checkpointed; an archive is read, not made there",
}
HARMLESS: Final = {
    "client_encoding": "set as a parameter of the connection",
    "application_name": "set as a parameter of the connection",
    "default_text_search_config": "functions of users' indexes rely on the database's own",
    "icu_validation_level": "how loudly an unknown locale is refused",
    "lc_messages": "words of messages: we go by their states",
    "lc_numeric": "to_char's alone, which users' functions call",
    "lc_time": "to_char's alone, which users' functions call",
    "dynamic_library_path": "where the administrator keeps libraries",
    "extension_control_path": "where the administrator keeps extensions",
    "extension_destdir": "where the administrator keeps extensions",
    "local_preload_libraries": "libraries of the administrator's",
    "session_preload_libraries": "libraries of the administrator's",
    "output_plugin_libraries": "which output plugins the administrator allows: a refusal says so",
    "check_function_bodies": "a restore sets it off for each statement",
    "createrole_self_grant": "set where roles are made",
    "default_table_access_method": "DDL of a dump and of the stream sets it",
    "default_tablespace": "where, not what; DDL of the stream sets it",
    "temp_tablespaces": "where, not what",
    "default_toast_compression": "how, not what; DDL of the stream sets it",
    "event_triggers": "a superuser's alone, for sessions that mend event triggers",
    "gin_pending_list_limit": "how, not what",
    "restrict_nonsystem_relation_kind": "set where it is known",
    "session_replication_role": "replayed rows are written under `replica`; at the source we run no triggers but our own",
    "transaction_isolation": "of a transaction: each says its own, or has the default that is set",
    "transaction_read_only": "of a transaction",
    "transaction_deferrable": "of a transaction",
    "transaction_timeout": "set where it is known",
    "md5_password_warnings": "a warning",
    "password_encryption": "passwords are restored as their hashes",
    "scram_iterations": "passwords are restored as their hashes",
    "client_connection_check_interval": "a restore sets it",
    "tcp_keepalives_count": "when the server finds that we are gone",
    "tcp_keepalives_idle": "when the server finds that we are gone",
    "tcp_keepalives_interval": "when the server finds that we are gone",
    "tcp_user_timeout": "when the server finds that we are gone",
    "wal_sender_timeout": "the daemon answers in time; it is the server's protection",
    "allow_in_place_tablespaces": "a developer's",
    "allow_system_table_mods": "a superuser's, for what we do not do",
    "backtrace_functions": "what the server writes into its log",
    "debug_discard_caches": "slow, not different",
    "debug_logical_replication_streaming": "how early transactions are streamed",
    "debug_parallel_query": "how, not what",
    "force_parallel_mode": "how, not what",
    "ignore_checksum_failure": "a superuser's, who reads past damage on purpose: he cannot be overruled, nor be told from others",
    "ignore_system_indexes": "how, not what",
    "jit_debugging_support": "how, not what",
    "jit_dump_bitcode": "how, not what",
    "jit_expressions": "how, not what",
    "jit_profiling_support": "how, not what",
    "jit_tuple_deforming": "how, not what",
    "post_auth_delay": "a developer's",
    "trace_notify": "what the server writes into its log",
    "trace_sort": "what the server writes into its log",
    "wal_consistency_checking": "more WAL, none that is decoded",
    "zero_damaged_pages": "a superuser's, who loses rows on purpose: he cannot be overruled",
    "deadlock_timeout": "when deadlocks are looked for",
    "update_process_title": "what ps shows",
    "escape_string_warning": "a warning",
    "lo_compat_privileges": "of large objects, which are not archived",
    "synchronize_seqscans": "the order of rows alone",
    "vacuum_failsafe_age": "our sessions do not vacuum",
    "vacuum_freeze_min_age": "our sessions do not vacuum",
    "vacuum_freeze_table_age": "our sessions do not vacuum",
    "vacuum_multixact_failsafe_age": "our sessions do not vacuum",
    "vacuum_multixact_freeze_min_age": "our sessions do not vacuum",
    "vacuum_multixact_freeze_table_age": "our sessions do not vacuum",
}
_SETTINGS: Final = """
SELECT name, category FROM pg_settings WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend')
"""


@pytest.mark.parametrize("fixture", ["pg", "pg15"])
def test_every_setting_is_set_or_harmless_for_a_reason(request: pytest.FixtureRequest, fixture: str) -> None:
    server: PostgresServer = request.getfixturevalue(fixture)
    unknown = [
        name
        for name, category in server.execute(_SETTINGS)
        if name not in SESSION and name not in HARMLESS and category.partition(" /")[0] not in HARMLESS_CATEGORIES
    ]
    assert unknown == []


# Each is another value than ours, and one that a role or a database may have.
ODD: Final = {
    "DateStyle": "SQL, DMY", "IntervalStyle": "iso_8601", "TimeZone": "Pacific/Apia", "timezone_abbreviations": "India",
    "extra_float_digits": "-15", "bytea_output": "escape", "lc_monetary": "C.UTF-8", "xmloption": "document", "xmlbinary": "hex",
    "array_nulls": "off", "transform_null_equals": "on", "standard_conforming_strings": "off", "backslash_quote": "off",
    "quote_all_identifiers": "on", "search_path": "nowhere", "row_security": "on", "gin_fuzzy_search_limit": "1",
    "default_transaction_isolation": "serializable", "default_transaction_read_only": "on", "default_transaction_deferrable": "on",
    "exit_on_error": "on", "client_min_messages": "debug5", "statement_timeout": "300ms", "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "300ms", "idle_session_timeout": "300ms", "transaction_timeout": "300ms",
    "restrict_nonsystem_relation_kind": "view, foreign-table", "check_function_bodies": "on", "default_toast_compression": "pglz",
    "jit": "on", "escape_string_warning": "off", "synchronize_seqscans": "off", "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off",
}  # fmt: skip
ROWS: Final = """
CREATE TABLE item (id int PRIMARY KEY, a text[], b bytea, f float8, t timestamptz, i interval, n numeric, words text[]);
INSERT INTO item SELECT i, ARRAY['NULL', NULL, 'null'], decode('00ff5c27', 'hex'), 1 / 3.0 + i, '2024-02-03 04:05:06.789+00',
    '1 mon 2 days 03:04:05.6', 1.10, '{"a\\\\b", "c''d"}' FROM generate_series(1, 300) AS i;
CREATE INDEX ON item USING gin (words);
"""


def test_each_setting_of_ours_is_tried_with_another_value() -> None:
    assert SESSION.keys() <= ODD.keys()


async def test_odd_settings_of_role_and_database_change_nothing(make_setup: MakeSetup) -> None:
    """At the source, where everything is read, and at the target."""
    setup = make_setup()
    with setup.connect() as conn:
        conn.execute(ROWS.encode())
        for name, value in ODD.items():
            conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {name} = {psycopg.sql.quote(value)}".encode())
        expected = pg_dump(setup.dsn)
        await setup.init()
        async with setup.daemon():
            await setup.archived()
            conn.execute("UPDATE item SET a = a || NULL::text, b = b || b, t = t + i; CREATE TABLE more AS TABLE item")
            conn.execute("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'a' || NULL$$")
            await setup.archived()
        expected = pg_dump(setup.dsn)
    made = setup.make_database

    def odd_database(*, stem: str = "odd") -> str:
        dsn = made(stem=stem)
        with psycopg.connect(dsn, autocommit=True) as target:
            for name, value in ODD.items():
                if name != "default_transaction_read_only":  # else the next one could not be set
                    target.execute(
                        f"ALTER DATABASE {target.info.dbname} SET {name} = {psycopg.sql.quote(value)}".encode()
                    )
        return dsn

    setup.make_database = odd_database
    restored, summary = await setup.restore()
    assert [warning for warning in summary.warnings if not re.search("large objects", warning)] == []
    assert difference(pg_dump(restored), expected) == ""


@pytest.mark.parametrize("replication", [False, True])
async def test_no_limit_on_time_ends_a_session(pg: PostgresServer, replication: bool) -> None:
    """Those that only a later version knows among them."""
    pg.execute("CREATE ROLE hurried SUPERUSER LOGIN")
    limits = [name for name in ODD if name.endswith("_timeout")]
    try:
        for name in limits:
            pg.execute(f"ALTER ROLE hurried SET {name} = '300ms'")
        async with await connect(pg.dsn(user="hurried"), purpose="test", replication=replication) as conn:
            for name in limits:
                assert await (await conn.execute(f"SHOW {name}".encode())).fetchone() == ("0",)
    finally:
        pg.execute("DROP ROLE hurried")
