"""Writes files whole or not at all, and secret files that nobody else can read."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError

PRIVATE = 0o600
PUBLIC = 0o644
_OTHERS = 0o077
_OTHERS_WRITE = 0o022
_HINT = "name a file in a folder that exists and that you may write"
_PART = ".part"
_DRAWN = "?" * 8
"""The random part of names of `mkstemp`."""
_POLL_S = 0.05


def write_atomic(path: Path, data: bytes, *, mode: int = PRIVATE, overwrite: bool = False) -> None:
    """Writes a file so that a crash or an error leaves either the old state or the new, never a part.

    The bytes go to a temporary file in the same folder, which is synced and then given its name; last the
    folder is synced. A kill may leave the temporary file: see `clear_leftovers`.

    Args:
        path: The file.
        data: Its whole content.
        mode: Permission bits, regardless of the umask.
        overwrite: Whether a file that is already there is replaced. Otherwise the name is taken by a hard
            link, so that of two writers at once only one succeeds.

    Raises:
        MisuseError: The file is there already, or its folder is not, or may not be written.
        DeviceError: Storage failed, for instance because it is full.
    """
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    descriptor, temporary = -1, None
    try:
        descriptor, temporary = _temporary(path)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if overwrite:
            Path(temporary).replace(path)
            temporary = None
        else:
            path.hardlink_to(temporary)
            Path(temporary).unlink()
            temporary = None
        sync_folder(path.parent)
    except FileExistsError:
        raise _exists(path) from None
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise MisuseError(f"cannot write {path}: {_reason(error)}", hint=_HINT) from error
    except OSError as error:
        raise DeviceError(f"cannot write {path}: {_reason(error)}", hint="check the space left") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        if descriptor >= 0:
            os.close(descriptor)


def clear_leftovers(path: Path) -> None:
    """Removes the temporary files that killed calls of `write_atomic` left beside a file; those in use stay.

    It reads the folder, so it is for callers that write few files.

    Args:
        path: The file.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_DRAWN}{_PART}"):
        with contextlib.suppress(OSError):  # another process was faster, or holds it
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path, wait_s: float = 60.0) -> Iterator[None]:
    """A lock on a folder, for changes of its content: of two processes one waits, and then sees the other's changes.

    Args:
        folder: The folder.
        wait_s: How long to wait for another process.

    Raises:
        MisuseError: There is no such folder, or another process holds it for longer.
        DeviceError: It cannot be locked.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MisuseError(f"there is no folder {folder}") from error
    try:
        ends = time.monotonic() + wait_s
        while not _locked(descriptor, folder):
            if time.monotonic() > ends:
                raise MisuseError(f"another process holds {folder}", hint="name a folder elsewhere, or wait for it")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def write_new(name: str, data: bytes | memoryview, *, folder: int, mode: int = PRIVATE) -> None:
    """Writes a file under a name that nothing has, not even a link; not durable until its file system is synced.

    For many files with one common sync, in a folder that only this user may change; `write_atomic` is for one.

    Args:
        name: The file's.
        data: Its whole content.
        folder: Descriptor of the folder: its path may lead elsewhere by now.
        mode: Permission bits, regardless of the umask.

    Raises:
        OSError: It is there already, or could not be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, PRIVATE, dir_fd=folder), "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)


def made_or_empty(path: Path) -> bool:
    """Makes an empty private file where there is none, never through a link; for databases that are filled later.

    Returns:
        Whether it is empty. False for any link.

    Raises:
        MisuseError: It cannot be made.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE))
    except FileExistsError:
        return not path.is_symlink() and path.is_file() and path.stat().st_size == 0
    except OSError as error:
        raise MisuseError(f"cannot open {path}: {_reason(error)}", hint=_HINT) from error
    return True


def check_new(path: Path) -> None:
    """Checks whether `write_atomic` could make a file, before work is spent on its content.

    Args:
        path: The file.

    Raises:
        MisuseError: The file is there already, or its folder is not, or may not be written.
    """
    if os.path.lexists(path):
        raise _exists(path)
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "permission denied" if folder.is_dir() else "no such folder"
        raise MisuseError(f"cannot write {path}: {reason}", hint=_HINT)


def read_capped(path: Path, *, limit: int, private: bool = False) -> bytes:
    """Reads a regular file of at most `limit` bytes.

    Args:
        path: The file; links are followed.
        limit: The most bytes accepted.
        private: Whether to refuse a file that its group or others can read or write.

    Raises:
        MisuseError: There is no such regular file, or it may not be read.
        RefusedError: `TOO_LARGE`; or `KEY`, when a private file is open to others.
        DeviceError: Storage failed.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise MisuseError(f"{path} is not a regular file")
            if private:
                refuse_open_to_others(path, status)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise MisuseError(f"cannot read {path}: {_reason(error)}") from error
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {_reason(error)}") from error
    if len(data) > limit:
        raise RefusedError(Refusal.TOO_LARGE, f"{path} is larger than {limit} bytes")
    return data


def refuse_open_to_others(path: Path, status: os.stat_result) -> None:
    """Refuses a file with secrets that its group or others can reach.

    Raises:
        RefusedError: `KEY`.
    """
    if status.st_mode & _OTHERS:
        message = f"{path} holds a secret, and its group or others can reach it"
        raise RefusedError(Refusal.KEY, message, hint=f"chmod 600 {path}")


def refuse_shared(folder: Path) -> None:
    """Refuses a parent for a new folder if others may rename the new folder and put a link in its place.

    Files written by path then land where the link leads. The folder's owner, and those who may write the folders
    above, are trusted. Single files need none of this: see `write_atomic`.

    Args:
        folder: The parent of a new folder; it need not exist.

    Raises:
        MisuseError: Its group or others may write it, and it is not sticky, as `/tmp` is.
    """
    with contextlib.suppress(OSError):  # the maker reports a missing folder
        folder = folder.absolute()
        mode = folder.stat().st_mode
        if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
            message = f"others may write {folder}, and could move files that are made in it"
            raise MisuseError(message, hint=f"chmod go-w {folder}, or name a folder elsewhere")


def _temporary(path: Path) -> tuple[int, str]:
    """A temporary file beside another, held for as long as it is open, and its name."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent)
        with contextlib.suppress(OSError):  # where locks do not work, `clear_leftovers` gets none either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # taken for a leftover before it was held


def _locked(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DeviceError(f"cannot lock {folder}: {_reason(error)}") from error
    return True


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable.

    Raises:
        OSError: It cannot be synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path) -> MisuseError:
    return MisuseError(f"{path} is there already", hint="choose another name, or move it away first")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
