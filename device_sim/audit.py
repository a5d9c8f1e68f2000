"""The format of the audit log and of an export: signed entries in a chain, in segments.

    segment     = record of a head, then records of entries
    record      = length of the rest (2, big-endian) || CBOR [body, signature]
    signature   = Ed25519 by the audit key over "variegate/1/audit/" || body
    head        = CBOR [0, number, [first, ...], previous, lost]
    entry       = CBOR [1, sequence, boot, time, event, detail, previous]
    end         = CBOR [2, sequence, boot, time, previous]
    previous    = SHA-256 of the body before, a head's included; 32 zero bytes where there is none
    certificate = CBOR [ueid, audit key, signature of the device's own key over "variegate/1/audit-key/" ||
                  CBOR [ueid, audit key]]
    export      = CBOR [1, certificate, record of an end, [segment, ...]]

Entries count from 1 without a gap; times are Unix milliseconds. A head names the first entry of each segment kept when
it was written, its own segment last; older ones were dropped to make room. `lost` counts the entries that this device
has found missing so far. The end has the chip's count of entries when the export was made.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from variegate.keys import cbor
from variegate.keys.errors import DeviceError, Refusal, RefusedError
from variegate.keys.primitives import HASH_BYTES, KEY_BYTES, ed25519_verify, sha256

SEGMENT_BYTES = 32 * 1024
SEGMENTS = 8
"""Files that take turns. The one to be overwritten next is not promised: a power cut may have emptied it."""
KEPT = SEGMENTS - 1
MAX_EXPORT_BYTES = SEGMENTS * SEGMENT_BYTES + 4096
MAX_LINE = 255
"""Characters of an entry as people read it."""
_LAST_TIME_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
LOST = "lost"
"""The event of an entry that names the entries missing before it."""
START = bytes(HASH_BYTES)
MAX_COUNT = (1 << 63) - 1
MAX_RECORD = 2048
"""Bytes of a record; the longest of ours is a third of it."""
_CONTEXT, _KEY_CONTEXT = b"variegate/1/audit/", b"variegate/1/audit-key/"
_FORMAT, _HEAD, _ENTRY, _END = 1, 0, 1, 2
_LENGTH_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Head:
    """The start of a segment.

    Attributes:
        number: Of the segment, from 1.
        firsts: First entry of each segment kept, oldest first, this one's last; at most `KEPT`.
        previous: SHA-256 of the record's body before it.
        lost: Entries that the device has found missing so far.
    """

    number: int
    firsts: tuple[int, ...]
    previous: bytes
    lost: int

    def to_bytes(self) -> bytes:
        """Its body."""
        return cbor.encode([_HEAD, self.number, list(self.firsts), self.previous, self.lost])


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """Something that happened.

    Attributes:
        sequence: Its number, from 1.
        boot: Boots of the device so far.
        time_ms: Unix milliseconds, by the device's clock.
        event: One word.
        detail: The rest.
        previous: SHA-256 of the record's body before it.
    """

    sequence: int
    boot: int
    time_ms: int
    event: str
    detail: str
    previous: bytes

    def to_bytes(self) -> bytes:
        """Its body."""
        return cbor.encode([_ENTRY, self.sequence, self.boot, self.time_ms, self.event, self.detail, self.previous])

    def words(self) -> str:
        """Event and detail for people, escaped and of bounded length."""
        return line(self.time_ms / 1000, self.event, self.detail).partition(" ")[2]

    def line(self) -> str:
        """For people, with the time before it."""
        return line(self.time_ms / 1000, self.event, self.detail)


@dataclass(frozen=True, kw_only=True)
class End:
    """How far the log went when it was exported.

    Attributes:
        sequence: Entries that the chip counts.
        boot: Boots of the device so far.
        time_ms: Unix milliseconds, by the device's clock.
        previous: SHA-256 of the last record's body.
    """

    sequence: int
    boot: int
    time_ms: int
    previous: bytes

    def to_bytes(self) -> bytes:
        """Its body."""
        return cbor.encode([_END, self.sequence, self.boot, self.time_ms, self.previous])


@dataclass(frozen=True)
class Segment:
    """The undamaged part of a segment, from its start on.

    Attributes:
        head: Its head.
        entries: Those that follow on each other.
        link: SHA-256 of the last body.
        end: Bytes that all this takes.
    """

    head: Head
    entries: tuple[AuditEntry, ...]
    link: bytes
    end: int

    @property
    def last(self) -> int:
        """Sequence of the last entry, or of the one before the first."""
        return self.head.firsts[-1] + len(self.entries) - 1


class AuditKey:
    """The key that signs a device's log, and its certificate. Its text form shows no secret.

    It is not the identity's key, so that the log's writer need not hold the identity.
    """

    def __init__(self, seed: bytes, certificate: bytes) -> None:
        self._seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()
        self.certificate = certificate

    @classmethod
    def generate(cls, ueid: bytes, certify: Callable[[bytes], bytes]) -> AuditKey:
        """A new key for a device.

        Args:
            ueid: The device.
            certify: Signs with the key that the device's public identity names.
        """
        seed = os.urandom(KEY_BYTES)
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        signature = certify(_to_certify(ueid, public))
        return cls(seed, cbor.encode([ueid, public, signature]))

    def __repr__(self) -> str:
        return f"<AuditKey {self.public.hex()}>"

    def sign(self, body: bytes) -> bytes:
        """A record of a body."""
        rest = cbor.encode([body, self._private.sign(_CONTEXT + body)])
        return len(rest).to_bytes(_LENGTH_BYTES, "big") + rest

    def to_bytes(self) -> bytes:
        """The burnt value; it is secret."""
        return cbor.encode([self._seed, self.certificate])

    @classmethod
    def from_bytes(cls, data: bytes) -> AuditKey:
        """Reads `to_bytes`.

        Raises:
            DeviceError: The chip is damaged.
        """
        match cbor.decode(data, limit=MAX_RECORD):
            case [bytes(seed), bytes(certificate)] if len(seed) == KEY_BYTES:
                return cls(seed, certificate)
        raise DeviceError("the device's audit key is damaged", hint="replace the chip")


def certified(data: bytes, ueid: bytes, signing_public: bytes) -> bytes:
    """The audit key of a device, by its certificate.

    Raises:
        RefusedError: `MALFORMED`; `WRONG_DEVICE`; `SIGNATURE`.
    """
    match cbor.decode(data, limit=MAX_RECORD):
        case [bytes(named), bytes(public), bytes(signature)]:
            if named != ueid:
                raise RefusedError(Refusal.WRONG_DEVICE, "the log is another device's")
            if not ed25519_verify(signing_public, signature, _to_certify(ueid, public)):
                raise RefusedError(Refusal.SIGNATURE, "the log's key is not certified by the device's own")
            return public
    raise RefusedError(Refusal.MALFORMED, "the log's certificate is not valid")


def moment(time_ms: int) -> str:
    """Unix milliseconds as people read them: ISO 8601 in UTC; as they are beyond its last year."""
    if not 0 <= time_ms <= _LAST_TIME_MS:
        return f"{time_ms}ms"
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def line(at: float, event: str, detail: str) -> str:
    """One line for people; unprintable characters are escaped, long text is cut."""
    return f"{moment(round(1000 * at))} {event} {detail}".encode("unicode_escape")[:MAX_LINE].decode("ascii")


def parse(data: bytes, public: bytes | None) -> Segment | None:
    """Reads a segment as far as it is whole.

    Args:
        data: Bytes of any content.
        public: The audit key, or None to check the chain and no signature.

    Returns:
        The segment, or None when there is not even a head.
    """
    records = _records(data, public)
    body, end = next(records, (b"", 0))
    head = _head(body)
    if head is None:
        return None
    link, entries, sequence = sha256(body), [], head.firsts[-1]
    for body, stop in records:
        entry = _entry(body)
        if entry is None or (entry.sequence, entry.previous) != (sequence, link):
            break
        entries.append(entry)
        link, sequence, end = sha256(body), sequence + 1, stop
    return Segment(head, tuple(entries), link, end)


def parse_end(data: bytes, public: bytes) -> End:
    """Reads the end of an export.

    Raises:
        RefusedError: `SIGNATURE`, when it is not the device's.
    """
    body, stop = next(_records(data, public), (b"", 0))
    match _decoded(body):
        case [kind, sequence, boot, time_ms, bytes(previous)] if (
            kind == _END and stop == len(data) and _counts(kind, sequence, boot, time_ms)
        ):
            return End(sequence=sequence, boot=boot, time_ms=time_ms, previous=previous)
    raise RefusedError(Refusal.SIGNATURE, "the export's end is not signed by the device")


def to_export(certificate: bytes, end: bytes, segments: list[bytes]) -> bytes:
    """Encodes an export."""
    return cbor.encode([_FORMAT, certificate, end, segments])


def parse_export(data: bytes) -> tuple[bytes, bytes, list[bytes]]:
    """Reads an export: certificate, end, segments.

    Raises:
        RefusedError: `TOO_LARGE` or `MALFORMED`.
    """
    match cbor.decode(data, limit=MAX_EXPORT_BYTES):
        case [version, bytes(by), bytes(end), [*segments]] if (
            type(version) is int
            and version == _FORMAT
            and len(segments) <= SEGMENTS
            and all(isinstance(segment, bytes) for segment in segments)
        ):
            return by, end, segments
    raise RefusedError(Refusal.MALFORMED, "this is not an exported audit log")


def _to_certify(ueid: bytes, public: bytes) -> bytes:
    """The bytes that the device's own key signs."""
    return _KEY_CONTEXT + cbor.encode([ueid, public])


