"""From a seller's model to the canonical base: what is kept, what is dropped, what is refused."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from variegate.export.intake.base import Base, from_onnx, from_pt2, from_torch, load_base
from variegate.export.intake.canonical import canonicalise
from variegate.export.intake.contract import Contract, InputSpec
from variegate.export.intake.guard import Limits, guarded
from variegate.export.intake.isolate import convert
from variegate.export.intake.probe import Runner, check_parity, random_images
from variegate.export.intake.weights import load_weights, module_from_spec
from variegate.keys.errors import MisuseError, Refusal, RefusedError

LIMITS = Limits()


class SecretNet(torch.nn.Module):
    """Convolution, batch normalisation, dropout, a residual and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.secret_stem = torch.nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.secret_norm = torch.nn.BatchNorm2d(6)
        self.secret_drop = torch.nn.Dropout(0.5)
        self.secret_head = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.secret_norm(self.secret_stem(x)))
        y = torch.nn.functional.pad(y, (1, 0, 1, 0))[:, :, 1:, 1:] + y
        return cast("torch.Tensor", self.secret_head(self.secret_drop(y.mean((2, 3)))))


class FixedBatch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3 * 4 * 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(x.reshape(x.shape[0], -1)), 1)


@pytest.fixture(scope="module")
def net() -> SecretNet:
    torch.manual_seed(3)
    net = SecretNet()
    net(torch.rand(16, 3, 8, 8))  # statistics that are not the initial ones
    return net


@pytest.fixture(scope="module")
def base(net: SecretNet) -> Base:
    spec = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), class_names=("a", "b", "c", "d", "e"))
    net.train()
    net.secret_norm.eval()
    made = from_torch(net, (3, 8, 8), spec)
    assert net.training
    assert not net.secret_norm.training
    return made


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, NDArray[np.generic]],
    *,
    image: Sequence[str | int] = ("n", 3, 4, 4),
    scores: Sequence[str | int] = ("n", 5),
    opset: int = 20,
    kinds: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kinds[0], list(image))],
        [helper.make_tensor_value_info("y", kinds[1], list(scores))],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def weight(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def linear(*after: onnx.NodeProto, source: str = "x", **options: object) -> onnx.ModelProto:
    """Flatten and Gemm to "s", then what is given, which makes "y"."""
    nodes = [
        helper.make_node("Flatten", [source], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["s"]),
        *after,
    ]
    return graph_model(nodes, {"w": weight(48, 5)}, **options)  # type: ignore[arg-type]


IDENTITY = helper.make_node("Identity", ["s"], ["y"])


def run(model: onnx.ModelProto, spec: InputSpec = InputSpec()) -> tuple[onnx.ModelProto, Contract]:  # noqa: B008
    data, contract = canonicalise(guarded(model.SerializeToString(), None, LIMITS), spec, LIMITS)
    return onnx.load_from_string(data), contract


def refused(model: onnx.ModelProto, spec: InputSpec = InputSpec()) -> RefusedError:  # noqa: B008
    with pytest.raises(RefusedError) as caught:
        run(model, spec)
    assert caught.value.hint
    return caught.value


def test_torch_module_gives_its_own_scores(net: SecretNet, base: Base) -> None:
    images = random_images(9, (3, 8, 8))
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    net.eval()
    with torch.no_grad():
        expected = net((torch.from_numpy(images) - mean) / std).numpy()
    np.testing.assert_allclose(base.scores(images), expected, rtol=1e-4, atol=1e-5)
    assert base.scores(images[:1]).shape == (1, 5)
    assert base.contract == Contract(
        layout="NCHW",
        channels=3,
        height=8,
        width=8,
        classes=5,
        class_names=("a", "b", "c", "d", "e"),
        outputs="logits",
    )


def test_base_is_canonical(base: Base) -> None:
    model = base.model
    (image,), (scores,) = model.graph.input, model.graph.output
    assert (image.name, scores.name) == ("image", "scores")
    for value in (image, scores):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert [n.op_type for n in model.graph.node[:2]] == ["Sub", "Mul"]
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    assert all(t.HasField("raw_data") for t in model.graph.initializer)
    used = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} <= used
    data = model.SerializeToString(deterministic=True)
    assert base.digest == hashlib.sha256(data).digest()
    for name in (b"secret", b"norm", b"torch", b"pkg", b"onnxsim", b"test_base", b"linear", b"conv2d"):
        assert name not in data.lower()


def test_scores_refuse_wrong_images(base: Base) -> None:
    for images in (
        np.zeros((1, 3, 8, 8)),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((0, 3, 8, 8), np.float32),
    ):
        with pytest.raises(MisuseError):
            base.scores(images)  # type: ignore[arg-type]


