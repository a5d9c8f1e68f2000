"""The calibration study counts as it says, goes on where it stopped, and the committed campaigns fit the bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import replication
from benchmarks.calibration import ATTACKS, State, figures_of, finalists
from benchmarks.calibration_candidates import candidates
from benchmarks.replicate import Effort, search
from testbed import bases
from testbed.result import load
from testbed.subjects import CIFAR10_BASES, GTSRB_TINY
from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.campaign import config
from variegate.export.calibrate import candidates as calibrated
from variegate.export.intake.contract import Contract
from variegate.export.rewriters import Permutation, Qim, Rewriter

CONTRACT = Contract(layout="NCHW", channels=3, height=32, width=32, classes=43, class_names=(), outputs="logits")


class Brightness:
    """Class 1 where the mean lies above a threshold; an oracle whose boundary is known."""

    shape, dtype, classes, batch = (3, bases.SIDE, bases.SIDE), "uint8", 2, 64

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        bright: NDArray[np.int64] = (frames.reshape(len(frames), -1).mean(axis=1) > self.threshold).astype(np.int64)
        return bright


@pytest.fixture(scope="module")
def pictures() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    means = np.where(np.arange(40) % 2 == 0, 100, 160)
    noise = np.random.default_rng(0).integers(-9, 10, (40, 3, bases.SIDE, bases.SIDE))
    return (means[:, None, None, None] + noise).astype(np.uint8), (np.arange(40) % 2).astype(np.int64)


def test_replays_are_counted_by_budget_and_overshoot(pictures: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    """From 100 or 160 the boundary at 130 is 30 away, and those at 115 and 145 at most 45: crossed at s = 1.8."""
    fleet = [Brightness(130), Brightness(130), Brightness(145), Brightness(115)]
    effort = Effort(images=12, victims=3, queries=600, budgets=(11, 600))
    found = search(fleet, *pictures, HopSkipJump(noises=1), effort, overshoots=(1.0, 1.8))
    end = found.shown[600, 1.0]
    assert (end.samples, end.own, end.own_hits) == (12, 12, end.hits)
    # The twin is fooled by every sample, one of the two others by each while it is far from its boundary.
    assert end.hits == pytest.approx(24, abs=8)
    assert found.rate(600, 1.8) > 0.95
    assert (end.near, end.near_hits) == (0, 0)  # 30 grey levels of 768 values are 3.3
    assert found.worst()[0] == max(found.rate(*key) for key in found.shown)
    assert np.median(found.distances[600]) < np.median(found.distances[11])
    again = search(fleet, *pictures, HopSkipJump(noises=1), effort, overshoots=(1.0, 1.8))
    assert again.plain() == found.plain()
    assert sum(row["shown"] for row in found.plain()) == 4 * 36


def test_images_that_a_victim_misreads_are_left_out(pictures: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    fleet = [Brightness(130), Brightness(130), Brightness(300)]
    effort = Effort(images=12, victims=2, queries=200, budgets=(200,))
    found = search(fleet, *pictures, HopSkipJump(noises=1), effort, overshoots=(1.0,))
    assert found.shown[200, 1.0].hits == found.shown[200, 1.0].samples * 1


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = State(path)
    first.put(["accuracy", {"kind": "qim"}], {"loss_points": 0.25})
    with path.open("a") as file:
        file.write('{"key": "cut')
    assert State(path).get(["accuracy", {"kind": "qim"}]) == {"loss_points": 0.25}
    assert State(path).get(["accuracy", {"kind": "spread"}]) is None
    assert State(None).get("anything") is None


def test_figures_are_the_worst_of_the_chosen_on_other_images() -> None:
    searched: list[dict[str, Any]] = [
        {
            "attack": attack,
            "budget": budget,
            "overshoot": s,
            "rate": rate * share,
            "interval": (0.1, 0.3),
            "samples": 60,
            "near": 45,
            "near_rate": rate * share / 2,
        }
        for attack, share in zip(ATTACKS, (1, 0.5, 0.25), strict=True)
        for budget, s, rate in ((2000, 1.0, 0.1), (2000, 3.0, 0.2), (8000, 1.0, 0.0), (8000, 3.0, 0.04))
    ]
    row = {"name": "qim_x", "loss_points": 0.4, "error_points": 0.1, "confirm": searched}
    row["search"] = [{**one, "rate": one["rate"] / 2} for one in searched]
    row["confirm_bases"] = [one for one in searched if (one["budget"], one["overshoot"]) != (2000, 3.0)]
    figures = figures_of("gtsrb", [{**row, "chosen": True}, {"name": "spread_1", "loss_points": 3.0}])
    assert figures["gtsrb_accuracy_loss"] == figures["gtsrb_qim_x_accuracy_loss"] == 0.4
    assert figures["gtsrb_worst_replication_to_s3"] == 0.2
    assert figures["gtsrb_worst_replication_to_s3_at_full_budget"] == 0.04
    assert figures["gtsrb_within_both_bars"] == 0
    by_budget = [figures[f"gtsrb_worst_replication_to_s3_at_{budget}"] for budget in (2000, 8000)]
    several = [figures[f"gtsrb_several_bases_worst_replication_to_s3_at_{budget}"] for budget in (2000, 8000)]
    assert (by_budget, several) == ([0.2, 0.04], [0.1, 0.04])
    assert figures["gtsrb_worst_replication_to_s3_within_l2_1"] == 0.1
    assert figures["gtsrb_hopskipjump_linf_to_s3_at_full_budget"] == 0.01
    assert figures["gtsrb_qim_x_hopskipjump_linf_to_s3_at_full_budget"] == 0.005
    assert figures["gtsrb_found_within_l2_1_at_full_budget"] == 0.75
    assert "gtsrb_spread_1_worst_replication_to_s3" not in figures


def test_candidates_have_names_of_their_own_and_fit() -> None:
    named = dict(candidates())
    assert len(named) == len(list(candidates()))
    assert len(set(map(str, named.values()))) == len(named)
    for name, rewriter in named.items():
        assert name.replace("_", "a").isalnum(), name
        rewriter.tensors(CONTRACT, "uint8")


def test_calibration_goes_from_strong_to_weak() -> None:
    qims = [one for one in calibrated("qim", CONTRACT) if isinstance(one, Qim)]
    assert all(qim.squared for qim in qims)
    strengths = [qim.beta / qim.messages for qim in qims]
    assert strengths == sorted(strengths, reverse=True)
    assert all(0.7 < qim.real_steps(CONTRACT)[0] / 0.05 < 1.45 for qim in qims)


@pytest.mark.parametrize("name", replication.CAMPAIGNS)
def test_committed_campaigns_are_read_and_name_bases_of_the_zoo(name: str) -> None:
    campaign = config.load(replication.CONFIGS / f"{name}.toml")
    there = {f"bases/{subject.network}.onnx" for subject in (*GTSRB_TINY, *CIFAR10_BASES)}
    for fleet in campaign.fleets:
        assert set(fleet.bases) <= there
        assert len(fleet.bases) in (1, 3)
        assert fleet.copies == (3 if fleet.name == "independent" else 5)
    assert {1.0, 2.0, 3.0} <= set(campaign.replay.overshoots)
    assert replication.smaller(campaign).data.count == 3


def test_every_campaign_there_is_run() -> None:
    assert {path.stem for path in replication.CONFIGS.glob("*.toml")} == set(replication.CAMPAIGNS)


def test_finalists_are_the_best_of_each_form_then_the_best_of_the_rest() -> None:
    def tried(name: str, loss: float, screened: float, rewriter: Rewriter) -> tuple[dict[str, Any], Rewriter]:
        return {"name": name, "loss_points": loss, "error_points": 0.1, "screened_worst": screened}, rewriter

    rows = [
        tried("linear", 0.3, 0.3, Qim(beta=5.0)),
        tried("worse linear", 0.3, 0.4, Qim(beta=4.0)),
        tried("squared", 0.3, 0.2, Qim(beta=23.0, squared=True)),
        tried("next squared", 0.3, 0.25, Qim(beta=20.0, squared=True)),
        tried("third squared", 0.3, 0.27, Qim(beta=17.0, squared=True)),
        tried("dear", 0.45, 0.1, Qim(beta=26.0, squared=True)),
        tried("permuted", 0.1, 0.1, Permutation(alpha=0.5)),
    ]
    assert [row["name"] for row, _ in finalists(rows)] == ["linear", "squared", "next squared"]
    assert [row["name"] for row, _ in finalists(rows[2:])] == ["squared", "next squared", "third squared"]
    assert finalists(rows[-2:]) == []


@pytest.mark.parametrize("name", replication.SETS)
def test_committed_figures_follow_from_their_rows(name: str) -> None:
    """So that rows which a later run keeps give the figures that they gave."""
    document = load(name)
    figures: dict[str, float] = {}
    for campaign in replication.SETS[name]:
        figures |= replication.figures_of(campaign.partition("_")[0], document["raw"][campaign])
    assert figures == document["figures"]
