"""Part of `benchmarks.study`: colluders, partner classes, tries, smoothing and clones, by labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.study_bases import Attacked, Dataset, seeds, tasks
from benchmarks.study_copies import Ensemble, to_tensor
from benchmarks.study_replay import replayed
from benchmarks.study_rows import ReplicationRow
from benchmarks.study_tries import chances, firmness, ordered, tried
from testbed.zoo import data
from variegate.attack import driver
from variegate.attack.adaptive.clone import Extraction, extract, samples
from variegate.attack.adaptive.collusion import Colluders, Vote, combined, firmest
from variegate.attack.adaptive.partner import UNKNOWN, PartnerSearch, recover
from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.algorithms.smoothed import Smoothed
from variegate.attack.oracle import ask_all, to_frames
from variegate.attack.oracles.local import LocalCopy
from variegate.attack.outcome import Outcome
from variegate.attack.overshoot import OVERSHOOTS, stretched
from variegate.attack.whitebox.deepfool import DeepFool
from variegate.attack.whitebox.pgd import Pgd
from variegate.export.fuse import fuse
from variegate.keys import recipe

FLEET, VICTIMS = 10, (8, 9)
COLLUDERS = (1, 2, 4, 8)


def shown(
    name: str,
    method: str,
    fleet: Sequence[LocalCopy],
    attacked: Attacked,
    frames: NDArray[Any],
    *,
    k: int = 1,
    victims: Sequence[int] = VICTIMS,
) -> list[ReplicationRow]:
    """Rows of frames that k colluders made, for those of the images whose own copies most of them fool."""
    own = np.mean([ask_all(device, frames) != attacked.classes for device in fleet[:k]], axis=0)
    b = own > 0.5
    return replayed(
        fleet=name,
        method=method,
        colluders=range(k),
        devices=fleet,
        images=[i for i, there in zip(attacked.index, b, strict=True) if there],
        classes=attacked.classes[b],
        clean=attacked.frames[b],
        samples=frames[b],
        victims=victims,
    )


def opened_up(dataset: Dataset, kind: str, attacked: Attacked) -> list[ReplicationRow]:
    """Table 3 and figure 5: DeepFool on ensembles of 1 to 8 colluders' copies, over overshoot."""
    fleet, copies = dataset.devices(kind, FLEET), dataset.opened(kind, FLEET)
    out: list[ReplicationRow] = []
    # The larger networks are attacked by 1, 2, 4 and 8 colluders alone.
    for k in range(1, COLLUDERS[-1] + 1) if dataset.name == "gtsrb" else COLLUDERS:
        points = DeepFool().run(Ensemble(copies[:k]), to_tensor(attacked.frames))
        for s in (1.0, 1.1, 1.5, 2.0, 3.0):
            frames = stretched(attacked.frames, points, s, "uint8")
            out += shown(f"{dataset.name}_{kind}", f"deepfool_s{s:g}", fleet, attacked, frames, k=k)
    return out


def collected(outcomes: Sequence[Outcome], attacked: Attacked) -> NDArray[np.uint8]:
    """Samples as frames; the clean frame where none was found."""
    return np.stack(
        [clean if o.sample is None else o.sample for o, clean in zip(outcomes, attacked.frames, strict=True)]
    )


@dataclass(frozen=True)
class Made:
    """Frames that colluders made.

    Attributes:
        method: How.
        colluders: How many copies they own: the first ones of the fleet.
        frames: One for each image; the clean frame where none was found.
    """

    method: str
    colluders: int
    frames: NDArray[np.uint8]


def by_labels(
    kind: str, fleet: Sequence[LocalCopy], attacked: Attacked, images: data.Images, queries: int
) -> Iterator[Made]:
    """HopSkipJump by 1, 2, 4 and 8 colluders: alone (the first of them), vote, all, mean, median."""
    attack = HopSkipJump()
    single = np.stack(
        [
            collected(driver.outcomes(attack, tasks(attacked, images, queries, kind, i), device), attacked)
            for i, device in enumerate(fleet[: COLLUDERS[-1]])
        ]
    )
    yield Made("alone", 1, single[0])
    for k in COLLUDERS[1:]:
        own = fleet[:k]
        joint = tasks(attacked, images, queries, kind, "joint", k)
        yield Made("vote", k, collected(driver.outcomes(attack, joint, Vote(own)), attacked))
        joint = tasks(attacked, images, queries, kind, "joint", k)
        every = Colluders(devices=k, agreement="all").outcomes(joint, own, attacked.frames)
        yield Made("all", k, collected(sorted(every, key=lambda outcome: outcome.key), attacked))
        for method in ("mean", "median"):
            middle = combined(single[:k], method, "uint8")
            yield Made(method, k, firmest(attacked.frames, middle, attacked.classes, own))


