"""Adaptive attacks, each on a weakness planted for it to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.study_replay import replayed
from benchmarks.study_tries import chances, firmness, ordered, tried
from testbed import bases
from variegate.attack import driver
from variegate.attack.adaptive.assignment import assigned
from variegate.attack.adaptive.clone import Extraction, extract, samples
from variegate.attack.adaptive.cloning import Cloning, mixtures
from variegate.attack.adaptive.collusion import Agreement, Colluders, Vote, combined, firmest
from variegate.attack.adaptive.partner import UNKNOWN, Cancelled, Partners, PartnerSearch, recover
from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.algorithms.smoothed import Smoothed
from variegate.attack.lane import Task
from variegate.attack.oracle import Counted, Oracle, ask_all, to_frames, to_points
from variegate.attack.oracles.local import LocalCopy
from variegate.attack.outcome import Outcome, Status
from variegate.attack.overshoot import stretched
from variegate.attack.search import Problem, seeded
from variegate.attack.strategy import Strategy, charged, run
from variegate.attack.whitebox.deepfool import DeepFool
from variegate.attack.whitebox.pgd import Pgd
from variegate.export.fuse import fuse
from variegate.export.rewriters import Permutation
from variegate.keys import recipe
from variegate.keys.errors import LimitError, MisuseError
from variegate.keys.primitives import sha256

SHAPE = (3, 8, 8)
SIZE = 192


@dataclass
class Rippled:
    """Two classes: a plane that all share, and ripples of the copy's own, as attractors are."""

    key: int
    amplitude: float = 0.5
    period: float = 0.1
    shape: tuple[int, int, int] = SHAPE
    dtype: str = "float32"
    classes: int = 2
    batch: int = 256

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        flat = frames.reshape(len(frames), -1).astype(np.float64)
        m = np.random.default_rng(self.key).choice((-1.0, 1.0), SIZE) / np.sqrt(SIZE)
        wave = np.sin(2 * np.pi * (flat @ m) / self.period + self.key)
        out: NDArray[np.int64] = (plane(flat) + self.amplitude * wave > 0).astype(np.int64)
        return out


def plane(flat: NDArray[Any]) -> NDArray[np.float64]:
    """Signed distance to the shared boundary."""
    out: NDArray[np.float64] = (flat - 0.5).sum(axis=1) / np.sqrt(SIZE)
    return out


def tasks(oracle: Oracle, clean: NDArray[Any], starts: NDArray[Any], queries: int) -> list[Task]:
    labels = ask_all(oracle, clean)
    return [
        Task(
            key=i,
            problem=Problem(
                clean=to_points(frame).reshape(-1),
                shape=oracle.shape,
                label=int(labels[i]),
                starts=to_points(starts).reshape(len(starts), -1),
                queries=queries,
                rng=seeded("adaptive", i),
            ),
        )
        for i, frame in enumerate(clean)
    ]


def dark(count: int) -> NDArray[np.float32]:
    """Clean images about 1.4 below the shared boundary, far from every ripple."""
    noise = np.random.default_rng(7).uniform(-0.2, 0.2, (count, *SHAPE))
    return np.asarray(0.4 + noise, np.float32)


BRIGHT = np.full((1, *SHAPE), 0.95, np.float32)


def found(outcomes: list[Outcome]) -> NDArray[Any]:
    assert all(outcome.status is Status.FOUND for outcome in outcomes)
    return np.stack([outcome.sample for outcome in outcomes if outcome.sample is not None])


def attacked(
    strategy: Strategy, own: Sequence[Oracle], clean: NDArray[Any], pictures: NDArray[Any], queries: int
) -> list[Outcome]:
    return list(strategy.outcomes(tasks(own[0], clean, pictures, queries), own, pictures))


def rate(oracle: Oracle, frames: NDArray[Any], label: int = 0) -> float:
    return float((ask_all(oracle, frames) != label).mean())


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
    assert np.array_equal(stretched(clean[0], sample, 1, "uint8"), sample)
    with pytest.raises(MisuseError):
        stretched(clean[:3], sample, 1, "uint8")