def _records(data: bytes, public: bytes | None) -> Iterator[tuple[bytes, int]]:
    """Bodies, and where each record ends; stops at the first that is not whole."""
    at = 0
    while (start := at + _LENGTH_BYTES) <= len(data):
        stop = start + int.from_bytes(data[at:start], "big")
        if not start < stop <= min(len(data), start + MAX_RECORD):
            return
        match _decoded(data[start:stop]):
            case [bytes(body), bytes(signature)]:
                if public is not None and not ed25519_verify(public, signature, _CONTEXT + body):
                    return
            case _:
                return
        yield body, stop
        at = stop


def _head(body: bytes) -> Head | None:
    match _decoded(body):
        case [kind, number, [*firsts], bytes(previous), lost] if (
            kind == _HEAD
            and 1 <= len(firsts) <= KEPT
            and _counts(kind, number, lost, *firsts)
            and all(a <= b for a, b in itertools.pairwise(firsts))
        ):
            return Head(number=number, firsts=tuple(firsts), previous=previous, lost=lost)
    return None


def _entry(body: bytes) -> AuditEntry | None:
    match _decoded(body):
        case [kind, sequence, boot, time_ms, str(event), str(detail), bytes(previous)] if kind == _ENTRY and _counts(
            kind, sequence, boot, time_ms
        ):
            return AuditEntry(
                sequence=sequence, boot=boot, time_ms=time_ms, event=event, detail=detail, previous=previous
            )
    return None


def _decoded(data: bytes) -> Any:
    """The value, or None when it is none of ours."""
    try:
        return cbor.decode(data, limit=MAX_RECORD)
    except RefusedError:
        return None


def _counts(*values: object) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_COUNT for value in values)
