"""From a flashed device to an image that boots.

boot.efi      kernel, initramfs and command line; the firmware measures it
root.squashfs root file system and its hash tree; the command line has the tree's root
device.ext4   the device's folder: disk, chip's state, policy; written by the device as it runs
image.json    what it was made of
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from variegate.device_sim import chip
from variegate.device_sim.device import Device
from variegate.device_sim.hosting import POLICY_FILE, host_of
from variegate.device_sim.image import debian, kernel, tools, tree
from variegate.isolation.policy import DevicePolicy
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import PUBLIC, read_capped, refuse_shared, write_atomic

BOOT, ROOT, DATA, FACTS = "boot.efi", "root.squashfs", "device.ext4", "image.json"
TPM = "device:/dev/tpmrm0"
"""The only one that `guest` takes: a device's folder may name another."""
SHELL_WORD, OPEN_WORD = "variegate.shell=1", "variegate.lock=0"
_LOCKED = "lockdown=confidentiality module.sig_enforce=1"
_COMMON = "console=ttyS0 quiet panic=1 secretmem.enable=1"
_SCHEMA = 1
_MAX_FACTS_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20
"""Free space on the device's disk beside twice its content: an update needs the same size again."""
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about an image; its `image.json`. It is not secret, and not trusted.

    Attributes:
        kernel: Version.
        root: Root hash of the root file system, hexadecimal.
        command_line: Of the kernel.
        ueid: Of the device, hexadecimal.
        packages: Debian's, versions by name.
    """

    kernel: str
    root: str
    command_line: str
    ueid: str
    packages: dict[str, str]

    @property
    def shell(self) -> bool:
        """Whether root gets a shell."""
        return SHELL_WORD in self.command_line.split()

    @property
    def locked(self) -> bool:
        """Whether the machine is locked against root."""
        return OPEN_WORD not in self.command_line.split()


def build(
    device: Path, out: Path, *, policy: DevicePolicy | None = None, root_shell: bool = False, locked: bool = True
) -> Facts:
    """Makes a bootable image of a flashed device over a TPM.

    From its first boot the device's key opens in this image on this TPM only, and `device` is a copy that no longer
    opens. Make it, and boot it first, where you trust the machine.

    Args:
        device: The device's folder; turned off.
        out: Folder to make; its parent exists.
        policy: In place of the device's own. One that requires the group `host` is for here: no ordinary machine opens
            a copy under it, so none can be flashed there.
        root_shell: Whether whoever starts the machine gets a root shell beside the device; it is measured.
        locked: Whether root is locked out. Without the lock it is the control of a test.

    Returns:
        What it was made of.

    Raises:
        MisuseError: `out` is there, others may write its folder, a program or library is missing, this is not
            Debian 12, or there is no device.
        DeviceError: The device is on, its chip is of files, or a tool failed.
    """
    tools.need(tools.BUILDING)
    if out.exists() or not out.parent.is_dir():
        raise MisuseError(f"{out} is there already, or its folder is not", hint="name a folder that does not exist")
    refuse_shared(out.parent)
    with tempfile.TemporaryDirectory(prefix=".image-", dir=out.parent.resolve()) as name, ExitStack() as undo:
        work = Path(name)
        image = work / "image"
        undo.callback(shutil.rmtree, image, ignore_errors=True)
        for folder in ("image", "root", "boot", "initramfs"):
            (work / folder).mkdir()
        ueid = _device_disk(device, policy, work / "device", image / DATA)
        inside, boot = debian.fetch(work / "debian")
        debian.unpack(boot, work / "boot")
        tree.lay_out(inside, work / "root")
        root = kernel.seal_root(work / "root", image / ROOT)
        words = [_COMMON, *([_LOCKED] if locked else [OPEN_WORD]), *([SHELL_WORD] if root_shell else [])]
        words += [f"variegate.root={root.digest}", f"variegate.blocks={root.blocks}"]
        line = " ".join(words)
        version = kernel.boot_program(work / "root", work / "boot", line, work, image / BOOT)
        facts = Facts(
            kernel=version,
            root=root.digest,
            command_line=line,
            ueid=ueid,
            packages=dict(sorted(debian.versions([*inside, *boot]).items())),
        )
        text = json.dumps({"schema": _SCHEMA, **asdict(facts)}, indent=2) + "\n"
        write_atomic(image / FACTS, text.encode(), mode=PUBLIC)
        try:
            image.rename(out)
        except OSError as error:
            raise MisuseError(f"cannot make {out}: {error.strerror}") from error
    return facts


def read_facts(image: Path) -> Facts:
    """Reads an image's description.

    Raises:
        MisuseError: There is no image in the folder.
        RefusedError: `MALFORMED`.
    """
    for name in (BOOT, ROOT, DATA):
        if not (image / name).is_file():
            raise MisuseError(f"{image} holds no device image", hint="make one with `variegate device image`")
    try:
        facts: Any = json.loads(read_capped(image / FACTS, limit=_MAX_FACTS_BYTES))
        match facts:
            case {
                "schema": 1,
                "kernel": str(version),
                "root": str(root),
                "command_line": str(line),
                "ueid": str(ueid),
                "packages": dict(packages),
                **rest,
            } if not rest:
                named = {str(name): str(version) for name, version in packages.items()}
                return Facts(kernel=version, root=root, command_line=line, ueid=ueid, packages=named)
    except (ValueError, RecursionError):
        pass
    raise RefusedError(Refusal.MALFORMED, f"{FACTS} of the image is damaged")


def _device_disk(device: Path, policy: DevicePolicy | None, copy: Path, out: Path) -> str:
    """Copies a device's folder into a file system. Returns its ueid, hexadecimal."""
    host = host_of(device)
    with Device.open(device, host=host) as one:  # it is whole, nobody else has it on, and its TPM gives its key
        ueid = one.ueid.hex()
        try:
            shutil.copytree(device, copy, symlinks=True)
        except (OSError, shutil.Error) as error:
            raise DeviceError("the device's folder cannot be copied") from error
    if any(path.is_symlink() for path in copy.rglob("*")):
        raise DeviceError("the device's folder holds a link: a device has none")
    if policy is not None:
        write_atomic(copy / POLICY_FILE, policy.to_toml(), mode=PUBLIC, overwrite=True)
    chip.moved(copy / "fuses", TPM, host.measurements())
    taken = sum(path.stat().st_size for path in copy.rglob("*") if path.is_file())
    size = f"{(2 * taken + _SPARE_BYTES) // _MIB}M"
    tools.run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d", copy, out, size)
    return ueid
