"""Hostile files, one by one, each with the class of refusal it ends in."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from variegate.export.intake.archive import rebuilt
from variegate.export.intake.bound import bounded
from variegate.export.intake.canonical import canonicalise
from variegate.export.intake.contract import InputSpec
from variegate.export.intake.graph_json import checked_program
from variegate.export.intake.guard import Limits, guarded, read_file
from variegate.export.intake.isolate import convert
from variegate.keys.errors import Refusal, RefusedError, VariegateError

LIMITS = Limits()
SPEC = InputSpec()


def small() -> onnx.ModelProto:
    """Flatten and Gemm: 3 x 4 x 4 pixels to 5 scores."""
    weights = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def refusal_of(call: Callable[[], object]) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.refusal


def edit_custom_operator(m: onnx.ModelProto) -> None:
    m.graph.node[0].domain = "com.microsoft"


def edit_function(m: onnx.ModelProto) -> None:
    m.functions.add(name="f", domain="d")


def edit_training(m: onnx.ModelProto) -> None:
    m.training_info.add()


def edit_opset_new(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 999


def edit_opset_old(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 3


def edit_no_opset(m: onnx.ModelProto) -> None:
    del m.opset_import[:]


def edit_sparse(m: onnx.ModelProto) -> None:
    m.graph.sparse_initializer.add()


def edit_loop(m: onnx.ModelProto) -> None:
    m.graph.node[0].op_type = "Loop"


def edit_subgraph(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.append(helper.make_attribute("body", m.graph))


def edit_hidden_subgraph(m: onnx.ModelProto) -> None:
    attribute = m.graph.node[0].attribute.add(name="axis", type=onnx.AttributeProto.INT, i=1)
    attribute.g.name = "hidden behind an attribute that says it is a number"


def edit_random(m: onnx.ModelProto) -> None:
    m.graph.node[0].op_type = "RandomNormalLike"


def edit_two_inputs(m: onnx.ModelProto) -> None:
    m.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))


def edit_two_outputs(m: onnx.ModelProto) -> None:
    m.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, [1, 48]))


def edit_sequence(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.Clear()
    m.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def edit_wrong_dims(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].dims[0] = 49


def edit_overflowing_dims(m: onnx.ModelProto) -> None:
    # 2**62 * 16 is 0 in 64 bits.
    del m.graph.initializer[0].dims[:]
    m.graph.initializer[0].dims.extend([1 << 62, 16])
    m.graph.initializer[0].raw_data = b""


def edit_negative_dims(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].dims[:] = [-48, -5]


def edit_both_data(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].float_data.append(1.0)


def edit_strings(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].data_type = TensorProto.STRING


def edit_empty(m: onnx.ModelProto) -> None:
    m.ClearField("graph")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edit_custom_operator, Refusal.MODEL),
        (edit_function, Refusal.MODEL),
        (edit_training, Refusal.MODEL),
        (edit_opset_new, Refusal.MODEL),
        (edit_opset_old, Refusal.MODEL),
        (edit_no_opset, Refusal.MALFORMED),
        (edit_sparse, Refusal.MODEL),
        (edit_loop, Refusal.MODEL),
        (edit_subgraph, Refusal.MODEL),
        (edit_hidden_subgraph, Refusal.MODEL),
        (edit_random, Refusal.MODEL),
        (edit_two_inputs, Refusal.CONTRACT),
        (edit_two_outputs, Refusal.CONTRACT),
        (edit_sequence, Refusal.MODEL),
        (edit_wrong_dims, Refusal.MALFORMED),
        (edit_overflowing_dims, Refusal.MALFORMED),
        (edit_negative_dims, Refusal.MALFORMED),
        (edit_both_data, Refusal.MALFORMED),
        (edit_strings, Refusal.MODEL),
        (edit_empty, Refusal.MALFORMED),
    ],
)
def test_guard_refuses(edit: Callable[[onnx.ModelProto], None], expected: Refusal) -> None:
    model = small()
    guarded(model.SerializeToString(), None, LIMITS)
    edit(model)
    assert refusal_of(lambda: guarded(model.SerializeToString(), None, LIMITS)) is expected


def test_guard_names_the_operator_without_its_control_characters() -> None:
    model = small()
    model.graph.node[0].domain, model.graph.node[0].op_type = "evil", "Op\x1b[2J"
    with pytest.raises(RefusedError, match=r"evil\.Op\?\?2J"):
        guarded(model.SerializeToString(), None, LIMITS)


@pytest.mark.parametrize("limits", [Limits(file_bytes=100), Limits(nodes=1), Limits(initialisers=0)])
def test_guard_holds_its_caps(limits: Limits) -> None:
    assert refusal_of(lambda: guarded(small().SerializeToString(), None, limits)) is Refusal.TOO_LARGE


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "big.onnx").write_bytes(bytes(11))
    assert refusal_of(lambda: read_file(tmp_path / "pipe.onnx", LIMITS)) is Refusal.MALFORMED
    assert refusal_of(lambda: read_file(tmp_path / "none.onnx", LIMITS)) is Refusal.MALFORMED
    assert refusal_of(lambda: read_file(tmp_path, LIMITS)) is Refusal.MALFORMED
    assert refusal_of(lambda: read_file(tmp_path / "big.onnx", Limits(file_bytes=10))) is Refusal.TOO_LARGE


def with_external(**entries: str) -> bytes:
    model = small()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../secret"},
        {"location": "sub/../../secret"},
        {"location": "link"},
        {"location": "folder-link/secret"},
        {"location": ""},
        {"location": "a\\b"},
        {"location": "missing"},
        {"location": "pipe"},
        {"location": "."},
        {"location": "data", "offset": "1"},
        {"location": "data", "length": "961"},
        {"location": "data", "offset": "-1"},
        {"location": "data", "length": "99999999999999999999"},
        {"location": "data", "more": "1"},
        {"offset": "0"},
    ],
)
def test_external_data_stays_in_the_folder(tmp_path: Path, entries: dict[str, str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    data = small().graph.initializer[0].raw_data
    (tmp_path / "secret").write_bytes(data)
    (folder / "data").write_bytes(data)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder-link").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    assert guarded(with_external(location="data"), folder, LIMITS).graph.initializer[0].raw_data == data
    assert refusal_of(lambda: guarded(with_external(**entries), folder, LIMITS)) is Refusal.MALFORMED


def test_external_data_absolute_without_folder_and_too_large(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(small().graph.initializer[0].raw_data)
    absolute, inside = with_external(location=str(data)), with_external(location="data")
    assert refusal_of(lambda: guarded(absolute, tmp_path, LIMITS)) is Refusal.MALFORMED
    assert refusal_of(lambda: guarded(inside, None, LIMITS)) is Refusal.MALFORMED
    assert refusal_of(lambda: guarded(inside, tmp_path, Limits(file_bytes=900))) is Refusal.TOO_LARGE


def exploding(op: str) -> onnx.ModelProto:
    """A few bytes that ask for 4 TiB when constants are folded."""
    model = small()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "big"))
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "one"))
    inputs = {"ConstantOfShape": ["big"], "Expand": ["one", "big"], "Tile": ["one", "big"]}[op]
    graph.node.insert(0, helper.make_node(op, inputs, ["huge"]))
    graph.node.insert(1, helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0))
    graph.node[-1].input.append("sum")
    return model


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile"])
def test_memory_is_bounded_before_anything_is_folded(op: str) -> None:
    model = guarded(exploding(op).SerializeToString(), None, LIMITS)
    assert refusal_of(lambda: bounded(model, LIMITS)) is Refusal.TOO_LARGE


def test_a_size_that_depends_on_pixels_cannot_be_bounded() -> None:
    model = small()
    model.graph.node.insert(1, helper.make_node("NonZero", ["f"], ["found"]))
    model.graph.node[-1].input[0] = "f"
    assert refusal_of(lambda: bounded(model, LIMITS)) is Refusal.TOO_LARGE


def test_nonsense_that_parses_is_refused() -> None:
    model = small()
    model.graph.node[1].input[0] = "nowhere"
    assert refusal_of(lambda: bounded(guarded(model.SerializeToString(), None, LIMITS), LIMITS)) is Refusal.MODEL


def test_the_child_is_held_to_time_and_memory() -> None:
    data = small().SerializeToString()
    assert refusal_of(lambda: convert(data, "onnx", None, SPEC, Limits(seconds=0.05))) is Refusal.TOO_LARGE
    lost = refusal_of(lambda: convert(data, "onnx", None, SPEC, Limits(process_bytes=64 << 20)))
    assert lost in (Refusal.MODEL, Refusal.TOO_LARGE)


VALID = small().SerializeToString()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4),
    end=st.integers(0, len(VALID)),
)
@example(flips=[], end=len(VALID))
def test_any_mutation_is_a_refusal_or_a_valid_load(flips: list[tuple[int, int]], end: int) -> None:
    data = bytearray(VALID)
    for place, value in flips:
        data[place] = value
    for mutated in (bytes(data), bytes(data[:end])):
        try:
            bounded(guarded(mutated, None, LIMITS), LIMITS)
        except VariegateError:
            continue


# The structure, not the weights: most bytes of a model are weights, which any flip leaves valid.
STRUCTURE = [
    i
    for i in range(len(VALID))
    if not VALID.find(small().graph.initializer[0].raw_data)
    <= i
    < VALID.find(small().graph.initializer[0].raw_data) + 960
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(place=st.sampled_from(STRUCTURE), value=st.integers(0, 255))
def test_flips_in_the_structure_through_the_whole_conversion(place: int, value: int) -> None:
    data = bytearray(VALID)
    data[place] = value
    try:
        made, contract = canonicalise(guarded(bytes(data), None, LIMITS), SPEC, LIMITS)
    except VariegateError:
        return
    assert contract.classes >= 2
    onnx.checker.check_model(onnx.load_from_string(made))


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.linear(x.flatten(1)))


@pytest.fixture(scope="module")
def pt2() -> bytes:
    stream = io.BytesIO()
    dims = ({0: torch.export.Dim("n")},)
    program = torch.export.export(Tiny().eval(), (torch.zeros(2, 3, 2, 2),), dynamic_shapes=dims)
    torch.export.save(program, stream)
    return stream.getvalue()


def changed(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """Returns the archive with its entries, named below the root folder, changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries.items():
            made.writestr(f"a/{name}", content)
    return stream.getvalue()


