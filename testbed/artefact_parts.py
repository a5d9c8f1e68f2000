"""Tools to build artefacts with exactly one fault: any part can be made wrong and still be signed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from testbed.reference import published_device, published_seller
from variegate.keys import cbor, component, merkle, signing
from variegate.keys.artefact import Artefact, Payload
from variegate.keys.envelope import CONTEXT, SealedKeys
from variegate.keys.errors import Refusal
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import ComponentRef, Manifest, Policy
from variegate.keys.primitives import aead, hkdf_expand, hpke_seal, sha256
from variegate.keys.recipe import KeyedTensor
from variegate.keys.signing import Signer

SELLER = published_seller()
SIGNER = SELLER.signer
X25519, HYBRID, OTHER = (published_device(name) for name in ("x25519", "hybrid", "other"))
KEYS = SealedKeys(SELLER.release_cek("test-release", "test-cohort"), SELLER.buyer_seed("test-buyer", 0))
COMPONENT_ID = sha256(b"test component")[:16]
CHUNK = 1024
_WITH_CONSTANTS = 1000

TENSORS = (
    KeyedTensor(name="messages", generator="signs", shape=(2, 3, 4, 4), steps=(64, 128)),
    KeyedTensor(name="dithers", generator="dithers", shape=(1, 2), steps=(64, 128), axis=1),
    KeyedTensor(name="order", generator="derangement", shape=(10,)),
)


@dataclass(frozen=True)
class Case:
    """One vector.

    Attributes:
        name: Its file is `artefacts/<name>.vgcopy`, unless it is a patch.
        note: The special feature, or the fault.
        data: The file.
        refusal: The class of refusal expected, or None when it opens.
        device: Which test device opens it.
        base: The good vector that this one is a patch of, or None when it has a file of its own.
    """

    name: str
    note: str
    data: bytes
    refusal: Refusal | None = None
    device: str = "x25519"
    base: str | None = None


def graph(length: int) -> bytes:
    """Bytes in place of an ONNX graph; these vectors test the sealed format, not the model."""
    return b"".join(sha256(i.to_bytes(4, "big")) for i in range(-(-length // 32)))[:length]


def payload(length: int = 300) -> bytes:
    """A component's plaintext of exactly `length` bytes; a long one has constants."""
    canaries = bytes(range(12))
    if length < _WITH_CONSTANTS:
        empty = len(Payload(TENSORS, canaries, b"").to_bytes())
        return Payload(TENSORS, canaries, graph(length - empty)).to_bytes()
    constants = {
        "w": np.frombuffer(graph(60), "<f4").reshape(3, 5),
        "steps": np.arange(7, dtype=np.int64),
        "scale": np.array(0.5, np.float16),
    }
    empty = len(Payload(TENSORS, canaries, graph(100), {**constants, "rest": np.zeros(256, np.uint8)}).to_bytes()) - 256
    rest = np.frombuffer(graph(length - empty), np.uint8)
    return Payload(TENSORS, canaries, graph(100), {**constants, "rest": rest}).to_bytes()


def seal(plain: bytes) -> tuple[bytes, ComponentRef]:
    """A good component."""
    file, ref = component.seal(plain, KEYS.cek, COMPONENT_ID, chunk=CHUNK)
    return bytes(file), ref


def header(length: int, *, chunk: int = CHUNK, component_id: bytes = COMPONENT_ID) -> bytes:
    """A component's header."""
    return component.MAGIC + component_id + length.to_bytes(8, "big") + chunk.to_bytes(4, "big")


def chunk_of(head: bytes, index: int, plain: bytes, *, final: bool) -> bytes:
    """One sealed chunk with any counter and final flag."""
    key = hkdf_expand(KEYS.cek, b"variegate/1/component/" + COMPONENT_ID)
    return aead(key).encrypt(index.to_bytes(11, "big") + bytes([final]), plain, head)


def assemble(head: bytes, chunks: list[bytes], *, chunk: int = CHUNK) -> tuple[bytes, ComponentRef]:
    """A component of these chunks, with a hash tree that fits them for any content."""
    leaves = [merkle.leaf(sealed) for sealed in chunks]
    file = head + b"".join(leaves) + b"".join(chunks)
    root = merkle.root([merkle.leaf(head), *leaves])
    return file, ComponentRef(id=head[8:24], length=len(file), chunk=chunk, root=root)


