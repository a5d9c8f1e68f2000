"""Weights stay in the memory that they were given: what a serving process holds besides, read from outside.

The reader sees what root sees in `/proc/PID/mem`. It knows the tensors as they are sold, as they are laid out, and
transposed, as packed panels have them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from testbed.artefacts import frames, tiny_payload
from testbed.settings import calibrated
from testbed.subjects import CIFAR10, GTSRB, Subject
from testbed.zoo.data import require_data
from tests.support import graphs_of_weights as small
from tests.support.in_place import SEED, manifest
from tests.support.windows import Windows
from variegate.export.fuse import fuse
from variegate.isolation import arrange as arranging
from variegate.isolation import placed as placing
from variegate.isolation.arrange import arrange, optimised
from variegate.isolation.graphs import uses
from variegate.isolation.placed import PlacedCopy, PlacedEngine, copying_operator
from variegate.keys import recipe
from variegate.keys.artefact import Payload, Spec
from variegate.keys.errors import Refusal, RefusedError
from variegate.runtime.engine import Engine
from variegate.runtime.opening import Copy

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("qim", "permutation", "spread")
SUBJECTS = {"cifar10": CIFAR10, "gtsrb": GTSRB}
BATCHES = (1, 7, 64)


@cache
def payload_of(name: str, kind: str) -> tuple[Payload, NDArray[np.uint8]]:
    """A copy's payload, and frames for it."""
    require_data()
    subject: Subject = SUBJECTS[name]
    images, _ = subject.test_set(500)
    template = fuse(subject.base, calibrated(name, kind), "uint8")
    return Payload(template.tensors, images[:8].tobytes(), template.graph, template.constants), images


def laid_out(payload: Payload, *, aid: Any = optimised) -> tuple[Payload, bytearray]:
    """Arranged in ordinary memory."""
    memory = bytearray()

    def allocate(count: int) -> memoryview:
        memory.extend(b"\xaa" * count)
        return memoryview(memory)

    return arrange(payload, recipe.expand(payload.tensors, SEED), allocate, aid), memory


def windows(payload: Payload) -> Windows:
    """Of every weight and keyed tensor, as sold, laid out, and transposed."""
    sold = [*payload.constants.values(), *recipe.expand(payload.tensors, SEED).values()]
    laid, _ = laid_out(payload)
    return Windows([*sold, *laid.constants.values(), *(value.T for value in sold if value.ndim == 2)])