class Bomb:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_in_the_sample_inputs_is_never_read(pt2: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = changed(pt2, lambda e: e.update({"data/sample_inputs/model.pt": pickle.dumps(Bomb(mark))}))
    torch.export.load(io.BytesIO(rebuilt(evil, LIMITS)))
    assert not mark.exists()
    with pytest.raises(Exception, match=r".*"):  # what torch alone does with it: the mark shows that it ran
        torch.export.load(io.BytesIO(evil))
    assert mark.exists()


def edit_config(entries: dict[str, bytes], **change: object) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(entries[name])
    config["config"]["linear.weight"].update(change)
    entries[name] = json.dumps(config).encode()


def edit_sizes(entries: dict[str, bytes], sizes: list[object]) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(entries[name])
    config["config"]["linear.weight"]["tensor_meta"]["sizes"] = sizes
    entries[name] = json.dumps(config).encode()


def edit_json(entries: dict[str, bytes], old: str, new: str) -> None:
    text = entries["models/model.json"].decode()
    assert old in text
    entries["models/model.json"] = text.replace(old, new).encode()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: edit_config(e, use_pickle=True), Refusal.MODEL),
        (lambda e: edit_config(e, path_name="../../x"), Refusal.MALFORMED),
        (lambda e: edit_sizes(e, [{"as_expr": {"expr_str": "print(1)"}}]), Refusal.MALFORMED),
        (lambda e: edit_sizes(e, [{"as_int": 1 << 40}]), Refusal.TOO_LARGE),
        (lambda e: e.update({"data/weights/model.pt": b""}), Refusal.MODEL),
        (lambda e: e.update({"data/constants/opaque_obj_0": b""}), Refusal.MODEL),
        (lambda e: e.update({"data/constants/custom_obj_0": b""}), Refusal.MODEL),
        (lambda e: e.update({"data/aotinductor/model/x.so": b""}), Refusal.MODEL),
        (lambda e: e.update({"models/other.json": b"{}"}), Refusal.MODEL),
        (lambda e: e.update({"models/model.json": b"{"}), Refusal.MALFORMED),
        (lambda e: e.update({"models/model.json": b"[" * 100_000}), Refusal.MALFORMED),
        (lambda e: e.update({"models/model.json": b"[]"}), Refusal.MALFORMED),
        (lambda e: e.pop("models/model.json"), Refusal.MALFORMED),
        (lambda e: edit_json(e, "torch.ops.aten.linear.default", "torch.os.system"), Refusal.MODEL),
        (lambda e: edit_json(e, "torch.ops.aten.linear.default", "torch.ops.evil.op.x"), Refusal.MODEL),
        (lambda e: edit_json(e, "Symbol('", "__import__('os').system('"), Refusal.MALFORMED),
        (lambda e: edit_json(e, "builtins.tuple", "evil.tuple"), Refusal.MODEL),
        (lambda e: edit_json(e, '"name": "x"', '"name": "x=print(1)"'), Refusal.MALFORMED),
        (lambda e: e.update({"data/weights/weight_9": bytes(1 << 20)}), Refusal.TOO_LARGE),
    ],
)
def test_hostile_archives(pt2: bytes, change: Callable[[dict[str, bytes]], None], expected: Refusal) -> None:
    limits = Limits(file_bytes=1 << 20)
    rebuilt(pt2, limits)
    assert refusal_of(lambda: rebuilt(changed(pt2, change), limits)) is expected


def test_archives_that_are_none(pt2: bytes) -> None:
    assert refusal_of(lambda: rebuilt(b"", LIMITS)) is Refusal.MALFORMED
    assert refusal_of(lambda: rebuilt(pickle.dumps([]), LIMITS)) is Refusal.MALFORMED
    assert refusal_of(lambda: rebuilt(pt2, Limits(archive_entries=3))) is Refusal.TOO_LARGE


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1 << 20), value=st.integers(0, 255), end=st.integers(0, 1 << 20))
def test_any_mutation_of_an_archive(pt2: bytes, place: int, value: int, end: int) -> None:
    data = bytearray(pt2)
    data[place % len(data)] = value
    for mutated in (bytes(data), bytes(data[: end % len(data)])):
        try:
            rebuilt(mutated, LIMITS)
        except VariegateError:
            continue


@pytest.mark.parametrize("program", [None, [], "x", {"graph_module": {"as_graph": {}}}, {"a b": 1}])
def test_programs_that_are_none(program: object) -> None:
    with pytest.raises(RefusedError):
        checked_program(program)
