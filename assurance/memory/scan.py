"""Reads an enclave from another process through every interface of Linux, and finds windows of secrets in the result.

A window is 32 bytes of a tensor or 16 of a key, at any position of a float (multiples of 4). Windows with few different
bytes are left out: zeros and constants are everywhere and prove nothing. Tensors of signs and permutations have no
others, so their windows have 128 bytes: 32 signs, which occur by chance once in 4 thousand million.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TENSOR_WINDOW, LONG_WINDOW, KEY_WINDOW = 32, 128, 16
_DIFFERENT = 12
"""Different bytes that a window has at least."""
_CHANGES = 8
"""Words that differ from the one before, in a long window, at least."""
_STEP = 4
_HASH_BITS = 24
_PIECE = 16 << 20
_ATTACH, _DETACH, _PEEK = 16, 17, 1
_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Secrets:
    """The windows that are searched for.

    Attributes:
        tensors: Bytes of weights and keyed tensors, by name.
        keys: Keys, by name.
    """

    tensors: Mapping[str, bytes] = field(repr=False)
    keys: Mapping[str, bytes] = field(repr=False)

    def windows(self) -> int:
        """How many windows are looked for."""
        *_, windows = self._prepared
        return len(windows) + sum(1 for key in self.keys.values() for _ in _parts(key))

    def all_windows(self) -> set[bytes]:
        """The windows of tensors that are looked for."""
        *_, windows = self._prepared
        return windows

    def found(self, memory: bytes, at: int = 0) -> int:
        """Windows found in `memory`, which begins at address `at`; one place counts once."""
        places = sum(1 for key in self.keys.values() for part in _parts(key) if part in memory)
        heads, table, windows = self._prepared
        skip = -at % 8
        words = np.frombuffer(memory, "<u8", max(0, len(memory) - skip) // 8, skip)
        if not len(heads):
            return places
        # A table of hashes leaves few places for the search proper.
        likely = np.flatnonzero(table[_hash(words)])
        order = np.searchsorted(heads, words[likely])
        order[order == len(heads)] = 0
        for hit in likely[heads[order] == words[likely]]:
            place = skip + 8 * int(hit)
            places += any(memory[place : place + size] in windows for size in (TENSOR_WINDOW, LONG_WINDOW))
        return places

    @cached_property
    def _prepared(self) -> tuple[NDArray[np.uint64], NDArray[np.bool_], set[bytes]]:
        """First words of all windows, sorted; whether some of them has a hash; the windows."""
        windows: set[bytes] = set()
        for data in self.tensors.values():
            short = {window for window in _slid(data, TENSOR_WINDOW) if len(set(window)) >= _DIFFERENT}
            if 2 * len(short) < len(data) // _STEP - TENSOR_WINDOW // _STEP:
                short = {window for window in _slid(data, LONG_WINDOW) if _changes(window) >= _CHANGES}
            windows |= short
        heads = np.sort(np.frombuffer(b"".join({window[:8] for window in windows}), "<u8"))
        table = np.zeros(1 << _HASH_BITS, np.bool_)
        table[_hash(heads)] = True
        return heads, table, windows


@dataclass(frozen=True)
class Reading:
    """The result of one way of reading.

    Attributes:
        way: Name of the way.
        bytes: Bytes that could be read.
        windows: Windows of secrets in them.
        refused: The kernel's refusal, in words; empty if none.
    """

    way: str
    bytes: int
    windows: int
    refused: str = ""


def read_everything(pid: int, secrets: Secrets) -> list[Reading]:
    """Tries every way to read a process but a core file, which ends it."""
    ways: dict[str, Callable[[int], Iterator[tuple[int, bytes]]]] = {
        "/proc/PID/mem": _proc_mem,
        "process_vm_readv": _vm_readv,
        "ptrace": _ptrace,
        "pidfd_getfd": _descriptors,
    }
    return [_reading(way, take(pid), secrets) for way, take in ways.items()]


def read_core(path: Path, secrets: Secrets) -> Reading:
    """Searches a core file, if there is one."""
    if not path.exists():
        return Reading("core", 0, 0, "no core file was written")
    data = path.read_bytes()
    return Reading("core", len(data), secrets.found(data))


def _reading(way: str, parts: Iterator[tuple[int, bytes]], secrets: Secrets) -> Reading:
    size = windows = 0
    try:
        for at, data in parts:
            size += len(data)
            windows += secrets.found(data, at)
    except OSError as error:
        return Reading(way, size, windows, os.strerror(error.errno or 0))
    return Reading(way, size, windows)


def mappings(pid: int) -> Iterator[tuple[int, int]]:
    """Start and end of every mapping that is said to be readable."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights = line.split(maxsplit=2)[:2]
        if rights.startswith("r") and not line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
            start, end = (int(value, 16) for value in span.split("-"))
            yield start, end


