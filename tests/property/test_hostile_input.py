"""Every parser that reads stored or received bytes: whatever comes, it ends with its documented error, in bounded memory.

Inputs are arbitrary bytes, deep nesting, and valid samples with bytes changed, cut out, doubled or swapped.
pgoutput messages, segments, manifests and sealed objects also have tests of their own beside this one.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.config import load
from archiver.errors import ArchiverError, ConfigError, IntegrityError, PostgresError, UsageError
from archiver.format import ddl, ddl_told, journal, layout, manifest, pgoutput, segment, wrap
from archiver.format.drill import Record
from archiver.lsn import Lsn
from archiver.policy import catalog
from archiver.policy.sequence_log import SequenceStates
from archiver.policy.stream import ChangeStream
from archiver.policy.transactions import TransactionAssembler
from archiver.postgres.timeline import parse_history
from archiver.snapshots import Index
from tests.unit import frames

ARCHIVE = UUID(int=7)
NOBODY = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
VECTORS = Path(__file__).parents[1] / "vectors"
PLAIN = {
    name: bytes.fromhex(text)
    for name, text in json.loads((VECTORS / "expected.json").read_text())["plaintexts"].items()
}
"""What the objects of the frozen archive hold."""


def plain(prefix: str) -> list[bytes]:
    return [data for name, data in PLAIN.items() if name.startswith(prefix)]


def said(content: bytes) -> journal.Entry:
    return journal.parse_entry(frames.JOURNAL, (b"2f0c", b"ddl", None, None, content))


def an_event(content: bytes) -> ddl.Event:
    return ddl.parse_event(said(content).said, ddl.Text())


def assemble(data: bytes) -> None:
    assembler = TransactionAssembler(after=Lsn(0), stop=Lsn(2**63), spool=_no_file)
    assembler.begin_segment(1)
    for record in segment.read_records([data]):
        match record:
            case segment.Relation(xid, message):
                assembler.preamble(xid, message)
            case segment.Context(xid):
                assembler.context(xid)
            case bytes():
                if (transaction := assembler.feed(record)) is not None:
                    list(transaction.changes())


def _no_file() -> Any:
    raise AssertionError("nothing here is large")


def read_config(folder: Path, data: bytes) -> None:
    path = folder / "archiver.toml"
    path.write_bytes(data)
    load(path, {})


FRAMES = [
    frames.keepalive(5), frames.described(frames.MOOD), frames.described(frames.TABLE), frames.begin(10),
    frames.insert(b"1"), frames.described(frames.JOURNAL), frames.entry("point", {"name": "x", "at": "0/9"}), frames.truncate(10), frames.commit(10),
    *frames.block(
        9, frames.described(frames.TABLE, 9), frames.insert(b"2", xid=9),
        frames.entry("lost", {"reason": "rows"}, 9), first=True,
    ),
    frames.stream_abort(9, 12), frames.stream_commit(9, 20),
]  # fmt: skip
STATE = {"schema": "public", "name": "s", "last_value": 7, "is_called": True, "increment": 1}
EVENT = {"event": "ddl_command_end", "tag": "CREATE TABLE", "role": "r", "settings": {"DateStyle": "ISO"},
         "schemas": ["public"], "source": "CREATE TABLE t ()", "place": 1, "lsn": "0/7",
         "objects": [{"type": "table", "schema": "public", "identity": "public.t"}]}  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """`refuses`: the only errors it may raise."""

    read: Callable[[bytes], object]
    refuses: tuple[type[ArchiverError], ...] = (IntegrityError,)
    samples: list[bytes] = field(default_factory=lambda: [b"{}"])


PARSERS: dict[str, Parser] = {
    "roll-up": Parser(lambda data: list(catalog.unpack(data, 2)), samples=[catalog.pack([b"{}", b"{}"])]),
    "archive.json": Parser(manifest.parse_archive, samples=[(VECTORS / "archive" / "archive.json").read_bytes()]),
    "wrapped key": Parser(
        partial(wrap.parse_wrapped, archive=None, key_id="signing"),
        samples=[(VECTORS / "archive" / "keys" / "signing.json").read_bytes()],
    ),
    "KEK": Parser(
        lambda data: wrap.parse_kek(data.decode("latin-1"), "file"),
        (ConfigError,),
        [wrap.format_kek(b"k" * 32).encode()],
    ),
    "index of a base snapshot": Parser(Index.decode, samples=plain("snapshots")[:1]),
    "record of a drill": Parser(Record.decode, samples=plain("drills")),
    "sequence states": Parser(SequenceStates().fold, samples=[json.dumps([STATE]).encode()]),
    "DDL event": Parser(an_event, samples=[json.dumps(EVENT).encode()]),
    "statement of a DDL event": Parser(
        lambda data: ddl_told.statement_of(an_event(data)), samples=[json.dumps(EVENT).encode()]
    ),
    "text of several statements": Parser(
        lambda data: ddl.Text.from_json(said(data).said), samples=[b'{"source": "SELECT 1; SELECT 2"}']
    ),
    "restore point": Parser(
        lambda data: journal.restore_point(said(data)), samples=[b'{"name": "x", "at": "0/9", "lsn": "0/9"}']
    ),
    "computed rows": Parser(
        lambda data: journal.computed_rows(said(data)),
        samples=[b'{"schema": "public", "name": "t", "first": true, "rows": ["(1,a)"]}'],
    ),
    "name of a manifest": Parser(
        lambda data: layout.manifest_seq(data.decode("latin-1")), (), [layout.manifest(7).encode()]
    ),
    "name of a roll-up": Parser(
        lambda data: layout.rollup_range(data.decode("latin-1")), (), [layout.rollup(1, 1000).encode()]
    ),
    "LSN": Parser(lambda data: Lsn.parse(data.decode("latin-1")), (UsageError,), [b"16/B374D848"]),
    "history of timelines": Parser(
        lambda data: parse_history(data.decode("latin-1")), (PostgresError,), [b"1\t0/3000000\tno recovery target\n"]
    ),
    "transactions": Parser(assemble, samples=plain("segments")[:1]),
}


def tell(parser: Parser, data: bytes) -> None:
    with suppress(*parser.refuses):
        parser.read(data)


@st.composite
def damaged(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample after some accidents."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at, other = draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "double", "insert", "end"])):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[min(at, other) : max(at, other)]
            case "double":
                data[at:at] = data[min(at, other) : max(at, other)][:200]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "end":
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=300)
@given(data=st.data())
def test_damage_is_told_by_the_documented_error_alone(name: str, data: st.DataObject) -> None:
    parser = PARSERS[name]
    tell(parser, data.draw(damaged(parser.samples)))


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=300)
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_told_by_the_documented_error_alone(name: str, data: bytes) -> None:
    tell(PARSERS[name], data)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"(", b"SELECT (", b'{"settings":['])
def test_deep_nesting_is_told_by_the_documented_error_alone(name: str, opening: bytes) -> None:
    tell(PARSERS[name], opening * 100_000)


@pytest.mark.parametrize("name", PARSERS)
def test_a_sample_is_read(name: str) -> None:
    for sample in PARSERS[name].samples:
        PARSERS[name].read(sample)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_replication_stream_is_an_error_of_postgresql(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(FRAMES) - 1))
    changes = ChangeStream(Lsn(0), 1, frames.JOURNAL.id)
    with suppress(PostgresError, IntegrityError):  # the latter for what is no time
        changes.feed([*FRAMES[:at], data.draw(damaged([FRAMES[at]])), *FRAMES[at + 1 :]])
        changes.cut().entry(1, 1, covered_until=None, sequences=False, stored=None)


@settings(max_examples=300)
@given(data=damaged([(Path(__file__).parents[2] / "archiver.toml").read_bytes()]))
def test_a_damaged_configuration_is_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    with suppress(ConfigError):
        read_config(tmp_path_factory.getbasetemp(), data)


def test_a_roll_up_that_is_a_bomb_is_stopped() -> None:
    with pytest.raises(IntegrityError, match="larger than any"):
        list(catalog.unpack(zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30)), 1000))


EMPTY_LISTS = b"[" + b"[]," * (2 << 20) + b"[]]"  # 64 bytes of memory for three of these


def bomb(text: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(text)


def read_rollup(data: bytes) -> None:
    """As a reader of the log does, which stops at the first line that is no manifest."""
    for line in catalog.unpack(data, 1000):
        manifest.parse(line, NOBODY)


@pytest.mark.parametrize(
    ("read", "data"),
    {
        "a manifest of lists": (partial(manifest.parse, verifier=NOBODY), EMPTY_LISTS),
        "a roll-up of newlines": (read_rollup, bomb(b"\n" * (200 << 20))),
        "a roll-up of lists": (read_rollup, bomb(EMPTY_LISTS)),
        "a roll-up of more than its name says": (
            lambda data: list(catalog.unpack(data, 9)),
            bomb(b"{}\n" * (40 << 20)),
        ),
        "a record of 4 GiB": (lambda data: list(segment.read_records([data])), b"\xff\xff\xff\xff" + bytes(1000)),
        "a record of 2 GiB": (lambda data: list(segment.read_records([data])), b"\x7f\xff\xff\xff" + bytes(1000)),
        "a column of 4 GiB": (pgoutput.decode, b"I\0\0\0\1N\0\1t\xff\xff\xff\xff" + bytes(1000)),
        "65535 columns": (pgoutput.decode, b"R\0\0\0\1a\0b\0d\xff\xff" + bytes(1000)),
        "4 billion truncated tables": (pgoutput.decode, b"T\xff\xff\xff\xff\0" + bytes(1000)),
    }.values(),
)
def test_an_input_never_takes_much_more_memory_than_it_has_bytes(read: Callable[[bytes], object], data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
