"""Secret pages: nobody reads them from outside, root included; and each reader finds ordinary pages, as a control."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.children import Child, Zygote
from variegate.isolation import syscalls
from variegate.isolation.pages import SecretRegion
from variegate.keys.errors import MisuseError

PATTERN = bytes(range(100, 164))
PIDFD_GETFD = 438
SECRET = "memfd_secret pages: no plain read reaches them; whoever may write to the process can get them"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: reads another process as root does")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


def test_pages_are_zeroed_writable_and_of_the_size_asked_for(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        region = SecretRegion(5000)
        fresh = not any(region.view)
        region.view[:3], region.view[-1] = b"abc", 7
        array = np.frombuffer(region.view, np.uint8)
        array[1] = 120
        whole = [region.view.nbytes, region.size, region.view.readonly, region.view.format, array.ctypes.data % 4096]
        before = bytes(region.view[:3]).decode(), region.view[-1]
        say(fresh, whole, before, plain([region.protection])[0], repr(region))
        """
    )
    assert said == [
        True,
        [5000, 5000, False, "B", 0],
        ["axc", 7],
        ["memory", "on", SECRET],
        "SecretRegion(5000 bytes, on)",
    ]


def test_a_fork_shares_them_and_they_survive_it(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        regions = [SecretRegion(1 << 20), SecretRegion(1 << 20, secret=False)]
        if os.fork() == 0:
            for region in regions:
                region.view[-5:] = b"child"
            os._exit(0)
        os.wait()
        say([bytes(region.view[-5:]).decode() for region in regions])
        """
    )
    assert said == ["child", "child"]


def test_no_descriptor_is_left(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        links = lambda: sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                               and os.path.lexists(f"/proc/self/fd/{fd}"))
        before = links()
        region = SecretRegion(4096)
        after = links()
        kept = syscalls.syscall(447, 0)
        say(before == after, any("secretmem" in link for link in links()))
        """
    )
    assert said == [True, True]


def by_memory_file(pid: int, address: int) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(len(PATTERN))


def by_process_vm_readv(pid: int, address: int) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    into = ctypes.create_string_buffer(len(PATTERN))
    here = (ctypes.c_void_p * 2)(ctypes.addressof(into), len(PATTERN))
    there = (ctypes.c_void_p * 2)(address, len(PATTERN))
    if libc.process_vm_readv(pid, here, ctypes.c_ulong(1), there, ctypes.c_ulong(1), ctypes.c_ulong(0)) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    return into.raw


def by_map_files(pid: int, address: int) -> bytes:
    folder = Path(f"/proc/{pid}/map_files")
    for entry in folder.iterdir():
        start, end = (int(part, 16) for part in entry.name.split("-"))
        if start <= address < end:
            with entry.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                return mapped[address - start : address - start + len(PATTERN)]
    raise OSError("no such mapping")


def by_ptrace(pid: int, address: int) -> bytes:
    syscalls.ptrace(0x4206, pid)
    try:
        syscalls.ptrace(0x4207, pid)
        os.waitpid(pid, 0x4000_0000)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.restype = ctypes.c_long
        ctypes.set_errno(0)
        word = libc.ptrace(ctypes.c_long(2), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(0))
        if ctypes.get_errno():
            raise OSError(ctypes.get_errno(), "ptrace")
        return int(word).to_bytes(8, "little", signed=True)
    finally:
        syscalls.ptrace(17, pid)


READERS: dict[str, Callable[[int, int], bytes]] = {
    "memory file": by_memory_file,
    "process_vm_readv": by_process_vm_readv,
    "map_files": by_map_files,
    "ptrace": by_ptrace,
}


@pytest.fixture(scope="module")
def target(zygote: Zygote) -> Iterator[tuple[Child, int, int]]:
    """A process that holds the pattern in a secret and in an ordinary region; not locked down otherwise."""
    child = zygote.start(
        f"""
        regions = [SecretRegion(4096), SecretRegion(4096, secret=False)]
        for region in regions:
            for i in range({len(PATTERN)}):
                region.view[i] = {PATTERN[0]} + i
        say([region._address for region in regions])
        wait()
        """
    )
    addresses = child.hear()
    assert isinstance(addresses, list)
    yield child, *addresses
    child.tell()
    assert child.ended() == 0


