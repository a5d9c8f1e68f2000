"""The power-cut sweep finds what it is there to find: devices that are spoilt on purpose are counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assurance.powercut.scenarios import Scenario, Score, cut, operations, scenarios
from assurance.powercut.sweeps import Plan, swept
from testbed.devices import workplace
from variegate.device_sim.device import Device
from variegate.device_sim.storage import Fault
from variegate.runtime.admission import SECURITY_COUNTER, SEQUENCE

SMALL = Plan(stride=5, some=0, double=2)


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[Path, dict[str, Scenario]]]:
    with workplace() as folder:
        yield folder / "cut", {scenario.name: scenario for scenario in scenarios(folder)}


@pytest.mark.parametrize("name", ["first", "resumed", "rotation"])
def test_nothing_is_bricked_and_nothing_comes_back(bench: tuple[Path, dict[str, Scenario]], name: str) -> None:
    target, found = bench
    score, noted = swept(SMALL, found[name], target)
    assert (score.bricks, score.rollbacks_accepted, score.reasons) == (0, 0, ())
    assert score.cuts == 2 * -(-noted["storage_operations"] // SMALL.stride)
    assert score.double_cuts == 2
    assert score.rollbacks_tried == (0 if name == "first" else 2 * (score.cuts + 2))


def test_a_counter_raised_too_early_bricks(
    bench: tuple[Path, dict[str, Scenario]], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, found = bench
    update = found["update"]
    try_slot = Device.try_slot

    def early(device: Device, slot: str) -> None:
        try_slot(device, slot)
        device.advance(SECURITY_COUNTER, update.new)

    score = Score()
    with monkeypatch.context() as patch:
        patch.setattr(Device, "try_slot", early)
        total = operations(update, target)
        for operation in range(total - 10, total + 1):
            cut(update, target, Fault(operation, 0, 0.0))
            score.judge(update, target)
    assert 0 < score.bricks < 11
    assert all("artefact refused" in reason for reason in score.reasons)


def test_a_counter_never_raised_lets_the_old_image_back(
    bench: tuple[Path, dict[str, Scenario]], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, found = bench
    update, advance = found["update"], Device.advance

    def without(device: Device, name: str, value: int) -> None:
        if name != SECURITY_COUNTER and not name.startswith(SEQUENCE):
            advance(device, name, value)

    monkeypatch.setattr(Device, "advance", without)
    cut(update, target, Fault(3))
    score = Score()
    score.judge(update, target)
    assert (score.bricks, score.rollbacks_accepted) == (0, 2)


def test_wrong_labels_count(bench: tuple[Path, dict[str, Scenario]]) -> None:
    target, found = bench
    update = found["update"]
    wrong: dict[str, Any] = {**vars(update), "labels": {1: update.labels[1], 2: [0] * len(update.labels[2])}}
    cut(update, target, Fault(3))
    score = Score()
    score.judge(Scenario(**wrong), target)
    assert score.bricks == 1
    assert "wrong labels" in score.reasons[0]
