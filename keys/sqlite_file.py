"""SQLite files that may be damaged or hostile: checks schema and types of values, and raises only errors of ours."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError

_DAMAGE = frozenset(
    {
        # Our statements fit our tables: where they do not, these are not ours.
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
    }
)
_PRIMARY = 0xFF
"""Of a code; the rest says more of it."""


def refuse_folder(path: Path) -> None:
    """Refuses a folder where a file belongs: SQLite calls it an error of the disk.

    Raises:
        MisuseError: The path is a folder.
    """
    if path.is_dir():
        raise MisuseError(f"{path} is a folder", hint="name the file")


def has_schema(db: sqlite3.Connection, script: str, later: Sequence[str] = ()) -> bool:
    """Whether a file's whole schema, tables and all else, has the same words as one made by a script.

    A foreign view's query may never end, a foreign trigger can do anything, and other tables hold what ours
    refuse.

    Args:
        db: The file.
        script: The script that makes every file.
        later: Parts that came later; older files lack some, and none is there by half.
    """
    schema = _schema(db)
    chosen = itertools.product((True, False), repeat=len(later))
    return any(schema == _made_by(script + "".join(itertools.compress(later, some))) for some in chosen)


def complete(db: sqlite3.Connection, script: str, later: Sequence[str]) -> None:
    """Adds to a file of ours the later parts of its schema that it lacks, `IF NOT EXISTS`; errors are SQLite's."""
    parts = "".join(later)
    # A complete file is opened without waiting for its writers.
    if not has_schema(db, script + parts):
        with transaction(db):
            run(db, parts)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that nobody writes beside; durable at its end, or undone; errors are SQLite's."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        # May fail, too, for instance on a full disk.
        db.execute("COMMIT")
    except BaseException:
        # SQLite has undone some failures by itself.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def run(db: sqlite3.Connection, script: str) -> None:
    """Runs statements one by one: `executescript` would end the transaction first; errors are SQLite's."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


def is_damage(error: Exception) -> bool:
    """Whether an error of Python's `sqlite3` means that the file is not ours, and not that a disk fails."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            # Python's own: text that is not UTF-8, or a file that was closed.
            return not isinstance(error, sqlite3.ProgrammingError)
        return code & _PRIMARY in _DAMAGE
    # SQLite's message about a file may quote text that is not UTF-8, too.
    return isinstance(error, UnicodeDecodeError | OverflowError)


@contextlib.contextmanager
def ours(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into ours.

    Raises:
        RefusedError: `MALFORMED`: the file is damaged.
        DeviceError: Storage failed or is busy.
    """
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        if is_damage(error):
            raise damaged(path) from None
        raise DeviceError(f"{path} cannot be read or written") from error


def typed(path: Path, rows: Iterable[tuple[Any, ...]], *kinds: type | tuple[type, ...]) -> list[tuple[Any, ...]]:
    """Rows whose values are of these types: strict tables check writers, but not a file from elsewhere.

    Raises:
        RefusedError: `MALFORMED`.
    """
    out = list(rows)
    for row in out:
        if not all(map(isinstance, row, kinds)):
            raise damaged(path)
    return out


def damaged(path: Path) -> RefusedError:
    """The error for a file with content that we did not write."""
    return RefusedError(Refusal.MALFORMED, f"{path} is damaged", hint="restore it from a backup")


def _schema(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """All tables, indices, views and triggers, in the words that made them."""
    rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
    return [(*names, " ".join(sql.split()) if isinstance(sql, str) else sql) for *names, sql in rows]


@functools.cache
def _made_by(script: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(script)
        return _schema(db)
