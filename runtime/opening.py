"""Opening a copy: every check in a fixed order, then keys, then plaintext.

Order: length caps, signatures, device, class, expiry, counter, measurements, hash tree, unseal, decrypt, expand. The
result is a `Copy`: a graph with its keyed tensors and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from variegate.keys import component, recipe
from variegate.keys.artefact import Artefact, Payload
from variegate.keys.envelope import Envelope, SealedKeys
from variegate.keys.manifest import Manifest
from variegate.runtime.admission import admit
from variegate.runtime.platform import Platform

Allocate = Callable[[int], memoryview]
"""Gives that many writable bytes."""
Share = Callable[[Envelope], bytes]
"""Gets the share that a key broker holds of an envelope's keys."""


@dataclass(frozen=True)
class Copy:
    """An opened copy.

    Attributes:
        manifest: Its signed manifest.
        canaries: Frames of the self-test, raw bytes.
        graph: The ONNX graph.
        values: All tensors that the graph lacks, by name.
    """

    manifest: Manifest
    canaries: bytes = field(repr=False)
    graph: bytes | memoryview = field(repr=False)
    values: Mapping[str, NDArray[Any]] = field(repr=False)

    @classmethod
    def expand(cls, payload: Payload, seed: bytes, manifest: Manifest) -> Copy:
        """A copy in ordinary memory.

        Args:
            payload: The decrypted component.
            seed: The buyer's seed, 32 bytes.
            manifest: Its manifest.
        """
        values = {**payload.constants, **recipe.expand(payload.tensors, seed)}
        return cls(manifest, payload.canaries, payload.graph, values)


def open_here(artefact: Artefact, platform: Platform) -> Copy:
    """Checks and decrypts an artefact into ordinary memory.

    Args:
        artefact: Hostile bytes.
        platform: This device.

    Raises:
        RefusedError: With the true class; wrap the call in `admission.uniform` before it goes outwards.
        DeviceError: When the device's own hardware fails.
    """
    manifest, keys, payload = decrypt(artefact, platform, ordinary)
    return Copy.expand(Payload.from_bytes(payload), keys.seed, manifest)


def decrypt(
    artefact: Artefact, platform: Platform, allocate: Allocate, share: Share | None = None
) -> tuple[Manifest, SealedKeys, memoryview]:
    """Checks an artefact and decrypts its component.

    Args:
        artefact: Hostile bytes.
        platform: This device.
        allocate: Memory for the plaintext.
        share: Gets a broker's share, for copies that need one; without, they are refused.

    Returns:
        The manifest, the keys, and the payload.

    Raises:
        RefusedError, DeviceError: As `open_here`.
    """
    envelope = admit(artefact.envelope, platform)
    # Bytes of its own: nobody changes them between the check and the use.
    file = bytes(artefact.component)
    layout = component.check(file, envelope.manifest.component)
    answer = None if share is None or envelope.manifest.release is None else share(envelope)
    keys = envelope.unseal(platform.unwrap, answer)
    return envelope.manifest, keys, component.unseal(file, layout, keys.cek, allocate(layout.payload))


def ordinary(length: int) -> memoryview:
    """Ordinary memory."""
    return memoryview(bytearray(length))
