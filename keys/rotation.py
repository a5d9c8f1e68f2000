"""Rotation of the seller's root on devices, and revocation of devices.

    root statement      signed with the old keys, context "variegate/1/root",
                        payload CBOR [1, serial, new root (1,984 bytes)]
    revocation list     context "variegate/1/revocation", payload CBOR [1, serial, [ueid, ...]], sorted, no repeats

Both have a serial that only grows; a device keeps the last one it accepted and refuses replays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from variegate.keys import cbor, signing
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.fields import UEID_BYTES
from variegate.keys.seller import Seller
from variegate.keys.signing import SellerRoot, Signer

ROOT_CONTEXT = b"variegate/1/root"
REVOCATION_CONTEXT = b"variegate/1/revocation"
MAX_REVOKED = 1500
"""Devices in one list; more would not fit in a signed statement."""
_FORMAT = 1
_MAX_SERIAL = (1 << 63) - 1


class Rotation(NamedTuple):
    """New keys and how devices learn of them.

    Attributes:
        seller: The seller with new signing keys.
        statement: The new root, signed with the old keys.
    """

    seller: Seller
    statement: bytes


class PinnedRoot(NamedTuple):
    """The root that a device pins, with its serial.

    Attributes:
        root: The seller's public keys.
        serial: Serial of the statement that brought them; 0 when pinned at manufacture.
    """

    root: SellerRoot
    serial: int


def rotate(old: Seller) -> Rotation:
    """New signing keys under the same master secret, and the statement that hands over."""
    new = old.with_new_signing_keys()
    return Rotation(new, hand_over(old.signer, new.serial, new.root))


def hand_over(old: Signer, serial: int, root: SellerRoot) -> bytes:
    """The statement with which the old keys hand over to a new root.

    Args:
        old: The signing keys so far.
        serial: Of the new root, greater than every one before.
        root: The new root.
    """
    return signing.sign_batch(ROOT_CONTEXT, [cbor.encode([_FORMAT, serial, root.to_bytes()])], old)[0]


def follow(root: SellerRoot, serial: int, statement: bytes) -> PinnedRoot:
    """Accepts a rotation on a device.

    Args:
        root: The root pinned so far.
        serial: Its serial.
        statement: Hostile bytes.

    Returns:
        The root to pin from now on.

    Raises:
        RefusedError: `TOO_LARGE`, `MALFORMED` or `SIGNATURE`; `ROLLED_BACK`, when the serial does not grow;
            `KEY`, when the new root is not one.
    """
    payload = signing.verify(ROOT_CONTEXT, statement, root)
    match cbor.decode(payload, limit=signing.MAX_STATEMENT_BYTES):
        case [version, new_serial, bytes(new_root)] if _is_head(version, new_serial):
            if new_serial <= serial:
                raise RefusedError(Refusal.ROLLED_BACK, "root statement is older than the root pinned here")
            return PinnedRoot(SellerRoot.from_bytes(new_root), new_serial)
    raise RefusedError(Refusal.MALFORMED, "root statement does not hold a serial and a root")


@dataclass(frozen=True)
class Revocations:
    """The devices that no longer count.

    Attributes:
        serial: Number of the list, from 1; 0 is the empty list before the first.
        ueids: The devices, 33 bytes each.
    """

    serial: int = 0
    ueids: frozenset[bytes] = frozenset()

    def contains(self, ueid: bytes) -> bool:
        """Whether a device is revoked."""
        return ueid in self.ueids

    def extended(self, ueids: Iterable[bytes]) -> Revocations:
        """The next list, with more devices.

        Raises:
            MisuseError: A ueid has the wrong length, or the list is full.
        """
        more = frozenset(ueids)
        if any(len(ueid) != UEID_BYTES for ueid in more):
            raise MisuseError(f"a ueid is {UEID_BYTES} bytes, {2 * UEID_BYTES} hexadecimal digits")
        joined = self.ueids | more
        if len(joined) > MAX_REVOKED:
            raise MisuseError(f"a revocation list holds at most {MAX_REVOKED} devices")
        return Revocations(self.serial + 1, joined)

    def sign(self, signer: Signer) -> bytes:
        """The signed list."""
        payload = cbor.encode([_FORMAT, self.serial, sorted(self.ueids)])
        return signing.sign_batch(REVOCATION_CONTEXT, [payload], signer)[0]

    @classmethod
    def verify(cls, data: bytes, root: SellerRoot, at_least_serial: int) -> Revocations:
        """Reads a signed list.

        Args:
            data: Hostile bytes.
            root: The seller's keys.
            at_least_serial: Serial of the last list accepted; an older list is a replay.

        Raises:
            RefusedError: `TOO_LARGE`, `MALFORMED`, `SIGNATURE` or `ROLLED_BACK`.
        """
        payload = signing.verify(REVOCATION_CONTEXT, data, root)
        match cbor.decode(payload, limit=signing.MAX_STATEMENT_BYTES):
            case [version, serial, [*ueids]] if (
                _is_head(version, serial)
                and all(isinstance(ueid, bytes) and len(ueid) == UEID_BYTES for ueid in ueids)
                and ueids == sorted(set(ueids))
                and len(ueids) <= MAX_REVOKED
            ):
                if serial < at_least_serial:
                    raise RefusedError(Refusal.ROLLED_BACK, "revocation list is older than the last accepted")
                return cls(serial, frozenset(ueids))
        raise RefusedError(Refusal.MALFORMED, "revocation list does not hold a serial and sorted ueids")


def _is_head(version: Any, serial: Any) -> bool:
    """Types by identity: `True` is an `int` and equals 1."""
    return type(version) is int and version == _FORMAT and type(serial) is int and 1 <= serial <= _MAX_SERIAL
