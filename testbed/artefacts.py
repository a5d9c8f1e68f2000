"""Small real artefacts: a signer in memory, a valid graph with keyed tensors, and sealing for a device.

Nothing here is a stand-in: the graph loads in onnxruntime, the signatures and the sealing are the product's.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from variegate.export.split import placeholder, split
from variegate.keys import component
from variegate.keys.artefact import Artefact, Payload
from variegate.keys.envelope import EnvelopeDraft, SealedKeys, seal_batch
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import ComponentRef, Manifest, Policy
from variegate.keys.primitives import sha256
from variegate.keys.recipe import KeyedTensor
from variegate.keys.seller import SoftwareSigner
from variegate.keys.signing import Signer
from variegate.runtime.engine import Engine
from variegate.runtime.opening import Copy

CLASSES = 10
SHAPE = (3, 4, 4)
CANARIES = 8
CLASS = "camera-v1"
_PIXELS = int(np.prod(SHAPE))
_OPSET, _IR = 17, 9


class MemorySigner(SoftwareSigner):
    """Both signing keys, freshly made and never written."""

    def __init__(self) -> None:
        super().__init__(os.urandom(32), os.urandom(32))


def frames(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random frames for the tiny graph, uint8 (count, 3, 4, 4)."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def tiny_payload(*, seed: int = 0, padding: int = 0) -> Payload:
    """A linear classifier over (3, 4, 4) bytes whose classes a keyed derangement and keyed signs disturb.

    Args:
        seed: Of its weights.
        padding: Bytes of random constant carried along, to make a component of a chosen size.
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.02, (_PIXELS, CLASSES)).astype(np.float32)
    constants = {"w": weights, "alpha": np.float32(0.8), "beta": np.float32(1e-3)}
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
        helper.make_node("Gather", ["p", "order"], ["g"], axis=1),
        helper.make_node("Mul", ["g", "alpha"], ["r"]),
        helper.make_node("Add", ["p", "r"], ["q"]),
        helper.make_node("MatMul", ["f", "signs"], ["s"]),
        helper.make_node("Mul", ["s", "beta"], ["t"]),
        helper.make_node("Add", ["q", "t"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
    ]
    keyed = (
        KeyedTensor(name="order", generator="derangement", shape=(CLASSES,)),
        KeyedTensor(name="signs", generator="signs", shape=(_PIXELS, CLASSES)),
    )
    initialisers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    initialisers += [placeholder("order", TensorProto.INT64, (CLASSES,))]
    initialisers += [placeholder("signs", TensorProto.FLOAT, (_PIXELS, CLASSES))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", *SHAPE])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
        initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    outside = split(model.graph)
    if padding:
        model.graph.initializer.append(numpy_helper.from_array(rng.integers(0, 256, padding, np.uint8), "padding"))
    return Payload(keyed, frames(CANARIES, seed=1).tobytes(), model.SerializeToString(), outside)


def manifest_for(device: DevicePublic, ref: ComponentRef, **changes: Any) -> Manifest:
    """A manifest for the tiny graph; `changes` are fields of it."""
    manifest = Manifest(
        sequence=1,
        security_counter=0,
        vendor="Example",
        device_class=device.device_class,
        ueid=device.ueid,
        buyer="buyer-1",
        epoch=0,
        component=ref,
        policy=Policy(),
        dtype="uint8",
        shape=SHAPE,
        classes=CLASSES,
        canaries=bytes(32),
        measurements={},
    )
    return replace(manifest, **changes)


def seal_for(
    device: DevicePublic,
    signer: Signer,
    *,
    payload: Payload | None = None,
    keys: SealedKeys | None = None,
    chunk: int = 1024,
    **changes: Any,
) -> Artefact:
    """A whole artefact for a device.

    Args:
        device: Whom it is for.
        signer: The signer.
        payload: Its content; the tiny graph by default.
        keys: CEK and seed; random by default.
        chunk: Plaintext bytes of a chunk.
        changes: Fields of the manifest. A `canaries` given here is a wrong one.
    """
    payload = tiny_payload() if payload is None else payload
    keys = SealedKeys(os.urandom(32), os.urandom(32)) if keys is None else keys
    file, ref = component.seal(payload.to_bytes(), keys.cek, os.urandom(16), chunk=chunk)
    manifest = manifest_for(device, ref, **changes)
    if "canaries" not in changes:
        shown = np.frombuffer(payload.canaries, np.dtype(manifest.dtype)).reshape(-1, *manifest.shape)
        labels = Engine(Copy.expand(payload, keys.seed, manifest)).run(shown)
        manifest = replace(manifest, canaries=sha256(labels.astype("<i8").tobytes()))
    draft = EnvelopeDraft(manifest, keys, device.kem, device.kem_public)
    return Artefact(seal_batch([draft], signer)[0], bytes(file))
