"""A campaign's folder, read and checked: nothing in it is trusted.

Shards are Parquet with the columns of the README of `attack`. What each unpacks to is looked at before any is unpacked;
then they are loaded into a DuckDB database in memory, which itself reads no file. After that no file is read again but
for the few samples that are shown.
"""

# ruff: noqa: S608  queries are made of this module's own words; values are parameters

from __future__ import annotations

import contextlib
import hashlib
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from variegate.attack.campaign import config as campaign_file
from variegate.attack.campaign import ledger
from variegate.attack.campaign.folder import CONFIG, IMAGES, MAX_SHARD_BYTES, REPLAYS, SAMPLES, shard
from variegate.attack.campaign.units import units as units_of
from variegate.attack.campaign.unpacked import MEMORY_LIMIT, together, unpacked
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import read_capped
from variegate.keys.primitives import sha256

KINDS = (SAMPLES, REPLAYS)
MAX_CONFIG_BYTES = 4 * 1024 * 1024

_TEXT, _INT, _DOUBLE = ("VARCHAR",), ("INTEGER", "BIGINT", "SMALLINT"), ("DOUBLE", "FLOAT")
_NAMES = dict.fromkeys(("fleet", "attack", "profile", "norm"), _TEXT)
COLUMNS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "samples": {
        **_NAMES,
        **dict.fromkeys(("attacker", "image", "true_class", "target"), _INT),
        **dict.fromkeys(("status", "reason"), _TEXT),
        **dict.fromkeys(("label", "queries"), _INT),
        "distance": _DOUBLE,
        "dtype": _TEXT,
        "sample": ("BLOB",),
        "trace_queries": tuple(f"{kind}[]" for kind in _INT),
        "trace_distance": tuple(f"{kind}[]" for kind in _DOUBLE),
    },
    "replays": {
        **_NAMES,
        **dict.fromkeys(("attacker", "image", "true_class", "target", "budget"), _INT),
        "overshoot": _DOUBLE,
        **dict.fromkeys(("victim", "label", "clean_label"), _INT),
        **dict.fromkeys(("l2", "linf"), _DOUBLE),
    },
}
"""Column -> types of DuckDB that are accepted."""

_SHARD = "shard"
_LARGE = ("sample",)
"""Left in the shards: only a few are shown."""
_MAY_BE_NULL = {"label", "sample", "reason", "target"}
_KEY = "fleet, attack, profile, norm, attacker, image"
_SAME = " AND ".join(f"samples.{name} = replays.{name}" for name in _KEY.split(", "))
_CHECKS = (
    ("samples", "holds one image twice", f"GROUP BY {_KEY} HAVING count(*) > 1"),
    ("samples", "holds a number out of range", "WHERE isnan(distance) OR distance < 0 OR queries < 0"),
    ("samples", "aims at an image's own class", "WHERE target = true_class"),
    ("samples", "holds a trace of two lengths", "WHERE len(trace_queries) <> len(trace_distance)"),
    (
        "samples",
        "holds a trace that does not ascend or lacks values",
        """WHERE list_count(trace_queries) <> len(trace_queries) OR trace_queries <> list_sort(trace_queries)
        OR list_count(trace_distance) <> len(trace_distance) OR list_min(trace_distance) < 0
        OR isnan(list_max(trace_distance))""",
    ),
    ("samples", "holds a sample without its label", "WHERE status = 'found' AND label IS NULL"),
    ("replays", "holds one row twice", f"GROUP BY {_KEY}, budget, overshoot, victim HAVING count(*) > 1"),
    ("replays", "lacks labels", "WHERE label IS NULL"),
    ("replays", "holds a number out of range", "WHERE NOT isfinite(overshoot) OR overshoot <= 0 OR budget < 0"),
    (
        "replays",
        "holds a distance out of range",
        "WHERE NOT (isfinite(l2) AND l2 >= 0 AND isfinite(linf) AND linf >= 0)",
    ),
    (
        "replays",
        "lacks the attacker's own answer to a frame",
        f"GROUP BY {_KEY}, budget, overshoot HAVING count(*) FILTER (victim = attacker) = 0",
    ),
    ("replays", "has two classes for one image", f"GROUP BY {_KEY} HAVING count(DISTINCT true_class) > 1"),
    (
        "replays",
        "holds frames of samples that are not there, of another class, or that aim at another one",
        f"""ANTI JOIN samples ON {_SAME} AND samples.true_class = replays.true_class
        AND samples.target IS NOT DISTINCT FROM replays.target""",
    ),
)
"""Table, what is wrong with it, and which rows show that."""