def _pieces(pid: int) -> Iterator[tuple[int, int]]:
    """Mappings in pieces that overlap by a window."""
    for start, end in mappings(pid):
        for at in range(start, end, _PIECE):
            yield at, min(end, at + _PIECE + LONG_WINDOW)


def _proc_mem(pid: int) -> Iterator[tuple[int, bytes]]:
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for start, end in _pieces(pid):
            yield from _by_page(start, end, lambda at, size: os.pread(descriptor, size, at))
    finally:
        os.close(descriptor)


def _vm_readv(pid: int) -> Iterator[tuple[int, bytes]]:
    def read(at: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        ours = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
        theirs = (ctypes.c_size_t * 2)(at, size)
        count = _libc.process_vm_readv(pid, ours, 1, theirs, 1, 0)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return buffer.raw[:count]

    for start, end in _pieces(pid):
        yield from _by_page(start, end, read)


def _by_page(start: int, end: int, read: Callable[[int, int], bytes]) -> Iterator[tuple[int, bytes]]:
    """The whole piece, or page by page where some page cannot be read."""
    try:
        data = read(start, end - start)
    except PermissionError:
        raise
    except OSError:
        data = b""
    if len(data) == end - start:
        yield start, data
        return
    if data:
        yield start, data
    at = start + len(data) // mmap.PAGESIZE * mmap.PAGESIZE
    for page in range(at, end, mmap.PAGESIZE):
        try:
            data = read(page, min(mmap.PAGESIZE, end - page))
        except PermissionError:
            raise
        except OSError:
            continue
        if data:
            yield page, data


def _ptrace(pid: int) -> Iterator[tuple[int, bytes]]:
    _libc.ptrace.restype = ctypes.c_long
    _libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if _libc.ptrace(_ATTACH, pid, None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        os.waitpid(pid, 0x4000_0000)
        # A word here and there shows that it works; reading all goes through /proc/PID/mem, as debuggers do.
        yield from _proc_mem(pid)
    finally:
        _libc.ptrace(_DETACH, pid, None, None)


def _descriptors(pid: int) -> Iterator[tuple[int, bytes]]:
    handle = os.pidfd_open(pid)
    try:
        for number in range(256):
            descriptor = _libc.syscall(_PIDFD_GETFD, handle, number, 0)
            if descriptor < 0:
                if ctypes.get_errno() in (1, 13):
                    raise OSError(ctypes.get_errno(), "")
                continue
            try:
                yield from _content(descriptor)
            finally:
                os.close(descriptor)
    finally:
        os.close(handle)


def _content(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """The content behind a descriptor: it is mapped, which also reads files that cannot be read otherwise."""
    size = os.fstat(descriptor).st_size
    if size <= 0:
        return
    try:
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
            for at in range(0, size, _PIECE):
                yield 0, mapped[at : at + _PIECE + LONG_WINDOW]
    except (OSError, ValueError):
        return


def _hash(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The top bits of a product with an odd number (Knuth, volume 3, section 6.4)."""
    return (words * np.uint64(0x9E37_79B9_7F4A_7C15)) >> np.uint64(64 - _HASH_BITS)


def _slid(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data) - size + 1, _STEP))


def _changes(window: bytes) -> int:
    words = np.frombuffer(window, "<u4")
    return int(np.count_nonzero(words[1:] != words[:-1]))


def _parts(key: bytes) -> Iterator[bytes]:
    """Every window of a key that stands at a multiple of 8."""
    for start in range(0, len(key) - KEY_WINDOW + 1, 8):
        yield key[start : start + KEY_WINDOW]
