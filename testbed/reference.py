"""The test keys that every vector uses, and the whole opening of an artefact in one short function.

These keys are published here: they protect nothing and must never be used for anything but tests.
"""

from __future__ import annotations

from variegate.keys import component
from variegate.keys.artefact import Artefact, Payload
from variegate.keys.envelope import Envelope, SealedKeys, open_envelope
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC, KEM_HYBRID, sha256
from variegate.keys.seller import Seller, SoftwareSigner
from variegate.keys.signing import SellerRoot

PUBLISHED_SEED = b"variegate TEST KEYS, published, never for use/"


def secret_of(name: str, length: int = 32) -> bytes:
    """Secret of a test key: SHA-256(published seed || name || "/" || i), for i = "0", "1", ... in a row."""
    blocks = [sha256(PUBLISHED_SEED, f"{name}/{i}".encode()) for i in range(-(-length // 32))]
    return b"".join(blocks)[:length]


def published_seller() -> Seller:
    """The test seller."""
    return Seller(
        serial=0,
        master=secret_of("seller/master"),
        ed25519_seed=secret_of("seller/ed25519"),
        mldsa65_seed=secret_of("seller/mldsa65"),
    )


def other_signer() -> SoftwareSigner:
    """Signing keys of somebody else."""
    return SoftwareSigner(secret_of("other/ed25519"), secret_of("other/mldsa65"))


def published_device(name: str) -> DeviceIdentity:
    """The test device "x25519", "hybrid" or "other"."""
    kem, length = (KEM_HYBRID, 96) if name == "hybrid" else (KEM_CLASSIC, 32)
    return DeviceIdentity(
        ueid=b"\x01" + secret_of(f"device/{name}/ueid"),
        device_class="camera-v1",
        ed25519_seed=secret_of(f"device/{name}/ed25519"),
        kem=kem,
        kem_seed=secret_of(f"device/{name}/kem", length),
    )


def open_artefact(data: bytes, root: SellerRoot, device: DeviceIdentity) -> tuple[Envelope, SealedKeys, bytes, Payload]:
    """Everything that `keys/` checks, in order; a device also checks class, expiry and counter in between."""
    artefact = Artefact.from_bytes(data)
    envelope = open_envelope(artefact.envelope, root)
    layout = component.check(artefact.component, envelope.manifest.component)
    keys = envelope.unseal(device.unwrap)
    plain = component.unseal(artefact.component, layout, keys.cek)
    return envelope, keys, bytes(plain), Payload.from_bytes(plain)
