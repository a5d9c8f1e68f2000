"""Who got what: an append-only SQLite registry. It holds no seed and no key.

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
from variegate.keys.sqlite_file import damaged, has_schema, typed

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
_KINDS = tuple(int if f.type == "int" else str for f in fields(Row))


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
            whole = has_schema(self._db, _SCHEMA)
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            self._close()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
                raise MisuseError(f"cannot open {path}", hint="name a file in a folder that exists") from None
            raise RefusedError(Refusal.MALFORMED, f"{path} is not a registry{_why(error)}") from None
        if found != (_APPLICATION, _VERSION) or not whole:
            self._close()
            if found != (_APPLICATION, _VERSION):
                raise RefusedError(Refusal.MALFORMED, f"{path} is not a registry of version {_VERSION}")
            raise damaged(path)
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows, all or none.

        Raises:
            RefusedError: `MALFORMED`, when a device would get a sequence number twice, or the file is damaged.
        """
        holders = ", ".join("?" * len(_COLUMNS))
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    f"INSERT INTO copies ({', '.join(_COLUMNS)}) VALUES ({holders})",  # noqa: S608  constants
                    [astuple(row) for row in rows],
                )
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, *, buyer: str | None = None, ueid: str | None = None) -> Iterator[Row]:
        """Rows in the order in which they were made.

        Args:
            buyer: Only this buyer's.
            ueid: Only those of devices whose ueid begins with these digits, lower case.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
        """
        query = f"SELECT {', '.join(_COLUMNS)} FROM copies"  # noqa: S608  constants
        query += " WHERE (?1 IS NULL OR buyer = ?1) AND (?2 IS NULL OR substr(ueid, 1, length(?2)) = ?2) ORDER BY id"
        with self._errors():
            for values in self._db.execute(query, (buyer, ueid)):
                typed(self._path, [values], *_KINDS)
                yield Row(**dict(zip(_COLUMNS, values, strict=True)))

    def latest_sequences(self) -> Mapping[str, int]:
        """The highest sequence number of each device, by ueid.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
        """
        with self._errors():
            rows = self._db.execute("SELECT ueid, MAX(sequence) FROM copies GROUP BY ueid").fetchall()
            return dict(typed(self._path, rows, str, int))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise RefusedError(Refusal.MALFORMED, f"the registry cannot be used{_why(error)}") from None


_PRAGMAS = ("application_id", "user_version")


def _why(error: Exception) -> str:
    """SQLite's words, where they are words."""
    return f": {error}" if isinstance(error, sqlite3.Error) else ": it holds text that is not UTF-8"


def now() -> str:
    """The present time as rows hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parameters_text(parameters: Mapping[str, object]) -> str:
    """Parameters as rows hold them: JSON, keys sorted."""
    return json.dumps(parameters, sort_keys=True)
