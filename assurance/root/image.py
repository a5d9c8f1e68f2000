"""The same device in an image of its own, locked or open, attacked by root's shell inside."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assurance.root.device import POLICY, made
from assurance.root.run import ARCHIVE, Target, archive, needles_of
from assurance.shell import RootShell
from testbed.images import free_port
from testbed.swtpm import software_tpm
from variegate.device_sim.image import Machine, build, debian
from variegate.export.intake.base import Base

LOCKED_POLICY = replace(
    POLICY,
    strict=True,
    require=(
        "host",
        "memory",
        "ptrace",
        "supervisor",
        "dumpable",
        "seccomp",
        "landlock",
        "capabilities",
        "no-new-privs",
    ),
)
_MODULE = "modules/lib/crc7.ko"
_SECTOR = 512
_ATTACK_S = 900.0


@dataclass(frozen=True)
class Booted:
    """A machine that serves.

    Attributes:
        target: For `run.attack`.
        machine: Running.
        boot_s: Seconds from power to the first answer.
        image_bytes: Of the image.
    """

    target: Target
    machine: Machine
    boot_s: float
    image_bytes: int


@contextmanager
def booted(folder: Path, base: Base, images: NDArray[np.uint8], *, locked: bool) -> Iterator[Booted]:
    """A device over a TPM, flashed here, and booted in an image.

    Args:
        folder: An empty folder.
        base: The base.
        images: Some, (N, C, H, W).
        locked: Whether the machine is locked against root; without, it is the control.

    Raises:
        MisuseError, DeviceError: It cannot be built or booted.
    """
    with software_tpm() as tpm:
        device = made(folder / "device", base, images, tpm=tpm.tcti)
        build(device.folder, folder / "image", policy=LOCKED_POLICY if locked else None, root_shell=True, locked=locked)
        tpm.kill()
        shutil.copytree(tpm.folder / "state", folder / "tpm")
    brought, line = folder / "tools", folder / "shell"
    needles = needles_of(device)
    files = {ARCHIVE: archive(), "needles": needles.encode(), _MODULE: _module(folder / "debian")}
    data = b"".join(files.values())
    brought.write_bytes(data + bytes(-len(data) % _SECTOR))
    began = time.monotonic()
    with Machine(folder / "image", folder / "tpm", port=free_port(), shell=line, tools_disk=brought) as machine:
        machine.wait()
        boot_s = time.monotonic() - began
        with RootShell(line) as root:
            root.run(f"mkdir -p /tmp/{Path(_MODULE).parent}")
            at = 0
            for name, content in files.items():
                root.run(f"tail -c +{at + 1} /dev/vdc | head -c {len(content)} > /tmp/{name}")
                at += len(content)

            def run(arguments: list[str], stdin: str) -> str:
                if stdin != needles:
                    raise ValueError("root has brought other needles")
                command = shlex.join(["python3.11", f"/tmp/{ARCHIVE}", *arguments])
                return root.run(f"{command} < /tmp/needles 2>/dev/null", seconds=_ATTACK_S)[1]

            size = sum(path.stat().st_size for path in (folder / "image").iterdir())
            yield Booted(Target(run, device), machine, boot_s, size)


def _module(folder: Path) -> bytes:
    """A small module of the image's kernel, for root to load."""
    folder.mkdir()
    _, boot = debian.fetch(folder)
    debian.unpack(boot, folder / "kernel")
    (module,) = (folder / "kernel").rglob(_MODULE.removeprefix("modules/"))
    return module.read_bytes()
