"""Part of `assurance.resume` and `benchmarks.scale`: small campaigns on real data, through the command."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from testbed.subjects import GTSRB
from testbed.zoo import data
from variegate.attack.campaign.data import FOLDER_VARIABLE

LEDGER_TABLES = ("meta", "units", "outcomes")
"""The tables of a campaign's results in its ledger; `failures` is its history."""


def write_base(folder: Path) -> str:
    """Writes the small GTSRB network as ONNX.

    Returns:
        Its name.
    """
    (folder / "gtsrb_small.onnx").write_bytes(GTSRB.base.model.SerializeToString(deterministic=True))
    return "gtsrb_small.onnx"


def command(*arguments: str | Path) -> list[str]:
    """The command line of `variegate attack`."""
    return [sys.executable, "-m", "variegate.cli.main", "attack", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread for each process, and the data folder."""
    return {**os.environ, "OMP_NUM_THREADS": "1", FOLDER_VARIABLE: str(data.data_root())}


def attack(*arguments: str | Path) -> str:
    """Runs `variegate attack`; its standard output."""
    return subprocess.run(command(*arguments), env=environment(), check=True, stdout=subprocess.PIPE, text=True).stdout


def different_bytes(one: Path, other: Path) -> int:
    """Bytes in which two campaigns' results differ: every shard, and the ledger's content as text."""
    names = {str(path.relative_to(root)) for root in (one, other) for path in root.rglob("*.parquet")}
    total = sum(_differ(_bytes(one / name), _bytes(other / name)) for name in sorted(names))
    return total + sum(_differ(_rows(one, table), _rows(other, table)) for table in LEDGER_TABLES)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _rows(folder: Path, table: str) -> bytes:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        return repr(db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()).encode()


def _differ(one: bytes, other: bytes) -> int:
    common = min(len(one), len(other))
    return sum(a != b for a, b in zip(one[:common], other[:common], strict=True)) + abs(len(one) - len(other))
