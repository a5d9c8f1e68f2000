"""Rows of the studies, written as Parquet under `study/` in a campaign's folder."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from variegate.keys.errors import DeviceError
from variegate.keys.files import PUBLIC, write_atomic


@dataclass(frozen=True, kw_only=True)
class CosineRow:
    """One pair of copies at one image, for `study/gradient_cosine.parquet`.

    Attributes:
        hypothesis: "H1", "H2" or "H3" (`whitebox.gradients`).
        fleet: The copies' kind.
        cosine: Of their loss gradients.
    """

    hypothesis: str
    fleet: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ReplicationRow:
    """One sample shown to one victim, for `study/collusion.parquet` and studies of the same form.

    Attributes:
        fleet: The copies' kind.
        method: How the sample was made.
        colluders: Copies that the attackers own.
        image: Index in the data.
        victim: Copy in the fleet.
        fooled: Whether the victim answers the sample with another class than the image's own.
        clean_right: Whether victim and colluders all read the clean image rightly.
        l2: Distance of the frame shown to the clean one, pixels in 0..1.
    """

    fleet: str
    method: str
    colluders: int
    image: int
    victim: int
    fooled: bool
    clean_right: bool
    l2: float


COSINES: Final = pa.schema([("hypothesis", pa.string()), ("fleet", pa.string()), ("cosine", pa.float64())])
REPLICATION: Final = pa.schema(
    [
        ("fleet", pa.string()),
        ("method", pa.string()),
        ("colluders", pa.int32()),
        ("image", pa.int32()),
        ("victim", pa.int32()),
        ("fooled", pa.bool_()),
        ("clean_right", pa.bool_()),
        ("l2", pa.float64()),
    ]
)


def write_cosines(path: Path, rows: Iterable[CosineRow]) -> None:
    """Writes `study/gradient_cosine.parquet`: whole or not at all, the same rows to the same bytes.

    Raises:
        DeviceError, MisuseError: The file cannot be written.
    """
    _write(path, COSINES, [vars(row) for row in rows])


def write_replication(path: Path, rows: Iterable[ReplicationRow]) -> None:
    """Writes `study/collusion.parquet` or one of its form, as `write_cosines`.

    Raises:
        DeviceError, MisuseError: The file cannot be written.
    """
    _write(path, REPLICATION, [vars(row) for row in rows])


def _write(path: Path, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    packed = io.BytesIO()
    pq.write_table(table, packed, compression="zstd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{path} cannot be written: {error.strerror}") from error
    write_atomic(path, packed.getvalue(), mode=PUBLIC, overwrite=True)
