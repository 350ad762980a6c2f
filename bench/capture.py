"""The hot path on a recorded backlog: the whole daemon to two S3 servers, against pg_recvlogical to /dev/null.

Run with `make bench`. One PostgreSQL decodes the same backlog (pgbench transactions and bulk inserts, at least a
million messages) for both, in turns, `--rounds` times; each turn has a slot of its own that was made before the
workload. archiver's seconds count from the start of its process to the last byte durable in both regions, so that a
short backlog measures how Python starts. Quote the ratios: absolute numbers are this machine's, and this moment's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table
from worlds import SETTINGS, archiver, run, write_config

from archiver.embedded import PostgresServer, S3Server

BULK_ROWS = 100_000  # per transaction: some fit in logical_decoding_work_mem, the larger ones are streamed


@dataclass(frozen=True)
class Turn:
    """One consumer's turn over the whole backlog. CPU is user and system of the process and its threads."""

    who: str
    seconds: float
    cpu_seconds: float
    peak_mib: float
    messages: int
    stored_bytes: int = 0

    @property
    def rate(self) -> float:
        return self.messages / self.seconds

    @property
    def cpu_per_million(self) -> float:
        return self.cpu_seconds / self.messages * 1e6


def prepare(server: PostgresServer, configs: list[Path], kek: Path) -> None:
    """The database, the archives with their first base snapshot, and the other slots: all before the workload."""
    server.execute("CREATE DATABASE bench")
    run(server.bin("pgbench"), "-i", "-q", "-s", "10", server.dsn("bench"))
    server.execute("CREATE TABLE bulk (id bigint PRIMARY KEY, name text, at timestamptz, v float)", dbname="bench")
    run(*archiver(configs[0], "key", "generate", str(kek)))
    for config in configs:
        run(*archiver(config, "init", "--keyless", "full"))
        run(*archiver(config, "snapshot"))
    for number in range(len(configs)):
        query = f"SELECT pg_create_logical_replication_slot('recv{number}', 'pgoutput')"
        server.execute(query, dbname="bench")


def make_backlog(server: PostgresServer, messages: int) -> str:
    """Half pgbench transactions, half bulk inserts; returns the LSN at its end."""
    transactions = messages // 2 // 6  # Begin, three updates, an insert, Commit
    per_client = str(max(1, transactions // 4))
    run(server.bin("pgbench"), "-n", "-c", "4", "-j", "2", "-t", per_client, server.dsn("bench"))
    inserted = 0
    while inserted < messages // 2 + BULK_ROWS:
        server.execute(
            f"INSERT INTO bulk SELECT i, 'name of row ' || i, clock_timestamp(), random() "
            f"FROM generate_series({inserted + 1}, {inserted + BULK_ROWS}) i",
            dbname="bench",
        )
        inserted += BULK_ROWS
    server.execute("SELECT pg_logical_emit_message(true, 'bench', 'end')", dbname="bench")
    return str(server.execute("SELECT pg_current_wal_flush_lsn()::text", dbname="bench")[0][0])


def recvlogical(server: PostgresServer, number: int, end: str, messages: int) -> Turn:
    options = ("proto_version=2", "publication_names=archiver_bench", "streaming=on", "messages=true")
    command: list[Any] = [server.bin("pg_recvlogical"), "-d", server.dsn("bench"), "--slot", f"recv{number}"]
    command += ["--start", "--endpos", end, "--no-loop", "-f", os.devnull, "-s", "1"]
    command += [word for option in options for word in ("-o", option)]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"pg_recvlogical failed with {status}")
    return Turn("pg_recvlogical", seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, messages)


def daemon(server: PostgresServer, config: Path, number: int, end: str, messages: int) -> Turn:
    """From the start of the process until PostgreSQL has everything confirmed, that is durable in both regions."""
    log = config.with_suffix(".log").open("wb")
    started = time.monotonic()
    process = subprocess.Popen(archiver(config, "run"), stdout=log, stderr=log)
    query = (
        f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'archiver_bench{number}'"
    )
    with psycopg.connect(server.dsn("bench"), autocommit=True) as conn:
        while not conn.execute(query).fetchone()[0]:  # type: ignore[index]
            if process.poll() is not None:
                raise SystemExit(f"archiver run ended: {config.with_suffix('.log').read_text()[-2000:]}")
            time.sleep(0.05)
    seconds = time.monotonic() - started
    process.send_signal(signal.SIGTERM)
    _, _, usage = os.wait4(process.pid, 0)
    info = json.loads(subprocess.run(archiver(config, "info", "--json"), check=True, capture_output=True).stdout)
    stored = int(info["stored_bytes"])
    return Turn("archiver", seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, messages, stored)


def count_messages(server: PostgresServer, slot: str) -> int:
    query = (
        f"SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, 'proto_version', '2', "
        "'publication_names', 'archiver_bench', 'streaming', 'on', 'messages', 'true')"
    )
    return int(server.execute(query, dbname="bench")[0][0])


def show(turns: list[Turn], console: Console) -> dict[str, Any]:
    """Medians, and the ratio that matters: both consumers read the same backlog in the same run."""
    table = Table(title=f"{turns[0].messages:,} messages, median of {len(turns) // 2}")
    columns = ("", "messages/s", "CPU s / million", "peak MiB", "stored MiB")
    for column in columns:
        table.add_column(column, justify="right")
    medians = {}
    for who in ("pg_recvlogical", "archiver"):
        of = [turn for turn in turns if turn.who == who]
        rate = statistics.median(turn.rate for turn in of)
        cpu = statistics.median(turn.cpu_per_million for turn in of)
        peak = max(turn.peak_mib for turn in of)
        stored = statistics.median(turn.stored_bytes for turn in of)
        medians[who] = {"messages_per_second": rate, "cpu_seconds_per_million": cpu, "peak_mib": peak, "stored": stored}
        table.add_row(who, f"{rate:,.0f}", f"{cpu:.2f}", f"{peak:.0f}", f"{stored / 2**20:.1f}" if stored else "-")
    console.print(table)
    ratio = medians["archiver"]["messages_per_second"] / medians["pg_recvlogical"]["messages_per_second"]
    console.print(f"archiver / pg_recvlogical: {ratio:.2f} of its speed")
    return {"medians": medians, "speed_ratio": ratio, "turns": [asdict(turn) for turn in turns]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "capture.json")
    arguments = parser.parse_args()
    console = Console(width=100)
    turns: list[Turn] = []
    with ExitStack() as stack:
        server = stack.enter_context(closing(PostgresServer(settings=SETTINGS)))
        regions = [stack.enter_context(closing(S3Server(buckets=["bench"]))) for _ in range(2)]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for each in (server, *regions):
            each.start()
        configs = [write_config(folder, server, regions, number) for number in range(arguments.rounds)]
        prepare(server, configs, folder / "kek")
        console.print("making the backlog …")
        end = make_backlog(server, arguments.messages)
        messages = count_messages(server, "recv0")
        for number, config in enumerate(configs):
            turns.append(recvlogical(server, number, end, messages))
            turns.append(daemon(server, config, number, end, messages))
            console.print(f"round {number + 1}: " + ", ".join(f"{t.who} {t.seconds:.1f} s" for t in turns[-2:]))
    result = show(turns, console)
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
