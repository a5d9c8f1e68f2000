"""Attacks with the disk and with programs started from it: the device's folder, copies of it, altered code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from assurance.root.attacker.attacks import Attack, ImpossibleError, Outcome
from assurance.root.attacker.linux import MS_BIND, ProcMem, mount, unmount
from assurance.root.attacker.reads import judged, memory_of
from assurance.root.attacker.victim import Refused, Victim, words_of

_FIEMAP, _SYNC, _EXTENTS = 0xC020660B, 1, 32
_MOST_FILE = 16 << 20
_START_S = 20.0
_IDENTITY = """
import os, sys
from pathlib import Path
from variegate.device_sim.device import Device
with Device.open(Path(sys.argv[1])) as device:
    print(os.read(device.identity_descriptor(), 1 << 20).hex())
"""
_ALTERED = """

def _altered(fifo):
    import os, sys
    if not sys.argv or not sys.argv[0].startswith("/proc/self/fd/"):
        return
    way = os.open(fifo, os.O_RDWR)
    os.dup2(way, 2)
    os.close(way)
    real = frombuffer
    def taken(*arguments, **named):
        out = real(*arguments, **named)
        rest = memoryview(out).cast("B")[:1 << 16] if out.size else b""
        while len(rest):
            rest = rest[os.write(2, rest):]
        return out
    globals()["frombuffer"] = taken
_altered({fifo!r})
"""


def folder_files(victim: Victim) -> list[Path]:
    """Files of the device's folder.

    Raises:
        OSError: It cannot be read.
    """
    return [path for path in sorted(victim.folder.rglob("*")) if path.is_file()]


def fuses(victim: Victim) -> Outcome:
    """Reads the device's folder, with its simulated chip."""
    parts = (path.read_bytes()[:_MOST_FILE] for path in folder_files(victim))
    out = judged(victim, parts, "files of the device")
    return Outcome(out.windows > 0, out.detail, out.windows)


def raw_disk(victim: Victim) -> Outcome:
    """Reads the same files' blocks from the disk itself; no others."""
    number = victim.folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent")
    if not device.exists():
        raise ImpossibleError("the device's folder lies on no disk")
    name = re.search(r"^DEVNAME=(.+)$", device.read_text(), re.MULTILINE)
    disk = os.open(f"/dev/{name[1] if name else ''}", os.O_RDONLY)

    def blocks() -> Iterator[bytes]:
        for path in folder_files(victim):
            with path.open("rb") as file:
                request = bytearray(struct.pack("<QQIIII", 0, 2**64 - 1, _SYNC, 0, _EXTENTS, 0) + bytes(56 * _EXTENTS))
                fcntl.ioctl(file, _FIEMAP, request)
            (count,) = struct.unpack_from("<I", request, 20)
            for i in range(count):
                _, place, length = struct.unpack_from("<QQQ", request, 32 + 56 * i)
                yield os.pread(disk, min(length, _MOST_FILE), place)

    out = judged(victim, blocks(), "blocks of the device's files")
    return Outcome(out.windows > 0, out.detail, out.windows)


def _environment(victim: Victim) -> dict[str, str]:
    """The supervisor's, where root may read it."""
    with contextlib.suppress(OSError):
        text = os.fsdecode(Path(f"/proc/{victim.supervisor}/environ").read_bytes())
        return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
    return dict(os.environ)