def test_overshoot_finds_a_boundary_that_lies_a_little_further() -> None:
    """Planted: the victim's ripples end 1.5 times as far out as where the sample lies."""
    own, victim, clean = Rippled(1), Rippled(2, amplitude=0), dark(12)
    sample = found(driver.outcomes(HopSkipJump(), tasks(own, clean, BRIGHT, 400), own))
    rates = [rate(victim, stretched(clean, sample, s, "float32")) for s in (1, 1.5, 2, 3)]
    assert rates == sorted(rates)
    assert rates[0] < 0.5
    assert rates[-1] == 1


def test_smoothing_sees_the_plane_through_the_ripples() -> None:
    clean, own, victim = dark(6), Rippled(1), Rippled(2)
    plain = found(driver.outcomes(HopSkipJump(), tasks(own, clean, BRIGHT, 400), own))
    smooth = found(driver.outcomes(Smoothed(votes=9, sigma=0.1), tasks(own, clean, BRIGHT, 3600), own))
    assert plane(plain.reshape(6, -1)).mean() < -0.2
    assert abs(plane(smooth.reshape(6, -1)).mean()) < 0.2
    assert rate(victim, stretched(clean, smooth, 1.1, "float32")) >= rate(victim, plain)


def test_votes_and_unanimity_of_colluders_find_what_carries_over() -> None:
    clean, fleet = dark(8), [Rippled(i) for i in range(20)]
    own, victims = fleet[:12], fleet[12:]
    alone = found(driver.outcomes(HopSkipJump(), tasks(own[0], clean, BRIGHT, 500), own[0]))
    vote = found(driver.outcomes(HopSkipJump(), tasks(own[0], clean, BRIGHT, 500), Vote(own)))
    every = found(attacked(Colluders(devices=12, agreement="all"), own, clean, BRIGHT, 500))
    assert all(rate(device, every) == 1 for device in own)
    of = [np.mean([rate(victim, sample) for victim in victims]) for sample in (alone, vote, every)]
    depth = [plane(sample.reshape(8, -1)).mean() for sample in (alone, vote, every)]
    assert of[0] < 0.4
    assert of[1] > of[0]
    assert of[2] > of[0] + 0.3
    # Nearer to the shared plane, and behind it.
    assert depth[0] + 0.05 < depth[1] < depth[2]
    assert depth[0] < 0 < depth[2]


def test_what_a_spent_budget_leaves_not_begun_is_missing() -> None:
    clean, fleet = dark(40), [Rippled(i) for i in range(2)]
    own: list[Oracle] = [Counted(fleet[0], 300), fleet[1]]
    outcomes = list(Colluders(agreement="all").outcomes(tasks(fleet[0], clean, BRIGHT, 100), own, BRIGHT))
    assert 0 < len(outcomes) < 40
    unknown = Partners(np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2), 0)
    past = list(PartnerSearch().past(unknown, tasks(fleet[0], clean, BRIGHT, 100), Counted(fleet[0], 300)))
    assert 0 < len(past) < 40
    with pytest.raises(LimitError, match="images not begun"):
        list(
            Colluders(agreement="mean").outcomes(
                tasks(fleet[0], clean, BRIGHT, 100), [Counted(fleet[0], 300), *own[1:]], BRIGHT
            )
        )


@dataclass
class Fixed:
    """Answers frames by a table, whatever they show."""

    table: tuple[int, ...]
    shape: tuple[int, int, int] = SHAPE
    dtype: str = "float32"
    classes: int = 4
    batch: int = 8

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        return np.array(self.table[: len(frames)])


