"""The boot program: one EFI program with kernel, initramfs and command line, measured as a whole by the firmware.

The initramfs only mounts the root file system under dm-verity, with the hash on the command line, and switches to it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from variegate.device_sim.image import tools
from variegate.keys.errors import DeviceError

_STUB = Path("usr/lib/systemd/boot/efi/linuxx64.efi.stub")
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "dm-verity", "squashfs")
_LIBRARIES = (
    *("libdevmapper.so.1.02.1", "libselinux.so.1", "libudev.so.1", "libpcre2-8.so.0", "libc.so.6", "libm.so.6"),
)
_LIBRARY_FOLDER = Path("lib/x86_64-linux-gnu")
_LOADER = Path("lib64/ld-linux-x86-64.so.2")
_BLOCK = 4096
_PE_OFFSET, _PE_TIME, _PE_CHECKSUM = 0x3C, 8, 88
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
# Where the stub looks for its parts; the kernel has 16 MiB.
_SECTIONS = {".osrel": 0x20000, ".cmdline": 0x30000, ".linux": 0x2000000, ".initrd": 0x3000000}
_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
fail() { echo "image: $1"; poweroff -f; }
mount -t proc proc /proc && mount -t devtmpfs dev /dev && mount -t sysfs sys /sys || fail "no kernel file systems"
for module in /modules/*; do insmod "$module" || fail "cannot load $module"; done
for word in $(cat /proc/cmdline); do
    case $word in variegate.root=*) root=${word#*=};; variegate.blocks=*) blocks=${word#*=};; esac
done
dmsetup create --noudevsync root --readonly --table \\
    "0 $((blocks * 8)) verity 1 /dev/vda /dev/vda 4096 4096 $blocks $((blocks + 1)) sha256 $root SALT" \\
    || fail "no root file system"
mount -t squashfs -o ro /dev/dm-0 /system || fail "the root file system is not the one that this image names"
for one in dev proc sys; do mount --move /$one /system/$one; done
exec switch_root /system /usr/bin/python3.11 -I -B -m variegate.device_sim.image.guest
"""


@dataclass(frozen=True)
class Root:
    """A root file system with its hash tree behind it.

    Attributes:
        digest: Root of the tree, hexadecimal.
        blocks: Of 4,096 bytes each, before the tree.
    """

    digest: str
    blocks: int