def partners(dataset: Dataset, images: data.Images, rounds: int, count: int) -> dict[str, Any]:
    """How much of a derangement is recovered, without a reference and by the vote of three copies."""
    fleet = dataset.devices("permutation", 3)
    template = fuse(dataset.bases[0][1], dataset.rewriter("permutation"), "uint8")
    order = recipe.expand(template.tensors, seeds(1)[0])["r0"]
    frames = images.x[:count]
    out: dict[str, Any] = {"classes": len(order), "swapped": int((order[order] == np.arange(len(order))).sum())}
    for name, reference in (("labels", None), ("vote", Vote(fleet).labels)):
        got = recover(fleet[0], frames, rounds=rounds, rng=np.random.default_rng(0), reference=reference)
        known = got.order != UNKNOWN
        out[name] = {
            "best_right": float((got.best == order).mean()),
            "known": int(known.sum()),
            "known_right": int((got.order[known] == order[known]).sum()),
            "queries": got.queries,
        }
        out["found"] = got
    return out


def cancelled(device: LocalCopy, attacked: Attacked, images: data.Images, queries: int, known: Any) -> Made:
    """The search past recovered partners."""
    got = PartnerSearch().past(known, tasks(attacked, images, queries, "cancelled"), device)
    return Made("cancelled", 1, collected(sorted(got, key=lambda outcome: outcome.key), attacked))


def smoothed(device: LocalCopy, attacked: Attacked, images: data.Images, queries: int) -> Made:
    """The smoothed attack; `queries` are the device's."""
    got = driver.outcomes(Smoothed(), tasks(attacked, images, queries, "smoothed"), device)
    return Made("smoothed", 1, collected(got, attacked))


def several_tries(
    fleet: Sequence[LocalCopy], attacked: Attacked, found: NDArray[np.uint8], victims: Sequence[int] = VICTIMS
) -> list[float]:
    """The chance over tries of the same sample at several overshoots, the firmest first; one value for each k."""
    candidates = np.stack([stretched(attacked.frames, found, s, "uint8") for s in OVERSHOOTS], axis=1)
    known, away = np.zeros((2, len(found), len(OVERSHOOTS)))
    for k in range(len(OVERSHOOTS)):
        rng = np.random.default_rng(k)
        known[:, k] = firmness(fleet[0], candidates[:, k], attacked.classes, sigma=0.02, votes=16, rng=rng)
        away[:, k] = np.linalg.norm((candidates[:, k].astype(float) - attacked.frames).reshape(len(found), -1), axis=1)
    order = ordered(known, away)
    curves = [chances(tried(fleet[v], candidates, attacked.classes), order) for v in victims]
    return [float(c) for c in np.mean(curves, axis=0)]


def cloned(
    dataset: Dataset,
    kind: str,
    attacked: Attacked,
    images: data.Images,
    pictures: NDArray[np.uint8],
    *,
    how: Extraction,
) -> tuple[dict[str, Any], list[ReplicationRow]]:
    """A clone of the first copy, and the effect of its white-box samples on the fleet."""
    fleet = dataset.devices(kind, FLEET)
    clone = extract(fleet[0], pictures, how)
    held_out = images.x[:500]
    out = {
        "queries": clone.queries,
        "agreement": clone.agreement(fleet[0], held_out),
        "accuracy": float((clone.labels(held_out) == images.y[:500]).mean()),
    }
    attacks = {
        "clone_pgd_l2_1": to_frames(samples(clone, Pgd(epsilon=1.0), attacked.frames, "float32"), "uint8"),
        "clone_pgd_linf_8": samples(clone, Pgd(norm="linf", epsilon=8 / 255), attacked.frames, "uint8"),
    }
    near = samples(clone, DeepFool(), attacked.frames, "float32")
    attacks |= {f"clone_deepfool_s{s:g}": stretched(attacked.frames, near, s, "uint8") for s in (1.0, 2.0, 3.0)}
    rows: list[ReplicationRow] = []
    for method, frames in attacks.items():
        rows += replayed(
            fleet=f"{dataset.name}_{kind}",
            method=method,
            colluders=(),
            devices=fleet,
            images=attacked.index,
            classes=attacked.classes,
            clean=attacked.frames,
            samples=frames,
            victims=VICTIMS,
        )
    return out, rows
