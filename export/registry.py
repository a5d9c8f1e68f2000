"""Who got what: an append-only SQLite registry, which also knows the newest revocation list. No seed, no key.

Triggers refuse UPDATE and DELETE, so that a mistake in a script cannot rewrite history; whoever owns the file
can still replace it, so keep it where you keep your books.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.primitives import sha256
from variegate.keys.rotation import Revocations

_VERSION = 1
_APPLICATION = 0x56475247
_SCHEMA = """
CREATE TABLE copies (
  id INTEGER PRIMARY KEY,
  made TEXT NOT NULL, release TEXT NOT NULL, buyer TEXT NOT NULL, ueid TEXT NOT NULL, device_class TEXT NOT NULL,
  epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, security_counter INTEGER NOT NULL,
  parameters TEXT NOT NULL, base TEXT NOT NULL, component TEXT NOT NULL, artefact TEXT NOT NULL,
  file TEXT NOT NULL,
  UNIQUE (ueid, sequence)
) STRICT;
CREATE INDEX copies_by_buyer ON copies (buyer, epoch);
CREATE INDEX copies_by_artefact ON copies (artefact);
CREATE TRIGGER copies_no_update BEFORE UPDATE ON copies BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER copies_no_delete BEFORE DELETE ON copies BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
_REVOCATIONS = """
CREATE TABLE IF NOT EXISTS revocations (serial INTEGER PRIMARY KEY, digest BLOB NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS revocations_no_update BEFORE UPDATE ON revocations
  BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS revocations_no_delete BEFORE DELETE ON revocations
  BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
"""Made with the first list, so that registries from before there was such a table take lists, too."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One copy that was made.

    Attributes:
        made: UTC, ISO 8601.
        release: Name of the release.
        buyer: Buyer id.
        ueid: Of the device, hex.
        device_class: Of the device.
        epoch: The buyer's key epoch.
        sequence: Of the manifest, unique for a device.
        security_counter: Rollback counter.
        parameters: The rewriter's, JSON.
        base: SHA-256 of the base, hex.
        component: Root of the component, hex.
        artefact: SHA-256 of the file handed out, hex.
        file: Its name.
    """

    made: str
    release: str
    buyer: str
    ueid: str
    device_class: str
    epoch: int
    sequence: int
    security_counter: int
    parameters: str
    base: str
    component: str
    artefact: str
    file: str


_COLUMNS = tuple(f.name for f in fields(Row))


class Registry:
    """An open registry; a context manager.

    Args:
        path: The SQLite file; made when it is missing or empty, unless it is only read.
        read_only: Whether nothing may be written.

    Raises:
        MisuseError: When the file cannot be opened.
        RefusedError: `MALFORMED`, when the file is not a registry of this version.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        new = not read_only and (not path.exists() or path.stat().st_size == 0)
        # As a URI: the mode is what keeps a reader from making the file.
        uri = f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rwc'}"
        try:
            self._db = sqlite3.connect(uri, isolation_level=None, timeout=30, uri=True)
            self._db.execute("PRAGMA synchronous = FULL")
            if new:
                path.chmod(0o600)
                self._db.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION};"
                    f"PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            found = tuple(self._db.execute(f"PRAGMA {p}").fetchone()[0] for p in _PRAGMAS)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN:
                raise MisuseError(f"cannot open {path}", hint="name a file in a folder that exists") from None
            raise RefusedError(Refusal.MALFORMED, f"{path} is not a registry: {error}") from None
        if found != (_APPLICATION, _VERSION):
            self._db.close()
            raise RefusedError(Refusal.MALFORMED, f"{path} is not a registry of version {_VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows, all or none.

        Raises:
            RefusedError: `MALFORMED`, when a device would get a sequence number twice, or the file is damaged.
        """
        holders = ", ".join("?" * len(_COLUMNS))
        with self._transaction():
            self._db.executemany(
                f"INSERT INTO copies ({', '.join(_COLUMNS)}) VALUES ({holders})",  # noqa: S608  constants
                [astuple(row) for row in rows],
            )

    def remember(self, revoked: Revocations) -> None:
        """Remembers a revocation list as seen, so that an older one is refused from now on.

        Args:
            revoked: A list whose signature holds. All lists of one registry are one seller's.

        Raises:
            RefusedError: `ROLLED_BACK`, when a newer list was seen, or another one with this serial; `MALFORMED`,
                when the file is damaged.
        """
        digest = sha256(*sorted(revoked.ueids))
        with self._errors():
            self._db.executescript(_REVOCATIONS)
        with self._transaction():
            query = "SELECT serial, digest FROM revocations ORDER BY serial DESC LIMIT 1"
            serial, known = self._db.execute(query).fetchone() or (0, b"")
            if revoked.serial < serial:
                message = f"revocation list {revoked.serial} is older than list {serial}, which this registry has seen"
                raise RefusedError(Refusal.ROLLED_BACK, message, hint=_NEWEST)
            if revoked.serial == serial and digest != known:
                message = f"this registry has seen another revocation list {serial}"
                raise RefusedError(Refusal.ROLLED_BACK, message, hint=_NEWEST)
            self._db.execute("INSERT OR IGNORE INTO revocations VALUES (?, ?)", (revoked.serial, digest))

    def rows(self, *, buyer: str | None = None, ueid: str | None = None) -> Iterator[Row]:
        """Rows in the order in which they were made.

        Args:
            buyer: Only this buyer's.
            ueid: Only those of devices whose ueid begins with these digits, lower case.
        """
        query = f"SELECT {', '.join(_COLUMNS)} FROM copies"  # noqa: S608  constants
        query += " WHERE (?1 IS NULL OR buyer = ?1) AND (?2 IS NULL OR substr(ueid, 1, length(?2)) = ?2) ORDER BY id"
        with self._errors():
            for values in self._db.execute(query, (buyer, ueid)):
                yield Row(**dict(zip(_COLUMNS, values, strict=True)))

    def latest_sequences(self) -> Mapping[str, int]:
        """The highest sequence number of each device, by ueid."""
        with self._errors():
            return dict(self._db.execute("SELECT ueid, MAX(sequence) FROM copies GROUP BY ueid").fetchall())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and no other process writes meanwhile."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise RefusedError(Refusal.MALFORMED, f"registry: {error}") from None


_PRAGMAS = ("application_id", "user_version")
_NEWEST = "give the seller's newest list; another seller's copies belong in a registry of their own, see --registry"


def now() -> str:
    """The present time as rows hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parameters_text(parameters: Mapping[str, object]) -> str:
    """Parameters as rows hold them: JSON, keys sorted."""
    return json.dumps(parameters, sort_keys=True)
