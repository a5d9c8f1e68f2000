"""From a release to sealed copies: one file each, or one component and an envelope each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from variegate.export.parity import ParitySet
from variegate.export.release import Release
from variegate.keys import component
from variegate.keys.artefact import Artefact
from variegate.keys.broker import BrokerPublic
from variegate.keys.envelope import EnvelopeDraft, SealedKeys, seal_batch
from variegate.keys.errors import MisuseError, RefusedError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import COMPONENT_ID_BYTES, ComponentRef, Manifest, Policy
from variegate.keys.primitives import sha256
from variegate.keys.seller import SellerKeys
from variegate.keys.signing import Signer


@dataclass(frozen=True, kw_only=True)
class CopyOrder:
    """One buyer's copy to make.

    Attributes:
        buyer: Buyer id.
        device: The device's public identity.
        epoch: The buyer's key epoch.
        sequence: Number of the manifest for this device.
        security_counter: Rollback counter that the copy asks for.
    """

    buyer: str
    device: DevicePublic
    epoch: int
    sequence: int
    security_counter: int


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms that all copies of an export share.

    Attributes:
        vendor: The seller's name.
        policy: Budget, rate, grace.
        not_after: Unix seconds, or None.
        measurements: Expected measurements.
        broker: The key broker that each opening needs, or None.
        allow_downgrade: Whether a device that has confirmed a later copy under the same security counter takes these.
    """

    vendor: str
    policy: Policy = field(default_factory=Policy)
    not_after: int | None = None
    measurements: dict[str, bytes] = field(default_factory=dict)
    broker: BrokerPublic | None = None
    allow_downgrade: bool = False


@dataclass(frozen=True)
class SealedCopy:
    """A sealed copy.

    Attributes:
        order: The order.
        manifest: Its manifest.
        envelope: The signed envelope.
        component: Its own component, or None when it is shared.
    """

    order: CopyOrder
    manifest: Manifest
    envelope: bytes = field(repr=False)
    component: bytearray | None = field(repr=False)

    def to_bytes(self) -> bytes:
        """The file to hand out: the whole artefact, or the envelope alone."""
        if self.component is None:
            return self.envelope
        return Artefact(self.envelope, memoryview(self.component)).to_bytes()


@dataclass(frozen=True)
class SharedComponent:
    """One component for many envelopes. Whoever breaks one device of the cohort has its key.

    Attributes:
        file: The component file.
        ref: Its description in manifests.
        cek: Its key.
    """

    file: bytearray = field(repr=False)
    ref: ComponentRef
    cek: bytes = field(repr=False)


def share_component(release: Release, seller: SellerKeys, cohort: str) -> SharedComponent:
    """Seals the release's component for a cohort.

    Its key and id follow from the seller's master secret, the release, its content and the cohort, so that sealing
    again gives the same bytes and a fleet can be resumed.
    """
    content = sha256(release.payload).hex()
    cek = seller.release_cek(f"{release.name}/{content}", cohort)
    component_id = sha256(b"variegate/1/component-id/", cek)[:COMPONENT_ID_BYTES]
    return SharedComponent(*component.seal(release.payload, cek, component_id), cek)


def seal_copies(
    release: Release,
    seller: SellerKeys,
    orders: Sequence[CopyOrder],
    terms: Terms,
    shared: SharedComponent | None = None,
    *,
    signer: Signer | None = None,
) -> list[SealedCopy]:
    """Checks and seals copies; one batch signature covers them.

    Args:
        release: The release to seal.
        seller: Holder of master secret and signing keys.
        orders: At least one.
        terms: Common to all.
        shared: The component to point to, or None to give every copy its own under a fresh key.
        signer: The signer; the seller's own keys by default.

    Returns:
        The copies, in the order of `orders`.

    Raises:
        MisuseError: When an order or the terms hold values that no device would accept.
        RefusedError: `PARITY`, when a copy's labels differ from its reference; nothing is sealed then.
    """
    head = release.canaries  # the release as a whole was checked on many more
    prepared, envelopes_for = [], []
    for order in orders:
        seed = seller.buyer_seed(order.buyer, order.epoch)
        canaries = _judge(release, seed, head)
        if shared is None:
            cek = os.urandom(32)
            file, ref = component.seal(release.payload, cek, os.urandom(COMPONENT_ID_BYTES))
        else:
            cek, file, ref = shared.cek, None, shared.ref
        manifest = _readable(_manifest(release, order, terms, ref, canaries))
        keys = SealedKeys(cek, seed)
        if terms.broker is not None:
            manifest, keys = terms.broker.split(manifest, keys)
        envelopes_for.append(EnvelopeDraft(manifest, keys, order.device.kem, order.device.kem_public))
        prepared.append((order, manifest, file))
    envelopes = seal_batch(envelopes_for, signer or seller.signer)
    return [
        SealedCopy(order, manifest, envelope, file)
        for (order, manifest, file), envelope in zip(prepared, envelopes, strict=True)
    ]


def _judge(release: Release, seed: bytes, head: ParitySet) -> bytes:
    """Checks one copy; the digest of its canary labels."""
    report, labels = release.judge.check(seed, head)
    report.require()
    return sha256(labels.astype("<i8").tobytes())


def _readable(manifest: Manifest) -> Manifest:
    """The manifest as a device reads it.

    Raises:
        MisuseError: When it would refuse it.
    """
    try:
        return Manifest.from_bytes(manifest.to_bytes())
    except RefusedError as error:
        raise MisuseError(
            f"no device would read this copy: {error.message}",
            hint="numbers go from 0 to 2^63 - 1; vendor and buyer are 1 to 128 printable characters",
        ) from error


def _manifest(release: Release, order: CopyOrder, terms: Terms, ref: ComponentRef, canaries: bytes) -> Manifest:
    template = release.template
    return Manifest(
        sequence=order.sequence,
        security_counter=order.security_counter,
        vendor=terms.vendor,
        device_class=order.device.device_class,
        ueid=order.device.ueid,
        buyer=order.buyer,
        epoch=order.epoch,
        component=ref,
        policy=terms.policy,
        dtype=template.dtype,
        shape=template.shape,
        classes=template.contract.classes,
        canaries=canaries,
        measurements=terms.measurements,
        not_after=terms.not_after,
        allow_downgrade=terms.allow_downgrade,
    )
