"""The system's programs that make and boot images, each with the name of its Debian package."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from variegate.keys.errors import DeviceError, MisuseError

_PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "cpio": "cpio",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "objcopy": "binutils",
    "qemu-system-x86_64": "qemu-system-x86",
    "swtpm": "swtpm",
    "unsquashfs": "squashfs-tools",
    "veritysetup": "cryptsetup-bin",
    "zstd": "zstd",
}
BUILDING = ("apt-get", "cpio", "dpkg-deb", "mke2fs", "mksquashfs", "objcopy", "veritysetup", "zstd")
BOOTING = ("qemu-system-x86_64", "swtpm")
FIRMWARE = Path("/usr/share/ovmf/OVMF.fd")
"""UEFI for QEMU, built with TPM 2.0: Debian's package ovmf."""
_PLACES = os.pathsep.join((os.defpath, "/usr/sbin", "/sbin"))
_TIMEOUT_S = 600.0
_MOST_SAID = 400


def missing(programs: Sequence[str]) -> list[str]:
    """Debian packages of the programs that are not there."""
    packages = {_PACKAGES[name] for name in programs if shutil.which(name, path=_PLACES) is None}
    if programs == BOOTING and not FIRMWARE.exists():
        packages.add("ovmf")
    return sorted(packages)


def need(programs: Sequence[str]) -> None:
    """Looks whether programs are there, before work is spent.

    Raises:
        MisuseError: Some are not; the hint says how to install them.
    """
    if packages := missing(programs):
        raise MisuseError("programs for device images are not installed", hint=f"apt install {' '.join(packages)}")


def path_of(program: str) -> str:
    """Where a program is.

    Raises:
        MisuseError: It is not there.
    """
    path = shutil.which(program, path=_PLACES)
    if path is None:
        raise MisuseError(f"{program} is not installed", hint=f"apt install {_PACKAGES[program]}")
    return path


def run(program: str, *arguments: str | Path, cwd: Path | None = None, data: bytes | None = None) -> bytes:
    """Runs a program to its end.

    Args:
        program: Its name.
        arguments: For it.
        cwd: Where it runs.
        data: Its standard input.

    Returns:
        Its output.

    Raises:
        MisuseError: It is not there.
        DeviceError: It failed; the message has its last words.
    """
    try:
        done = subprocess.run(  # noqa: S603  named above
            [path_of(program), *map(str, arguments)],
            cwd=cwd,
            input=b"" if data is None else data,
            capture_output=True,
            env={"PATH": _PLACES, "LC_ALL": "C.UTF-8"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{program} did not end in {_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        said = "".join(c if c.isprintable() else " " for c in done.stderr.decode("utf-8", "replace"))
        raise DeviceError(f"{program} failed: {said[-_MOST_SAID:].strip() or 'without a message'}")
    return done.stdout