def seal_root(folder: Path, file: Path) -> Root:
    """Packs a folder into a file system that is checked block by block (squashfs, dm-verity).

    Raises:
        DeviceError: A tool failed.
    """
    # lz4: a machine without acceleration opens it fastest. No times: the same files give the same bytes.
    packing = ("-comp", "lz4", "-all-root", "-noappend", "-no-xattrs", "-quiet", "-no-progress")
    tools.run("mksquashfs", folder, file, *packing, "-mkfs-time", "0", "-all-time", "0")
    blocks = -(-file.stat().st_size // _BLOCK)
    os.truncate(file, blocks * _BLOCK)
    fixed = (f"--salt={_salt()}", "--uuid=00000000-0000-0000-0000-000000000000")
    printed = tools.run("veritysetup", "format", file, file, f"--hash-offset={blocks * _BLOCK}", *fixed).decode()
    match = re.search(r"^Root hash:\s+([0-9a-f]{64})$", printed, re.MULTILINE)
    if match is None:
        raise DeviceError("veritysetup names no root hash")
    return Root(match[1], blocks)


def boot_program(system: Path, boot: Path, command_line: str, work: Path, out: Path) -> str:
    """Makes the EFI program.

    Args:
        system: The unpacked root, for the tools of the initramfs.
        boot: Unpacked packages of kernel and stub.
        command_line: Of the kernel.
        work: An empty folder.
        out: The file to write.

    Returns:
        Version of the kernel.

    Raises:
        DeviceError: A tool failed, or a package lacks an expected file.
    """
    try:
        (kernel,) = (boot / "boot").glob("vmlinuz-*")
        version = kernel.name.removeprefix("vmlinuz-")
        initramfs = work / "initramfs.zst"
        _initramfs(system, boot / "lib/modules" / version, work / "initramfs", initramfs)
        (work / "cmdline").write_text(command_line)
        (work / "osrel").write_text("ID=variegate\n")
    except (OSError, ValueError) as error:
        raise DeviceError("the kernel's package lacks files that an image needs") from error
    parts = {".osrel": work / "osrel", ".cmdline": work / "cmdline", ".linux": kernel, ".initrd": initramfs}
    if kernel.stat().st_size > _SECTIONS[".initrd"] - _SECTIONS[".linux"]:
        raise DeviceError("the kernel is larger than its place in the boot program")
    flags = []
    for name, path in parts.items():
        flags += ["--add-section", f"{name}={path}", "--change-section-vma", f"{name}={_SECTIONS[name]:#x}"]
    tools.run("objcopy", *flags, boot / _STUB, out)
    _forget_time(out)
    return version


def _forget_time(program: Path) -> None:
    """Clears the time of its making, and the sum over it (PE format): the same parts give the same program."""
    with program.open("r+b") as file:
        file.seek(_PE_OFFSET)
        header = int.from_bytes(file.read(4), "little")
        for field in (_PE_TIME, _PE_CHECKSUM):
            file.seek(header + field)
            file.write(bytes(4))


def _initramfs(system: Path, modules: Path, folder: Path, out: Path) -> None:
    for name in ("bin", "dev", "lib64", "modules", "proc", "sys", "system", str(_LIBRARY_FOLDER)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(system / "bin/busybox", folder / "bin/busybox")
    shutil.copyfile(system / "sbin/dmsetup", folder / "bin/dmsetup")
    for name in _LIBRARIES:
        found = next(
            place / name
            for place in (system / _LIBRARY_FOLDER, system / "usr" / _LIBRARY_FOLDER)
            if (place / name).exists()
        )
        shutil.copyfile(found, folder / _LIBRARY_FOLDER / name)
    shutil.copyfile(system / _LIBRARY_FOLDER / _LOADER.name, folder / _LOADER)
    for number, module in enumerate(_in_order(modules)):
        shutil.copyfile(module, folder / "modules" / f"{number:02d}-{module.name}")
    (folder / "init").write_text(_INIT.replace("SALT", _salt()))
    names = ["."]
    for path in sorted(folder.rglob("*")):
        path.chmod(0o755)
        os.utime(path, (0, 0))
        names.append(str(path.relative_to(folder)))
    os.utime(folder, (0, 0))
    listed = "\0".join(names).encode()
    packed = tools.run(
        "cpio",
        "--null",
        "--create",
        "--format=newc",
        "--reproducible",
        "--owner=0:0",
        "--quiet",
        cwd=folder,
        data=listed,
    )
    out.write_bytes(tools.run("zstd", "-19", "--stdout", data=packed))


def _in_order(modules: Path) -> list[Path]:
    """Files of the modules, each after those that it depends on."""
    files = {path.stem: path for path in modules.rglob("*.ko") if stat.S_ISREG(path.stat().st_mode)}
    done: dict[str, Path] = {}

    def add(name: str) -> None:
        # A module's file may have either of two characters where its name has one.
        file = files.get(name) or files[name.replace("_", "-")]
        if file.stem in done:
            return
        match = _DEPENDS.search(file.read_bytes())
        for other in filter(None, (match[1] if match else b"").decode().split(",")):
            add(other)
        done[file.stem] = file

    try:
        for name in _MODULES:
            add(name)
    except KeyError as error:
        raise DeviceError(f"the kernel has no module {error.args[0]}") from None
    return list(done.values())


def _salt() -> str:
    """None: the tree protects bytes that everybody may have, and the same bytes are to give the same hash."""
    return "-"