class Server:
    """A process that serves."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process
        start, end = self._line().split()
        self.region = int(start), int(end)

    def labels(self, count: int) -> list[int]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return [int(label) for label in self._line().split()]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return line


@contextmanager
def server(payload: Payload, shown: NDArray[Any], mode: str, folder: Path) -> Iterator[Server]:
    (folder / "payload").write_bytes(payload.to_bytes())
    np.save(folder / "frames.npy", shown)
    command = [sys.executable, "-m", "tests.support.in_place", "payload", "frames.npy", mode]
    command[3:5] = [str(folder / "payload"), str(folder / "frames.npy")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "kind"), [("cifar10", "qim"), ("gtsrb", "qim"), ("gtsrb", "permutation"), ("gtsrb", "spread")]
)
def test_serving_in_place_leaves_no_window_in_ordinary_memory(name: str, kind: str, tmp_path: Path) -> None:
    payload, shown = payload_of(name, kind)
    sought = windows(payload)
    with server(payload, shown[:64], "in-place", tmp_path) as served:
        for count in BATCHES:
            served.labels(count)
        assert sought.found_in(served.pid, served.region) == []


@pytest.mark.data
@pytest.mark.parametrize(("name", "kind"), [("cifar10", "qim"), ("gtsrb", "permutation")])
def test_the_normal_engine_leaves_windows_that_the_same_search_finds(name: str, kind: str, tmp_path: Path) -> None:
    payload, shown = payload_of(name, kind)
    with server(payload, shown[:64], "normal", tmp_path) as served:
        assert windows(payload).found_in(served.pid)
        keyed = Windows(recipe.expand(payload.tensors, SEED).values())
        assert keyed.found_in(served.pid)


@pytest.mark.data
def test_without_clearing_a_panel_stays_on_the_stack(tmp_path: Path) -> None:
    payload, shown = payload_of("gtsrb", "spread")
    with server(payload, shown[:64], "no-scrub", tmp_path) as served:
        served.labels(7)
        assert windows(payload).found_in(served.pid, served.region) == ["[stack]"]


@pytest.mark.data
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_both_engines_answer_alike(name: str, kind: str) -> None:
    payload, shown = payload_of(name, kind)
    laid, memory = laid_out(payload)
    assert any("reorder" in constant for constant in laid.constants), "onnxruntime's layout was not taken over"
    said = manifest(shown)
    normal = Engine(Copy.expand(payload, SEED, said))
    placed = PlacedEngine(PlacedCopy.from_region(said, memoryview(memory)))
    canaries = np.frombuffer(payload.canaries, np.uint8).reshape(-1, *said.shape)
    for batch in (canaries, shown, shown[:1], shown[3:10]):
        assert placed.run(batch).tolist() == normal.run(batch).tolist()
        placed.scrub()
    # One by one as well: other kernels run for a single frame.
    assert [placed.run(shown[i : i + 1])[0] for i in range(100)] == normal.run(shown[:100]).tolist()


def test_a_graph_that_cannot_be_marked_is_served_as_it_is() -> None:
    payload, said = tiny_payload(), manifest(frames(1))
    for aid in (nothing_optimised, optimised_with_one_weight_changed):
        laid, memory = laid_out(payload, aid=aid)
        assert set(laid.constants) == {"w", "order", "signs"}
        placed = PlacedEngine(PlacedCopy.from_region(said, memoryview(memory)))
        shown = frames(50)
        assert placed.run(shown).tolist() == Engine(Copy.expand(payload, SEED, said)).run(shown).tolist()


def nothing_optimised(graph: bytes, specs: list[Spec]) -> None:
    """As where no file can be written."""


def optimised_with_one_weight_changed(graph: bytes, specs: list[Spec]) -> bytes:
    """As when a fusion calculates."""
    out = optimised(graph, specs)
    assert out is not None
    mark = arranging._marks(specs)
    assert mark is not None
    old = mark["w"].tobytes()
    assert out.count(old) == 1
    return out.replace(old, old[:40] + old[:4] + old[44:])


def test_what_optimises_sees_no_weight_and_no_seed() -> None:
    payload = tiny_payload()
    seen: list[bytes] = []

    def aid(graph: bytes, specs: list[Spec]) -> bytes | None:
        seen.append(graph + repr(specs).encode())
        return optimised(graph, specs)

    laid_out(payload, aid=aid)
    keyed = recipe.expand(payload.tensors, SEED)
    for value in (*payload.constants.values(), *keyed.values()):
        assert value.tobytes()[:32] not in seen[0]


def test_a_region_at_another_address_serves_the_same() -> None:
    payload, said = tiny_payload(), manifest(frames(1))
    _, memory = laid_out(payload)
    elsewhere = bytearray(64 + len(memory))
    elsewhere[3 : 3 + len(memory)] = memory
    placed = PlacedEngine(PlacedCopy.from_region(said, memoryview(elsewhere)[3 : 3 + len(memory)]))
    assert placed.run(frames(9)).tolist() == Engine(Copy.expand(payload, SEED, said)).run(frames(9)).tolist()


@pytest.mark.parametrize("length", [0, 7, 100, -64])
def test_a_region_of_another_length_is_refused(length: int) -> None:
    _, memory = laid_out(tiny_payload())
    with pytest.raises(RefusedError) as refused:
        PlacedCopy.from_region(manifest(frames(1)), memoryview(memory)[:length])
    assert refused.value.refusal is Refusal.MALFORMED


def named(payload: Payload, *, aid: Any = optimised) -> str | None:
    """The operator that copies weights."""
    _, memory = laid_out(payload, aid=aid)
    return copying_operator(PlacedCopy.from_region(manifest(frames(1)), memoryview(memory)))


def left_by(payload: Payload, sought: Windows, mode: str, folder: Path) -> list[str]:
    """The maps that hold such a window after queries."""
    with server(payload, frames(64), mode, folder) as served:
        for count in BATCHES:
            served.labels(count)
        return sought.found_in(served.pid, served.region)


@pytest.mark.data
@pytest.mark.parametrize("aid", [optimised, nothing_optimised])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_no_operator_of_a_real_network_copies_weights(name: str, kind: str, aid: Any) -> None:
    assert named(payload_of(name, kind)[0], aid=aid) is None


@pytest.mark.parametrize("aid", [optimised, nothing_optimised])
def test_no_operator_of_a_small_network_copies_weights(aid: Any) -> None:
    assert named(tiny_payload(), aid=aid) is None


@pytest.mark.parametrize("mode", ["in-place", "unplanned"])
@pytest.mark.parametrize("graph", small.IN_PLACE)
def test_operators_said_to_read_in_place_leave_no_window(graph: str, mode: str, tmp_path: Path) -> None:
    payload = small.IN_PLACE[graph]()
    assert named(payload, aid=optimised if mode == "in-place" else nothing_optimised) is None
    assert left_by(payload, windows(payload), mode, tmp_path) == []


@pytest.mark.parametrize("graph", small.IN_PLACE)
def test_the_normal_engine_leaves_windows_of_the_same_graphs(graph: str, tmp_path: Path) -> None:
    payload = small.IN_PLACE[graph]()
    with server(payload, frames(9), "normal", tmp_path) as served:
        assert all(Windows([value]).found_in(served.pid) for value in payload.constants.values())


def test_every_operator_said_to_read_in_place_is_looked_at() -> None:
    seen = {use.operator for make in small.IN_PLACE.values() for use in uses(laid_out(make())[0].graph)}
    seen |= {use.operator for make in small.IN_PLACE.values() for use in uses(make().graph)}
    assert set(placing._FLOATS) - seen == set()


@pytest.mark.parametrize("graph", small.COPYING)
def test_operators_that_copy_weights_are_named(graph: str, tmp_path: Path) -> None:
    case = small.COPYING[graph]
    payload = case.payload()
    assert named(payload, aid=nothing_optimised) == case.operator
    # What onnxruntime makes of the graph may do without: it multiplies by a transposed matrix, say.
    if named(payload) is None:
        assert left_by(payload, windows(payload), "in-place", tmp_path) == []
    if case.derived:
        assert left_by(payload, Windows(case.derived(payload)), "unplanned", tmp_path)