def test_votes_are_counted_and_unanimity_is_of_all() -> None:
    frames = np.zeros((4, *SHAPE), np.float32)
    three = [Fixed((0, 1, 2, 3)), Fixed((1, 1, 0, 2)), Fixed((1, 2, 0, 1))]
    assert Vote(three).labels(frames).tolist() == [1, 1, 0, 3]
    assert Agreement(three, label=0).labels(frames).tolist() == [0, 1, 0, 3]
    assert Agreement(three, label=2).labels(frames).tolist() == [0, 2, 2, 2]
    assert Agreement(three, label=3, least=2).labels(frames).tolist() == [0, 1, 2, 3]
    assert Agreement(three, label=1, least=2).labels(frames).tolist() == [1, 1, 2, 3]
    assert Agreement(three, label=0, target=1).labels(frames).tolist() == [0, 0, 0, 0]
    assert Agreement(three, label=0, target=1, least=2).labels(frames).tolist() == [0, 1, 0, 0]
    assert Agreement(three[1:], label=0, target=1).labels(frames).tolist() == [1, 0, 0, 0]
    with pytest.raises(MisuseError):
        Vote([])
    with pytest.raises(MisuseError):
        Vote([Fixed(()), Fixed((), classes=5)])


@dataclass
class Tilted:
    """A plane that leans in a direction of the copy's own."""

    key: int
    lean: float = 0.8
    shape: tuple[int, int, int] = SHAPE
    dtype: str = "float32"
    classes: int = 2
    batch: int = 256

    @property
    def normal(self) -> NDArray[np.float64]:
        shared = np.ones(SIZE) / np.sqrt(SIZE)
        own = np.random.default_rng(self.key).normal(size=SIZE)
        own -= (own @ shared) * shared
        out: NDArray[np.float64] = shared + self.lean * own / np.linalg.norm(own)
        return out

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        return ((frames.reshape(len(frames), -1) - 0.5) @ self.normal > 0).astype(np.int64)

    def nearest(self, clean: NDArray[Any]) -> NDArray[np.float32]:
        flat = clean.reshape(len(clean), -1)
        far = -((flat - 0.5) @ self.normal)[:, np.newaxis] * self.normal / (self.normal @ self.normal)
        return np.asarray(flat + 1.001 * far, np.float32).reshape(clean.shape)


@pytest.mark.parametrize("method", ["mean", "median"])
def test_the_middle_of_samples_leans_in_nobodys_direction(method: str) -> None:
    clean = np.full((4, *SHAPE), 0.45, np.float32)
    fleet = [Tilted(i) for i in range(12)]
    own, victims = fleet[:8], fleet[8:]
    each = np.stack([device.nearest(clean) for device in own])
    labels = np.zeros(4, np.int64)
    alone = firmest(clean, each[0], labels, own[:1])
    assert rate(own[0], alone) == 1
    assert np.mean([rate(victim, alone) for victim in victims]) < 0.2
    middle = firmest(clean, combined(each, method, "float32"), labels, own)  # type: ignore[arg-type]
    assert np.mean([rate(device, middle) for device in own]) == 1
    assert np.mean([rate(victim, middle) for victim in victims]) > 0.8


def test_rows_leave_the_colluders_out_and_say_who_was_right() -> None:
    clean, fleet = dark(3), [Rippled(0), Rippled(1), Rippled(2)]
    rows = replayed(
        fleet="r",
        method="none",
        colluders=[1],
        devices=fleet,
        images=[5, 6, 9],
        classes=np.array([0, 1, 0]),
        clean=clean,
        samples=np.repeat(BRIGHT, 3, axis=0),
    )
    assert [(row.victim, row.image, row.fooled, row.clean_right) for row in rows] == [
        (v, i, i != 6, i != 6) for v in (0, 2) for i in (5, 6, 9)
    ]
    assert rows[0].l2 == pytest.approx(float(np.linalg.norm(BRIGHT[0] - clean[0])), rel=1e-5)
    with pytest.raises(MisuseError):
        replayed(
            fleet="r", method="", colluders=[], devices=fleet, images=[1], classes=np.array([0]), clean=clean,
            samples=clean,
        )  # fmt: skip


