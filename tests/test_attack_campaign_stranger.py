"""A campaign that somebody sent: reading it opens no address, no device and no file that it names."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from variegate.attack.campaign import copies_file, folder, runner
from variegate.attack.campaign.copies import Copy, FleetCopies, Graph
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.resolved import to_toml
from variegate.attack.campaign.verify import verify
from variegate.cli.main import main
from variegate.keys import cbor
from variegate.keys.errors import Refusal, RefusedError, VariegateError
from variegate.keys.primitives import sha256

pytest_plugins = "tests.support.campaign_fixtures"


def _rewritten(made: Path, contents: dict[str, bytes]) -> None:
    """Puts inputs in place of a campaign's, and their digests into its ledger."""
    with closing(sqlite3.connect(made / "ledger.sqlite")) as db:
        for name, data in contents.items():
            (made / name).write_bytes(data)
            db.execute("UPDATE meta SET value = ? WHERE key = ?", (sha256(data).hex(), name))
        db.commit()


@contextlib.contextmanager
def _listening() -> Iterator[tuple[int, list[object]]]:
    """A port, and who came to it."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one, address = server.accept()
                    came.append(address)
                    one.close()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], came
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _of_devices(made: Path, prepared: Prepared, uris: tuple[str, ...], *, also_in_file: bool = True) -> None:
    """Says that one fleet is of devices at these addresses."""
    fleets = [replace(f, graphs=(), seeds=(), devices=uris) if f.name == "qim" else f for f in prepared.fleets]
    given = [
        replace(f, bases=(), rewriter={}, dtype="", devices=uris) if f.name == "qim" else f
        for f in prepared.campaign.fleets
    ]
    contents = {folder.COPIES: copies_file.to_bytes(tuple(fleets))}
    if also_in_file:
        contents[folder.CONFIG] = to_toml(replace(prepared.campaign, fleets=tuple(given))).encode()
    _rewritten(made, contents)


def test_no_address_of_a_campaign_is_opened_unless_it_is_asked_for(
    copied: Path, prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = tmp_path / "device"
    device.mkdir()
    with _listening() as (port, came):
        at = f"127.0.0.1:{port}"
        _of_devices(copied, prepared, (f"http://{at}", f"https://{at}/model", f"device:{device}"))
        assert main(["attack", "verify", str(copied)]) == 0
        said = capsys.readouterr().out
        assert "fleet qim has devices, which were not asked: --ask-devices opens those that the campaign names" in said
        # The other fleet's copies are in the campaign.
        assert verify(copied).samples > 0
        assert verify(copied).not_asked == ("qim",)
        assert main(["attack", "query", str(copied), "SELECT count(*) FROM samples"]) == 0
        assert main(["attack", "report", str(copied), "--out", str(tmp_path / "report")]) == 0
        assert came == []
        assert list(device.iterdir()) == []
        assert main(["attack", "verify", str(copied), "--ask-devices"]) == 1
        assert "fleet qim is asked no more" in capsys.readouterr().out
        assert came


def test_copies_whose_addresses_the_campaigns_file_does_not_have_are_refused(copied: Path, prepared: Prepared) -> None:
    with _listening() as (port, came):
        _of_devices(copied, prepared, (f"http://127.0.0.1:{port}",) * 3, also_in_file=False)
        for reader in (verify, lambda made: runner.run(made, engine="serial")):
            with pytest.raises(RefusedError, match="are not those of its"):
                reader(copied)
        assert came == []


def _outside(place: str, *, node: bool = False) -> TensorProto:
    """A tensor of 4 x 3 floats whose data is said to lie in a file."""
    tensor = TensorProto(name="" if node else "w", data_type=TensorProto.FLOAT, dims=(4, 3))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


def _model(weight: TensorProto, *, node: bool = False) -> bytes:
    nodes = [
        helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["f"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    if node:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
        [] if node else [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def _fleet(graph: bytes) -> FleetCopies:
    return FleetCopies(
        name="it",
        dtype="uint8",
        shape=(1, 2, 2),
        classes=3,
        graphs=(Graph(graph=graph, constants={}, tensors=()),),
        seeds=(bytes(32),),
    )


def _opened(fleet: FleetCopies) -> Copy:
    (read,) = copies_file.from_bytes(copies_file.to_bytes((fleet,)))
    return Copy(read, 0)


@pytest.mark.parametrize("node", [False, True])
@pytest.mark.parametrize("place", ["beside", "absolute", "link", "dots"])
def test_a_graph_takes_no_data_from_files(
    place: str, node: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.ones((4, 3), np.float32).tobytes())
    (work / "secret.bin").write_bytes((tmp_path / "secret.bin").read_bytes())
    (work / "link.bin").symlink_to(tmp_path / "secret.bin")
    monkeypatch.chdir(work)
    named = {
        "beside": "secret.bin",
        "absolute": str(tmp_path / "secret.bin"),
        "link": "link.bin",
        "dots": "../secret.bin",
    }[place]
    with pytest.raises(RefusedError, match=r"a graph of the campaign|takes a constant from a file") as caught:
        _opened(_fleet(_model(_outside(named, node=node), node=node)))
    assert caught.value.refusal is Refusal.MODEL


def test_a_graph_with_its_data_in_it_is_opened() -> None:
    weight = numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")
    labels = _opened(_fleet(_model(weight))).labels(np.eye(4, dtype=np.uint8).reshape(4, 1, 2, 2))
    assert labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("part", ["functions", "training", "sparse", "sparse value"])
def test_where_tensors_could_hide_is_refused(part: str) -> None:
    model = onnx.load_model_from_string(_model(numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")))
    match part:
        case "functions":
            model.functions.add(name="f")
        case "training":
            model.training_info.add()
        case "sparse":
            model.graph.sparse_initializer.add()
        case _:
            model.graph.node[0].attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.dims[
                :
            ] = [1]
    with pytest.raises(RefusedError, match="graph has") as caught:
        _opened(_fleet(model.SerializeToString()))
    assert caught.value.refusal is Refusal.MODEL


def test_a_graph_of_other_frames_or_labels_is_refused() -> None:
    fleet = _fleet(_model(numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w")))
    for changed in (replace(fleet, shape=(1, 2, 3)), replace(fleet, dtype="float32")):
        with pytest.raises(RefusedError, match="is no graph from its frames to a label"):
            _opened(changed)
    with pytest.raises(RefusedError, match="labels outside of its 2 classes"):
        _opened(replace(fleet, classes=2)).labels(np.eye(4, dtype=np.uint8).reshape(4, 1, 2, 2))


_CHANGES: dict[str, Callable[[dict[str, object]], object]] = {
    "no fields": lambda _: {},
    "a field more": lambda fleet: {**fleet, "more": 1},
    "a huge side": lambda fleet: {**fleet, "shape": [1 << 62, 1 << 62, 1]},
    "no side": lambda fleet: {**fleet, "shape": [True, 2, 2]},
    "no classes": lambda fleet: {**fleet, "classes": 1 << 70},
    "another type": lambda fleet: {**fleet, "dtype": ["uint8"]},
    "short seeds": lambda fleet: {**fleet, "seeds": [b"x"]},
    "no graphs": lambda fleet: {**fleet, "graphs": []},
    "graphs and devices": lambda fleet: {**fleet, "devices": ["http://127.0.0.1"]},
    "a device that is no text": lambda fleet: {**fleet, "graphs": [], "seeds": [], "devices": [1]},
    "a graph of numbers": lambda fleet: {**fleet, "graphs": [1]},
    "constants of objects": lambda fleet: _with_constant(fleet, ["c", "|O", [1], bytes(8)]),
    "constants of another length": lambda fleet: _with_constant(fleet, ["c", "<f4", [1 << 40], bytes(4)]),
    "constants of no text": lambda fleet: _with_constant(fleet, [1, ["<f4"], [1], bytes(4)]),
    "a constant that is not taken": lambda fleet: _with_constant(fleet, ["c", "<f4", [1], bytes(4)]),
    "a recipe of numbers": lambda fleet: {
        **fleet, "graphs": [{"graph": b"", "constants": [], "tensors": [[1, 2, 3]]}]
    },
}  # fmt: skip


def _with_constant(fleet: dict[str, object], constant: list[object]) -> dict[str, object]:
    return {**fleet, "graphs": [{"graph": b"", "constants": [constant], "tensors": []}]}


@pytest.mark.parametrize("name", _CHANGES)
def test_copies_of_other_fields_are_refused(name: str) -> None:
    whole = cbor.decode(copies_file.to_bytes((_fleet(b""),)), limit=1 << 20)
    for changed in ([_CHANGES[name](whole[0])], _CHANGES[name](whole[0])):
        with pytest.raises(RefusedError):
            copies_file.from_bytes(cbor.encode(changed))


def test_copies_of_too_many_items_take_no_memory() -> None:
    """60 MB of empty lists took 4.5 GB to refuse."""
    count = 1_000_000
    tracemalloc.start()
    with pytest.raises(RefusedError) as caught:
        copies_file.from_bytes(b"\x9a" + count.to_bytes(4, "big") + b"\x81\x80" * count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.refusal is Refusal.TOO_LARGE
    assert peak < 16 * count


def test_more_copies_than_can_be_read_again_are_not_written() -> None:
    many = replace(_fleet(b""), seeds=(bytes(32),) * copies_file.MAX_ITEMS)
    with pytest.raises(RefusedError) as caught:
        copies_file.to_bytes((many,))
    assert caught.value.refusal is Refusal.TOO_LARGE


def test_damaged_copies_are_refused_and_nothing_else_comes_of_them(prepared: Prepared) -> None:
    whole, rng, refused = copies_file.to_bytes(prepared.fleets), np.random.default_rng(3), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            for fleet in copies_file.from_bytes(bytes(data[: len(data) - rng.integers(2)])):
                frames = np.zeros((1, *prepared.fleets[0].shape), fleet.dtype)
                Copy(fleet, 0).labels(frames)
        except VariegateError:
            refused += 1
    assert refused > 100
