"""One SQLite file for several threads and processes; every failure is an error of ours."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import made_or_empty
from variegate.keys.sqlite_file import complete, damaged, has_schema, ours, refuse_folder, run, transaction, typed

_WAIT_S = 10.0
_PRAGMAS = ("application_id", "user_version")


class Database:
    """An open file.

    Args:
        path: The SQLite file.
        schema: Statements that make it.
        later: Statements that came later, `IF NOT EXISTS`; a file from before gets each part when it is opened.
        application: SQLite's `application_id` of this kind of file.
        version: Version of the schema.
        create: Whether to make the file; it must not be there then, and must be there otherwise.

    Raises:
        MisuseError: The file is not there, is there already, or cannot be opened.
        RefusedError: `MALFORMED`, when it is damaged or another kind of file.
        DeviceError: Storage failed.
    """

    def __init__(
        self, path: Path, schema: str, later: Sequence[str] = (), *, application: int, version: int, create: bool
    ) -> None:
        refuse_folder(path)
        if create == os.path.lexists(path) or (create and not made_or_empty(path)):
            raise MisuseError(f"{path} is there already" if create else f"there is no {path}")
        self._lock = threading.Lock()
        # As a URI: the mode keeps SQLite from making the file, which it would do through a link.
        uri = f"file:{quote(str(path.absolute()))}?mode=rw"
        try:
            self._db = sqlite3.connect(uri, isolation_level=None, timeout=_WAIT_S, uri=True, check_same_thread=False)
        except sqlite3.Error:
            raise MisuseError(f"cannot open {path}", hint="name a file in a folder that exists") from None
        self._path = path
        try:
            with ours(path):
                self._prepare(schema, later, (application, version), create=create)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, schema: str, later: Sequence[str], versions: tuple[int, int], *, create: bool) -> None:
        self._db.execute("PRAGMA synchronous = FULL")
        if create:
            # With a log beside the file, a reader from outside holds up no commit. The file remembers.
            self._db.execute("PRAGMA journal_mode = WAL")
            with transaction(self._db):
                if self._db.execute("SELECT 1 FROM sqlite_schema").fetchone():
                    # Made by another process since it was looked for.
                    raise MisuseError(f"{self._path} is there already")
                marks = (f"PRAGMA {name} = {value};" for name, value in zip(_PRAGMAS, versions, strict=True))
                run(self._db, "".join([schema, *later, *marks]))
        if tuple(self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in _PRAGMAS) != versions:
            raise RefusedError(Refusal.MALFORMED, f"{self._path} is not a file of this kind and version")
        if not has_schema(self._db, schema, later):
            raise self.damaged()
        complete(self._db, schema, later)

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
        with self._lock, ours(self._path), transaction(self._db):
            yield self._db

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
        """The error for content that we did not write."""
        return damaged(self._path)