def test_tries_go_by_what_the_own_device_tells() -> None:
    """Planted: of three candidates one lies in a thin ripple of the own copy, one nowhere, one behind the plane."""
    own, victim, clean = Rippled(1), Rippled(2), dark(6)
    ripple = found(driver.outcomes(HopSkipJump(), tasks(own, clean, BRIGHT, 400), own))
    deep = np.clip(clean + 0.25, 0, 1).astype(np.float32)
    candidates = np.stack([ripple, clean, deep], axis=1)
    labels = np.zeros(6, np.int64)
    known = np.stack(
        [firmness(own, candidates[:, k], labels, sigma=0.05, votes=8, rng=np.random.default_rng(k)) for k in range(3)],
        axis=1,
    )
    away = np.linalg.norm((candidates - clean[:, np.newaxis]).reshape(6, 3, -1), axis=2)
    order = ordered(known, away)
    assert (order[:, 0] == 2).all()
    fooled = tried(victim, candidates, labels)
    curve = chances(fooled, order)
    assert curve.tolist() == [1, 1, 1]
    assert chances(fooled, order[:, ::-1])[0] == 0
    with pytest.raises(MisuseError):
        firmness(own, ripple, labels, sigma=-1, votes=1, rng=np.random.default_rng(0))


@dataclass
class Quadrants:
    """Which quarter of the picture is brightest."""

    shape: tuple[int, int, int] = SHAPE
    dtype: str = "uint8"
    classes: int = 4
    batch: int = 256

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        sums = frames.reshape(len(frames), 3, 2, 4, 2, 4).sum(axis=(1, 3, 5), dtype=np.int64)
        out: NDArray[np.int64] = sums.reshape(len(frames), 4).argmax(axis=1)
        return out


