"""What the soak measures with: its clients see wrong labels, and its accounts do not balance by themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from assurance.soak.clients import kinds, live
from assurance.soak.ledger import Gate, Ledger, Pool, Query, Refused
from assurance.soak.run import budget_gap
from testbed.artefacts import frames
from testbed.devices import workplace
from testbed.serving import Faulty, device_with, serving, until
from variegate.runtime.port import LabelPort

KINDS = tuple(kinds(("", 0), Path()))


class Wrong(Faulty):
    """A port that gives one wrong label in each batch."""

    def classify_batch(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        labels = super().classify_batch(frames).copy()
        labels[-1] = (labels[-1] + 1) % self.manifest.classes
        return labels


@pytest.fixture(scope="module")
def port() -> Iterator[LabelPort]:
    with workplace() as folder, device_with(folder) as device:
        yield device.boot()


def asked(kind: str, port: LabelPort, reference: LabelPort, path: Path) -> Ledger:
    """What a client of this kind saw of at least ten answers."""
    shown = frames(50)
    pool, gate, ledger = Pool(shown, reference.classify_batch(shown)), Gate(), Ledger()
    with serving(port, socket=path) as service:
        assert service.address is not None
        make = kinds(service.address, path)[kind]
        thread = threading.Thread(target=live, args=(kind, make, pool, gate, ledger), kwargs={"seed": 1})
        thread.start()
        try:
            gate.start()
            until(lambda: ledger.requests.total() >= 10)
            gate.hold(20)
        finally:
            gate.end()
            thread.join()
    return ledger


@pytest.mark.parametrize("kind", KINDS)
def test_clients_judge_labels(kind: str, port: LabelPort, tmp_path: Path) -> None:
    good = asked(kind, port, port, tmp_path / "s")
    assert good.answered > 0
    assert (good.wrong, good.uncertain, good.unexpected.total(), good.refused.total()) == (0, 0, 0, 0)
    bad = asked(kind, Wrong(port), port, tmp_path / "s")
    assert bad.wrong == bad.requests.total()


def test_short_and_long_answers_are_wrong() -> None:
    ledger = Ledger()
    query = Query(frames(3), np.array([1, 2, 3], np.int64))
    for labels in ([1, 2], [1, 2, 3, 4], []):
        ledger.judge("k", query, np.array(labels, np.int64))
    assert (ledger.wrong, ledger.answered) == (3 + 4 + 3, 6)


def test_refusals_for_ever_and_lost_answers_are_unexpected() -> None:
    ledger = Ledger()
    query = Query(frames(3), np.array([1, 2, 3], np.int64))
    ledger.judge("k", query, Refused(503, charged=True, again=True))
    assert (ledger.uncertain, ledger.unexpected.total()) == (3, 0)
    ledger.judge("k", query, Refused(400, charged=False, again=False))
    ledger.lost("k", [query], ConnectionResetError())
    ledger.attacked("a", [200, 400], frozenset({400}))
    assert (ledger.uncertain, ledger.unexpected.total(), ledger.wrong, ledger.answered) == (6, 3, 0, 0)


@pytest.mark.parametrize(
    ("answered", "uncertain", "charged", "gap"),
    [(10, 0, 10, 0), (10, 0, 11, 1), (10, 0, 9, 1), (10, 3, 13, 0), (10, 3, 10, 0), (10, 3, 14, 1), (10, 3, 9, 1)],
)
def test_the_account_is_exact_but_for_what_is_uncertain(answered: int, uncertain: int, charged: int, gap: int) -> None:
    assert budget_gap(answered=answered, uncertain=uncertain, charged=charged) == gap


def test_a_gate_waits_for_who_is_inside() -> None:
    gate, inside = Gate(), threading.Event()
    leave = threading.Event()

    def run() -> None:
        with gate:
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=run)
    thread.start()
    gate.start()
    assert inside.wait(20)
    with pytest.raises(TimeoutError):
        gate.hold(0.05)
    leave.set()
    gate.hold(20)
    gate.end()
    thread.join()
    with pytest.raises(EOFError), gate:
        pass
