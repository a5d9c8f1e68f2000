"""Copies and their buyers: an append-only SQLite registry, with the newest revocation list. No seed, no key.

Numbers of copies are reserved here before anything is signed, so that exports at the same time get different numbers; a
copy is entered when its file is whole. Numbers are at least the time in microseconds. So if a seller has two
registries, because one was lost or each is beside its own release, a later export has higher numbers than an earlier
one, as long as no clock is set back and no two exports for one device fall into the same microseconds.

Triggers refuse UPDATE and DELETE, so that a mistake in a script cannot rewrite history. Whoever owns the file can still
replace it: keep it as safe as your books.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, TracebackType
from typing import Self
from urllib.parse import quote

from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import made_or_empty
from variegate.keys.primitives import HASH_BYTES, sha256
from variegate.keys.rotation import Revocations
from variegate.keys.sqlite_file import complete, damaged, has_schema, is_damage, refuse_folder, run, transaction, typed

_VERSION = 1
_APPLICATION = 0x56475247
_OURS = (_APPLICATION, _VERSION)
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
_RESERVED = """
CREATE TABLE IF NOT EXISTS reserved (
  id INTEGER PRIMARY KEY,
  made TEXT NOT NULL, ueid TEXT NOT NULL, sequence INTEGER NOT NULL, security_counter INTEGER NOT NULL,
  UNIQUE (ueid, sequence)
) STRICT;
CREATE TRIGGER IF NOT EXISTS reserved_no_update BEFORE UPDATE ON reserved
  BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS reserved_no_delete BEFORE DELETE ON reserved
  BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
_REVOCATIONS = """
CREATE TABLE IF NOT EXISTS revocations (serial INTEGER PRIMARY KEY, digest BLOB NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS revocations_no_update BEFORE UPDATE ON revocations
  BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS revocations_no_delete BEFORE DELETE ON revocations
  BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
_LATER = (_RESERVED, _REVOCATIONS)
"""Tables that older files lack, and get when they are next opened to write."""
_HIGHEST = """
SELECT MAX(sequence), MAX(security_counter) FROM (
  SELECT sequence, security_counter FROM copies WHERE ueid = ?1
  UNION ALL SELECT sequence, security_counter FROM reserved WHERE ueid = ?1)
"""
_MAX_NUMBER = (1 << 63) - 1
_WAIT_S = 30.0


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


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of one copy.

    Attributes:
        sequence: No other copy for this device has it.
        security_counter: Rollback counter.
    """

    sequence: int
    security_counter: int


def _microseconds() -> int:
    return time.time_ns() // 1000


