"""The device's inner log: what happened and why something was refused. Bounded, and without secrets."""

from __future__ import annotations

from variegate.device_sim.storage import Storage

MAX_BYTES = 64 * 1024
"""Of one file; two are kept."""
_MAX_LINE = 240
_NOW, _BEFORE = "log", "log.old"


class Journal:
    """A log of two files on the device's disk, the older one dropped when the newer is full."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write(self, at: float, event: str, detail: str) -> None:
        """Appends a line, durable before this returns.

        Args:
            at: Unix time in seconds.
            event: One word.
            detail: The rest; what is not printable is escaped, what is long is cut.

        Raises:
            DeviceError: The disk failed.
        """
        text = f"{at:.3f} {event} {detail}".encode("unicode_escape")
        line = text[:_MAX_LINE] + b"\n"
        disk = self._storage
        if disk.exists(_NOW) and disk.size(_NOW) + len(line) > MAX_BYTES:
            disk.rename(_NOW, _BEFORE)
        if not disk.exists(_NOW):
            disk.create(_NOW)
            disk.fsync_dir()
        disk.write(_NOW, disk.size(_NOW), line)
        disk.fsync(_NOW)

    def lines(self) -> list[str]:
        """All lines kept, oldest first; a torn one reads as it is.

        Raises:
            DeviceError: The disk failed.
        """
        disk = self._storage
        # No more than was written: whoever holds the disk may have left a file of any length.
        kept = b"".join(disk.read(name, 0, MAX_BYTES) for name in (_BEFORE, _NOW) if disk.exists(name))
        return kept.decode("ascii", "replace").splitlines()
