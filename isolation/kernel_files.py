"""Reads the kernel's files under `/proc` and `/sys` so that a file mounted over one is not mistaken for it.

Root can mount anything over anything, also in a namespace of its own: for example one file of `/proc` over another. So
neither the kind of file system nor `/proc/self/mountinfo`, opened by its name, is evidence. Each file is opened
relative to the folder that was opened first, and the kernel is told to cross no mount on the way.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from variegate.isolation import syscalls

_MAGIC = {"proc": 0x9FA0, "sysfs": 0x6265_6572, "securityfs": 0x7363_6673}
"""What `statfs(2)` calls them; a file system that a process provides cannot have them."""
_TOP = 1
"""The number of their topmost folder."""
_PIECE = 1 << 16


class Unknown(Exception):  # noqa: N818  what cannot be measured, not a mistake
    """The kernel does not show a value that must be measured; the text says why."""


class Tree:
    """A folder whose files are read with no mount in between; made by `tree`.

    Attributes:
        path: Where it is, for messages.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def text(self, name: str) -> str:
        """A small file.

        Raises:
            OSError: As the kernel answers.
            Unknown: Something is mounted over it.
        """
        with self._opened(name, os.O_RDONLY) as file:
            pieces = iter(lambda: os.read(file, _PIECE), b"")
            return b"".join(pieces).decode(errors="replace")

    def names(self, name: str) -> list[str]:
        """The names in a folder.

        Raises:
            OSError: As the kernel answers.
            Unknown: Something is mounted over it.
        """
        with self._opened(name, os.O_RDONLY | os.O_DIRECTORY) as folder:
            return os.listdir(folder)  # noqa: PTH208  a descriptor, not a path

    def link(self, name: str) -> str:
        """Where a link leads.

        Raises:
            OSError: As the kernel answers.
            Unknown: Something is mounted over it.
        """
        with self._opened(name, os.O_PATH | os.O_NOFOLLOW) as link:
            return os.readlink("", dir_fd=link)

    def has(self, name: str) -> bool:
        """Whether there is such a file.

        Raises:
            OSError: As the kernel answers.
            Unknown: Something is mounted over it.
        """
        try:
            with self._opened(name, os.O_PATH):
                return True
        except FileNotFoundError:
            return False

    def mount(self) -> str:
        """The number of its mount, as `mountinfo` has it.

        Raises:
            OSError: As the kernel answers.
        """
        return str(syscalls.mount_of(self._descriptor))

    def all_of(self, kind: str) -> bool:
        """Whether it is all of a file system of this kind (`proc`, `sysfs` or `securityfs`), not a part of it.

        Raises:
            OSError: As the kernel answers.
        """
        top = os.fstat(self._descriptor).st_ino == _TOP
        return top and syscalls.file_system_of(self._descriptor) == _MAGIC[kind]

    @contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        try:
            file = syscalls.open_here(self._descriptor, name, flags)
            try:
                yield file
            finally:
                os.close(file)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Unknown(f"{self.path / name} is covered by something else") from None
            raise OSError(error.errno, error.strerror, str(self.path / name)) from None


@contextmanager
def tree(path: Path) -> Iterator[Tree]:
    """Opens a folder through any mount there: compare its `mount` with `mountinfo`.

    Args:
        path: Of the folder.

    Yields:
        It, open meanwhile.

    Raises:
        OSError: As the kernel answers.
    """
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Tree(path, descriptor)
    finally:
        os.close(descriptor)
