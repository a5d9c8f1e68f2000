"""The measurement before an enclave is launched, and the sealed image from which it runs.

Our own code is read once: the hashed bytes are those that run, from a sealed memory file. The interpreter and the
libraries are hashed in their files right before the launch; whoever swaps a file between hash and launch runs
unmeasured code. A device keeps them on a verified, read-only file system.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from variegate.attest import __file__ as _attest
from variegate.isolation import __file__ as _isolation
from variegate.isolation.bootstrap import PACKAGES, PARTS
from variegate.keys import __file__ as _keys
from variegate.keys.errors import DeviceError
from variegate.keys.primitives import sha256
from variegate.runtime import __file__ as _runtime

INTERPRETER, RUNTIME, LIBRARIES = "interpreter", "runtime", "libraries"
BOOTSTRAP = "bootstrap.py"
ARCHIVE = 3
ARCHIVE_PATH = f"/proc/self/fd/{ARCHIVE}"
"""Where a process finds the archive that it runs from."""
_OURS = {"attest": _attest, "isolation": _isolation, "keys": _keys, "runtime": _runtime}
_BESIDE = ("numpy.libs",)
"""Folders of shared libraries that wheels lay beside their package."""
_NOT_LOADED = {"__pycache__", "site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip"}
_STEERING = ("pyvenv.cfg", "pybuilddir.txt", "python._pth", "Modules/Setup.local")
"""Beside the interpreter, these choose another standard library, as does a `_pth` file with its name."""


@dataclass(frozen=True)
class Image:
    """One launch: the measurements, and the image to run.

    Attributes:
        measurements: SHA-256 by name, 32 bytes each.
        archive: A zip archive of our code with a `__main__.py`.
        site: The folder that holds the libraries.
        interpreter: The interpreter's file.
        files: SHA-256 of every file of interpreter and libraries, by absolute path.
    """

    measurements: Mapping[str, bytes]
    archive: bytes = field(repr=False)
    site: str
    interpreter: str
    files: Mapping[str, bytes] = field(repr=False)


def prepare() -> Image:
    """Measures the code that an enclave launched now would run.

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
        places = (interpreter.parent, interpreter.parents[1])
        steering = [folder / name for folder in places for name in (*_STEERING, f"{interpreter.name}._pth")]
        loose = [interpreter, *(path for path in (library, zipped, *steering) if path.is_file())]
        base = [(path.name, path) for path in loose] + list(_files(standard, standard))
        site = _origin("numpy", None).parents[1]
        libraries = list(_libraries(site))
        files = {str(path): _hash(path) for _, path in (*base, *libraries)}
        measured = {
            INTERPRETER: _digest([(name, files[str(path)]) for name, path in base]),
            RUNTIME: _digest([(name, sha256(data)) for name, data in ours.items()]),
            LIBRARIES: _digest([(name, files[str(path)]) for name, path in libraries]),
        }
    except OSError as error:
        raise DeviceError("the enclave's code cannot be read to measure it") from error
    return Image(measured, _archive(ours), str(site), str(interpreter), files)


def _libraries(site: Path) -> Iterator[tuple[str, Path]]:
    for package in (*PACKAGES, *(part for part in PARTS if PathFinder.find_spec(part, [str(site)]))):
        path = _origin(package, site)
        if path.name != "__init__.py":
            yield path.name, path
            continue
        yield from _files(path.parent, site)
        for name in _BESIDE:
            if (folder := site / name).is_dir() and name.startswith(path.parent.name):
                yield from _files(folder, site)


def _origin(package: str, site: Path | None) -> Path:
    """The folder of a package; with `site`, found as the enclave's bootstrap finds it."""
    spec = importlib.util.find_spec(package) if site is None else PathFinder.find_spec(package, [str(site)])
    if spec is None or spec.origin is None:
        raise DeviceError(f"the library {package} is not installed where numpy is")
    return Path(spec.origin)


def _files(folder: Path, above: Path) -> Iterator[tuple[str, Path]]:
    """Names relative to `above`, and paths, of the files that an import could load from a folder."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if entry.name not in _NOT_LOADED and not entry.name.endswith(".dist-info"):
                yield from _files(Path(entry.path), above)
        elif entry.name.endswith((".py", ".pyc")) or ".so" in entry.name:
            yield str(Path(entry.path).relative_to(above)), Path(entry.path)


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
        image: The image to run.

    Raises:
        OSError: Its mappings, or a library, cannot be read.
        DeviceError: It runs code that is in no file.
    """
    digests: dict[str, bytes] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if "x" not in fields[1] or fields[-1] in ("[vdso]", "[vsyscall]"):
            continue
        path = fields[5] if len(fields) > 5 else ""  # noqa: PLR2004  the last one is the name
        if not path.startswith("/"):
            raise DeviceError("the enclave process runs code that lies in no file")
        if path not in image.files and path not in digests:
            digests[path] = _hash(Path(path))
    return _digest(sorted(digests.items()))


def check_modules(modules: Iterable[str], image: Image) -> None:
    """Compares the files of the modules that a process has imported with the measured ones.

    Args:
        modules: Their paths; those of our own code lie in the archive.
        image: The image that the process should run.

    Raises:
        DeviceError: One was not measured.
    """
    for path in modules:
        if path not in image.files and not path.startswith(ARCHIVE_PATH + "/"):
            raise DeviceError("the enclave process has imported code that was not measured")
