"""The effects of light and lens on the picture on the sensor.

Two approximations for speed. Blur is done on gamma-encoded values; and encoding is a pure power of 2.2, under
which a gain in linear light is a gain in encoded values too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REFERENCE_K = 6500.0
"""Colour temperature that the camera is balanced for, in kelvin."""

_GAMMA = 2.2
_WAVELENGTHS_M = np.array([610e-9, 550e-9, 465e-9])  # about the middle of the red, green and blue filters
_SECOND_RADIATION_M_K = 1.438777e-2  # hc/k, CODATA 2018
_LEAST_SIGMA = 0.05  # below this the kernel is the identity in float32


def blurred(scene: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blur with a Gaussian, as two matrix products; the weights are normalised at the edges.

    Args:
        scene: float32 (3, side, side).
        sigma: Standard deviation in pixels.

    Returns:
        float32 (3, side, side); `scene` itself where there is nothing to blur.
    """
    if sigma < _LEAST_SIGMA:
        return scene
    position = np.arange(scene.shape[-1], dtype=np.float32)
    kernel = np.exp(-0.5 * ((position[:, None] - position) / np.float32(sigma)) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    smooth: NDArray[np.float32] = kernel @ scene @ kernel.T
    return smooth


def light(gain: float, kelvin: float) -> NDArray[np.float32]:
    """Gains of the encoded red, green and blue under a black body's light; green carries the exposure.

    Planck's law at three wavelengths, relative to the reference; its factors of wavelength cancel.

    Args:
        gain: Exposure in linear light.
        kelvin: Colour temperature of the light.

    Returns:
        float32 (3,).
    """
    balance = _radiance(REFERENCE_K, invert=True) * _radiance(kelvin)
    encoded: NDArray[np.float64] = (gain * balance / balance[1]) ** (1 / _GAMMA)
    return encoded.astype(np.float32)


def _radiance(kelvin: float, *, invert: bool = False) -> NDArray[np.float64]:
    inverse: NDArray[np.float64] = np.expm1(_SECOND_RADIATION_M_K / (_WAVELENGTHS_M * kelvin))
    return inverse if invert else 1 / inverse
