"""SQL over a campaign's results, by DuckDB: views `samples`, `replays`, `units` and `failures`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from variegate.attack.campaign import folder as folders
from variegate.attack.campaign import shards
from variegate.attack.campaign.check import shard_bytes
from variegate.attack.campaign.ledger import DONE, Ledger, UnitEntry
from variegate.attack.campaign.schema import quoted
from variegate.attack.campaign.unpacked import MEMORY_LIMIT, together, unpacked
from variegate.keys.errors import MisuseError, Refusal, RefusedError

_UNITS = pa.schema(
    [
        ("unit", pa.string()),
        ("fleet", pa.string()),
        ("attack", pa.string()),
        ("attacker", pa.int32()),
        ("images", pa.int32()),
        ("state", pa.string()),
        ("queries", pa.int64()),
        ("clean_queries", pa.int64()),
        ("replay_queries", pa.int64()),
        ("samples_sha256", pa.string()),
        ("replays_sha256", pa.string()),
    ]
)
_FAILURES = pa.schema([("unit", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Rows of a query.

    Attributes:
        columns: Their names.
        rows: Their values.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def open_results(folder: Path) -> duckdb.DuckDBPyConnection:
    """A connection over what is done, held in memory; it can neither write nor read any file.

    Args:
        folder: The campaign's; it may be under way.

    Raises:
        MisuseError: It is no campaign.
        RefusedError: `MALFORMED`: the ledger is damaged, or a shard is lost or not the one that it knows;
            `TOO_LARGE`: what is done does not fit in memory.
        DeviceError: Storage failed.
    """
    with Ledger(folder, write=False) as ledger:
        entries = ledger.entries()
        failures = ledger.failures()
    units = [
        {
            **{k: v for k, v in asdict(entry).items() if k in _UNITS.names},
            "unit": entry.unit.name,
            "fleet": entry.unit.fleet,
            "attack": entry.unit.attack,
            "attacker": entry.unit.attacker,
            "images": len(entry.unit.images),
        }
        for entry in entries
    ]
    kinds = (folders.SAMPLES, folders.REPLAYS)
    together((unpacked(data, name) for kind in kinds for name, data in _shards(folder, kind, entries)), folder)
    failed = [{"unit": unit, "reason": why} for unit, why in failures]
    tables = {
        folders.SAMPLES: _done(folder, folders.SAMPLES, shards.SAMPLES, entries),
        folders.REPLAYS: _done(folder, folders.REPLAYS, shards.REPLAYS, entries),
        "units": pa.Table.from_pylist(units, schema=_UNITS),
        "failures": pa.Table.from_pylist(failed, schema=_FAILURES),
    }
    connection = duckdb.connect(":memory:")
    try:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        connection.close()
        raise RefusedError(Refusal.MALFORMED, f"the results cannot be read: {_first(error)}") from error
    return connection


def query(folder: Path, statement: str) -> Answer:
    """Answers one SELECT.

    Args:
        folder: The campaign's.
        statement: SQL of DuckDB's kind.

    Raises:
        MisuseError: It is no campaign, or the statement is no single SELECT, or wrong.
        RefusedError, DeviceError: As `open_results`.
    """
    with open_results(folder) as connection:
        try:
            statements = connection.extract_statements(statement)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise MisuseError("only one SELECT is answered")
            relation = connection.execute(statements[0])
            columns = tuple(str(column[0]) for column in relation.description or ())
            return Answer(columns=columns, rows=tuple(relation.fetchall()))
        except duckdb.Error as error:
            raise MisuseError(f"the query fails: {_first(error)}") from error


def _done(folder: Path, kind: str, schema: pa.Schema, entries: Sequence[UnitEntry]) -> pa.Table:
    """Shards of units that are done, as the ledger knows them."""
    parts = [shards.read(schema, data, name) for name, data in _shards(folder, kind, entries)]
    return pa.concat_tables([schema.empty_table(), *parts])


def _shards(folder: Path, kind: str, entries: Sequence[UnitEntry]) -> Iterator[tuple[str, bytes]]:
    """Name and content of shards of units that are done."""
    try:
        for entry in entries:
            if entry.state == DONE:
                yield f"{kind}/{entry.unit.name}.parquet", shard_bytes(folder, kind, entry)
    except RefusedError as error:
        raise RefusedError(
            error.refusal, error.message, hint=f"variegate attack resume {folder} --redo-damaged does the unit again"
        ) from error


def _first(error: duckdb.Error) -> str:
    return quoted(str(error).partition("\n")[0])
