"""Measurement of the code that opens artefacts. It is simulated: the code measures itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from variegate.keys import errors
from variegate.keys.primitives import sha256
from variegate.runtime import enclave

RUNTIME = "runtime"
_FOLDERS = {"keys": Path(errors.__file__).parent, "runtime": Path(enclave.__file__).parent}


@functools.cache
def measurements() -> Mapping[str, bytes]:
    """SHA-256 by name, 32 bytes each; taken once in a process.

    `runtime` is the hash over the folder's name, the file's name and the SHA-256 of every Python file of `keys`
    and `runtime`, in that order and by name.

    Raises:
        DeviceError: The code cannot be read.
    """
    parts: list[bytes] = []
    try:
        for name, folder in _FOLDERS.items():
            for source in sorted(folder.glob("*.py")):
                parts += (f"{name}/{source.name}\0".encode(), sha256(source.read_bytes()))
    except OSError as error:
        raise errors.DeviceError("the runtime's code cannot be read to measure it") from error
    return MappingProxyType({RUNTIME: sha256(*parts)})