@needs_root
@pytest.mark.parametrize("reader", READERS)
def test_root_reads_ordinary_pages_and_no_secret_ones(target: tuple[Child, int, int], reader: str) -> None:
    child, secret, ordinary = target
    read = READERS[reader]
    control = read(child.pid, ordinary)
    assert control == PATTERN[: len(control)]
    assert len(control) >= 8
    with pytest.raises(OSError, match=r".") as refused:
        read(child.pid, secret)
    # Not found, not forbidden: the kernel itself does not get at them.
    assert refused.value.errno in {errno.EIO, errno.EFAULT, errno.ENXIO}


def pattern_behind_descriptors(pid: int) -> bool:
    """Whether a descriptor of the process, taken over, maps to the pattern."""
    process = os.pidfd_open(pid)
    found = False
    for number in range(64):
        try:
            taken = syscalls.syscall(PIDFD_GETFD, process, number, 0)
        except OSError:
            continue
        try:
            with mmap.mmap(taken, 4096, prot=mmap.PROT_READ) as mapped:
                found |= mapped[: len(PATTERN)] == PATTERN
        except (OSError, ValueError):
            pass
        finally:
            os.close(taken)
    os.close(process)
    return found


@needs_root
def test_no_descriptor_can_be_taken_over(zygote: Zygote, target: tuple[Child, int, int]) -> None:
    assert not pattern_behind_descriptors(target[0].pid)
    careless = zygote.start(
        f"""
        kept = syscalls.syscall(447, 0)
        os.ftruncate(kept, 4096)
        address = syscalls.mmap_shared(4096, descriptor=kept)
        ctypes.memmove(address, bytes(range({PATTERN[0]}, {PATTERN[-1] + 1})), {len(PATTERN)})
        say(1)
        wait()
        """
    )
    assert careless.hear() == 1
    assert pattern_behind_descriptors(careless.pid)
    careless.tell()
    careless.ended()


def test_without_the_call_ordinary_pages_say_so(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        lockdown.no_new_privs()
        Filter(ALLOW).rule(fails_with(errno.ENOSYS), ["memfd_secret"]).load()
        region = SecretRegion(4096)
        region.view[:2] = b"ok"
        try:
            SecretRegion(4096, required=True)
        except DeviceError as error:
            say(plain([region.protection])[0], error.message)
        """
    )
    reason = "memfd_secret pages refused: ENOSYS"
    assert said == [
        ["memory", "unavailable", f"{reason}; ordinary pages, kept out of swap and out of core files"],
        f"secret pages are required: {reason}",
    ]


@needs_root
def test_a_memlock_limit_that_is_too_small_falls_back(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 1 << 20))
        become_nobody()
        small, large = SecretRegion(1 << 19), SecretRegion(1 << 20)
        failed = None
        try:
            SecretRegion(1 << 20, required=True)
        except DeviceError as error:
            failed = error.message
        say(plain([small.protection, large.protection]), failed)
        """
    )
    reason = "memfd_secret pages refused: EAGAIN"
    assert said == [
        [
            ["memory", "on", SECRET],
            ["memory", "unavailable", f"{reason}; ordinary pages, kept out of core files"],
        ],
        f"secret pages are required: {reason}",
    ]


def test_no_memory_at_all_is_an_error(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        try:
            SecretRegion(1 << 60, secret=False)
        except DeviceError as error:
            say(error.message)
        """
    )
    assert said == "no memory for keys and weights: ENOMEM"


def test_pages_not_asked_for_are_off() -> None:
    region = SecretRegion(10, secret=False)
    assert (region.protection.name, region.protection.state) == ("memory", "off")
    with pytest.raises(MisuseError):
        SecretRegion(0)
    with pytest.raises(MisuseError):
        SecretRegion(10, secret=False, required=True)
