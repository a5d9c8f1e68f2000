"""Another user of this machine, who moves folders about that others may write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

_NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")


def as_somebody_else(folder: Path, does: Callable[[], object]) -> None:
    """Does something in a folder as a user without any rights but those that everybody has there."""
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)  # before: the folders above may be closed to others
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            does()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
