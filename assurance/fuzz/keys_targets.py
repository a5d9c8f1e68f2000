"""Targets in `keys`: the formats of artefacts, identities and the root's statements."""

from __future__ import annotations

import base64
import json
import math
from random import Random
from typing import Any

import cbor2
import numpy as np

from assurance.fuzz import mutation
from assurance.fuzz.target import ACCEPTED, Plain, Target, need, pure, verdict
from testbed import artefact_parts as parts
from variegate.keys import cbor, component, merkle, recipe, rotation, signing
from variegate.keys.artefact import ALIGNMENT, Artefact, Payload
from variegate.keys.envelope import CONTEXT, open_envelope
from variegate.keys.errors import RefusedError
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import ComponentRef, Manifest, Policy, Release
from variegate.keys.primitives import HASH_BYTES

_ROOT = parts.SIGNER.root
_FEW = 10_000
"""Keyed tensors of more elements than this are not expanded here: they may be large."""
_LIMIT = 1 << 16


def _manifests() -> list[bytes]:
    rich = parts.manifest(
        measurements={"a": bytes(32), "b": bytes(range(32))},
        policy=Policy(budget=100, rate_per_hour=3600, burst=9, grace_s=1),
        not_after=2_000_000_000,
        previous=bytes(32),
        release=Release(bytes(16), bytes(112)),
        dtype="float32",
    )
    return [parts.manifest().to_bytes(), rich.to_bytes()]


def _cbor(data: bytes) -> str:
    found: list[Any] = []

    def call() -> None:
        found.append(cbor.decode(data, limit=_LIMIT))

    said = verdict(call)
    if said == ACCEPTED:
        need(cbor.encode(found[0]) == data, "not canonical")
        need(_is_plain(found[0]), "a type that no format uses")
    return said


def _is_plain(value: Any) -> bool:
    match value:
        case list():
            return all(map(_is_plain, value))
        case dict():
            return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
        case None | bool() | int() | bytes() | str():
            return True
    return False


def _statement(data: bytes) -> str:
    """Nobody here can sign, so only signed data may be accepted."""
    found: list[bytes] = []
    said = verdict(lambda: found.append(signing.verify(CONTEXT, data, _ROOT)))
    need(said != ACCEPTED or found[0] in _SIGNED, "a statement that nobody signed was accepted")
    return said


_PAYLOADS = [parts.signed_payload(manifest) for manifest in _manifests()]
_SIGNED = [cbor.encode([manifest, bytes(112)]) for manifest in _manifests()]
"""The same in every process, unlike what is sealed in earnest."""


def _statements() -> list[bytes]:
    two = signing.sign_batch(CONTEXT, _SIGNED, parts.SIGNER)
    return [*two, signing.sign_batch(rotation.ROOT_CONTEXT, _SIGNED[:1], parts.SIGNER)[0]]


def _envelope(data: bytes) -> str:
    """The seller signs any data: tests the code behind the signatures."""

    def call() -> None:
        opened = open_envelope(parts.sign(data), _ROOT)
        need(cbor.encode([opened.manifest.to_bytes(), opened.sealed]) == data, "not canonical")
        opened.unseal(parts.X25519.unwrap)

    return verdict(call) if len(data) < _LIMIT - 8192 else "skipped"


def _manifest(data: bytes) -> str:
    return verdict(lambda: need(Manifest.from_bytes(data).to_bytes() == data, "not canonical"))


