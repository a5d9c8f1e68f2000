"""What is measured before an enclave is launched, and the sealed image that it runs from.

Our own code is read once: the bytes that are hashed are the bytes that run, from a sealed memory file. The
interpreter and the libraries are hashed where they lie, right before the launch; who can swap one of their files
between the two can run what was not measured. A device keeps them on a verified, read-only file system.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from variegate.attest import __file__ as _attest
from variegate.isolation import __file__ as _isolation
from variegate.isolation.bootstrap import PACKAGES
from variegate.keys import __file__ as _keys
from variegate.keys.errors import DeviceError
from variegate.keys.primitives import sha256
from variegate.runtime import __file__ as _runtime

INTERPRETER, RUNTIME, LIBRARIES = "interpreter", "runtime", "libraries"
BOOTSTRAP = "bootstrap.py"
_OURS = {"attest": _attest, "isolation": _isolation, "keys": _keys, "runtime": _runtime}
_BESIDE = ("numpy.libs",)
"""Folders of shared libraries that wheels lay beside their package."""
_NOT_LOADED = {"__pycache__", "site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip"}
_STEERING = ("pyvenv.cfg", "pybuilddir.txt")
"""Beside the interpreter, these choose another standard library."""


@dataclass(frozen=True)
class Image:
    """One launch: what was measured, and what to run.

    Attributes:
        measurements: SHA-256 by name, 32 bytes each.
        archive: A zip archive of our code with a `__main__.py`.
        site: The folder that holds the libraries.
        interpreter: The interpreter's file.
    """

    measurements: Mapping[str, bytes]
    archive: bytes = field(repr=False)
    site: str
    interpreter: str


def prepare() -> Image:
    """Measures what an enclave would run now.

    Returns:
        The image, with `interpreter` (its file, its shared library, the standard library), `runtime` (our code) and
        `libraries` measured. Each is the SHA-256 over names and SHA-256 of files in order of names.

    Raises:
        DeviceError: A file cannot be read, or a library is missing.
    """
    try:
        interpreter = Path(sys.executable).resolve()
        standard = Path(sysconfig.get_path("stdlib"))
        library = Path(sysconfig.get_config_var("LIBDIR")) / (sysconfig.get_config_var("INSTSONAME") or "")
        ours = {
            f"variegate/{name}/{path.relative_to(folder)}": path.read_bytes()
            for name, init in _OURS.items()
            for folder in [Path(init).parent]
            for path in sorted(folder.rglob("*.py"))
        }
        zipped = standard.parent / f"python{sys.version_info.major}{sys.version_info.minor}.zip"
        steering = [folder / name for folder in (interpreter.parent, interpreter.parents[1]) for name in _STEERING]
        loose = [interpreter, *(path for path in (library, zipped, *steering) if path.is_file())]
        measured = {
            INTERPRETER: _digest([(path.name, _hash(path)) for path in loose] + list(_files(standard, standard))),
            RUNTIME: _digest([(name, sha256(data)) for name, data in ours.items()]),
            LIBRARIES: _digest(list(_libraries())),
        }
    except OSError as error:
        raise DeviceError("the enclave's code cannot be read to measure it") from error
    site = _origin("numpy").parents[1]
    return Image(measured, _archive(ours), str(site), str(interpreter))


def _libraries() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        path = _origin(package)
        if path.name != "__init__.py":
            yield path.name, _hash(path)
            continue
        yield from _files(path.parent, path.parent.parent)
        for name in _BESIDE:
            if (folder := path.parent.parent / name).is_dir() and name.startswith(path.parent.name):
                yield from _files(folder, folder.parent)


def _origin(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise DeviceError(f"the library {package} is not installed")
    return Path(found.origin)


def _files(folder: Path, above: Path) -> Iterator[tuple[str, bytes]]:
    """Names relative to `above` and hashes of what an import could load from a folder."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if entry.name not in _NOT_LOADED and not entry.name.endswith(".dist-info"):
                yield from _files(Path(entry.path), above)
        elif entry.name.endswith((".py", ".pyc")) or ".so" in entry.name:
            yield str(Path(entry.path).relative_to(above)), _hash(Path(entry.path))


def _hash(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:  # in pieces: some libraries have tens of megabytes
        return hashlib.file_digest(file, "sha256").digest()


def _digest(files: list[tuple[str, bytes]]) -> bytes:
    return sha256(*(part for name, digest in files for part in (f"{name}\0".encode(), digest)))


def _archive(ours: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("variegate/", b"")
        for name, data in ours.items():
            archive.writestr(name, data)
        archive.writestr("__main__.py", ours[f"variegate/isolation/{BOOTSTRAP}"])
    return out.getvalue()


def system_digest(pid: int, image: Image) -> bytes:
    """SHA-256 over the shared libraries that a process has loaded and `prepare` has not measured.

    Args:
        pid: A process of `image` that has loaded its libraries and opened nothing yet.
        image: What it runs.

    Raises:
        OSError: Its mappings, or a library, cannot be read.
        DeviceError: It runs code that lies in no file.
    """
    measured = (image.site, sysconfig.get_path("stdlib"))
    found: dict[str, bytes] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if "x" not in fields[1] or fields[-1] in ("[vdso]", "[vsyscall]"):
            continue
        path = Path(fields[5]) if len(fields) > 5 else None  # noqa: PLR2004  the last one is the name
        if path is None or not path.is_absolute():
            raise DeviceError("the enclave process runs code that lies in no file")
        if not any(path.is_relative_to(folder) for folder in measured):
            found[path.name] = _hash(path)
    return _digest(sorted(found.items()))
