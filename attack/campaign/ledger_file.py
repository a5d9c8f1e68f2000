"""The file that the ledger lies in: held by one writer, its tables ours, SQLite's errors turned into ours."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.sqlite_file import is_damage


def locked(folder: Path) -> int:
    """A lock on the folder, held until its descriptor is closed or the process ends.

    Raises:
        MisuseError: There is no such folder, or another process runs the campaign in it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MisuseError(f"cannot open {folder}: {(error.strerror or '').lower()}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise MisuseError(f"{folder} is being run by another process") from None
    return descriptor


def connected(path: Path, *, write: bool) -> sqlite3.Connection:
    """The database; for reading alone, also from read-only media."""
    return sqlite3.connect(path if write else f"file:{_quoted(path)}?{_reading(path)}", uri=not write)


def damaged(path: Path) -> RefusedError:
    """The error for a ledger whose content is not what we wrote."""
    hint = "the shards that are there may still be good"
    return RefusedError(Refusal.MALFORMED, f"the ledger is damaged: {path}", hint=hint)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into ours: damage is refused, what the disk does not take is the device's."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        if is_damage(error) or not isinstance(error, sqlite3.OperationalError):
            raise damaged(path) from error
        raise DeviceError(
            f"cannot use {path}: {error}", hint="check the space left, and who may write there"
        ) from error


def _quoted(path: Path) -> str:
    return str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _reading(path: Path) -> str:
    """How to open it for reading: on read-only media SQLite cannot make the files beside it that a log needs."""
    log = path.with_name(path.name + "-wal")
    still = not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
    return "immutable=1" if still else "mode=ro"
