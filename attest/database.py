"""One SQLite file for threads and processes at once, whose every failure is ours."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.sqlite_file import damaged, has_schema, ours, typed

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
        RefusedError: `MALFORMED`, when it is damaged or another kind of file.
        DeviceError: Storage failed.
    """

    def __init__(self, path: Path, schema: str, *, application: int, version: int, create: bool) -> None:
        if create == path.exists():
            raise MisuseError(f"{path} is there already" if create else f"there is no {path}")
        self._lock = threading.Lock()
        # As a URI: the mode keeps a reader from making the file.
        uri = f"file:{quote(str(path.absolute()))}?mode={'rwc' if create else 'rw'}"
        try:
            self._db = sqlite3.connect(uri, isolation_level=None, timeout=_WAIT_S, uri=True, check_same_thread=False)
        except sqlite3.Error:
            raise MisuseError(f"cannot open {path}", hint="name a file in a folder that exists") from None
        self._path = path
        try:
            self._prepare(schema, application, version, create=create)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, schema: str, application: int, version: int, *, create: bool) -> None:
        path = self._path
        with ours(path):
            self._db.execute("PRAGMA synchronous = FULL")
            if create:
                path.chmod(0o600)
                # With a log beside the file, a reader from outside holds up no commit. The file remembers.
                self._db.executescript(
                    f"PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; {schema} PRAGMA application_id = {application};"
                    f"PRAGMA user_version = {version}; COMMIT;"
                )
            found = tuple(self._db.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in _PRAGMAS)
            if found != (application, version):
                raise RefusedError(Refusal.MALFORMED, f"{path} is not a file of this kind and version")
            if not has_schema(self._db, schema):
                raise damaged(path)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other thread or process writes beside; durable at its end, or undone.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed or is busy.
        """
        with self._lock, ours(self._path):
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

    def rows(self, query: str, values: Sequence[object], *kinds: type | tuple[type, ...]) -> list[tuple[Any, ...]]:
        """Rows of a query by itself, whose values are of these types.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
            DeviceError: Storage failed or is busy.
        """
        with self.transaction() as db:
            return self.typed(db.execute(query, values), *kinds)

    def typed(self, rows: Iterable[tuple[Any, ...]], *kinds: type | tuple[type, ...]) -> list[tuple[Any, ...]]:
        """Rows of a query, whose values are of these types.

        Raises:
            RefusedError: `MALFORMED`: the file is damaged.
        """
        return typed(self._path, rows, *kinds)

    def damaged(self) -> RefusedError:
        """The error for content that is not what we wrote."""
        return damaged(self._path)
