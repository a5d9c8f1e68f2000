"""The folder that copies are handed out from: each file there is whole, on the disk, and in the registry.

A file is written in a private folder within it and gets its name by a rename, which follows no link. So whoever may
write the output folder can take files away or put others there, and cannot make the exporter write anywhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from variegate.keys.errors import MisuseError
from variegate.keys.files import PUBLIC, sync_folder, write_new

_MAKING = ".making-"
_LIBC = ctypes.CDLL(None, use_errno=True)


def prepare_folder(folder: Path) -> None:
    """Makes the output folder, and removes what killed runs left half-written.

    Raises:
        MisuseError: When it is no folder or may not be written.
    """
    with _errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_MAKING}*"):
            _sweep(left)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MisuseError(f"cannot write to {folder}: permission denied")


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A private folder in an output folder, for files that have no name yet; what is in it at the end is removed.

    It is locked meanwhile, so that another export to the same folder does not sweep it.

    Raises:
        MisuseError: It cannot be made.
    """
    with _errors(folder):
        made, lock = _locked(folder)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def write_all(made: Path, files: Sequence[tuple[str, bytes]]) -> None:
    """Writes files into a folder of `making`; all are on the disk on return.

    One flush of the file system serves them all; `write_atomic` would pay one for every file.

    Raises:
        MisuseError: When that fails.
    """
    with _errors(made.parent):
        for name, data in files:
            write_new(made / name, data, mode=PUBLIC)
        handle = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _sync_file_system(handle)
        finally:
            os.close(handle)


def give_names(made: Path, names: Sequence[str]) -> None:
    """Moves written files into the output folder. A link that has one of the names is replaced, not followed.

    Raises:
        MisuseError: When that fails.
    """
    with _errors(made.parent):
        for name in names:
            (made / name).replace(made.parent / name)
        sync_folder(made.parent)


def is_whole(path: Path, digest: str) -> bool:
    """Whether a file is there and has this SHA-256, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _locked(folder: Path) -> tuple[Path, int]:
    while True:
        made = Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if made.exists():
                return made, lock
            os.close(lock)
        # Another export took it for the folder of a killed run before it was locked.


def _sweep(left: Path) -> None:
    """Removes a folder of `making` that nobody holds."""
    with contextlib.suppress(OSError):
        lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MisuseError(f"cannot write to {folder}: {reason}") from error


def _sync_file_system(handle: int) -> None:
    """syncfs(2) of the file system that holds `handle`; Python has only sync(2), which waits for all of them."""
    if _LIBC.syncfs(handle) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
