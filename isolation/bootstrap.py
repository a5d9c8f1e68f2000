"""The first code of an enclave process: runs as `__main__` of the sealed archive, before any import of our code.

Started with `-I -S -B -X pycache_prefix=<nowhere>` and an empty environment: no variable, no site folder, no `.pth`
file, no `sitecustomize`, no cached byte code. Only libraries are found outside the archive, by name in one folder.

usage: <archive> socket site
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

_MOST_DESCRIPTORS = 1 << 20
PACKAGES = ("numpy", "onnxruntime", "cryptography", "cbor2")
PARTS = ("_cbor2", "_cffi_backend")
"""Folders that some versions install beside their package; found and measured if present."""


class _Pinned:
    """Finds the measured libraries, and nothing else in their folder."""

    def __init__(self, site: str) -> None:
        self._site = site

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As `importlib.abc.MetaPathFinder`."""
        del target
        if path is None and name in (*PACKAGES, *PARTS):
            return PathFinder.find_spec(name, [self._site])
        return None


def _main() -> None:
    socket, site = int(sys.argv[1]), sys.argv[2]
    # Descriptors that the supervisor's own parent left open and inheritable.
    os.closerange(socket + 1, _MOST_DESCRIPTORS)
    # Set here and not inherited: one thread, so that nothing is left unseen by seccomp or the supervisor.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1")
    sys.meta_path.append(_Pinned(site))
    from variegate.isolation.child import serve  # noqa: PLC0415  the finder must stand first

    serve(socket)


if __name__ == "__main__":
    _main()
