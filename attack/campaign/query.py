"""SQL over a campaign's results, by DuckDB: views `samples`, `replays`, `units` and `failures`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from variegate.attack.campaign import folder as folders
from variegate.attack.campaign import shards
from variegate.attack.campaign.check import shard_bytes
from variegate.attack.campaign.ledger import DONE, Entry, Ledger
from variegate.attack.campaign.schema import printable
from variegate.keys.errors import MisuseError, Refusal, RefusedError

_READS = frozenset({duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN})
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
    """A connection with views of what is done; it can neither write nor read any file but these shards.

    Args:
        folder: The campaign's; it may be under way.

    Raises:
        MisuseError: It is no campaign.
        RefusedError: `MALFORMED`: the ledger is damaged, or a shard is lost or not the one that it knows.
        DeviceError: Storage failed.
    """
    with Ledger(folder, write=False) as ledger:
        entries = ledger.entries()
        failures = ledger.failures()
    done = [entry.unit for entry in entries if entry.state == DONE]
    for entry in entries:
        if entry.state == DONE:
            _check(folder, entry)
    connection = duckdb.connect(":memory:")
    try:
        for kind, schema in ((folders.SAMPLES, shards.SAMPLES), (folders.REPLAYS, shards.REPLAYS)):
            paths = [str(folders.shard(folder.absolute(), kind, unit)) for unit in done]
            if paths:
                listed = ", ".join(_quoted(path) for path in paths)
                connection.execute(f"CREATE VIEW {kind} AS SELECT * FROM read_parquet([{listed}])")  # noqa: S608
            else:
                _table(connection, kind, schema.empty_table())
        rows = [
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
        _table(connection, "units", pa.Table.from_pylist(rows, schema=_UNITS))
        schema = pa.schema([("unit", pa.string()), ("reason", pa.string())])
        failed = pa.Table.from_pylist([{"unit": unit, "reason": why} for unit, why in failures], schema=schema)
        _table(connection, "failures", failed)
        allowed = ", ".join(_quoted(f"{folder.absolute() / kind}/") for kind in (folders.SAMPLES, folders.REPLAYS))
        connection.execute(f"SET allowed_directories = [{allowed}]")
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
            if len(statements) != 1 or statements[0].type not in _READS:
                raise MisuseError("only one SELECT is answered")
            relation = connection.execute(statements[0])
            columns = tuple(str(column[0]) for column in relation.description or ())
            return Answer(columns=columns, rows=tuple(relation.fetchall()))
        except duckdb.Error as error:
            raise MisuseError(f"the query fails: {_first(error)}") from error


def _check(folder: Path, entry: Entry) -> None:
    try:
        for kind in (folders.SAMPLES, folders.REPLAYS):
            shard_bytes(folder, kind, entry)
    except RefusedError as error:
        raise RefusedError(
            error.refusal, error.message, hint=f"variegate attack resume {folder} --redo-damaged does the unit again"
        ) from error


def _table(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    connection.register("given", rows)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")  # noqa: S608  names are ours
    connection.unregister("given")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first(error: duckdb.Error) -> str:
    return printable(str(error).partition("\n")[0])
