"""Encryption at rest: without this device's chip the content of the disk is of no use.

AES-256-XTS (IEEE 1619-2018) for each 512-byte sector under a key that only this chip has, below the artefact's own
encryption: a key that opens the components of a cohort, leaked by another device, does not open this disk.

    tweak = SHA-256(name of the file)[:8] || number of the sector in it (8, little-endian)
    a file of n > 0 bytes is n + 512 bytes long on the disk: whole sectors, the last one filled up with zeros, and
    zeros after it; a sector of nothing but zeros was never written, and reads as zeros

XTS encrypts but does not authenticate: the hash tree, the signatures and the audit log's chain do that. Whoever sees
two states of the disk can see which 16-byte blocks differ, and the lengths of files.
"""

from __future__ import annotations

import threading

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from variegate.device_sim.changes import SECTOR_BYTES
from variegate.device_sim.storage import Storage
from variegate.keys.primitives import sha256

STORAGE_KEY_BYTES = 64
"""Two AES-256 keys, as XTS takes them."""
_HALF_TWEAK = 8
_BLANK = bytes(SECTOR_BYTES)


class AtRest:
    """A `Storage` whose every sector is encrypted; safe among threads, one operation at a time.

    A power cut has the same effect as on the disk below: each sector is old or new as a whole. A partial sector is
    read, changed and written whole, which does not change that. One case is left open: if a shortened
    file is lengthened again and the power goes, its own old bytes may come back in place of zeros, for one sector.

    Args:
        storage: The disk.
        key: `STORAGE_KEY_BYTES` bytes.
    """

    def __init__(self, storage: Storage, key: bytes) -> None:
        self._disk = storage
        self._aes = algorithms.AES(key)
        self._guard = threading.RLock()

    @property
    def operations(self) -> int:
        """How many operations that change something were begun on the disk."""
        return self._disk.operations

    def exists(self, name: str) -> bool:
        """As `Storage.exists`."""
        with self._guard:
            return self._disk.exists(name)

    def names(self) -> list[str]:
        """As `Storage.names`."""
        with self._guard:
            return self._disk.names()

    def size(self, name: str) -> int:
        """As `Storage.size`, in bytes of plaintext."""
        with self._guard:
            return max(0, self._disk.size(name) - SECTOR_BYTES)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As `Storage.read`."""
        with self._guard:
            size = self.size(name)
            end = size if length is None else min(size, offset + length)
            if end <= offset:
                return b""
            first = offset // SECTOR_BYTES
            plain = self._sectors(name, first, -(-end // SECTOR_BYTES))
            start = first * SECTOR_BYTES
            return plain if (start, start + len(plain)) == (offset, end) else plain[offset - start : end - start]

    def create(self, name: str) -> None:
        """As `Storage.create`."""
        with self._guard:
            self._disk.create(name)

    def truncate(self, name: str, length: int) -> None:
        """As `Storage.truncate`."""
        with self._guard:
            size = self.size(name)
            if length > size:
                self._clear_after(name, size)
            self._disk.truncate(name, length + SECTOR_BYTES if length > 0 else 0)

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """As `Storage.write`: one operation, unless it leaves a gap after old bytes."""
        with self._guard:
            size, end = self.size(name), offset + len(data)
            if len(data) == 0:
                self._disk.write(name, offset, b"")
                return
            if offset > size:
                self._clear_after(name, size)
            first = offset // SECTOR_BYTES
            last = -(-end // SECTOR_BYTES)
            before = self.read(name, first * SECTOR_BYTES, offset - first * SECTOR_BYTES)
            after = self.read(name, end, last * SECTOR_BYTES - end)
            plain = bytearray((last - first) * SECTOR_BYTES)
            plain[: len(before)] = before
            plain[offset - first * SECTOR_BYTES : end - first * SECTOR_BYTES] = data
            plain[end - first * SECTOR_BYTES : end - first * SECTOR_BYTES + len(after)] = after
            sealed = self._encrypted(name, first, plain)
            if end > size:  # one write that lengthens the file as well
                sealed = sealed.ljust(end + SECTOR_BYTES - first * SECTOR_BYTES, b"\0")
            self._disk.write(name, first * SECTOR_BYTES, sealed)

    def fsync(self, name: str) -> None:
        """As `Storage.fsync`."""
        with self._guard:
            self._disk.fsync(name)

    def remove(self, name: str) -> None:
        """As `Storage.remove`."""
        with self._guard:
            self._disk.remove(name)

    def fsync_dir(self) -> None:
        """As `Storage.fsync_dir`."""
        with self._guard:
            self._disk.fsync_dir()

    def _clear_after(self, name: str, size: int) -> None:
        """Makes sure that bytes cut off after `size` do not come back when the file grows."""
        stop = self._disk.size(name)
        if stop <= size:  # both are 0; a rest too short to hold plaintext is cleared like any other
            return
        first = size // SECTOR_BYTES
        head = self.read(name, first * SECTOR_BYTES, size - first * SECTOR_BYTES)
        sealed = self._encrypted(name, first, head.ljust(SECTOR_BYTES, b"\0")) if head else b""
        sealed = sealed.ljust(stop - first * SECTOR_BYTES, b"\0")
        if self._disk.read(name, first * SECTOR_BYTES) != sealed:
            self._disk.write(name, first * SECTOR_BYTES, sealed)

    def _sectors(self, name: str, first: int, last: int) -> bytes:
        sealed = self._disk.read(name, first * SECTOR_BYTES, (last - first) * SECTOR_BYTES)
        sealed = sealed.ljust((last - first) * SECTOR_BYTES, b"\0")
        high, out = _file(name), bytearray()
        for number in range(first, last):
            start = (number - first) * SECTOR_BYTES
            sector = sealed[start : start + SECTOR_BYTES]
            out += _BLANK if sector == _BLANK else self._cipher(high, number).decryptor().update(sector)
        return bytes(out)

    def _encrypted(self, name: str, first: int, plain: bytes | bytearray) -> bytes:
        high, view = _file(name), memoryview(plain)
        return b"".join(
            self._cipher(high, first + start // SECTOR_BYTES).encryptor().update(view[start : start + SECTOR_BYTES])
            for start in range(0, len(plain), SECTOR_BYTES)
        )

    def _cipher(self, high: bytes, number: int) -> Cipher[modes.XTS]:
        return Cipher(self._aes, modes.XTS(high + number.to_bytes(_HALF_TWEAK, "little")))


def _file(name: str) -> bytes:
    return sha256(name.encode())[:_HALF_TWEAK]
