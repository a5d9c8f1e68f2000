"""Adapters for other toolkits: ART and Foolbox attack a Variegate device like a model of their own.

Both receive labels as one-hot scores, because a device has no other scores. Pass an `attack.oracle.Counted` to count
and limit a toolkit's queries: neither toolkit counts as a device does. A device of uint8 frames rounds its input, so a
toolkit's sample must be rounded (`attack.oracle.to_frames`) and asked again before it counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from variegate.attack.oracle import Oracle, to_frames
from variegate.keys.errors import MisuseError

if TYPE_CHECKING:
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork
    from foolbox.models.base import Model


def art_classifier(oracle: Oracle) -> BlackBoxClassifierNeuralNetwork:
    """A device as a black-box classifier of ART, the Adversarial Robustness Toolbox.

    Args:
        oracle: The device.

    Returns:
        A classifier of float32 (N, C, H, W) in [0, 1] whose predictions are one-hot, float32 (N, classes).

    Raises:
        MisuseError: ART is not installed. Later, from within an attack: the oracle's errors.
    """
    try:
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork  # noqa: PLC0415  not a dependency
    except ImportError:
        raise _missing("ART", "adversarial-robustness-toolbox") from None
    return BlackBoxClassifierNeuralNetwork(
        lambda points: one_hot(oracle, points),
        input_shape=oracle.shape,
        nb_classes=oracle.classes,
        channels_first=True,
        clip_values=(0.0, 1.0),
    )


def foolbox_model(oracle: Oracle) -> Model:
    """A device as a model of Foolbox.

    Args:
        oracle: The device.

    Returns:
        A model with bounds (0, 1) from torch tensors, float32 (N, C, H, W), to one-hot "logits", float32 (N, classes),
        without gradients.

    Raises:
        MisuseError: Foolbox or torch is not installed. Later, from within an attack: the oracle's errors.
    """
    try:
        import torch  # noqa: PLC0415  not a dependency
        from foolbox.models.base import Model  # noqa: PLC0415  not a dependency
        from foolbox.types import Bounds  # noqa: PLC0415  not a dependency
    except ImportError:
        raise _missing("Foolbox", "foolbox torch") from None

    class DeviceModel(Model):
        """Answers with one-hot scores."""

        @property
        def bounds(self) -> Bounds:
            return Bounds(0, 1)

        data_format = "channels_first"

        def __call__(self, inputs: Any) -> Any:
            native = getattr(inputs, "raw", inputs)  # Foolbox's own wrapper, or a tensor
            scores = torch.from_numpy(one_hot(oracle, native.detach().cpu().numpy())).to(native.device)
            return type(inputs)(scores) if native is not inputs else scores

    return DeviceModel()


def one_hot(oracle: Oracle, points: NDArray[Any]) -> NDArray[np.float32]:
    """A device's labels as scores, in calls that it takes.

    Args:
        oracle: The device.
        points: Floats (N, C, H, W) in [0, 1]; values outside are clipped.

    Returns:
        float32 (N, classes): 1 for the label, 0 else.

    Raises:
        LimitError, RefusedError, DeviceError: The oracle's.
    """
    frames = to_frames(points, oracle.dtype)
    labels = [oracle.labels(frames[i : i + oracle.batch]) for i in range(0, len(frames), oracle.batch)]
    scores = np.zeros((len(frames), oracle.classes), np.float32)
    scores[np.arange(len(frames)), np.concatenate(labels)] = 1
    return scores


def _missing(toolkit: str, packages: str) -> MisuseError:
    return MisuseError(f"{toolkit} is not installed", hint=f"pip install {packages}")
