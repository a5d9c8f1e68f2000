"""The output folder of an export: each file in it is whole, on the disk, and in the registry.

A file is written in a private folder within it and gets its name by a rename, which follows no link. Whoever may write
the output folder can remove or add files, and can replace the private folder by a link. So both folders are opened once
and used through their descriptors, and the exporter writes nowhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from variegate.keys.errors import MisuseError
from variegate.keys.files import PUBLIC, write_new

_MAKING = ".making-"
_MARK = ".made"
"""In each private folder: nobody else can put it into a folder of ours and have that swept."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Making:
    """A private folder of `making`, for this process and its workers.

    Attributes:
        path: Where it was made; something else may be there by now.
        identity: Device and inode; nothing else has them while `making` holds it.
    """

    path: Path
    identity: tuple[int, int]


def prepare_folder(folder: Path) -> None:
    """Makes the output folder, and removes half-written files of killed runs.

    Raises:
        MisuseError: When it is no folder or may not be written.
    """
    with _errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(folder) as out:
            for name in _names(out):
                if name.startswith(_MAKING):
                    _sweep(out, name)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MisuseError(f"cannot write to {folder}: permission denied")


@contextmanager
def making(folder: Path) -> Iterator[Making]:
    """A private folder in an output folder, for files that have no name yet; what remains is removed at the end.

    It is locked meanwhile, so that another export to the same folder does not sweep it.

    Raises:
        MisuseError: It cannot be made.
    """
    with ExitStack() as held:
        with _errors(folder):
            out = held.enter_context(_opened(folder))
            name, lock = _locked(out)
        held.callback(os.close, lock)
        held.callback(_remove, out, name, lock)
        status = os.fstat(lock)
        yield Making(folder / name, (status.st_dev, status.st_ino))


def write_all(place: Making, files: Sequence[tuple[str, bytes]]) -> None:
    """Writes files into a folder of `making`; all are on the disk on return.

    One flush of the file system serves them all; `write_atomic` would pay one for every file.

    Raises:
        MisuseError: When that fails, or another folder has taken its place.
    """
    with _errors(place.path.parent), _found(place) as folder:
        for name, data in files:
            write_new(name, data, folder=folder, mode=PUBLIC)
        _sync_file_system(folder)


def give_names(place: Making, names: Sequence[str]) -> None:
    """Moves written files into the output folder. A link that has one of the names is replaced, not followed.

    Raises:
        MisuseError: When that fails, or another folder has taken the place of the private one.
    """
    # Others cannot write the private folder, and so cannot move it into another folder.
    with _errors(place.path.parent), _found(place) as folder, _opened("..", folder) as out:
        for name in names:
            os.rename(name, name, src_dir_fd=folder, dst_dir_fd=out)
        os.fsync(out)


def is_whole(path: Path, digest: str) -> bool:
    """Whether a file is there and has this SHA-256, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _locked(out: int) -> tuple[str, int]:
    """Makes a private folder: its name, and a descriptor that locks it."""
    while True:
        name = _MAKING + secrets.token_hex(8)
        os.mkdir(name, 0o700, dir_fd=out)
        with contextlib.suppress(FileNotFoundError), ExitStack() as undo:
            lock = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=out)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _names(lock):
                raise MisuseError(f"another user changes the output folder: {name} was replaced")
            write_new(_MARK, b"", folder=lock)
            undo.pop_all()
            return name, lock
        # Another export took it for the folder of a killed run before it was locked.


def _sweep(out: int, name: str) -> None:
    """Removes a folder of `making` that nobody holds."""
    with contextlib.suppress(OSError):
        lock = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=out)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = _names(lock)
            if not there or _MARK in there:  # else another folder that somebody gave this name
                _remove(out, name, lock)
        finally:
            os.close(lock)


def _remove(out: int, name: str, folder: int) -> None:
    with contextlib.suppress(OSError):
        # The mark last, so that the rest is swept if this is killed.
        for file in sorted(_names(folder), key=_MARK.__eq__):
            os.unlink(file, dir_fd=folder)
        os.rmdir(name, dir_fd=out)


def _names(folder: int) -> list[str]:
    return os.listdir(folder)


@contextmanager
def _opened(folder: Path | str, within: int | None = None) -> Iterator[int]:
    """A folder's descriptor."""
    descriptor = os.open(folder, _FOLDER, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _found(place: Making) -> Iterator[int]:
    """The descriptor of a private folder, if it is still in its place."""
    with _opened(place.path) as folder:
        status = os.fstat(folder)
        if (status.st_dev, status.st_ino) != place.identity:
            raise MisuseError(f"another user changes {place.path.parent}: {place.path.name} is not what was made")
        yield folder


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
