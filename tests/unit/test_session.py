"""What a connection string becomes, and what psycopg's errors become."""

from __future__ import annotations

import psycopg
import pytest

from archiver.errors import ConfigError, PostgresError, PostgresUnavailable
from archiver.postgres.session import (
    connection_params,
    conninfo_without_secrets,
    postgres_error,
    where_of,
)
from archiver.postgres.session_settings import as_options
from archiver.postgres.tls_policy import is_local


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGPORT", "PGDATABASE", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)


def params(dsn: str, **options: bool) -> dict[str, object]:
    return connection_params(dsn, purpose="test", **options)


@pytest.mark.parametrize("host", ["db.internal", "10.0.0.1", "127.0.0.1,db.internal", "localhost.evil.org"])
def test_a_remote_host_is_verified_over_tls_13_unless_the_string_says_otherwise(host: str) -> None:
    found = params(f"host={host} dbname=shop")
    assert found["sslmode"] == "verify-full"
    assert found["ssl_min_protocol_version"] == "TLSv1.3"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "/run/postgresql", "@abstract", ""])
def test_a_connection_inside_the_machine_may_be_plain(host: str) -> None:
    assert is_local(host)
    assert "sslmode" not in params(f"host='{host}' dbname=shop")


def test_no_host_at_all_is_the_environments() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGHOST", "db.internal")
        assert params("dbname=shop")["sslmode"] == "verify-full"
    assert "sslmode" not in params("dbname=shop")


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca"])
def test_what_the_string_says_of_tls_is_kept(mode: str) -> None:
    found = params(f"host=db.internal sslmode={mode} ssl_min_protocol_version=TLSv1.2")
    assert (found["sslmode"], found["ssl_min_protocol_version"]) == (mode, "TLSv1.2")


def test_a_hostaddr_decides_where_the_connection_goes() -> None:
    assert params("host=localhost hostaddr=10.0.0.1")["sslmode"] == "verify-full"


def test_the_canonical_session_is_sent_with_the_connection_after_the_users_options() -> None:
    options = str(params("host=/tmp options='-c work_mem=1MB -c TimeZone=CET'")["options"])
    assert options.startswith("-c work_mem=1MB -c TimeZone=CET ")
    assert options.index("TimeZone=UTC") > options.index("TimeZone=CET")
    assert options.endswith(as_options(frozenset({"search_path"})))
    assert "-c default_transaction_isolation=read\\ committed" in options


def test_a_replication_connection_is_to_a_database() -> None:
    assert params("host=/tmp", replication=True)["replication"] == "database"


def test_the_application_name_says_what_the_connection_is_for() -> None:
    assert params("host=/tmp application_name=other")["application_name"] == "archiver test"


@pytest.mark.parametrize("dsn", ["postgresql://u:se@cret@host/db", "postgresql://u:secret@host:po/rt?x=1", "secret"])
def test_an_unreadable_string_is_refused_without_repeating_it(dsn: str) -> None:
    with pytest.raises(ConfigError) as refused:
        params(dsn)
    assert "cret" not in f"{refused.value} {refused.value.hint}"


def test_the_command_line_of_a_client_program_holds_no_secret() -> None:
    conninfo, environment = conninfo_without_secrets(params("postgresql://u:geheim@h/db?sslpassword=geheim2"))
    assert "geheim" not in conninfo
    assert environment == {"PGPASSWORD": "geheim"}


def test_messages_name_a_server_by_host_port_and_database() -> None:
    assert where_of(params("postgresql://u:p@h:99/db")) == "h:99/db"


@pytest.mark.parametrize(
    "message",
    [
        'connection failed: FATAL:  password authentication failed for user "x"',
        'connection to server at "h" (1.2.3.4), port 5432 failed: FATAL:  database "x" does not exist',
        "FATAL:  no pg_hba.conf entry for host",
        "server does not support SSL, but SSL was required",
        "SSL error: certificate verify failed",
    ],
)
def test_a_refusal_is_permanent_and_has_a_hint(message: str) -> None:
    error = postgres_error(psycopg.OperationalError(message))
    assert not error.transient
    assert error.hint


@pytest.mark.parametrize(
    "message",
    [
        "connection failed: Connection refused",
        "FATAL:  the database system is starting up",
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "server closed the connection unexpectedly",
        "the connection is closed",
    ],
)
def test_what_may_pass_is_transient(message: str) -> None:
    assert isinstance(postgres_error(psycopg.OperationalError(message)), PostgresUnavailable)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (psycopg.errors.CannotConnectNow, True),
        (psycopg.errors.TooManyConnections, True),
        (psycopg.errors.AdminShutdown, True),
        (psycopg.errors.SerializationFailure, True),
        (psycopg.errors.InsufficientPrivilege, False),
        (psycopg.errors.UndefinedTable, False),
        (psycopg.errors.ConfigurationLimitExceeded, False),
    ],
)
def test_an_sqlstate_decides_whether_to_ask_again(error: type[psycopg.Error], transient: bool) -> None:
    found = postgres_error(error("x"), "here")
    assert isinstance(found, PostgresError)
    assert (found.transient, found.where) == (transient, "here")


def test_a_secret_in_a_message_is_struck_out() -> None:
    error = postgres_error(psycopg.OperationalError("cannot use geheim"), secrets=["geheim"])
    assert "geheim" not in str(error)
