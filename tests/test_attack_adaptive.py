"""Adaptive attacks, each on a weakness planted for it to find."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.attack.adaptive.overshoot import stretched
from variegate.keys.errors import MisuseError


def test_overshoot_goes_through_the_sample_and_stays_a_frame() -> None:
    rng = np.random.default_rng(0)
    clean, sample = rng.integers(0, 256, (2, 4, 3, 8, 8), np.uint8)
    assert np.array_equal(stretched(clean, sample, 1, "uint8"), sample)
    assert np.array_equal(stretched(clean, sample, 0, "uint8"), clean)
    far = stretched(clean, sample, 3, "uint8")
    assert far.dtype == np.uint8
    want = np.clip(clean.astype(int) * -2 + 3 * sample.astype(int), 0, 255)
    assert np.array_equal(far, want)
    floats = stretched(clean, sample, 3, "float32")
    assert floats.dtype == np.float32
    assert np.allclose(floats * 255, want, atol=1e-4)
    points = (sample / 255).astype(np.float32)
    assert np.array_equal(stretched(clean, points, 3, "uint8"), far)
    for s, dtype in ((-1.0, "uint8"), (float("nan"), "uint8"), (1.0, "int8")):
        with pytest.raises(MisuseError):
            stretched(clean, sample, s, dtype)