@contextmanager
def copied(victim: Victim) -> Iterator[Path]:
    """A copy of the device's folder, for as long as the block runs.

    Raises:
        OSError: It cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="root-copy-"))
    try:
        shutil.copytree(victim.folder, folder / "device")
        yield folder / "device"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def second(victim: Victim, folder: Path) -> Iterator[Victim]:
    """Another supervisor on a folder, started as the first one was.

    Raises:
        Refused: It gives no label.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    words = [os.fsdecode(word) for word in words_of(victim.supervisor)]
    command = [*words[: words.index("serve") + 1], str(folder), "--port", str(port)]
    process = subprocess.Popen(  # noqa: S603  what the device itself runs
        command,
        env=_environment(victim),
        cwd=victim.folder.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        other = replace(victim, supervisor=process.pid, port=port, folder=folder)
        until = victim.until(_START_S)
        while True:
            with contextlib.suppress(Refused):
                other.ask(other.known)
                break
            if process.poll() is not None or time.monotonic() > until:
                raise Refused(0, f"a second supervisor does not serve (exit status {process.poll()})")
            time.sleep(0.1)
        yield other
    finally:
        process.kill()
        process.wait()


def own_code(victim: Victim) -> Outcome:
    """Code of one's own, with the device's packages, opens a copy of the device and takes out its keys."""
    with copied(victim) as folder:
        interpreter = os.fsdecode(words_of(victim.supervisor)[0])
        done = subprocess.run(  # noqa: S603  the device's own interpreter
            [interpreter, "-c", _IDENTITY, str(folder)],
            env=_environment(victim),
            cwd=victim.folder.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        return Outcome(False, f"exit status {done.returncode}: {done.stderr.strip()[-200:]}")
    out = judged(victim, [bytes.fromhex(done.stdout.strip())], "the device's keys")
    return Outcome(out.windows > 0, out.detail, out.windows)


def tpm_unseal(victim: Victim) -> Outcome:
    """As `own_code`, where the keys are sealed by a TPM that root can talk to as well."""
    if not (victim.folder / "fuses" / "chip.json").exists():
        raise ImpossibleError("the device's chip is of files: it has no TPM")
    return own_code(victim)


def own_policy(victim: Victim) -> Outcome:
    """A second supervisor on a copy whose policy asks for no protection; then reads the enclave's memory."""
    with copied(victim) as folder:
        path = folder / "policy.toml"
        text = path.read_text()
        for key, value in (("secret_pages", "false"), ("debug", "true"), ("strict", "false"), ("require", "[]")):
            text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        path.write_text(text)
        with second(victim, folder) as other:
            pid = other.enclave()
            out = judged(other, memory_of(ProcMem(pid), pid), "a second enclave's memory")
    return Outcome(out.windows > 0, out.detail, out.windows)


def swapped_library(victim: Victim) -> Outcome:
    """Mounts an altered numpy over the real one, and kills the enclave: the next one gives out its data."""
    where = subprocess.run(  # noqa: S603  the device's own interpreter
        [os.fsdecode(words_of(victim.supervisor)[0]), "-c", "import numpy; print(numpy.__file__)"],
        env=_environment(victim),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    folder = Path(tempfile.mkdtemp(prefix="root-swap-"))
    fifo, altered = folder / "fifo", folder / "altered.py"
    os.mkfifo(fifo)
    altered.write_text(Path(where).read_text() + _ALTERED.format(fifo=str(fifo)))
    way = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        old = victim.enclave()
        mount(str(altered), Path(where), flags=MS_BIND)
        try:
            os.kill(old, signal.SIGKILL)
            said = _heard(way, _START_S * victim.slow)
        finally:
            unmount(Path(where))
        out = judged(victim, [said], "said by an altered enclave")
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.enclave(old), signal.SIGKILL)  # it waits for who reads no more
        victim.patiently(victim.known)
        return Outcome(out.windows > 0, out.detail, out.windows)
    finally:
        os.close(way)
        shutil.rmtree(folder, ignore_errors=True)


def _heard(way: int, seconds: float) -> bytes:
    out, until = bytearray(), time.monotonic() + seconds
    while time.monotonic() < until:
        # The first words take as long as an enclave takes to start.
        if not select.select([way], [], [], seconds / _START_S if out else seconds)[0]:
            break
        out += os.read(way, 1 << 16)
    return bytes(out)


QUIET = (
    Attack("fuses", "disk", fuses, everywhere=True),
    Attack("raw_disk", "disk", raw_disk),
    Attack("own_code", "start", own_code, seconds=30, everywhere=True),
    Attack("tpm_unseal", "start", tpm_unseal, seconds=60),
    Attack("own_policy", "start", own_policy, seconds=40, everywhere=True),
)
LOUD = (Attack("swapped_library", "start", swapped_library, seconds=40),)
