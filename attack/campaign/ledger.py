"""The ledger: which unit is where, what came of each image, and the digests of shards. SQLite with a write-ahead log.

One process writes it, and holds a lock while it does. Outcomes of a unit under way are kept here, so that a kill loses
only images under way; when the unit's shards are on disk, one transaction notes their digests and drops the outcomes.
Killed before it, the same shards are written again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from variegate.attack.campaign.ledger_file import connected, damaged, locked, storage
from variegate.attack.campaign.messages import ImageDone, UnitDone
from variegate.attack.campaign.units import Unit
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.primitives import sha256
from variegate.keys.sqlite_file import has_schema

NAME = "ledger.sqlite"
SCHEMA = 1
CHOOSING = "choosing"
"""Of the meta: JSON, labels that were asked for to choose the images, by fleet."""
WAITING, DONE, FAILED = "waiting", "done", "failed"
_NAME = re.compile(r"[a-z0-9_-]+\.[a-z0-9_-]+\.[0-9]{4,}\.[0-9]{5,}")
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE units (
  name TEXT PRIMARY KEY, number INTEGER NOT NULL, fleet TEXT NOT NULL, attack TEXT NOT NULL, attacker INTEGER NOT NULL,
  images TEXT NOT NULL, state TEXT NOT NULL, samples_sha256 TEXT, samples_rows INTEGER, replays_sha256 TEXT,
  replays_rows INTEGER, queries INTEGER, clean_queries INTEGER, replay_queries INTEGER
) STRICT;
CREATE TABLE outcomes (
  unit TEXT NOT NULL, image INTEGER NOT NULL, sha256 TEXT NOT NULL, outcome BLOB NOT NULL, PRIMARY KEY (unit, image)
) STRICT;
CREATE TABLE failures (number INTEGER PRIMARY KEY, unit TEXT NOT NULL, reason TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True, kw_only=True)
class UnitEntry:
    """A unit as the ledger has it.

    Attributes:
        unit: The unit.
        state: "waiting", "done" or "failed".
        samples_sha256: Of its shard, hexadecimal; None until it is done. So all that follow.
        samples_rows: Rows.
        replays_sha256: Of its shard.
        replays_rows: Rows.
        queries: Labels that its attacks asked for.
        clean_queries: Labels of clean images.
        replay_queries: Labels of replayed samples.
    """

    unit: Unit
    state: str
    samples_sha256: str | None
    samples_rows: int | None
    replays_sha256: str | None
    replays_rows: int | None
    queries: int | None
    clean_queries: int | None
    replay_queries: int | None


class Ledger:
    """An opened ledger."""

    def __init__(self, folder: Path, *, write: bool) -> None:
        """Opens it.

        Args:
            folder: The campaign's.
            write: Whether it will be written: then no other process may hold it.

        Raises:
            MisuseError: There is none, or another process runs this campaign.
            RefusedError: `MALFORMED`: it is damaged, or of another version.
            DeviceError: Storage failed.
        """
        path = self._path = folder / NAME
        if not path.is_file():
            raise MisuseError(f"{folder} is no campaign", hint="variegate attack run FILE --out FOLDER makes one")
        self._lock = locked(folder) if write else None
        try:
            with storage(path):
                self._db = connected(path, write=write)
                self._db.isolation_level = None
                self._check()
                if write:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes it; whoever writes leaves one file without a log beside it."""
        if hasattr(self, "_db"):
            with contextlib.suppress(sqlite3.Error):
                if self._lock is not None:
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def meta(self) -> dict[str, str]:
        """What the campaign was made from, by name: digests, the software, labels to choose the images."""
        return dict(self._all("SELECT key, value FROM meta"))

    def note(self, key: str, value: str) -> None:
        """Adds to the meta what came to be known later.

        Raises:
            DeviceError: Storage failed.
        """
        with self._transaction():
            self._db.execute("INSERT INTO meta VALUES (?, ?)", (key, value))

    @property
    def choosing(self) -> dict[str, int]:
        """Labels that were asked for to choose the images, by fleet; empty in ledgers made before this was noted.

        Raises:
            RefusedError: `MALFORMED`.
        """
        try:
            labels = json.loads(self.meta.get(CHOOSING, "{}"))
        except (ValueError, RecursionError) as error:
            raise damaged(self._path) from error
        if not isinstance(labels, dict) or not all(type(number) is int for number in labels.values()):
            raise damaged(self._path)
        return labels

    def entries(self) -> list[UnitEntry]:
        """All units, in order.

        Raises:
            RefusedError: `MALFORMED`.
        """
        rows = self._all(
            "SELECT name, fleet, attack, attacker, images, state, samples_sha256, samples_rows, replays_sha256, "
            "replays_rows, queries, clean_queries, replay_queries FROM units ORDER BY number"
        )
        try:
            return [_entry(row) for row in rows]
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged(self._path) from error

    def outcomes(self, unit: str) -> dict[int, bytes]:
        """Outcomes of a unit under way, by the image's place.

        Raises:
            RefusedError: `MALFORMED`: one was changed.
        """
        out = {}
        for image, digest, data in self._all("SELECT image, sha256, outcome FROM outcomes WHERE unit = ?", unit):
            if not isinstance(data, bytes) or sha256(data).hex() != digest:
                raise RefusedError(Refusal.MALFORMED, f"the ledger's outcome of image {image} of {unit} was changed")
            if type(image) is not int:
                raise damaged(self._path)
            out[image] = data
        return out

    def counts(self) -> dict[str, int]:
        """Outcomes by unit, where there are any."""
        return dict(self._all("SELECT unit, count(*) FROM outcomes GROUP BY unit"))

    def failures(self) -> list[tuple[str, str]]:
        """Failed attempts, and units done again: unit and reason, in order."""
        return [(unit, reason) for unit, reason in self._all("SELECT unit, reason FROM failures ORDER BY number")]

    def keep(self, images: Sequence[ImageDone]) -> None:
        """Keeps outcomes.

        Raises:
            DeviceError: Storage failed.
        """
        rows = [(done.unit, done.image, sha256(done.outcome).hex(), done.outcome) for done in images]
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?)", rows)

    def finish(self, done: UnitDone) -> None:
        """Notes that a unit's shards are on disk.

        Raises:
            DeviceError: Storage failed.
        """
        values = (
            sha256(done.samples).hex(),
            done.samples_rows,
            sha256(done.replays).hex(),
            done.replays_rows,
            done.queries,
            done.clean_queries,
            done.replay_queries,
            done.unit,
        )
        with self._transaction():
            self._db.execute(
                "UPDATE units SET state = 'done', samples_sha256 = ?, samples_rows = ?, replays_sha256 = ?, "
                "replays_rows = ?, queries = ?, clean_queries = ?, replay_queries = ? WHERE name = ?",
                values,
            )
            self._db.execute("DELETE FROM outcomes WHERE unit = ?", (done.unit,))

    def fail(self, unit: str, reason: str, *, last: bool) -> None:
        """Notes a failed attempt; after the last the unit is left.

        Raises:
            DeviceError: Storage failed.
        """
        with self._transaction():
            self._db.execute("INSERT INTO failures (unit, reason) VALUES (?, ?)", (unit, reason))
            if last:
                self._db.execute("UPDATE units SET state = 'failed' WHERE name = ?", (unit,))

    def revive(self) -> None:
        """Lets failed units be tried again.

        Raises:
            DeviceError: Storage failed.
        """
        with self._transaction():
            self._db.execute("UPDATE units SET state = 'waiting' WHERE state = 'failed'")

    def redo(self, damaged: Mapping[str, str]) -> None:
        """Lets units be done again from the start, and notes among the failures why.

        Args:
            damaged: Names, and what is wrong with each.

        Raises:
            DeviceError: Storage failed.
        """
        names = [(unit,) for unit in damaged]
        with self._transaction():
            self._db.executemany(
                "INSERT INTO failures (unit, reason) VALUES (?, ?)",
                [(unit, f"to be done again: {reason}") for unit, reason in damaged.items()],
            )
            self._db.executemany(
                "UPDATE units SET state = 'waiting', samples_sha256 = NULL, samples_rows = NULL, "
                "replays_sha256 = NULL, replays_rows = NULL, queries = NULL, clean_queries = NULL, "
                "replay_queries = NULL WHERE name = ?",
                names,
            )
            self._db.executemany("DELETE FROM outcomes WHERE unit = ?", names)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with storage(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _all(self, statement: str, *values: str) -> list[Any]:
        with storage(self._path):
            return self._db.execute(statement, values).fetchall()

    def _check(self) -> None:
        # First of all.
        if not has_schema(self._db, _TABLES):
            raise damaged(self._path)
        if self._db.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise damaged(self._path)
        if self.meta.get("schema") != str(SCHEMA):
            raise RefusedError(Refusal.MALFORMED, "the ledger is of another version")


def create(folder: Path, units: Sequence[Unit], meta: Mapping[str, str]) -> None:
    """Makes a ledger in which all units wait.

    Args:
        folder: Has none yet.
        units: In order.
        meta: Digests of what the campaign was made from.

    Raises:
        DeviceError: Storage failed.
    """
    path = folder / NAME
    with storage(path), contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(_TABLES)
        db.executemany("INSERT INTO meta VALUES (?, ?)", [("schema", str(SCHEMA)), *sorted(meta.items())])
        db.executemany(
            "INSERT INTO units (name, number, fleet, attack, attacker, images, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (unit.name, i, unit.fleet, unit.attack, unit.attacker, json.dumps(list(unit.images)), WAITING)
                for i, unit in enumerate(units)
            ],
        )
        db.commit()


def _entry(row: Sequence[Any]) -> UnitEntry:
    name, fleet, attack, attacker, images, state, *rest = row
    unit = Unit(name=name, fleet=fleet, attack=attack, attacker=attacker, images=tuple(json.loads(images)))
    # The name is part of a path.
    if not _NAME.fullmatch(name) or name.rpartition(".")[0] != f"{fleet}.{attack}.{attacker:04d}":
        raise ValueError(name)
    if not all(type(place) is int for place in unit.images):
        raise ValueError(images)
    if state not in (WAITING, DONE, FAILED) or (state == DONE and None in rest):
        raise ValueError(state)
    kinds = (str, int, str, int, int, int, int)
    if not all(value is None or type(value) is kind for value, kind in zip(rest, kinds, strict=True)):
        raise ValueError(rest)
    return UnitEntry(
        unit=unit,
        state=state,
        samples_sha256=rest[0],
        samples_rows=rest[1],
        replays_sha256=rest[2],
        replays_rows=rest[3],
        queries=rest[4],
        clean_queries=rest[5],
        replay_queries=rest[6],
    )