def test_loggers_are_left_as_they_were(base: Base) -> None:
    assert base.contract.classes == 5
    assert logging.getLogger("torch.onnx").level == logging.NOTSET


def test_same_bytes_in_processes_with_other_hash_seeds(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(base.model)
    for node in model.graph.node:
        node.name = f"named-{node.name}"
    made = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)  # each conversion is a process of its own
        made.append(convert(model.SerializeToString(), "onnx", None, InputSpec(), LIMITS)[0])
    assert made[0] == made[1]


def test_tensorflow_style_graph(tmp_path: Path) -> None:
    """NHWC, bytes, transposes, Constant nodes, an old opset, initialisers listed as inputs, external data."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["tf/chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["tf/chw", "tf/kernel"], ["tf/c"], doc_string="by /home/seller"),
        helper.make_node("Relu", ["tf/c"], ["tf/r"]),
        helper.make_node("GlobalAveragePool", ["tf/r"], ["tf/p"]),
        helper.make_node("Constant", [], ["tf/one"], value=numpy_helper.from_array(weight(7, 1, 1))),
        helper.make_node("Add", ["tf/p", "tf/one"], ["tf/a"]),
        helper.make_node("Softmax", ["tf/a"], ["y"], axis=1),
    ]
    tensors: dict[str, NDArray[np.generic]] = {"tf/kernel": weight(7, 3, 3, 3) / 255, "tf/unused": weight(4)}
    model = graph_model(nodes, tensors, image=("n", 6, 5, 3), scores=("n", 7, 1, 1), opset=11)
    model.graph.input.append(helper.make_tensor_value_info("tf/kernel", TensorProto.FLOAT, [7, 3, 3, 3]))
    model.producer_name, model.doc_string = "tf2onnx", "seller"
    model.metadata_props.add(key="author", value="seller")
    spec = InputSpec(layout="NHWC", value_range="byte", mean=(103.9, 116.8, 123.7))
    reference = Runner(model.SerializeToString())

    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    base = from_onnx(tmp_path / "m.onnx", spec)

    images = random_images(6, (6, 5, 3))
    expected = reference(images * 255 - np.asarray(spec.mean, np.float32)).reshape(6, 7)
    np.testing.assert_allclose(base.scores(images), expected, rtol=1e-3, atol=1e-5)
    assert (base.contract.layout, base.contract.channels, base.contract.height) == ("NHWC", 3, 6)
    assert base.contract.outputs == "probabilities"
    data = base.model.SerializeToString()
    assert not any(name in data for name in (b"tf/", b"seller", b"tf2onnx", b"author"))


def test_pt2_with_a_fixed_batch_is_freed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = FixedBatch().eval()
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 4, 4),)), path)
    base = load_base(path)
    images = random_images(5, (3, 4, 4))
    with torch.no_grad():
        np.testing.assert_allclose(base.scores(images), module(torch.from_numpy(images)).numpy(), atol=1e-5)
    assert base.contract.outputs == "probabilities"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RefusedError) as caught:
        from_pt2(path)
    assert caught.value.refusal is Refusal.MALFORMED


def test_a_batch_that_cannot_be_freed_says_how_to_export() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["p"]),
        helper.make_node("Expand", ["b", "grow"], ["e"]),
        helper.make_node("Concat", ["p", "e"], ["y"], axis=1),
    ]
    tensors: dict[str, NDArray[np.generic]] = {
        "shape": np.array([2, 48]),
        "w": weight(48, 5),
        "b": weight(1, 1),
        "grow": np.array([2, 1]),
    }
    error = refused(graph_model(nodes, tensors, image=(2, 3, 4, 4), scores=(2, 6)))
    assert error.refusal is Refusal.CONTRACT
    assert "fixed at 2" in error.message
    assert "re-export" in str(error.hint)
    tensors_freed = {name: tensors[name] for name in ("shape", "w")}
    nodes[1].output[0] = "y"
    made, _ = run(graph_model(nodes[:2], tensors_freed, image=(2, 3, 4, 4), scores=(2, 5)))
    assert made.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_base_that_mixes_the_images_of_a_batch_is_refused() -> None:
    mean = helper.make_node("ReduceMean", ["s", "axes"], ["m"])
    model = linear(mean, helper.make_node("Sub", ["s", "m"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    error = refused(model)
    assert error.refusal is Refusal.CONTRACT
    assert "depends on the others of its batch" in error.message


@pytest.mark.parametrize(
    ("node", "outputs", "expected"),
    [
        (IDENTITY, "auto", "logits"),
        (helper.make_node("Softmax", ["s"], ["y"], axis=1), "auto", "probabilities"),
        (helper.make_node("Softmax", ["s"], ["y"]), "auto", "probabilities"),
        (helper.make_node("Softmax", ["s"], ["y"], axis=0), "auto", None),
        (helper.make_node("LogSoftmax", ["s"], ["y"], axis=1), "auto", "logits"),
        (helper.make_node("Sigmoid", ["s"], ["y"]), "auto", "logits"),
        (helper.make_node("Softmax", ["s"], ["y"], axis=1), "logits", "logits"),
        (helper.make_node("Sigmoid", ["s"], ["y"]), "probabilities", None),
        (IDENTITY, "probabilities", None),
    ],
)
def test_what_the_scores_are(node: onnx.NodeProto, outputs: str, expected: str | None) -> None:
    spec = InputSpec(outputs=outputs)  # type: ignore[arg-type]
    if expected is None:
        assert refused(linear(node), spec).refusal in (Refusal.CONTRACT, Refusal.PARITY)
    else:
        assert run(linear(node), spec)[1].outputs == expected


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        (InputSpec(), []),
        (InputSpec(value_range="byte"), ["Mul"]),
        (InputSpec(mean=(0.1, 0.2, 0.3)), ["Sub"]),
        (InputSpec(std=(0.1, 0.2, 0.3)), ["Mul"]),
        (InputSpec(value_range="byte", mean=(1, 2, 3), std=(255, 255, 255)), ["Sub"]),
        (InputSpec(mean=(0, 0, 0), std=(1, 1, 1)), []),
        (InputSpec(value_range="byte", mean=(1, 2, 3), std=(4, 5, 6)), ["Sub", "Mul"]),
    ],
)
def test_normalisation_is_as_few_nodes_as_can_be(spec: InputSpec, nodes: list[str]) -> None:
    made, _ = run(linear(IDENTITY), spec)
    front = [n.op_type for n in made.graph.node if n.op_type in ("Sub", "Mul", "Div", "Add")]
    assert front == nodes


ARGMAX = helper.make_node("ArgMax", ["s"], ["y"], axis=1, keepdims=0)
LOG_OF_NEGATIVE = helper.make_node("Log", ["s"], ["y"])


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (linear(ARGMAX, kinds=(TensorProto.FLOAT, TensorProto.INT64), scores=("n",)), InputSpec()),
        (linear(LOG_OF_NEGATIVE), InputSpec()),
        (linear(IDENTITY), InputSpec(mean=(0.5,))),
        (linear(IDENTITY), InputSpec(std=(1, 1, 1, 1))),
        (linear(IDENTITY), InputSpec(std=(1, 0, 1))),
        (linear(IDENTITY), InputSpec(mean=(float("nan"), 0, 0))),
        (linear(IDENTITY), InputSpec(layout="NHWC", mean=(1, 1, 1))),
        (linear(IDENTITY), InputSpec(class_names=("a", "b"))),
        (linear(IDENTITY), InputSpec(class_names=("a", "a", "b", "c", "d"))),
        (linear(IDENTITY, image=("n", 48)), InputSpec()),
        (linear(IDENTITY, image=("n", 3, "h", "w")), InputSpec()),
        (linear(IDENTITY, image=("n", 2, 4, 6)), InputSpec()),
        (linear(IDENTITY, kinds=(TensorProto.DOUBLE, TensorProto.FLOAT)), InputSpec()),
        (linear(helper.make_node("Cast", ["s"], ["y"], to=TensorProto.DOUBLE), kinds=(1, 11)), InputSpec()),
        (graph_model([helper.make_node("Relu", ["x"], ["y"])], {}, scores=("n", 3, 4, 4)), InputSpec()),
        (
            graph_model(
                [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])],
                {"w": weight(48, 1)},
                scores=("n", 1),
            ),
            InputSpec(),
        ),
    ],
)
def test_broken_contracts(model: onnx.ModelProto, spec: InputSpec) -> None:
    assert refused(model, spec).refusal is Refusal.CONTRACT


def test_torch_modules_that_cannot_be_a_base() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with pytest.raises(RefusedError) as caught:
        from_torch(Two(), (3, 4, 4))
    assert caught.value.refusal is Refusal.CONTRACT
    with pytest.raises(RefusedError) as caught:
        from_torch(torch.nn.Linear(7, 2), (3, 4, 4))
    assert caught.value.refusal is Refusal.MODEL
    with pytest.raises(RefusedError) as caught:
        from_torch(torch.nn.Flatten(), (5, 4, 4))
    assert caught.value.refusal is Refusal.CONTRACT


def test_parity_allows_ties_and_nothing_else() -> None:
    expected = np.array([[1.0, 1.0 - 4e-6, 0.0]], np.float32)
    check_parity(expected, expected[:, [1, 0, 2]])
    for actual in (np.array([[0.9, 1.0, 0.0]]), np.array([[np.nan, 1, 0]]), np.zeros((1, 2))):
        with pytest.raises(RefusedError) as caught:
            check_parity(expected, actual.astype(np.float32))
        assert caught.value.refusal is Refusal.PARITY
    with pytest.raises(RefusedError, match="labels"):
        check_parity(np.array([[1.0, 0.9995]], np.float32), np.array([[0.9995, 1.0]], np.float32))


def test_weights(tmp_path: Path, net: SecretNet) -> None:
    good = tmp_path / "w.safetensors"
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(state, good)
    fresh = SecretNet()
    load_weights(fresh, good)
    assert torch.equal(fresh.secret_head.weight, net.secret_head.weight)
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({n: t for n, t in state.items() if n != "secret_head.bias"}, r"lacks 1 tensors: secret_head\.bias"),
        ({**state, "more": torch.zeros(1)}, "has unexpected 1 tensors: more"),
        ({**state, "secret_head.bias": torch.zeros(6)}, r"wrong shape for 1 tensors: secret_head\.bias"),
        (
            {**state, "secret_head.bias": torch.zeros(5).half()},
            r"wrong type for 1 tensors: secret_head\.bias",
        ),
    ]
    for tensors, message in cases:
        save_file(tensors, tmp_path / "bad.safetensors")
        untouched = SecretNet()
        before = untouched.secret_head.weight.clone()
        with pytest.raises(RefusedError, match=message) as caught:
            load_weights(untouched, tmp_path / "bad.safetensors")
        assert caught.value.refusal is Refusal.MODEL
        assert torch.equal(untouched.secret_head.weight, before)
    with pytest.raises(RefusedError) as caught:
        load_weights(fresh, good, Limits(file_bytes=100))
    assert caught.value.refusal is Refusal.TOO_LARGE


def test_weights_may_lack_the_counters_of_batch_normalisation(tmp_path: Path) -> None:
    trained = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    trained.state_dict()["1.running_mean"].fill_(0.5)
    state = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    fresh = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    load_weights(fresh, tmp_path / "w.safetensors")
    assert torch.equal(fresh.state_dict()["1.running_mean"], state["1.running_mean"])
    save_file({n: t for n, t in state.items() if n != "1.running_var"}, tmp_path / "x.safetensors")
    with pytest.raises(RefusedError, match=r"lacks 1 tensors: 1\.running_var"):
        load_weights(fresh, tmp_path / "x.safetensors")


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    for suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".PTH"):
        for call in (lambda p: load_weights(SecretNet(), p), load_base):
            with pytest.raises(RefusedError) as caught:
                call(tmp_path / f"missing{suffix}")
            assert caught.value.refusal is Refusal.MALFORMED
            assert "safetensors" in str(caught.value.hint)
    disguised = tmp_path / "w.safetensors"
    torch.save(SecretNet().state_dict(), disguised)
    with pytest.raises(RefusedError, match="pickle"):
        load_weights(SecretNet(), disguised)
    disguised.write_bytes(b"\xff" * 64)
    with pytest.raises(RefusedError, match="not a valid safetensors"):
        load_weights(SecretNet(), disguised)
    for name in ("w.safetensors", "w.txt"):
        with pytest.raises(RefusedError) as caught:
            load_base(tmp_path / name)
        assert caught.value.refusal is Refusal.MALFORMED


def test_modules_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seller_nets.py").write_text(
        "import torch\n"
        "def head(): return torch.nn.Linear(2, 2)\n"
        "def other(): return 1\n"
        "def broken(): raise ValueError('no')\n"
    )
    (tmp_path / "seller_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(module_from_spec("seller_nets:head"), torch.nn.Linear)
    for spec, message in (
        ("seller_nets", "malformed"),
        ("seller_nets:head()", "malformed"),
        ("seller_absent:head", "cannot import"),
        ("seller_nets:tail", "has no tail"),
        ("seller_nets:other", "gives a int"),
        ("seller_nets:broken", "cannot be called"),
        ("seller_broken:head", "ZeroDivisionError"),
    ):
        with pytest.raises(MisuseError, match=message):
            module_from_spec(spec)
