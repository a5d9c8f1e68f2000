"""Shards: Parquet with fixed schemas and writer settings, so that equal rows are equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from variegate.attack.campaign.unpacked import unpacked
from variegate.keys.errors import Refusal, RefusedError

_KEYS = [
    ("fleet", pa.string()),
    ("attack", pa.string()),
    ("profile", pa.string()),
    ("norm", pa.string()),
    ("attacker", pa.int32()),
    ("image", pa.int32()),
    ("true_class", pa.int32()),
    ("target", pa.int32()),
]
KEYS = tuple(name for name, _ in _KEYS)
"""Columns that both kinds have."""
SAMPLES = pa.schema(
    [
        *_KEYS,
        ("status", pa.string()),
        ("reason", pa.string()),
        ("label", pa.int32()),
        ("queries", pa.int32()),
        ("distance", pa.float64()),
        ("dtype", pa.string()),
        ("sample", pa.binary()),
        ("trace_queries", pa.list_(pa.int32())),
        ("trace_distance", pa.list_(pa.float64())),
        ("budgets", pa.list_(pa.int32())),
        ("budget_samples", pa.list_(pa.binary())),
    ]
)
"""A row for each image of a unit."""
REPLAYS = pa.schema(
    [
        *_KEYS,
        ("budget", pa.int32()),
        ("overshoot", pa.float64()),
        ("victim", pa.int32()),
        ("label", pa.int32()),
        ("clean_label", pa.int32()),
        ("l2", pa.float64()),
        ("linf", pa.float64()),
    ]
)
"""A row for each sample, budget, overshoot and victim."""

_ROWS_AT_ONCE = 1024

Columns = Mapping[str, Sequence[Any]]


def to_bytes(schema: pa.Schema, columns: Columns) -> bytes:
    """A shard.

    Args:
        schema: `SAMPLES` or `REPLAYS`.
        columns: Values by column, equally many in each.
    """
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=True,
        # Least and largest of frames would be whole frames, four times over.
        write_statistics=[name for name in schema.names if not _is_bulk(schema.field(name).type)],
        store_schema=False,
        row_group_size=1 << 20,
    )
    return bytes(sink.getvalue())


def _is_bulk(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_list(kind))


class Rows:
    """Rows of a shard, made one after the other as they are gone through: as objects they take ten times the memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield from batch.to_pylist()


def from_bytes(schema: pa.Schema, data: bytes, what: str) -> Rows:
    """Rows of a shard; as `read`."""
    return Rows(read(schema, data, what))


def read(schema: pa.Schema, data: bytes, what: str) -> pa.Table:
    """A shard that may be damaged or hostile; no memory for more than `unpacked.limit_of` its size.

    Args:
        schema: What it must have.
        data: The file.
        what: Its name, for messages.

    Raises:
        RefusedError: `MALFORMED`; `TOO_LARGE`: it unpacks to too much.
    """
    unpacked(data, what)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if not file.schema_arrow.remove_metadata().equals(schema):
            raise RefusedError(Refusal.MALFORMED, f"{what} does not have the columns of its kind")
        table = file.read()
        # That text is UTF-8, and lists end where their values do.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RefusedError(Refusal.MALFORMED, f"{what} is no Parquet file") from error
    return table
