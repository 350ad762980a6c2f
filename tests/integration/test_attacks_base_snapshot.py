"""Attempts of a table's owner to have his code run as the daemon while a base snapshot is taken.

`moment` is after what he does it. Without our help he tries until he hits it: pg_locks shows him where we are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from archiver import snapshots, table_copies
from archiver.errors import PostgresError
from archiver.policy.parts import PageRange
from archiver.postgres.snapshot import snapshot_connection
from archiver.postgres.snapshot_tables import copy_out_query, list_tables
from tests.fix_archive import MakeSetup
from tests.integration.test_attacks_source import as_role, give_schema, roles

__all__ = ["roles"]

EVIL = """
CREATE FUNCTION app.act() RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE 'COPY (SELECT current_user) TO ''{marker}'''; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
CREATE FUNCTION app.rise(text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN PERFORM app.act(); RETURN true; END $$
"""
TRAPS = {
    "an index": "CREATE INDEX ON app.t (id) WHERE app.rise('x')",
    "statistics": "CREATE STATISTICS app.st ON (v || app.rise('x')::text), id FROM app.t",
}


@pytest.fixture
def servers_folder() -> Iterator[Path]:
    """Where the server may write, which runs as another user."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("moment", ["list_tables", "begin_copy"])
async def test_no_code_of_an_owner_runs_while_a_base_snapshot_is_taken(
    make_setup: MakeSetup,
    roles: tuple[str, str],
    *,
    monkeypatch: pytest.MonkeyPatch,
    servers_folder: Path,
    trap: str,
    moment: str,
) -> None:
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    marker = servers_folder / "marker"
    module = {"list_tables": snapshots, "begin_copy": table_copies}[moment]
    genuine = getattr(module, moment)

    async def then_the_trap(*args: Any, **kwargs: Any) -> Any:
        found = await genuine(*args, **kwargs)
        with as_role(source.dsn, owner) as conn:
            conn.execute("SET lock_timeout = '2s'")
            conn.execute(TRAPS[trap].encode())
        return found

    await source.init()
    with as_role(source.dsn, owner) as conn:
        conn.execute(EVIL.format(marker=marker).encode())
    monkeypatch.setattr(module, moment, then_the_trap)
    async with source.daemon():
        await source.archived()
    assert not marker.exists(), f"his code ran as {marker.read_text().strip()}"


async def test_tables_are_cut_only_where_nobody_else_can_give_them_an_index(
    make_setup: MakeSetup, roles: tuple[str, str]
) -> None:
    """An index that the owner of a partitioned table makes is one of each partition, whoever owns that."""
    owner, _ = roles
    source = make_setup()
    give_schema(source.dsn, owner)
    with source.connect() as dba:
        dba.execute(
            f"""
            CREATE TABLE app.p (id int PRIMARY KEY) PARTITION BY RANGE (id); ALTER TABLE app.p OWNER TO {owner};
            CREATE TABLE app.l PARTITION OF app.p FOR VALUES FROM (0) TO (10); CREATE TABLE app.bank (id int)
        """.encode()
        )
    async with snapshot_connection(source.dsn, None) as conn:
        tables = {table.name: table for table in await list_tables(conn)}
        assert {name: table.can_be_cut for name, table in tables.items()} == {"bank": True, "l": False, "t": False}
        with pytest.raises(PostgresError, match="only be had by a query"):
            copy_out_query(tables["t"], PageRange(1))
