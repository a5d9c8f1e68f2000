"""A copy in the secret pages, followed by the device's signing key.

region = the layout of `placed.open_copy` || 32 bytes: the device's Ed25519 seed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from variegate.attest.release import request
from variegate.isolation.arrange import Optimise
from variegate.isolation.placed import PlacedCopy, open_copy
from variegate.isolation.platform_client import PlatformClient
from variegate.isolation.statements import Statements
from variegate.isolation.wire import Lost
from variegate.keys.artefact import Artefact, Spec
from variegate.keys.envelope import Envelope
from variegate.keys.errors import DeviceError
from variegate.keys.manifest import Manifest
from variegate.keys.primitives import KEY_BYTES
from variegate.runtime.admission import uniform
from variegate.runtime.enclave import Protection


def open_into(
    region: memoryview,
    artefact: Artefact,
    below: PlatformClient,
    protections: tuple[Protection, ...],
    optimise: Optimise,
) -> list[object]:
    """Opens an artefact into `region`; call it in a process that ends.

    Args:
        region: Where everything secret of the copy shall lie.
        artefact: Hostile bytes.
        below: The device.
        protections: Of this enclave, for the broker.
        optimise: As `isolation.placed.open_copy`.

    Returns:
        The values for `Opened.of`.

    Raises:
        RefusedError: `ARTEFACT`.
        DeviceError: `region` is too small.
    """
    used = 0

    def allocate(count: int) -> memoryview:
        nonlocal used
        if count + KEY_BYTES > len(region):
            raise DeviceError("the copy does not fit into the pages set aside for it")
        used = count
        return region[:count]

    identity = below.identity()

    def share(envelope: Envelope) -> bytes:
        public = identity.public.signing_public
        says = Statements(below, envelope.manifest, protections, identity.sign, public)
        return request(artefact.envelope, says.evidence, below)

    def laid_out(graph: bytes, specs: list[Spec]) -> bytes | None:
        out = optimise(graph, specs)
        if out is None:
            below.record("enclave", "onnxruntime's layout of the weights is not known: the copy runs slower")
        return out

    copy = uniform(below, "open", lambda: open_copy(artefact, below, allocate, optimise=laid_out, share=share))
    region[used : used + KEY_BYTES] = identity.signing_seed
    return [copy.manifest.to_bytes(), used]


@dataclass(frozen=True)
class SecretCopy:
    """The serving process's part of a copy; nothing secret is outside the region.

    Attributes:
        manifest: The manifest's bytes.
        copy: The copy, its tensors in the region.
        seed: The device's signing key, in the region.
    """

    manifest: bytes
    copy: PlacedCopy
    seed: memoryview = field(repr=False)

    @property
    def signing_public(self) -> bytes:
        """The public half of the device's signing key, 32 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    @classmethod
    def of(cls, values: list[Any], region: memoryview) -> SecretCopy:
        """Finds a copy in the region.

        Raises:
            Lost: `values` are not what `open_into` returned.
        """
        match values:
            case [bytes(manifest), int(used)] if 0 < used <= len(region) - KEY_BYTES:
                copy = PlacedCopy.from_region(Manifest.from_bytes(manifest), region[:used])
                return cls(manifest, copy, region[used : used + KEY_BYTES])
        raise Lost("nothing was opened")

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature by the device's key, which leaves the region only inside OpenSSL, wiped after."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)
