"""Copies in this process answer as the enclave's engine does, and refuse what a device refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed import bases
from variegate.attack.oracle import to_points
from variegate.attack.oracles.local import LocalBase, LocalCopy
from variegate.export.fuse import fuse, reference_scores
from variegate.export.rewriters import Permutation, Qim
from variegate.keys import recipe
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError

SEED = bytes(range(32))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_copy_answers_as_base_and_rewriter_do_apart(tmp_path: Path, dtype: str, layout: str) -> None:
    base = bases.base(tmp_path, layout)
    template = fuse(base, Permutation(alpha=0.8), dtype)
    copy = LocalCopy(template, SEED)
    shown = bases.images(200)
    frames = shown if dtype == "uint8" else to_points(shown)
    points = to_points(shown)
    scores = base.scores(points if layout == "NCHW" else np.ascontiguousarray(points.transpose(0, 2, 3, 1)))
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    keyed = recipe.expand(template.tensors, SEED)
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    expected = reference_scores(template.rewriter, template.contract, frames, probabilities, keyed).argmax(axis=1)
    assert (copy.shape, copy.dtype, copy.classes) == ((3, 16, 16), dtype, bases.CLASSES)
    labels = copy.labels(frames)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, expected)
    assert len(set(labels.tolist())) > 1


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_bare_base_answers_the_argmax_of_its_scores(tmp_path: Path, dtype: str, layout: str) -> None:
    base = bases.base(tmp_path, layout)
    shown = bases.images(200)
    points = to_points(shown)
    seen = points if layout == "NCHW" else np.ascontiguousarray(points.transpose(0, 2, 3, 1))
    oracle = LocalBase(base, dtype)
    labels = oracle.labels(shown if dtype == "uint8" else points)
    assert np.array_equal(labels, base.scores(seen).argmax(axis=1))


def test_two_buyers_differ(tmp_path: Path) -> None:
    template = fuse(bases.base(tmp_path), Qim(grid=(1, 1), repeats=8, steps=(512,), beta=4.0), "uint8")
    shown = bases.images(200)
    one, other = (LocalCopy(template, bytes([i]) * 32).labels(shown) for i in (1, 2))
    assert (one != other).any()


def test_it_refuses_what_a_device_refuses(tmp_path: Path) -> None:
    oracle = LocalBase(bases.base(tmp_path), "float32", batch=4)
    good = np.zeros((2, 3, 16, 16), np.float32)
    assert oracle.labels(good).shape == (2,)
    above, nan = good.copy(), good.copy()
    above[1, 0, 0, 0], nan[0, 0, 0, 0] = 1.5, np.nan
    for wrong in (good[0], good[:0], good.astype(np.float64), good[..., :4], above, nan, -above):
        with pytest.raises(RefusedError) as refused:
            oracle.labels(wrong)
        assert refused.value.refusal is Refusal.INPUT
    with pytest.raises(RefusedError) as refused:
        oracle.labels(np.zeros((5, 3, 16, 16), np.float32))
    assert refused.value.refusal is Refusal.TOO_LARGE
    with pytest.raises(MisuseError):
        LocalBase(bases.base(tmp_path), "float64")


def test_a_graph_that_fails_is_a_failing_device(tmp_path: Path) -> None:
    oracle = LocalBase(bases.base(tmp_path), "uint8")
    oracle.shape = (3, 8, 8)  # announced otherwise than the graph has it
    with pytest.raises(DeviceError):
        oracle.labels(np.zeros((1, 3, 8, 8), np.uint8))
