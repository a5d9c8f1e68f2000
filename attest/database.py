"""One SQLite file for threads and processes at once, whose every failure is ours."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import made_or_empty

_WAIT_S = 10.0
_PRAGMAS = ("application_id", "user_version")


class Database:
    """An open file.

    Args:
        path: The SQLite file.
        schema: Statements that make it.
        application: SQLite's `application_id` of this kind of file.
        version: Version of the schema.
        create: Whether to make the file; it must not be there then, and must be there otherwise.

    Raises:
        MisuseError: The file is not there, is there already, or cannot be opened.
        RefusedError: `MALFORMED`, when it is another kind of file.
        DeviceError: Storage failed.
    """

    def __init__(self, path: Path, schema: str, *, application: int, version: int, create: bool) -> None:
        if create == os.path.lexists(path) or (create and not made_or_empty(path)):
            raise MisuseError(f"{path} is there already" if create else f"there is no {path}")
        self._lock = threading.Lock()
        # As a URI: the mode keeps SQLite from making the file, which it would do through a link.
        uri = f"file:{quote(str(path.absolute()))}?mode=rw"
        try:
            self._db = sqlite3.connect(uri, isolation_level=None, timeout=_WAIT_S, uri=True, check_same_thread=False)
        except sqlite3.Error:
            raise MisuseError(f"cannot open {path}", hint="name a file in a folder that exists") from None
        try:
            self._db.execute("PRAGMA synchronous = FULL")
            if create:
                # With a log beside the file, a reader from outside holds up no commit. The file remembers.
                self._db.executescript(
                    f"PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; {schema} PRAGMA application_id = {application};"
                    f"PRAGMA user_version = {version}; COMMIT;"
                )
            found = tuple(self._db.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in _PRAGMAS)
        except (sqlite3.Error, OSError) as error:
            self._db.close()
            if isinstance(error, sqlite3.DatabaseError) and error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise RefusedError(Refusal.MALFORMED, f"{path} is not an SQLite file") from None
            raise DeviceError(f"{path} cannot be read or written") from error
        if found != (application, version):
            self._db.close()
            raise RefusedError(Refusal.MALFORMED, f"{path} is not a file of this kind and version")
        self._path = path

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other thread or process writes beside; durable at its end, or undone.

        Raises:
            DeviceError: Storage failed or is busy.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    # May fail, too, for instance on a full disk.
                    self._db.execute("COMMIT")
                except BaseException:
                    # SQLite has undone some failures by itself.
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise DeviceError(f"{self._path} cannot be read or written") from error
