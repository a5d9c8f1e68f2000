"""Fields of hostile documents: a number, a text, bytes, a device's ueid, a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.primitives import HASH_BYTES

UEID_BYTES = 33
"""EAT type 0x01 (RAND) and 32 bytes (RFC 9711 section 4.2.1)."""
UEID_RAND = 0x01
MAX_TEXT = 128
MAX_UINT = (1 << 63) - 1


@dataclass(frozen=True)
class Fields:
    """Checks the fields of one kind of document; each raises `RefusedError` with `MALFORMED`.

    Attributes:
        document: Its name in messages.
    """

    document: str

    def uint(self, value: Any, *, least: int = 0, most: int = MAX_UINT) -> int:
        """A whole number, and no boolean."""
        if type(value) is not int or not least <= value <= most:
            raise RefusedError(Refusal.MALFORMED, f"{self.document} holds a number out of its range")
        return value

    def text(self, value: Any, *, least: int = 1, most: int = MAX_TEXT) -> str:
        """A printable text of so many characters."""
        if not isinstance(value, str) or not least <= len(value) <= most or not value.isprintable():
            raise RefusedError(Refusal.MALFORMED, f"{self.document} holds a text that is empty, long or not printable")
        return value

    def octets(self, value: Any, length: int) -> bytes:
        """So many bytes."""
        if not isinstance(value, bytes) or len(value) != length:
            raise RefusedError(Refusal.MALFORMED, f"{self.document} holds bytes that should be {length} long")
        return value

    def ueid(self, value: Any) -> bytes:
        """A device's ueid (RFC 9711, section 4.2.1)."""
        ueid = self.octets(value, UEID_BYTES)
        if ueid[0] != UEID_RAND:
            raise RefusedError(Refusal.MALFORMED, "ueid is not of EAT's type RAND")
        return ueid

    def measurement(self, item: Any) -> tuple[str, bytes]:
        """A measurement's name and hash."""
        match item:
            case [name, value]:
                return self.text(name), self.octets(value, HASH_BYTES)
        raise RefusedError(Refusal.MALFORMED, f"{self.document} holds a measurement that is not a pair")