def quarters(count: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    light = rng.uniform(0.2, 0.7, (count, 1, 2, 1, 2, 1))
    noise = rng.uniform(-0.2, 0.2, (count, 3, 2, 4, 2, 4))
    return to_frames((light + noise).reshape(count, *SHAPE), "uint8")


def test_a_clone_agrees_and_its_samples_fool_the_device() -> None:
    device, held_out = Quadrants(), quarters(200, 1)
    how = Extraction(queries=800, epochs=8, width=8, shift=0)
    before = torch.get_rng_state()
    clone = extract(device, quarters(900, 0), how)
    assert torch.equal(before, torch.get_rng_state())
    assert clone.queries == 800
    assert clone.agreement(device, held_out) > 0.85
    clean = held_out[clone.labels(held_out) == device.labels(held_out)][:60]
    labels = device.labels(clean)
    for attack, s in ((Pgd(epsilon=3.0), 1.0), (Pgd(norm="linf", epsilon=0.3), 1.0), (DeepFool(), 3.0)):
        shown = stretched(clean, samples(clone, attack, clean, "uint8"), s, "uint8")
        assert (device.labels(shown) != labels).mean() > 0.6, attack
    again = extract(device, quarters(900, 0), how)
    assert np.array_equal(again.labels(held_out), clone.labels(held_out))
    with pytest.raises(MisuseError):
        extract(device, quarters(0, 0), how)
    with pytest.raises(MisuseError):
        Extraction(queries=0)


def test_an_assignment_is_the_cheapest() -> None:
    costs = np.array([[4.0, 1, 3], [2, 0, 5], [3, 2, 2]])
    assert assigned(costs).tolist() == [1, 0, 2]
    rng = np.random.default_rng(0)
    for n in (1, 2, 6):
        costs = rng.normal(size=(n, n))
        best = costs[np.arange(n), assigned(costs)].sum()
        tried_ = [costs[np.arange(n), rng.permutation(n)].sum() for _ in range(2000)]
        assert best <= min(tried_) + 1e-9
    with pytest.raises(MisuseError):
        assigned(np.zeros((2, 3)))


def balanced(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Frames of all classes of the linear base, each surely of its class."""
    rng = np.random.default_rng(seed)
    w = bases.weights()
    towards = (w - w.mean(axis=1, keepdims=True)).T[rng.integers(0, bases.CLASSES, count)]
    level = 0.5 * w.sum(axis=0)
    # Takes away what a grey picture would be answered with, so that no class is wider than another by chance.
    even = np.linalg.lstsq(w.T, level - level.mean(), rcond=None)[0]
    points = 0.5 - even + 4 * towards + rng.normal(0, 0.03, (count, len(w)))
    return to_frames(points.reshape(count, 3, 16, 16), "uint8")


def permuted(tmp_path: Path, count: int) -> tuple[list[LocalCopy], list[NDArray[np.int64]]]:
    """Copies whose derangements hold no swaps, and the derangements."""
    template = fuse(bases.base(tmp_path), Permutation(alpha=0.8), "uint8")
    copies: list[LocalCopy] = []
    orders: list[NDArray[np.int64]] = []
    for i in range(200):
        seed = sha256(b"partner", i.to_bytes(2))
        order = recipe.expand(template.tensors, seed)["r0"]
        if len(copies) < count and not (order[order] == np.arange(len(order))).any():
            copies.append(LocalCopy(template, seed))
            orders.append(order)
    return copies, orders


def test_a_derangement_is_recovered_from_labels(tmp_path: Path) -> None:
    copies, orders = permuted(tmp_path, 5)
    frames = balanced(100)
    for copy, order in zip(copies[:3], orders, strict=False):
        got = recover(copy, frames, rounds=12, rng=np.random.default_rng(0))
        assert np.array_equal(got.order, order)
        assert got.queries == 100 + 12 * 10 * 9
        assert got.partner(3) == int(np.flatnonzero(order == 3)[0])
        with_others = recover(copy, frames, rounds=4, rng=np.random.default_rng(0), reference=Vote(copies).labels)
        assert np.array_equal(with_others.best, order)
    with pytest.raises(MisuseError):
        recover(copies[0], frames, rounds=0, rng=np.random.default_rng(0))


def test_nothing_is_known_of_a_copy_that_is_not_permuted(tmp_path: Path) -> None:
    template = fuse(bases.base(tmp_path), Permutation(alpha=1e-6), "uint8")
    got = recover(LocalCopy(template, bytes(32)), balanced(100), rounds=12, rng=np.random.default_rng(0))
    assert (got.order == UNKNOWN).sum() >= 4


def test_with_partners_cancelled_samples_carry_over(tmp_path: Path) -> None:
    """Planted: from class 0 all ways to the partner end 1.6 nats before the base would give way."""
    copies, orders = permuted(tmp_path, 4)
    own, victims = copies[0], copies[1:]
    clean, starts = balanced(80, 1), balanced(30, 2)
    clean = clean[ask_all(own, clean) == 0]
    known = recover(own, balanced(100), rounds=12, rng=np.random.default_rng(0))
    partner = known.partner(0)
    assert partner == int(np.flatnonzero(orders[0] == 0)[0])
    theirs = starts[ask_all(own, starts) == partner]
    plain = found(driver.outcomes(HopSkipJump(), tasks(own, clean, theirs, 400), own))
    past = found(list(PartnerSearch().past(known, tasks(own, clean, starts, 400), own)))

    def carried(frames: NDArray[Any], s: float = 1) -> float:
        shown = stretched(clean, frames, s, "uint8")
        return float(np.mean([(ask_all(victim, shown) != 0).mean() for victim in victims]))

    assert (ask_all(own, past) != 0).all()
    # Just past the base's own boundary some copies still hold; of samples in the attacker's own partner, all do.
    assert carried(past) > 0.3
    assert carried(plain) == carried(plain, 1.1) == 0
    assert carried(past, 1.2) > 0.9
    assert np.array_equal(Cancelled(own, 0, None).labels(clean), ask_all(own, clean))


def test_colluders_pay_what_they_ask_and_are_judged_on_the_first_copy() -> None:
    clean = dark(4)
    for agreement in ("most", "all", "mean", "median"):
        strategy = Colluders(devices=3, agreement=agreement)
        own = [Counted(Rippled(i)) for i in range(3)]
        given = [replace(task, checkpoints=(100, 400)) for task in tasks(Rippled(0), clean, BRIGHT, 400)]
        outcomes = list(run(strategy, given, own, BRIGHT))
        asked = sum(outcome.queries for outcome in outcomes)
        most = max(device.queries for device in own)
        assert most == asked if not strategy.pooled else most <= asked
        assert all(outcome.queries <= 400 for outcome in outcomes)
        for outcome in outcomes:
            assert outcome.status is Status.FOUND
            assert outcome.sample is not None
            assert outcome.label == Rippled(0).labels(outcome.sample[np.newaxis])[0] == 1
            assert np.array_equal(outcome.checkpoints[400], outcome.sample)  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match="is for 2 of the attacker's devices, and has 1"):
        run(Colluders(), tasks(Rippled(0), clean, BRIGHT, 400), [Rippled(0)], BRIGHT)
    with pytest.raises(MisuseError, match="for 1 of"):
        run(HopSkipJump(), tasks(Rippled(0), clean, BRIGHT, 400), [Rippled(0), Rippled(1)], BRIGHT)


def test_what_partners_cost_comes_out_of_the_images_budgets(tmp_path: Path) -> None:
    copies, _ = permuted(tmp_path, 4)
    own, victims = Counted(copies[0]), copies[1:]
    clean, pictures = balanced(60, 1), balanced(100)
    clean = clean[ask_all(copies[0], clean) == 0]
    given = [replace(task, checkpoints=(50, 600)) for task in tasks(copies[0], clean, balanced(30, 2), 600)]
    outcomes = list(run(PartnerSearch(), given, [own], pictures))
    assert own.queries == sum(outcome.queries for outcome in outcomes) <= 600 * len(clean)
    past = found(outcomes)
    assert all(outcome.checkpoints[50] is None for outcome in outcomes)
    assert all(np.array_equal(o.checkpoints[600], o.sample) for o in outcomes)  # type: ignore[arg-type]
    far = stretched(clean, past, 1.2, "uint8")
    assert np.mean([(ask_all(victim, far) != 0).mean() for victim in victims]) > 0.9
    with pytest.raises(MisuseError, match="recovery of partners takes"):
        list(run(PartnerSearch(), tasks(copies[0], clean[:1], pictures, 100), [own], pictures))
    voters = PartnerSearch(devices=3)
    outcomes = list(run(voters, tasks(copies[0], clean, balanced(30, 2), 600), copies[:3], pictures))
    assert (ask_all(copies[0], found(outcomes)) != 0).all()


@pytest.mark.parametrize("attack", ["deepfool", "pgd"])
def test_a_clone_is_paid_for_and_its_samples_are_tried(attack: Any) -> None:
    device, clean = Counted(Quadrants()), quarters(20, 1)
    strategy = Cloning(attack=attack, epsilon=3.0, epochs=8, width=8)
    outcomes = list(run(strategy, tasks(Quadrants(), clean, quarters(4, 2), 60), [device], quarters(300, 0)))
    assert device.queries == sum(outcome.queries for outcome in outcomes) == 60 * 20
    samples_ = [outcome for outcome in outcomes if outcome.status is Status.FOUND]
    assert len(samples_) > 12
    labels = Quadrants().labels(clean)
    assert all(outcome.label != labels[outcome.key] for outcome in samples_)
    again = list(run(strategy, tasks(Quadrants(), clean, quarters(4, 2), 60), [device], quarters(300, 0)))
    assert [o.distance for o in again] == [o.distance for o in outcomes]
    with pytest.raises(MisuseError, match="more than 7 queries"):
        list(run(strategy, tasks(Quadrants(), clean, clean, 7), [device], clean))


def test_mixtures_begin_with_the_pictures_and_lie_between_them() -> None:
    pictures = quarters(5, 0)
    some = mixtures(pictures, 3, np.random.default_rng(0))
    assert all(any(np.array_equal(frame, picture) for picture in pictures) for frame in some)
    more = mixtures(pictures, 40, np.random.default_rng(0))
    assert more.shape == (40, *SHAPE)
    assert {frame.tobytes() for frame in pictures} <= {frame.tobytes() for frame in more}
    assert (more >= pictures.min(axis=0)).all()
    assert (more <= pictures.max(axis=0)).all()
    with pytest.raises(MisuseError):
        mixtures(pictures[:0], 1, np.random.default_rng(0))


def test_shares_add_up_and_no_budget_is_overdrawn() -> None:
    given = tasks(Rippled(0), dark(3), BRIGHT, 10)
    rest, shares = charged(given, 7)
    assert shares == [3, 2, 2]
    assert [task.problem.queries for task in rest] == [7, 8, 8]
    with pytest.raises(MisuseError, match="it takes 28 labels to prepare, and the 3 images have 30"):
        charged(given, 28)
