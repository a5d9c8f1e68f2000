"""Receipts: a device's signature of the frames it was shown and the labels it answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.attest import cose
from variegate.attest.cose import Sign
from variegate.keys import cbor
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.fields import UEID_BYTES
from variegate.keys.manifest import DTYPES
from variegate.keys.primitives import HASH_BYTES, sha256

TYP = "application/vnd.variegate.receipt+cbor"
MAX_LABELS = 16_384
"""Frames under one receipt."""
MAX_RECEIPT_BYTES = 160 * 1024
"""A label takes up to 9 bytes."""
_FORMAT = 1
_MAX_UINT = (1 << 63) - 1
_MAX_RANK = 8
_FRAMES_CONTEXT = b"variegate/1/frames/"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One answered query.

    Attributes:
        ueid: The device, 33 bytes.
        model: SHA-256 of the copy's manifest, 32 bytes.
        boot_count: Times the device was booted.
        sequence: Number of the receipt, unique since that boot and rising; a restarted enclave skips ahead.
        time_s: Unix time in seconds, by the device's clock.
        frames: `frames_digest` of the frames shown, 32 bytes.
        labels: The labels, one for each frame.
    """

    ueid: bytes
    model: bytes
    boot_count: int
    sequence: int
    time_s: int
    frames: bytes
    labels: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """The payload, deterministic CBOR."""
        return cbor.encode(
            [
                _FORMAT,
                self.ueid,
                self.model,
                self.boot_count,
                self.sequence,
                self.time_s,
                self.frames,
                list(self.labels),
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Reads a payload.

        Raises:
            RefusedError: `TOO_LARGE` or `MALFORMED`.
        """
        match cbor.decode(data, limit=MAX_RECEIPT_BYTES):
            case [version, bytes(ueid), bytes(model), boots, sequence, time_s, bytes(frames), [*labels]] if (
                type(version) is int
                and version == _FORMAT
                and len(ueid) == UEID_BYTES
                and len(model) == len(frames) == HASH_BYTES
                and all(_is_uint(value) for value in (boots, sequence, time_s, *labels))
                and 1 <= len(labels) <= MAX_LABELS
            ):
                return cls(
                    ueid=ueid,
                    model=model,
                    boot_count=boots,
                    sequence=sequence,
                    time_s=time_s,
                    frames=frames,
                    labels=tuple(labels),
                )
        raise RefusedError(Refusal.MALFORMED, "token does not hold a receipt of format 1")

    def require_frames(self, frames: NDArray[Any]) -> None:
        """Checks that these are the frames it speaks of.

        Args:
            frames: (N, *shape), the very bytes and dtype that were shown.

        Raises:
            RefusedError: `INPUT`, when they are others.
            MisuseError: They are no frames.
        """
        if frames_digest(frames) != self.frames:
            raise RefusedError(Refusal.INPUT, "receipt is for other frames")


def frames_digest(frames: NDArray[Any]) -> bytes:
    """SHA-256 of "variegate/1/frames/" || CBOR [dtype, [N, ...]] || the frames in C order, little-endian.

    Args:
        frames: uint8 or float32 (N, *shape).

    Raises:
        MisuseError: Another dtype, or no batch axis.
    """
    if str(frames.dtype) not in DTYPES or not 1 <= frames.ndim <= _MAX_RANK:
        raise MisuseError(f"frames are arrays (N, ...) of {' or '.join(DTYPES)}")
    head = cbor.encode([str(frames.dtype), list(frames.shape)])
    # A view where the frames are plain already; `astype` would copy a batch for each receipt.
    plain = np.ascontiguousarray(frames, frames.dtype.newbyteorder("<"))
    return sha256(_FRAMES_CONTEXT, head, plain.data)


def labels_of(labels: NDArray[np.int64] | Sequence[int]) -> tuple[int, ...]:
    """Labels as a receipt holds them."""
    return tuple(int(label) for label in labels)


def issue(receipt: Receipt, sign: Sign, public: bytes) -> bytes:
    """Signs a receipt.

    Args:
        receipt: The receipt to sign.
        sign: The device's signing key.
        public: Its public half, 32 bytes.

    Returns:
        A COSE_Sign1.

    Raises:
        RefusedError: `MALFORMED` or `TOO_LARGE`, when nobody would read it.
    """
    token = cose.sign1(TYP, receipt.to_bytes(), sign, public)
    Receipt.from_bytes(cose.unverified(token, limit=MAX_RECEIPT_BYTES))
    return token


def verify(token: bytes, public: bytes) -> Receipt:
    """Checks a receipt's signature and reads it.

    Args:
        token: Hostile bytes.
        public: The device's Ed25519 key, 32 bytes.

    Raises:
        RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`.
    """
    return Receipt.from_bytes(cose.verify1(TYP, token, public, limit=MAX_RECEIPT_BYTES))


def _is_uint(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_UINT
