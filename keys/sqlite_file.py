"""SQLite files that may be damaged or hostile: schema ours to the word, values of our types, errors ours."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from variegate.keys.errors import DeviceError, Refusal, RefusedError

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


def has_schema(db: sqlite3.Connection, script: str) -> bool:
    """Whether a file's tables, and all else that a schema has, are those that a script makes, in the same words.

    A query of another's view may never end, another's trigger does what it likes, and other tables hold what ours
    refuse.
    """
    return _schema(db) == _made_by(script)


def is_damage(error: Exception) -> bool:
    """Whether an error of Python's `sqlite3` says that the file is not what we wrote, rather than that a disk fails."""
    if isinstance(error, sqlite3.Error):
        # Without a code it is Python's own: text that is not UTF-8.
        code = getattr(error, "sqlite_errorcode", None)
        return code is None or code & _PRIMARY in _DAMAGE
    # Also what SQLite says of a file may quote text that is not UTF-8.
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
    """Rows whose values are of these types: strict tables hold writers to them, and no reader.

    Raises:
        RefusedError: `MALFORMED`.
    """
    out = list(rows)
    for row in out:
        if not all(map(isinstance, row, kinds)):
            raise damaged(path)
    return out


def damaged(path: Path) -> RefusedError:
    """The error for a file whose content is not what we wrote."""
    return RefusedError(Refusal.MALFORMED, f"{path} is damaged", hint="put a copy of it back that was kept")


def _schema(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """All tables, indices, views and triggers, in the words that made them."""
    rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
    return [(*names, " ".join(sql.split()) if isinstance(sql, str) else sql) for *names, sql in rows]


@functools.cache
def _made_by(script: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(script)
        return _schema(db)
