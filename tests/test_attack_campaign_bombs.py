"""Shards of a few hundred kilobytes that would unpack to gigabytes: refused, by every command, in little memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.measured import variegate
from variegate.attack.campaign import folder, shards, unpacked
from variegate.attack.campaign.query import open_results
from variegate.attack.campaign.verify import verify
from variegate.attack.report.write import write_report
from variegate.keys.errors import Refusal, RefusedError, VariegateError
from variegate.keys.primitives import sha256

pytest_plugins = "tests.support.campaign_fixtures"

_LITTLE = 1 << 30
_UNIT = "qim.hsj.0001.00001"
Table = dict[str, pa.Array]


def _repeated(kind: pa.DataType, count: int) -> pa.Array:
    """One long value, so many times, which takes an index for each."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array([b"x" * (1 << 20)], kind))


def _values(count: int) -> pa.Array:
    """A list of so many zeros, which are one run."""
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.array(np.zeros(count, np.int32)))


def _bomb(kind: str) -> bytes:
    """A shard of samples; what is not part of the bomb is null."""
    changed: Table
    match kind:
        case "frames":
            changed = {"sample": _repeated(pa.binary(), 4096)}
        case "texts":
            changed = {"reason": _repeated(pa.string(), 4096)}
        case _:
            changed = {"trace_queries": _values(60_000_000)}
    rows = len(next(iter(changed.values())))
    columns = {field.name: changed.get(field.name, pa.nulls(rows, field.type)) for field in shards.SAMPLES}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 22)
    return bytes(sink.getvalue())


def _planted(made: Path, data: bytes) -> Path:
    """Puts a shard in place of one of the campaign's, and its digest into the ledger."""
    folder.shard(made, folder.SAMPLES, _UNIT).write_bytes(data)
    with closing(sqlite3.connect(made / "ledger.sqlite")) as db:
        db.execute("UPDATE units SET samples_sha256 = ? WHERE name = ?", (sha256(data).hex(), _UNIT))
        db.commit()
    return made


@pytest.mark.parametrize("kind", ["frames", "texts", "values"])
def test_a_shard_that_unpacks_to_gigabytes_is_refused_in_little_memory(kind: str, copied: Path, tmp_path: Path) -> None:
    data = _bomb(kind)
    assert len(data) < 1 << 20
    _planted(copied, data)
    said = f"{_UNIT}.parquet unpacks to more than the {unpacked.limit_of(len(data))} bytes that a file of its size may"
    asked, report = ("query", copied, "SELECT count(*) FROM samples"), ("report", copied, "--out", tmp_path / "report")
    for words in (("verify", copied), asked, report):
        found = variegate("attack", *words)
        assert found.status == 1, found.err
        assert said in found.out + found.err
        assert found.peak < _LITTLE
    assert not (tmp_path / "report").exists()


def test_shards_that_unpack_to_too_much_together_are_refused_in_little_memory(copied: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(copied / "ledger.sqlite")) as db:
        units = [name for (name,) in db.execute("SELECT name FROM units")]
        for unit in units:
            # None alone is too much.
            data = _bomb_of_rows(220)
            folder.shard(copied, folder.SAMPLES, unit).write_bytes(data)
            db.execute("UPDATE units SET samples_sha256 = ? WHERE name = ?", (sha256(data).hex(), unit))
        db.commit()
    asked, report = ("query", copied, "SELECT count(*) FROM samples"), ("report", copied, "--out", tmp_path / "report")
    for words in (asked, report):
        found = variegate("attack", *words)
        assert found.status == 1, found.err
        assert f"the shards of {copied} unpack to more than {unpacked.MOST_TOGETHER} bytes" in found.err
        assert found.peak < _LITTLE


def _bomb_of_rows(rows: int) -> bytes:
    columns = {field.name: pa.nulls(rows, field.type) for field in shards.SAMPLES}
    sink = pa.BufferOutputStream()
    table = pa.table({**columns, "sample": _repeated(pa.binary(), rows)})
    pq.write_table(table, sink, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 22)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_told_of_a_file_is_no_less_than_what_it_takes(compression: str, version: str) -> None:
    rng = np.random.default_rng(1)
    for rows in (0, 1, 3, 3000):
        table = pa.table(
            {
                "numbers": pa.array(rng.integers(0, 5, rows), pa.int32()),
                "texts": pa.array([None if i % 3 else f"text {i % 7}" for i in range(rows)], pa.string()),
                "frames": pa.array([rng.bytes(300) for _ in range(rows)], pa.binary()),
                "lists": pa.array([[0.5] * (i % 4) for i in range(rows)], pa.list_(pa.float64())),
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=compression, data_page_version=version, row_group_size=1000)
        size = unpacked.unpacked(bytes(sink.getvalue()), "it")
        assert table.nbytes - 1000 <= size <= 6 * table.nbytes + 10_000


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_values_that_are_told_by_those_before_them_are_refused(encoding: str) -> None:
    table = pa.table({"a": pa.array(["x" * 1000] * 1000)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=False, column_encoding={"a": encoding})
    with pytest.raises(RefusedError, match="it is no Parquet file of a campaign") as caught:
        unpacked.unpacked(bytes(sink.getvalue()), "it")
    assert caught.value.refusal is Refusal.MALFORMED


def test_damaged_shards_are_refused_and_nothing_else_comes_of_them(alone: Path) -> None:
    rng = np.random.default_rng(7)
    for kind, schema in ((folder.SAMPLES, shards.SAMPLES), (folder.REPLAYS, shards.REPLAYS)):
        whole = folder.shard(alone, kind, _UNIT).read_bytes()
        refused = 0
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(4, len(data))] = rng.integers(0, 256)
            try:
                list(shards.from_bytes(schema, bytes(data[: len(data) - rng.integers(0, 2)]), "it"))
            except VariegateError:
                refused += 1
        assert refused > 100


def test_a_footer_is_not_believed(copied: Path, tmp_path: Path) -> None:
    """Sizes in it, of a bomb, that say that it is none."""
    data = _bomb("frames")
    footer = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    assert footer.column(shards.SAMPLES.get_field_index("sample")).total_uncompressed_size < 2 << 20
    _planted(copied, data)
    readers: list[Callable[[Path], object]] = [open_results, lambda made: write_report(made, tmp_path / "report")]
    for reader in readers:
        with pytest.raises(RefusedError, match="unpacks to more") as caught:
            reader(copied)
        assert caught.value.refusal is Refusal.TOO_LARGE
    assert any("unpacks to more" in line for line in verify(copied, sample=0).differences)