FILE, REF = seal(payload())


def manifest(ref: ComponentRef = REF, device: DeviceIdentity = X25519, **changes: Any) -> Manifest:
    """A good manifest, with changes."""
    good = Manifest(
        sequence=1,
        security_counter=0,
        vendor="test-vendor",
        device_class="camera-v1",
        ueid=device.public.ueid,
        buyer="test-buyer",
        epoch=0,
        component=ref,
        policy=Policy(),
        dtype="uint8",
        shape=(3, 4, 4),
        classes=10,
        canaries=sha256(b"test canaries"),
        measurements={},
    )
    return replace(good, **changes)


def signed_payload(
    body: bytes, *, to: DeviceIdentity = X25519, info: bytes | None = None, secret: bytes | None = None
) -> bytes:
    """The signed bytes of the envelope: [manifest, sealed]."""
    context = b"variegate/1/sealed/" + sha256(body) if info is None else info
    plain = KEYS.to_bytes() if secret is None else secret
    return cbor.encode([body, hpke_seal(to.public.kem, to.public.kem_public, context, plain)])


def sign(body: bytes, context: bytes = CONTEXT) -> bytes:
    """A good statement over any bytes."""
    return signing.sign_batch(context, [body], SIGNER)[0]


def sign_with_headers(body: bytes, ed25519: dict[int, Any], mldsa65: dict[int, Any]) -> bytes:
    """A statement with other protected headers; both signatures hold for its content."""
    first, second = cbor.encode(ed25519), cbor.encode(mldsa65)

    def to_be_signed(protected: bytes, message: bytes) -> bytes:
        return cbor.encode(["Signature1", protected, CONTEXT, message])

    return cbor.encode(
        [
            [first, {}, body, SIGNER.ed25519(to_be_signed(first, body))],
            [second, {}, None, SIGNER.mldsa65(to_be_signed(second, cbor.encode([1, merkle.leaf(body)])))],
            1,
            0,
            [],
        ]
    )


def headers(alg: int, public: bytes) -> dict[int, Any]:
    """The right protected headers."""
    return {1: alg, 4: signing.key_id(public)}


def edited(statement: bytes, edit: Callable[[Any], None]) -> bytes:
    """A statement decoded, changed in place and encoded again, signatures as they were."""
    value = cbor.decode(statement, limit=signing.MAX_STATEMENT_BYTES)
    edit(value)
    return cbor.encode(value)


def with_manifest(edit: Callable[[dict[int, Any]], None]) -> bytes:
    """A well-signed artefact whose manifest's map was changed."""
    value = cbor.decode(manifest().to_bytes(), limit=1 << 16)
    edit(value)
    return whole(sign(signed_payload(cbor.encode(value))))


def whole(envelope: bytes, file: bytes = FILE) -> bytes:
    """The single file."""
    return Artefact(envelope, file).to_bytes()


def with_component(file: bytes, ref: ComponentRef) -> bytes:
    """A well-signed artefact with any component."""
    return whole(sign(signed_payload(manifest(ref).to_bytes())), file)


def flipped(data: bytes, position: int) -> bytes:
    """The lowest bit of one byte flipped."""
    out = bytearray(data)
    out[position] ^= 1
    return bytes(out)


def signed_by(first: Signer, second: Signer, body: bytes) -> bytes:
    """Ed25519 part by one signer, ML-DSA-65 part by another."""
    a, b = (cbor.decode(signing.sign_batch(CONTEXT, [body], signer)[0], limit=1 << 16) for signer in (first, second))
    return cbor.encode([a[0], b[1], 1, 0, []])


GOOD_BODY = signed_payload(manifest().to_bytes())
GOOD = sign(GOOD_BODY)
"""The statement of good-single-chunk, which most faults are put into."""
SEVERAL_FILE, SEVERAL_REF = seal(payload(2500))
SEVERAL = sign(signed_payload(manifest(SEVERAL_REF).to_bytes()))
BATCH = signing.sign_batch(CONTEXT, [signed_payload(manifest(sequence=i).to_bytes()) for i in range(1, 6)], SIGNER)
