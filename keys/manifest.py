"""The manifest: describes an artefact and its permitted use on its device (after RFC 9124's elements).

It is deterministic CBOR, a map with integer keys, and must have exactly the keys of the format. `release` is present
only when a copy depends on a key broker, and `allow_downgrade` only when it is true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from variegate.keys import cbor
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.fields import Fields
from variegate.keys.primitives import HASH_BYTES

FORMAT = 1
MAX_MANIFEST_BYTES = 16 * 1024
COMPONENT_ID_BYTES = 16
BROKER_ID_BYTES = 16
MAX_SHARE_BYTES = 2048
"""A sealed share: 1,200 bytes with the hybrid KEM, 112 with X25519."""
DTYPES = ("uint8", "float32")
_FIELDS = Fields("manifest")
_RANK = 3
_RELEASE, _DOWNGRADE = 16, 17


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules that a device must enforce.

    Attributes:
        version: Version of this policy, for people.
        budget: Labels that may be answered in this epoch, or None for no bound.
        rate_per_hour: Labels per hour in the long run, or None for no bound.
        burst: Labels that may come at once when the rate has been saved up.
        grace_s: Seconds past `not_after` during which the device still answers.
    """

    version: int = 1
    budget: int | None = None
    rate_per_hour: int | None = None
    burst: int = 1
    grace_s: int = 0


@dataclass(frozen=True, kw_only=True)
class ComponentRef:
    """The component that belongs to the envelope.

    Attributes:
        id: 16 bytes.
        length: Bytes of the whole component file.
        chunk: Plaintext bytes of a chunk.
        root: 32 bytes, root of the hash tree over header and chunks.
    """

    id: bytes
    length: int
    chunk: int
    root: bytes


@dataclass(frozen=True)
class Release:
    """The broker's part of a manifest, without which a copy does not open; see `keys.broker`.

    Attributes:
        broker: Id of the broker's key, 16 bytes.
        sealed: The share, sealed to that key.
    """

    broker: bytes
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The signed manifest.

    Attributes:
        sequence: Number of this manifest among all for this device; below the highest that was confirmed under the
            same security counter means rolled back.
        security_counter: Lowest value of the device's counter to raise to; below it means rolled back.
        vendor: The seller.
        device_class: Kind of device, for example "camera-v1".
        ueid: The one device, 33 bytes.
        buyer: Buyer id.
        epoch: The buyer's key epoch.
        component: The component to load.
        policy: The rules for the device.
        dtype: Of a frame: "uint8" (0..255) or "float32" (0..1).
        shape: Of a frame, without the batch axis.
        classes: Number of classes.
        canaries: SHA-256 of the labels (int64, little-endian) of the component's canary frames.
        measurements: Expected measurements by name, 32 bytes each; empty for none.
        not_after: Unix seconds, or None.
        previous: SHA-256 of the manifest that this one follows, or None.
        release: The broker that it needs, or None.
        allow_downgrade: Whether it may take the place of one with a higher sequence number and the same security
            counter.
    """

    sequence: int
    security_counter: int
    vendor: str
    device_class: str
    ueid: bytes
    buyer: str
    epoch: int
    component: ComponentRef
    policy: Policy
    dtype: str
    shape: tuple[int, ...]
    classes: int
    canaries: bytes
    measurements: dict[str, bytes]
    not_after: int | None = None
    previous: bytes | None = None
    release: Release | None = None
    allow_downgrade: bool = False

    def to_bytes(self) -> bytes:
        """The deterministic encoding."""
        c, p, r = self.component, self.policy, self.release
        return cbor.encode(
            {
                1: FORMAT,
                2: self.sequence,
                3: self.security_counter,
                4: self.vendor,
                5: self.device_class,
                6: self.ueid,
                7: self.buyer,
                8: self.epoch,
                9: [c.id, c.length, c.chunk, c.root],
                10: [p.version, "label", p.budget, p.rate_per_hour, p.burst, p.grace_s],
                11: [self.dtype, list(self.shape), self.classes],
                12: self.canaries,
                13: [[name, value] for name, value in sorted(self.measurements.items())],
                14: self.not_after,
                15: self.previous,
                **({} if r is None else {_RELEASE: [r.broker, r.sealed]}),
                **({_DOWNGRADE: True} if self.allow_downgrade else {}),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Reads a manifest whose signature is already checked.

        Raises:
            RefusedError: `TOO_LARGE` or `MALFORMED`.
        """
        match cbor.decode(data, limit=MAX_MANIFEST_BYTES):
            case {
                1: int(version),
                2: sequence,
                3: counter,
                4: vendor,
                5: device_class,
                6: ueid,
                7: buyer,
                8: epoch,
                9: [component_id, length, chunk, root],
                10: [policy_version, "label", budget, rate, burst, grace],
                11: [dtype, [*shape], classes],
                12: canaries,
                13: [*measurements],
                14: not_after,
                15: previous,
                **rest,
            } if (
                version == FORMAT and rest.keys() <= {_RELEASE, _DOWNGRADE} and dtype in DTYPES and len(shape) == _RANK
            ):
                manifest = cls(
                    sequence=_FIELDS.uint(sequence),
                    security_counter=_FIELDS.uint(counter),
                    vendor=_FIELDS.text(vendor),
                    device_class=_FIELDS.text(device_class),
                    ueid=_FIELDS.ueid(ueid),
                    buyer=_FIELDS.text(buyer),
                    epoch=_FIELDS.uint(epoch),
                    component=ComponentRef(
                        id=_FIELDS.octets(component_id, COMPONENT_ID_BYTES),
                        length=_FIELDS.uint(length, least=1),
                        chunk=_FIELDS.uint(chunk, least=1),
                        root=_FIELDS.octets(root, HASH_BYTES),
                    ),
                    policy=Policy(
                        version=_FIELDS.uint(policy_version),
                        budget=None if budget is None else _FIELDS.uint(budget),
                        rate_per_hour=None if rate is None else _FIELDS.uint(rate, least=1),
                        burst=_FIELDS.uint(burst, least=1),
                        grace_s=_FIELDS.uint(grace),
                    ),
                    dtype=dtype,
                    shape=tuple(_FIELDS.uint(side, least=1) for side in shape),
                    classes=_FIELDS.uint(classes, least=2),
                    canaries=_FIELDS.octets(canaries, HASH_BYTES),
                    measurements=dict(_FIELDS.measurement(item) for item in measurements),
                    not_after=None if not_after is None else _FIELDS.uint(not_after),
                    previous=None if previous is None else _FIELDS.octets(previous, HASH_BYTES),
                    release=_release(rest[_RELEASE]) if _RELEASE in rest else None,
                    allow_downgrade=_DOWNGRADE in rest,
                )
                # Measurements out of order or twice, true for 1, and a permission that is not true would be second
                # encodings of one manifest.
                if manifest.to_bytes() == data:
                    return manifest
        raise RefusedError(Refusal.MALFORMED, "manifest does not have the fields of format 1")


def _release(value: Any) -> Release:
    match value:
        case [broker, bytes(sealed)] if 1 <= len(sealed) <= MAX_SHARE_BYTES:
            return Release(_FIELDS.octets(broker, BROKER_ID_BYTES), sealed)
    raise RefusedError(Refusal.MALFORMED, "manifest holds a release that is not a broker and a share")
