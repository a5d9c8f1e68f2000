"""Ground truth: windows of a device's secrets in their memory format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assurance.memory.scan import Secrets
from variegate.export.fuse import Template
from variegate.isolation.arrange import arrange, optimised
from variegate.keys import recipe
from variegate.keys.artefact import Payload
from variegate.keys.identity import DeviceIdentity

_MOST = 400
"""Windows: enough to see which share of the secrets was read."""


@dataclass(frozen=True)
class Found:
    """The windows that are searched for.

    Attributes:
        windows: Of weights, keyed tensors and keys.
        signs: Of the messages of a QIM copy, int8.
    """

    windows: list[bytes]
    signs: NDArray[np.int8]


def secrets_of(template: Template, seed: bytes, identity: DeviceIdentity) -> Found:
    """The secrets of a copy and of the device that it is sealed to.

    Args:
        template: Of the release.
        seed: The buyer's.
        identity: The device's.
    """
    keyed = recipe.expand(template.tensors, seed)
    payload = Payload(template.tensors, b"", template.graph, template.constants)
    # As sold, and as onnxruntime wants them on this processor: an enclave lays them out like that.
    laid = arrange(payload, keyed, lambda size: memoryview(bytearray(size)), optimised)
    tensors = {**template.constants, **keyed, **{f"laid {name}": value for name, value in laid.constants.items()}}
    keys = {"seed": seed, "signing key": identity.signing_seed}
    secrets = Secrets({name: value.tobytes() for name, value in tensors.items()}, keys)
    signs = next(value for tensor, value in zip(template.tensors, keyed.values(), strict=True) if _is_signs(tensor))
    return Found([*keys.values(), *_spread(secrets)], np.sign(signs).astype(np.int8))


def _is_signs(tensor: recipe.KeyedTensor) -> bool:
    return tensor.generator == "signs"


def _spread(secrets: Secrets) -> Iterator[bytes]:
    """Windows from all over, always the same ones."""
    windows = sorted(secrets.all_windows())
    step = max(1, len(windows) // _MOST)
    return iter(windows[::step])
