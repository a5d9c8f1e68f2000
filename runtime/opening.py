"""Opening a copy apart from serving it: so that a process which never saw a key can answer.

Order: length caps, signatures, device, class, expiry, counter, measurements, hash tree, unseal, decrypt, expand.
What comes out is a `Copy`: a graph, and all that the graph lacks, as views of memory that the caller owns.

    loader      open_copy(artefact, platform, allocate)       decrypts, and lays the copy out in `allocate`'s memory
    server      Copy.from_region(manifest, region)            finds it there
                Engine(copy, in_place=True)                   uses it there

In one process, `open_here` does the first two in ordinary memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from variegate.keys import component, recipe
from variegate.keys.artefact import Artefact, Payload
from variegate.keys.envelope import Envelope, SealedKeys
from variegate.keys.manifest import Manifest
from variegate.runtime.admission import admit
from variegate.runtime.arrange import Optimise, arrange, optimised
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
        arranged: Whether the graph is as onnxruntime is to run it, so that it may use `values` in place.
    """

    manifest: Manifest
    canaries: bytes = field(repr=False)
    graph: bytes | memoryview = field(repr=False)
    values: Mapping[str, NDArray[Any]] = field(repr=False)
    arranged: bool

    @classmethod
    def expand(cls, payload: Payload, seed: bytes, manifest: Manifest) -> Copy:
        """A copy in ordinary memory.

        Args:
            payload: The decrypted component.
            seed: The buyer's seed, 32 bytes.
            manifest: Its manifest.
        """
        values = {**payload.constants, **recipe.expand(payload.tensors, seed)}
        return cls(manifest, payload.canaries, payload.graph, values, arranged=False)

    @classmethod
    def from_region(cls, manifest: Manifest, region: memoryview) -> Copy:
        """Finds the copy that `open_copy` laid out; graph and tensors are views of the same bytes.

        Args:
            manifest: Its manifest.
            region: Exactly the bytes that `open_copy` asked for, at any address.

        Raises:
            RefusedError: `MALFORMED` or `TOO_LARGE`, when they hold something else.
        """
        payload = Payload.from_bytes(region)
        return cls(manifest, payload.canaries, payload.graph, payload.constants, arranged=True)


def open_here(artefact: Artefact, platform: Platform) -> Copy:
    """Checks and decrypts an artefact into ordinary memory.

    Args:
        artefact: Hostile bytes.
        platform: This device.

    Raises:
        RefusedError: With the true class; wrap the call in `admission.uniform` before it goes outwards.
        DeviceError: When the device's own hardware fails.
    """
    manifest, keys, payload = _decrypt(artefact, platform, _ordinary)
    return Copy.expand(Payload.from_bytes(payload), keys.seed, manifest)


def open_copy(
    artefact: Artefact,
    platform: Platform,
    allocate: Allocate,
    *,
    stage: Allocate | None = None,
    optimise: Optimise = optimised,
    share: Share | None = None,
) -> Copy:
    """Checks and decrypts an artefact, and lays the copy out for use in place.

    Seed, CEK and the keyed tensors pass through ordinary memory of this process, which should therefore end soon.

    Args:
        artefact: Hostile bytes.
        platform: This device.
        allocate: The memory of the copy, which holds all that is secret of it; asked once, for the exact length.
        stage: Memory for the plaintext in between, asked once and zeroed in the end; ordinary memory unless given.
        optimise: What asks onnxruntime for the layout of the weights; nothing secret is shown to it.
        share: Gets a broker's share, for copies that need one; without, they are refused.

    Returns:
        The copy, as `Copy.from_region` finds it in that memory.

    Raises:
        RefusedError, DeviceError: As `open_here`.
    """
    staged: list[memoryview] = []

    def staging(length: int) -> memoryview:
        staged.append((stage or _ordinary)(length))
        return staged[0]

    try:
        manifest, keys, plain = _decrypt(artefact, platform, staging, share)
        payload = Payload.from_bytes(plain)
        laid = arrange(payload, recipe.expand(payload.tensors, keys.seed), allocate, optimise)
    finally:
        for view in staged:
            np.frombuffer(view, np.uint8)[:] = 0
    return Copy(manifest, laid.canaries, laid.graph, laid.constants, arranged=True)


def _decrypt(
    artefact: Artefact, platform: Platform, allocate: Allocate, share: Share | None = None
) -> tuple[Manifest, SealedKeys, memoryview]:
    envelope = admit(artefact.envelope, platform)
    # Bytes of its own: nobody changes them between the check and the use.
    file = bytes(artefact.component)
    layout = component.check(file, envelope.manifest.component)
    asked = None if share is None or envelope.manifest.release is None else share(envelope)
    keys = envelope.unseal(platform.unwrap, asked)
    return envelope.manifest, keys, component.unseal(file, layout, keys.cek, allocate(layout.payload))


def _ordinary(length: int) -> memoryview:
    return memoryview(bytearray(length))