class Registry:
    """An open registry; a context manager.

    Args:
        path: The SQLite file; made when it is missing or empty, unless it is only read.
        read_only: Whether nothing may be written.
        clock: The start of the numbers: Unix time in microseconds.

    Raises:
        MisuseError: When the file cannot be opened.
        RefusedError: `MALFORMED`, when the file is damaged, or not a registry of this version.
        DeviceError: Storage failed or is busy.
    """

    def __init__(self, path: Path, *, read_only: bool = False, clock: Callable[[], int] = _microseconds) -> None:
        refuse_folder(path)
        self._path = path
        self._clock = clock
        empty = not read_only and made_or_empty(path)
        # As a URI: its mode keeps SQLite from making the file, which it would do through a link.
        uri = f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rw'}"
        try:
            self._db = sqlite3.connect(uri, isolation_level=None, timeout=_WAIT_S, uri=True)
            self._db.execute("PRAGMA synchronous = FULL")
            self._prepare(read_only=read_only, empty=empty)
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            self._close()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
                raise MisuseError(f"cannot open {path}", hint="name a file in a folder that exists") from None
            if not is_damage(error):
                raise DeviceError(f"{path} cannot be used{_why(error)}") from error
            raise RefusedError(Refusal.MALFORMED, f"{path} is not a registry{_why(error)}") from None
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def _prepare(self, *, read_only: bool, empty: bool) -> None:
        """Makes missing tables, and checks that the file is ours; a foreign file is not written to."""
        if empty:
            with transaction(self._db):
                # Of two processes that open it at once, one makes it.
                if not self._db.execute("SELECT 1 FROM sqlite_schema").fetchone():
                    versions = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};"
                    run(self._db, "".join([_SCHEMA, *_LATER, versions]))
        if tuple(self._db.execute(f"PRAGMA {p}").fetchone()[0] for p in _PRAGMAS) != _OURS:
            raise RefusedError(Refusal.MALFORMED, f"{self._path} is not a registry of version {_VERSION}")
        if not has_schema(self._db, _SCHEMA, _LATER):
            raise damaged(self._path)
        if not read_only:
            complete(self._db, _SCHEMA, _LATER)

    def reserve(self, wanted: Sequence[tuple[str, int | None]]) -> list[Numbers]:
        """Reserves numbers for copies, in one transaction; no other export gets them.

        Args:
            wanted: For each copy the device's ueid, and its security counter; None for the time, or one above all that
                the device was ever given where that is more. Copies for one device that leave it open share one.

        Returns:
            The numbers, in the order of `wanted`.

        Raises:
            MisuseError: A device has had the highest number there is.
            RefusedError: `MALFORMED`, when the file is damaged.
            DeviceError: Storage failed or is busy.
        """
        opened: dict[str, int] = {}
        taken: list[Numbers] = []
        with self._errors(), transaction(self._db):
            present = self._clock()
            for ueid, counter in wanted:
                row = self._db.execute(_HIGHEST, (ueid,))
                ((sequence, highest),) = typed(self._path, row, (int, NoneType), (int, NoneType))
                if min(sequence or 0, highest or 0) < 0:
                    raise damaged(self._path)
                if counter is None and ueid not in opened:
                    opened[ueid] = present if highest is None else max(highest + 1, present)
                numbers = Numbers(
                    sequence=max((sequence or 0) + 1, present),
                    security_counter=opened[ueid] if counter is None else counter,
                )
                if max(numbers.sequence, numbers.security_counter) > _MAX_NUMBER:
                    raise MisuseError(f"device {ueid} was given the highest number there is")
                self._db.execute(
                    "INSERT INTO reserved (made, ueid, sequence, security_counter) VALUES (?, ?, ?, ?)",
                    (now(), ueid, numbers.sequence, numbers.security_counter),
                )
                taken.append(numbers)
        return taken

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows, all or none.

        Raises:
            RefusedError: `MALFORMED`, when a device would get a sequence number twice, or the file is damaged.
            DeviceError: Storage failed or is busy.
        """
        holders = ", ".join("?" * len(_COLUMNS))
        with self._errors(), transaction(self._db):
            self._db.executemany(
                f"INSERT INTO copies ({', '.join(_COLUMNS)}) VALUES ({holders})",  # noqa: S608  constants
                [astuple(row) for row in rows],
            )

    def remember(self, revoked: Revocations) -> None:
        """Remembers a revocation list as seen, so that an older one is refused from now on.

        Args:
            revoked: A list with a valid signature. All lists of one registry are of one seller.

        Raises:
            RefusedError: `ROLLED_BACK`, when a newer list was seen, or another one with this serial; `MALFORMED`,
                when the file is damaged.
            DeviceError: Storage failed or is busy.
        """
        digest = sha256(*sorted(revoked.ueids))
        with self._errors(), transaction(self._db):
            query = "SELECT serial, digest FROM revocations ORDER BY serial DESC LIMIT 1"
            rows = typed(self._path, self._db.execute(query), int, bytes)
            serial, known = rows[0] if rows else (0, b"")
            if rows and len(known) != HASH_BYTES:
                raise damaged(self._path)
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

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed or is busy.
        """
        query = f"SELECT {', '.join(_COLUMNS)} FROM copies"  # noqa: S608  constants
        query += " WHERE (?1 IS NULL OR buyer = ?1) AND (?2 IS NULL OR substr(ueid, 1, length(?2)) = ?2) ORDER BY id"
        with self._errors():
            for values in self._db.execute(query, (buyer, ueid)):
                typed(self._path, [values], *_KINDS)
                yield Row(**dict(zip(_COLUMNS, values, strict=True)))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            message = f"the registry cannot be used{_why(error)}"
            # Damage is refused, and so is a row that breaks a rule of the tables: a number given twice.
            if not is_damage(error) and not isinstance(error, sqlite3.IntegrityError):
                raise DeviceError(message) from error
            raise RefusedError(Refusal.MALFORMED, message) from None


_PRAGMAS = ("application_id", "user_version")
_NEWEST = "give the seller's newest list; another seller's copies belong in a registry of their own, see --registry"


def _why(error: Exception) -> str:
    """SQLite's words, where they are words."""
    return f": {error}" if isinstance(error, sqlite3.Error) else ": it holds text that is not UTF-8"


def now() -> str:
    """The present time as rows hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parameters_text(parameters: Mapping[str, object]) -> str:
    """Parameters as rows hold them: JSON, keys sorted."""
    return json.dumps(parameters, sort_keys=True)
