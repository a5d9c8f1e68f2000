"""The root file system of an image, in a folder: Debian's packages, the libraries that run here, and this package."""

from __future__ import annotations

import compileall
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

from variegate.device_sim.image import debian
from variegate.keys.errors import DeviceError, MisuseError

DATA = "device"
"""Where the disk with the device is mounted."""
_SITE = Path("usr/lib/python3/dist-packages")
_PYTHON = (3, 11)
_OURS = ("attest", "cli", "device_sim", "isolation", "keys", "runtime", "serve")
_LIBRARIES = (
    *("cbor2", "cffi", "click", "cryptography", "flatbuffers", "h11", "httptools", "numpy", "onnxruntime"),
    *("packaging", "protobuf", "pycparser", "tpm2-pytss", "uvicorn"),
)
"""The packages of the extras `serve` and `tpm`; a test compares this with their metadata."""
_LEFT_OUT = {"__pycache__", "test", "tests"}
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "var")
_FOLDERS = ("dev", "proc", "sys", "tmp", "run", DATA)


def lay_out(packages: list[Path], root: Path) -> None:
    """Fills a folder.

    Args:
        packages: Debian's, as `debian.fetch` gives them.
        root: An empty folder.

    Raises:
        MisuseError: This interpreter is not Debian's version, or an extra is not installed.
        DeviceError: A package or a library cannot be read.
    """
    if sys.version_info[:2] != _PYTHON:
        raise MisuseError(f"libraries for an image are those of Python {_PYTHON[0]}.{_PYTHON[1]}")
    debian.unpack(packages, root)
    for unused in _UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)
    for folder in _FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    (root / "bin/sh").symlink_to("busybox")
    site = root / _SITE
    try:
        for source, name in (*_library_files(), *_our_files()):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, site / name)
        _write_metadata(site)
    except OSError as error:
        raise DeviceError(f"cannot copy into the image: {error.strerror}") from error
    _compile(root)


def _library_files() -> Iterator[tuple[Path, Path]]:
    for library in _LIBRARIES:
        try:
            distribution = importlib.metadata.distribution(library)
        except importlib.metadata.PackageNotFoundError:
            raise MisuseError(
                f"an image needs the library {library}", hint='pip install "variegate[serve,tpm]"'
            ) from None
        for file in distribution.files or ():
            # Files outside the folder of libraries are scripts, with this machine's paths in them.
            if ".." not in file.parts and not _LEFT_OUT.intersection(file.parts):
                yield Path(str(distribution.locate_file(file))), Path(str(file))


def _our_files() -> Iterator[tuple[Path, Path]]:
    for package in _OURS:
        spec = importlib.util.find_spec(f"variegate.{package}")
        if spec is None or spec.origin is None:
            raise DeviceError(f"this installation lacks its part {package}")
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in {".py", ".typed", ".json"} and not _LEFT_OUT.intersection(path.parts):
                yield path, Path("variegate", package) / path.relative_to(folder)


def _write_metadata(site: Path) -> None:
    """Name and version of this package, which its own code reads."""
    version = importlib.metadata.version("variegate")
    folder = site / f"variegate-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: variegate\nVersion: {version}\n")


def _compile(root: Path) -> None:
    """Byte code of the supervisor's imports: without it each start compiles again, the root being read-only.

    It is checked by the file system's hash tree, as its source is; the enclave itself compiles the measured source.
    """
    for folder in (root / "usr/lib/python3.11", root / _SITE):
        compileall.compile_dir(
            folder,
            quiet=2,
            workers=os.cpu_count() or 1,
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )
