"""Debian's packages: fetched by the system's apt, with its own keys and mirrors, and unpacked into a folder."""

from __future__ import annotations

from pathlib import Path

from variegate.device_sim.image import tools
from variegate.keys.errors import DeviceError, MisuseError

KERNEL = "linux-image-cloud-amd64"
"""The stock kernel for virtual machines: lockdown, Yama and secret memory are in it, a TPM's driver too."""
FOR_BOOT = ("systemd-boot-efi",)
INSIDE = (
    *("python3.11", "busybox-static", "dmsetup", "libseccomp2", "libstdc++6"),
    *(
        "libtss2-esys-3.0.2-0",
        "libtss2-tctildr0",
        "libtss2-tcti-device0",
        "libtss2-mu0",
        "libtss2-rc0",
        "libtss2-fapi1",
    ),
)
_RELEASE = "12"


def fetch(folder: Path) -> tuple[list[Path], list[Path]]:
    """Fetches the packages of an image, with dependencies, in the newest versions that the system's apt knows.

    Args:
        folder: Where packages lie; those that are there already are not fetched again.

    Returns:
        Package files for the inside of the image, and those of kernel and boot stub.

    Raises:
        MisuseError: This is not Debian 12, whose Python the package's libraries are built for.
        DeviceError: apt failed.
    """
    _check_release()
    archives, status = folder / "archives", folder / "status"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    status.write_bytes(b"")  # nothing is installed there: every dependency is fetched
    options = {
        "Dir::State::status": status,
        "Dir::Cache::archives": archives,
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
        "APT::Keep-Downloaded-Packages": "1",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    install = [*flags, "--no-install-recommends", "--yes", "--quiet=2"]
    wanted = _files(tools.run("apt-get", *install, "--print-uris", "install", *INSIDE))
    tools.run("apt-get", *install, "--download-only", "install", *INSIDE)
    # The kernel's own dependencies make initramfs images, which is done here.
    kernel = _depends(tools.run("apt-cache", "depends", "--important", KERNEL).decode())
    printed = tools.run("apt-get", *flags, "--print-uris", "download", kernel, *FOR_BOOT)
    tools.run("apt-get", *flags, "download", kernel, *FOR_BOOT, cwd=archives)
    return [archives / name for name in wanted], [archives / name for name in _files(printed)]


def unpack(packages: list[Path], into: Path) -> None:
    """Unpacks packages' files; none of their scripts run.

    Raises:
        DeviceError: One is damaged.
    """
    for package in packages:
        tools.run("dpkg-deb", "--extract", package, into)


def versions(packages: list[Path]) -> dict[str, str]:
    """Versions by name, as the files are named."""
    named = (package.name.split("_") for package in packages)
    return {name: version.replace("%3a", ":") for name, version, *_ in named}


def _check_release() -> None:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        lines = []
    if "ID=debian" not in lines or f'VERSION_ID="{_RELEASE}"' not in lines:
        raise MisuseError(f"device images are made on Debian {_RELEASE}", hint="use a container of it")


def _files(printed: bytes) -> list[str]:
    """Names of package files in the lines that `--print-uris` prints: 'URI' NAME SIZE HASH."""
    lines = [line.split() for line in printed.decode().splitlines() if line.startswith("'")]
    if not lines:
        raise DeviceError("apt knows none of the packages of an image", hint="apt-get update")
    return [fields[1] for fields in lines]


def _depends(printed: str) -> str:
    for line in printed.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise DeviceError(f"apt does not know {KERNEL}", hint="apt-get update")
