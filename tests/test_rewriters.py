"""One definition, three renderings: ONNX, torch and numpy give the same labels; QIM the same bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from testbed import bases
from testbed.torch_ops import Copy, TorchOps
from variegate.export.calibrate import FINE_STEP, STEP, qim_near
from variegate.export.fuse import IMAGE, LABEL, fuse, reference_scores
from variegate.export.intake.base import Base
from variegate.export.intake.contract import Contract
from variegate.export.intake.probe import session
from variegate.export.parity import CopyJudge, check_template, compare, measure
from variegate.export.rewriters import (
    Inputs,
    Permutation,
    Qim,
    Rewriter,
    SpreadSpectrum,
    from_parameters,
    to_parameters,
)
from variegate.export.rewriters.numpy_ops import NumpyOps
from variegate.export.rewriters.onnx_ops import OnnxOps
from variegate.keys import recipe, streams
from variegate.keys.errors import MisuseError, Refusal, RefusedError

SEED = bytes(range(32))
REWRITERS: list[Rewriter] = [
    Permutation(alpha=0.7),
    Qim(grid=(4, 8), steps=(64,), beta=3.0),
    Qim(grid=(2, 2), repeats=4, steps=(64, 256), beta=2.0),
    Qim(grid=(1, 1), repeats=8, steps=(512,), beta=2.0),
    Qim(grid=(4, 8), steps=(64,), beta=12.0, squared=True),
    SpreadSpectrum(amplitude=0.5),
]


@pytest.fixture(scope="module", params=["NCHW", "NHWC"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return bases.base(tmp_path_factory.mktemp("base"), request.param)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("rewriter", REWRITERS, ids=str)
def test_all_renderings_give_the_same_labels(base: Base, rewriter: Rewriter, dtype: str) -> None:
    frames = bases.images(400)
    shown = frames if dtype == "uint8" else frames / np.float32(255)
    template = fuse(base, rewriter, dtype)
    keyed = recipe.expand(template.tensors, SEED)
    fused = session(template.graph, {**template.constants, **keyed}).run([LABEL], {IMAGE: shown})[0]
    answered = measure(base, shown)
    tail = CopyJudge(template).labels(SEED, answered)
    scores = reference_scores(rewriter, base.contract, shown, answered.probabilities, keyed)
    copy = Copy(bases.Linear(), base.contract, rewriter, SEED, dtype)
    by_torch = copy.labels(torch.from_numpy(frames / np.float32(255))).numpy()
    assert compare(fused, scores).differing == 0
    assert compare(by_torch, scores).differing == 0
    np.testing.assert_array_equal(tail, fused)
    assert (fused != answered.probabilities.argmax(1)).any() or isinstance(rewriter, Permutation)


@pytest.mark.parametrize("rewriter", [r for r in REWRITERS if isinstance(r, Qim)], ids=str)
def test_integer_qim_is_exact_to_the_bit(base: Base, rewriter: Qim) -> None:
    """Against DESIGN's integer form, in Python's own integers, and across the three backends."""
    contract = base.contract
    pixels = bases.images(6).astype(np.float32)
    keyed = recipe.expand(rewriter.tensors(contract, "uint8"), SEED)
    p = np.zeros((6, contract.classes), np.float32)
    by_numpy = rewriter.error_sums(NumpyOps(), Inputs(pixels, pixels, p, keyed), contract)
    tensors = {k: torch.from_numpy(v) for k, v in keyed.items()}
    t = torch.from_numpy(pixels)
    by_torch = rewriter.error_sums(TorchOps(), Inputs(t, t, torch.from_numpy(p), tensors), contract).numpy()
    ops = OnnxOps(onnx.GraphProto(name="g"))
    names = {name: name for name in keyed}
    out = rewriter.error_sums(ops, Inputs("x", "x", "p", names), contract)
    ops.graph.input.append(onnx.helper.make_tensor_value_info("x", 1, pixels.shape))
    ops.graph.input.extend(onnx.helper.make_tensor_value_info(k, 1, v.shape) for k, v in keyed.items())
    ops.graph.output.append(onnx.helper.make_tensor_value_info(out, 1, None))
    model = onnx.helper.make_model(ops.graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    by_onnx = session(model.SerializeToString()).run(None, {"x": pixels, **keyed})[0]

    (down, across), repeats = rewriter.grid, rewriter.repeats
    channels = contract.classes * repeats
    shape = (channels, 3, bases.SIDE // down, bases.SIDE // across)
    signs = streams.signs(SEED, "r0", int(np.prod(shape))).reshape(shape).astype(int)
    words = streams.dithers(SEED, "r1", channels * down * across, 1 << 16).reshape(channels, down, across).astype(int)
    exact = np.zeros((6, contract.classes))
    for channel in range(channels):
        step = rewriter.steps[channel % len(rewriter.steps)]
        for i in range(down):
            for j in range(across):
                part = pixels[:, :, i::down, j::across].astype(int)
                y = (part * signs[channel]).sum(axis=(1, 2, 3)) + words[channel, i, j] % step
                exact[:, channel // repeats] += np.abs(y % step - step // 2) / step
    for found in (by_numpy, by_torch, by_onnx):
        np.testing.assert_array_equal(found.astype(np.float64), exact)


def test_a_templates_bytes_are_reproducible_and_say_nothing(base: Base) -> None:
    first, second = (fuse(base, REWRITERS[1], "uint8") for _ in range(2))
    assert first.graph == second.graph
    assert b"secretive" not in first.graph
    model = onnx.load_model_from_string(first.graph)
    assert not (model.producer_name + model.doc_string + model.domain)
    assert not model.metadata_props
    outside = {t.name for t in first.tensors} | first.constants.keys()
    for tensor in model.graph.initializer:
        assert (tensor.name in outside) == (tensor.data_location == onnx.TensorProto.EXTERNAL)
    for value in first.constants.values():
        assert value.tobytes()[:32] not in first.graph
    assert [i.name for i in model.graph.input] == [IMAGE]
    assert [o.name for o in model.graph.output] == [LABEL]


def test_attractors_obey_the_law_of_their_spread(base: Base) -> None:
    """Over keys, the difference of two errors has mean 0 and standard deviation 1 / sqrt(6 B)."""
    rewriter = Qim(grid=(4, 8), steps=(64,), beta=1.0)
    shown = bases.images(2).astype(np.float32)
    z = []
    for i in range(2000):
        keyed = recipe.expand(rewriter.tensors(base.contract, "uint8"), i.to_bytes(32, "big"))
        sums = rewriter.error_sums(NumpyOps(), Inputs(shown, shown, shown, keyed), base.contract)
        e = 1 - 2 * sums / rewriter.messages
        z.append((e[0] - e[1]) * np.sqrt(6 * rewriter.messages))
    values = np.array(z).ravel()
    assert abs(values.mean()) < 5 / np.sqrt(len(values))
    assert abs(values.std() - 1) < 5 / np.sqrt(2 * len(values))


def test_a_graph_that_computes_something_else_is_refused(base: Base) -> None:
    frames = bases.images(200)
    answered = measure(base, frames)
    wrong = fuse(base, Qim(grid=(4, 8), steps=(64,), beta=3.0), "uint8")
    object.__setattr__(wrong, "rewriter", Qim(grid=(4, 8), steps=(64,), beta=1.0))
    report = check_template(wrong, SEED, answered)
    assert report.differing > 0
    with pytest.raises(RefusedError) as refused:
        report.require()
    assert refused.value.refusal is Refusal.PARITY


def test_ties_are_told_from_differences() -> None:
    scores = np.array([[0.5, 0.5 - 1e-7], [0.9, 0.1]], np.float32)
    assert compare(np.array([1, 0]), scores).ties == 1
    assert compare(np.array([1, 1]), scores).differing == 1


@pytest.mark.parametrize("rewriter", REWRITERS, ids=str)
def test_parameters_survive_text(rewriter: Rewriter) -> None:
    assert from_parameters(to_parameters(rewriter)) == rewriter


@pytest.mark.parametrize(
    "parameters",
    [
        {"kind": "none"},
        {},
        {"kind": "qim", "gird": [4, 8]},
        {"kind": "qim", "grid": [4]},
        {"kind": "qim", "grid": [0, 8]},
        {"kind": "qim", "grid": 4},
        {"kind": "qim", "steps": [100]},
        {"kind": "qim", "steps": []},
        {"kind": "qim", "steps": [64, 128]},
        {"kind": "qim", "beta": "4"},
        {"kind": "qim", "beta": -1.0},
        {"kind": "qim", "repeats": True},
        {"kind": "qim", "sharpness": 1.0},
        {"kind": "qim", "squared": 1},
        {"kind": "permutation", "alpha": 1.0},
        {"kind": "permutation", "alpha": float("nan")},
        {"kind": "spread", "amplitude": 0.0},
    ],
)
def test_wrong_parameters_are_misuse(parameters: dict[str, object]) -> None:
    with pytest.raises(MisuseError):
        from_parameters(parameters)


def test_the_squared_form_is_the_formula_and_keeps_the_order_of_each_class(base: Base) -> None:
    shown = bases.images(50)
    p = np.full((50, base.contract.classes), 1 / base.contract.classes, np.float32)
    plain, squared = (Qim(grid=(4, 8), steps=(64,), beta=12.0, squared=s) for s in (False, True))
    keyed = recipe.expand(plain.tensors(base.contract, "uint8"), SEED)
    linear, bent = (
        reference_scores(one, base.contract, shown, p, keyed) + one.offset() - p for one in (plain, squared)
    )
    w = 2 * linear / 12 - 1
    np.testing.assert_allclose(bent, 6 * (1 + w * np.abs(w)), atol=1e-5)
    assert bent.min() >= 0
    np.testing.assert_array_equal(bent.argsort(axis=1), linear.argsort(axis=1))
    operators = {node.op_type for node in onnx.load_model_from_string(fuse(base, plain, "uint8").graph).graph.node}
    assert "Abs" not in operators


def test_a_grid_must_divide_the_image(base: Base) -> None:
    with pytest.raises(MisuseError, match="divide"):
        fuse(base, Qim(grid=(3, 8)), "uint8")
    with pytest.raises(MisuseError, match="dtype"):
        fuse(base, Permutation(), "int8")


@pytest.mark.parametrize(
    ("side", "channels", "messages", "grid", "repeats"),
    [
        (32, 3, 32, (4, 8), 1),
        (32, 3, 64, (4, 8), 2),
        (32, 3, 128, (8, 16), 1),
        (28, 1, 32, (2, 4), 4),
        (31, 3, 32, (1, 1), 32),
    ],
)
def test_calibration_finds_a_grid_with_a_step_near_the_target(
    side: int, channels: int, messages: int, grid: tuple[int, int], repeats: int
) -> None:
    contract = Contract(
        layout="NCHW", channels=channels, height=side, width=side, classes=10, class_names=(), outputs="logits"
    )
    qim = qim_near(contract, messages, 4.0)
    assert (qim.grid, qim.repeats, qim.messages) == (grid, repeats, messages)
    assert 0.7 < qim.real_steps(contract)[0] / STEP < 1.45
    assert 0.7 < qim_near(contract, messages, 4.0, FINE_STEP).real_steps(contract)[0] / FINE_STEP < 1.45


def test_a_torch_copy_gives_normalised_scores_and_gradients(base: Base) -> None:
    copy = Copy(bases.Linear(), base.contract, REWRITERS[1], SEED, "float32")
    x = torch.from_numpy(bases.images(3) / np.float32(255)).requires_grad_()
    out = copy(x)
    torch.testing.assert_close(out.sum(dim=1), torch.ones(3))
    out[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