def _component(data: bytes) -> str:
    """Against the signed reference, then against one made from the file itself."""
    said = verdict(lambda: component.check(data, parts.REF))
    need(said != ACCEPTED or data == parts.FILE, "another component was accepted")
    if len(data) < component.HEADER_BYTES:
        return said
    payload, chunk = int.from_bytes(data[24:32], "big"), int.from_bytes(data[32:36], "big")
    count = -(-payload // chunk) if chunk else 0
    table = data[component.HEADER_BYTES : component.HEADER_BYTES + HASH_BYTES * min(count, len(data))]
    leaves = [table[i : i + HASH_BYTES] for i in range(0, len(table), HASH_BYTES)]
    root = merkle.root([merkle.leaf(data[: component.HEADER_BYTES]), *leaves])
    ref = ComponentRef(id=data[8:24], length=len(data), chunk=chunk, root=root)

    def call() -> None:
        layout = component.check(data, ref)
        plain = component.unseal(data, layout, parts.KEYS.cek)
        again, _ = component.seal(plain, parts.KEYS.cek, layout.id, chunk=layout.chunk)
        need(bytes(again) == data, "not canonical")

    return f"{said}, {verdict(call)}"


def _artefact(data: bytes) -> str:
    return verdict(lambda: need(Artefact.from_bytes(data).to_bytes() == data, "not canonical"))


def _payload(data: bytes) -> str:
    def call() -> None:
        payload = Payload.from_bytes(data)
        need(payload.to_bytes() == data, "not canonical")
        for array in payload.constants.values():
            need(array.nbytes <= len(data), "a constant beyond its payload")

    return verdict(call)


def _payloads() -> list[bytes]:
    return [parts.payload(), parts.payload(2000), Payload((), b"", b"g").to_bytes()]


def _of_payload(data: bytes, most: int, chance: Random, plain: Plain) -> bytes:
    """Changes the head; the lengths and the constants' places follow it, or nothing behind it would be reached."""
    start = 8 + int.from_bytes(data[:4], "big")
    end = start + int.from_bytes(data[4:8], "big")
    if len(data) < end or most < len(data) or chance.random() < 0.3:
        return plain(data, most)
    head = mutation.of_cbor(data[8:start], most, chance, plain)
    made = len(head).to_bytes(4, "big") + data[4:8] + head + data[start:end]
    constants = data[-(-end // ALIGNMENT) * ALIGNMENT :]
    if constants:
        made += bytes(-len(made) % ALIGNMENT) + constants
    return made if len(made) <= most else plain(data, most)


def _recipe(data: bytes) -> str:
    def call() -> None:
        tensors = recipe.from_cbor(cbor.decode(data, limit=_LIMIT))
        need(cbor.encode(recipe.to_cbor(tensors)) == data, "not canonical")
        if sum(math.prod(tensor.shape) for tensor in tensors) <= _FEW:
            for name, value in recipe.expand(tensors, parts.KEYS.seed).items():
                need(bool(np.isfinite(value).all()), f"{name} is not finite")

    return verdict(call)


def _rotation(data: bytes) -> str:
    """The content of a root's statement and of a revocation list, signed by the seller."""
    if len(data) > _LIMIT - 8192:
        return "skipped"
    statement, listed = (
        signing.sign_batch(context, [data], parts.SIGNER)[0]
        for context in (rotation.ROOT_CONTEXT, rotation.REVOCATION_CONTEXT)
    )

    def revoke() -> None:
        found = rotation.Revocations.verify(listed, _ROOT, 1)
        need(cbor.encode([1, found.serial, sorted(found.ueids)]) == data, "not canonical")

    def follow() -> None:
        pinned = rotation.follow(_ROOT, 0, statement)
        need(cbor.encode([1, pinned.serial, pinned.root.to_bytes()]) == data, "not canonical")

    return f"{verdict(follow)}, {verdict(revoke)}"


def _identity(data: bytes) -> str:
    """Unchanged, and with the device's signature of any content."""
    return f"{verdict(lambda: _read_identity(data))}, {verdict(lambda: _read_identity(_with_signature(data)))}"


def _read_identity(data: bytes) -> None:
    public = DevicePublic.from_json(data)
    need(DevicePublic.from_json(public.to_json()) == public, "another identity after writing it")


def _with_signature(data: bytes) -> bytes:
    try:
        value = json.loads(data)
        signer = parts.X25519
        fields = [
            1,
            bytes.fromhex(value["ueid"]),
            value["device_class"],
            signer.public.signing_public,
            value["kem"],
            # As a base64 decoder would read it that minds nothing.
            base64.b64decode(value["kem_public"]),
        ]
        value["signing_public"] = signer.public.signing_public.hex()
        value["signature"] = signer.sign(b"variegate/1/device-identity/" + cbor.encode(fields)).hex()
        return json.dumps(value).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RefusedError, cbor2.CBORError):
        return data


TARGETS = (
    Target(
        name="cbor",
        opened=pure(_cbor),
        seeds=lambda: [b"\xf6", cbor.encode([1, b"x", "y", {1: [None, True]}, -1]), *_manifests()],
        mutate=mutation.of_cbor,
    ),
    Target(name="statement", opened=pure(_statement), seeds=_statements, mutate=mutation.of_cbor, cap=6000),
    Target(name="envelope", opened=pure(_envelope), seeds=lambda: list(_PAYLOADS), mutate=mutation.of_cbor),
    Target(name="manifest", opened=pure(_manifest), seeds=_manifests, mutate=mutation.of_cbor),
    Target(
        name="component",
        opened=pure(_component),
        seeds=lambda: [parts.FILE, parts.seal(parts.payload(2000))[0], parts.header(1)],
    ),
    Target(name="artefact", opened=pure(_artefact), seeds=lambda: [parts.whole(b"envelope", b"component")], cap=512),
    Target(name="payload", opened=pure(_payload), seeds=_payloads, mutate=_of_payload),
    Target(
        name="recipe",
        opened=pure(_recipe),
        seeds=lambda: [cbor.encode(recipe.to_cbor(parts.TENSORS)), cbor.encode([])],
        mutate=mutation.of_cbor,
    ),
    Target(
        name="rotation",
        opened=pure(_rotation),
        seeds=lambda: [
            cbor.encode([1, 1, _ROOT.to_bytes()]),
            cbor.encode([1, 2, sorted([parts.X25519.public.ueid, parts.HYBRID.public.ueid])]),
        ],
        mutate=mutation.of_cbor,
    ),
    Target(
        name="identity",
        opened=pure(_identity),
        seeds=lambda: [parts.X25519.public.to_json().encode(), parts.HYBRID.public.to_json().encode()],
        mutate=mutation.of_json,
        words=(b'"schema"', b'"ueid"', b'"kem"', b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"\xff\xfe"),
    ),
)