@dataclass(frozen=True)
class Shard:
    """One file that figures come from.

    Attributes:
        path: Relative to the campaign's folder, with slashes.
        sha256: In hexadecimal.
        size: In bytes.
        rows: In it.
    """

    path: str
    sha256: str
    size: int
    rows: int


@dataclass(frozen=True)
class Campaign:
    """A campaign's results, loaded.

    Attributes:
        folder: Where it lies.
        config: `campaign.toml`, parsed.
        config_bytes: Its bytes.
        shards: Every file read, by path.
        has_ledger: Whether there is one. Without it nothing tells whether shards are missing or were changed.
        units: Units of work by state, from the ledger; empty without one. Shards of units not done are left out.
        meta: What the ledger says of the campaign's inputs and of the software that worked on it; empty without one.
        db: Tables `samples` (without frames), `replays`, and `gradient_cosine` and `collusion`, empty where the study
            was not made.
    """

    folder: Path
    config: Mapping[str, Any]
    config_bytes: bytes
    shards: tuple[Shard, ...]
    has_ledger: bool
    units: Mapping[str, int]
    meta: Mapping[str, str]
    db: duckdb.DuckDBPyConnection

    @property
    def name(self) -> str:
        """The campaign's own name, else its folder's."""
        name = self.config.get("name")
        if not isinstance(name, str):
            section = self.config.get("campaign")
            name = section.get("name") if isinstance(section, dict) else None
        return name if isinstance(name, str) and name else self.folder.resolve().name

    @property
    def images_sha256(self) -> str:
        """Of the clean images, hexadecimal; empty without a ledger."""
        return self.meta.get(IMAGES, "")

    def rows(self, query: str, parameters: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        """Rows of a query over the tables.

        Raises:
            RefusedError: `TOO_LARGE`: it needs too much memory.
        """
        try:
            return self.db.execute(query, parameters or {}).fetchall()
        except duckdb.OutOfMemoryException as error:
            raise RefusedError(Refusal.TOO_LARGE, f"the results of {self.folder} need too much memory") from error


def leave_out_far(campaign: Campaign, max_l2: float, max_linf: float) -> None:
    """Takes frames farther from their image than this for ones that fool nobody, from here on.

    Args:
        campaign: Loaded; its tables are changed.
        max_l2: Pixels in 0..1; infinite for any.
        max_linf: Likewise.
    """
    bounds = {"l2": max_l2, "linf": max_linf}
    campaign.db.execute("UPDATE replays SET label = true_class WHERE l2 > $l2 OR linf > $linf", bounds)
    campaign.db.execute(
        "UPDATE samples SET label = true_class WHERE distance > if(norm = 'linf', $linf, $l2) AND label IS NOT NULL",
        bounds,
    )
    # A sample's other length is that of its frame as it was found.
    campaign.db.execute(
        f"""UPDATE samples SET label = samples.true_class FROM replays WHERE {_SAME} AND samples.label IS NOT NULL
        AND replays.victim = replays.attacker AND budget = 0 AND overshoot = 1 AND (l2 > $l2 OR linf > $linf)""",
        bounds,
    )


@contextlib.contextmanager
def open_campaign(folder: Path) -> Iterator[Campaign]:
    """Loads a campaign.

    Args:
        folder: Of the campaign.

    Raises:
        MisuseError: There is no campaign.
        RefusedError: `MALFORMED`: its configuration, its ledger or a shard is damaged, has other columns, misses what
            the others refer to, or contradicts itself; or the ledger's units are not the configuration's. `TOO_LARGE`:
            it unpacks to too much.
        DeviceError: Storage failed.
    """
    config_bytes = read_capped(folder / CONFIG, limit=MAX_CONFIG_BYTES)
    try:
        config = tomllib.loads(config_bytes.decode())
    except (ValueError, RecursionError) as error:  # endless numbers and nests, too
        raise _malformed(f"{folder / CONFIG} is not TOML") from error
    db = duckdb.connect(
        config={
            "threads": 2,
            "autoinstall_known_extensions": False,
            "memory_limit": MEMORY_LIMIT,
            "enable_external_access": False,
        }
    )
    try:
        files, units, meta = _files(folder, config_bytes)
        shards = _loaded(db, folder, files)
        has_ledger = units is not None
        yield Campaign(folder, config, config_bytes, shards, has_ledger, units or {}, meta, db)
    finally:
        db.close()


def _files(
    folder: Path, config_bytes: bytes
) -> tuple[list[tuple[str, Path, str | None]], dict[str, int] | None, dict[str, str]]:
    """Shards to read, with their kind and the ledger's digest; its units by state, None without one; its meta."""
    if not (folder / ledger.NAME).exists():
        files = [(kind, path, None) for kind in KINDS for path in sorted((folder / kind).glob("*.parquet"))]
        return list[tuple[str, Path, str | None]](files), None, {}
    done: list[tuple[str, Path, str | None]] = []
    with ledger.Ledger(folder, write=False) as book:
        entries, meta = book.entries(), book.meta
        if meta.get(CONFIG) != hashlib.sha256(config_bytes).hexdigest():
            raise _malformed(f"{folder / CONFIG} was changed since the campaign was made")
    if [entry.unit for entry in entries] != units_of(campaign_file.parse(config_bytes)):
        raise _malformed(f"the ledger of {folder} does not have the units of its {CONFIG}")
    units = Counter(entry.state for entry in entries)
    for entry in entries:
        if entry.state == ledger.DONE:
            done.append((SAMPLES, shard(folder, SAMPLES, entry.unit), entry.samples_sha256))
            done.append((REPLAYS, shard(folder, REPLAYS, entry.unit), entry.replays_sha256))
    return sorted(done, key=lambda file: (KINDS.index(file[0]), file[1])), dict(units), meta


def _loaded(
    db: duckdb.DuckDBPyConnection, folder: Path, files: list[tuple[str, Path, str | None]]
) -> tuple[Shard, ...]:
    for table in COLUMNS:
        listed = ", ".join(f"{column} {COLUMNS[table][column][0]}" for column in _kept(table))
        db.execute(f"CREATE TABLE {table} ({listed})")
    contents = (_content(path, stated) for _, path, stated in files)
    together((unpacked(data, str(path)) for (_, path, _), data in zip(files, contents, strict=True)), folder)
    shards = tuple(_load(db, table, path, stated, folder) for table, path, stated in files)
    try:
        for kind, fault, rows in _CHECKS:
            if db.execute(f"SELECT 1 FROM {kind} {rows} LIMIT 1").fetchone() is not None:
                raise _malformed(f"{folder / kind} {fault}")
    except duckdb.OutOfMemoryException as error:
        raise RefusedError(Refusal.TOO_LARGE, f"the shards of {folder} need too much memory") from error
    except duckdb.Error as error:
        raise _malformed(f"the shards of {folder} cannot be read together") from error
    return shards


def _kept(table: str) -> list[str]:
    return [column for column in COLUMNS[table] if column not in _LARGE]


def _content(path: Path, stated: str | None) -> bytes:
    """A shard, if it is the one that the ledger has."""
    if not path.is_file():
        raise _malformed(f"{path} is missing, and the ledger has it")
    data = read_capped(path, limit=MAX_SHARD_BYTES)
    if stated is not None and stated != sha256(data).hex():
        raise _malformed(f"{path} is not the shard that the ledger has")
    return data


def _load(db: duckdb.DuckDBPyConnection, table: str, path: Path, stated: str | None, folder: Path) -> Shard:
    data, names = _content(path, stated), _kept(table)
    try:
        file: Any = pq.ParquetFile(pa.BufferReader(data))
        # Of the frames only the type is looked at.
        db.register(_SHARD, file.schema_arrow.empty_table())
        types = {row[0]: row[1] for row in db.execute(f"DESCRIBE SELECT * FROM {_SHARD}").fetchall()}
        for column, kinds in COLUMNS[table].items():
            if types.get(column) not in kinds:
                raise _malformed(f"{path} has no column {column} of the type {kinds[0].lower()}")
        content: Any = file.read(columns=names)
        content.validate(full=True)
        db.register(_SHARD, content)
        nulls = " OR ".join(f"{column} IS NULL" for column in names if column not in _MAY_BE_NULL)
        if db.execute(f"SELECT 1 FROM {_SHARD} WHERE {nulls} LIMIT 1").fetchone() is not None:
            raise _malformed(f"{path} lacks values")
        db.execute(f"INSERT INTO {table} SELECT {', '.join(names)} FROM {_SHARD}")
        db.unregister(_SHARD)
    except duckdb.OutOfMemoryException as error:
        raise RefusedError(Refusal.TOO_LARGE, f"the shards of {folder} need too much memory") from error
    except (duckdb.Error, pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise _malformed(f"{path} is not a whole Parquet file") from error
    return Shard(path.relative_to(folder).as_posix(), sha256(data).hex(), len(data), content.num_rows)


def _malformed(message: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED, message, hint="variegate attack verify says what is left of a campaign")


def table_of(value: object) -> dict[str, Any]:
    """A TOML table, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def check_folder(folder: Path) -> None:
    """Refuses what is no campaign's folder.

    Raises:
        MisuseError: It is not.
    """
    if not (folder / CONFIG).is_file():
        raise MisuseError(f"{folder} holds no campaign", hint=f"name a folder with a {CONFIG}")
