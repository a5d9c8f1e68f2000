"""Finds the rewriter whose samples replicate least at every overshoot up to 3, for half a point of accuracy.

    python -m benchmarks.calibration [--quick] [--out FILE] [--state FILE] [--subject NAME]

There are four stages for each dataset, each with fewer candidates and more work:

1. **accuracy**: every candidate over ten copies on the whole test set, from the base's probabilities.
2. **screen**: candidates with a loss up to `NEAR_POINTS` are attacked by one attack with few queries.
3. **search**: of those within `ALLOWED_POINTS`, the best of each form of QIM and the best of the rest are attacked by
   three attacks with several budgets. The samples are shown to other copies of the same base, scaled by every
   overshoot.
4. **confirm**: the chosen one is attacked on other images, in a fleet of one base and in a fleet of several bases that
   were trained independently.

A candidate's figure is its **worst** replication over attacks, budgets and overshoots; it should be at most
`ALLOWED_REPLICATION`. A search that never reaches the attractors ends on the base's own boundary, and its samples fool
every copy. So the attractors must also be easy to find, and a weak search or a small budget counts against a setting
like a strong one. All copies read the images rightly: rates are net of clean errors. The setting with the least worst
replication at the full budget is chosen, because at the shortest budget settings differ by less than their intervals. A
second figure is the worst replication of samples within an L2 of 1. It leaves out searches that ended far away, near
another picture.

Finished rows are kept in --state; a stopped run continues from there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration_candidates import candidates
from benchmarks.replicate import OVERSHOOTS, Effort, Replication, copies, search
from testbed.result import result_path, source_commit, write_result
from testbed.subjects import CIFAR10_BASES, GTSRB_TINY, VALIDATION, Subject
from variegate.attack.algorithms.cgba import Cgba
from variegate.attack.algorithms.hopskipjump import HopSkipJump
from variegate.attack.search import Attack
from variegate.export.calibrate import noise_turns
from variegate.export.fuse import fuse
from variegate.export.parity import CopyJudge, ParitySet, measure
from variegate.export.rewriters import Qim, Rewriter, to_parameters
from variegate.keys.files import PUBLIC
from variegate.keys.primitives import sha256

NAME = "calibration"
ALLOWED_POINTS, NEAR_POINTS, ALLOWED_REPLICATION = 0.5, 0.7, 0.05
ATTACKS: Mapping[str, Attack] = {
    "hopskipjump": HopSkipJump.corrected(),
    "cgba": Cgba.corrected(),
    "hopskipjump_linf": HopSkipJump.corrected("linf"),
}
SCREEN = "hopskipjump"
FINALISTS = 3
CONFIRM = 1
"""Seed of the images on which the choice is measured; it is made on those of seed 0."""


@dataclass(frozen=True)
class Study:
    """How one dataset is studied.

    Attributes:
        bases: The base whose copies attack each other, then further ones, trained apart from it.
        screen: Effort of the second stage.
        search: Effort of the third.
        copies: Copies for accuracy.
        images: Test images for accuracy; None for all.
    """

    bases: tuple[Subject, ...]
    screen: Effort
    search: Effort
    copies: int = 10
    images: int | None = None

    @property
    def subject(self) -> Subject:
        """The base under study."""
        return self.bases[0]


STUDIES = (
    Study(
        GTSRB_TINY,
        Effort(images=30, victims=3, queries=4_000, budgets=(2_000, 4_000)),
        Effort(images=60, victims=3, queries=16_000, budgets=(2_000, 8_000, 16_000)),
    ),
    Study(
        CIFAR10_BASES[::-1],
        Effort(images=20, victims=3, queries=3_000, budgets=(1_500, 3_000)),
        Effort(images=60, victims=3, queries=8_000, budgets=(2_000, 8_000)),
    ),
)
_LITTLE = Effort(images=3, victims=1, queries=150, budgets=(100, 150))
QUICK = tuple(Study(study.bases, _LITTLE, _LITTLE, copies=2, images=300) for study in STUDIES)


class State:
    """Rows that are done, one JSON line each; without a file they are kept for this run alone."""

    def __init__(self, path: Path | None) -> None:
        """Reads the finished rows; a last line that was cut off is dropped."""
        self._path = path
        self._rows: dict[str, Any] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                self._rows[row["key"]] = row["value"]

    def get(self, key: object) -> Any:
        """The row kept for this key, or None."""
        return self._rows.get(_digest(key))

    def put(self, key: object, value: object) -> None:
        """Keeps a row."""
        self._rows[_digest(key)] = value
        if self._path is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self._path, flags, PUBLIC), "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": _digest(key), "value": value}) + "\n")


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Bench:
    """One dataset under study: its images, and what its base says of them."""

    def __init__(self, study: Study, state: State) -> None:
        """Loads nothing yet."""
        self.study, self.state = study, state
        self.base = study.subject.base

    @functools.cached_property
    def test(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images and classes."""
        return self.study.subject.test_set(self.study.images)

    @functools.cached_property
    def answered(self) -> ParitySet:
        """The base's probabilities of all images."""
        return measure(self.base, self.test[0])

    def noise_turned(self) -> float:
        """Share of labels that noise changes, by which calibration chooses its step."""
        return noise_turns(self.base, self.answered.head(VALIDATION))

    def accuracy(self, rewriter: Rewriter) -> dict[str, Any]:
        """Loss of accuracy over copies, percentage points."""
        key = ["accuracy", self.study.subject.network, self.study.copies, self.study.images, to_parameters(rewriter)]
        row: dict[str, Any] | None = self.state.get(key)
        if row is None:
            truth = self.test[1]
            judge = CopyJudge(fuse(self.base, rewriter, "uint8"))
            seeds = [sha256(b"calibration study", b"accuracy", bytes([i])) for i in range(self.study.copies)]
            rates = 100 * np.array([(judge.labels(seed, self.answered) == truth).mean() for seed in seeds])
            own = 100 * float((self.answered.probabilities.argmax(1) == truth).mean())
            row = {
                "base": own,
                "accuracy": float(rates.mean()),
                "loss_points": own - float(rates.mean()),
                "worst_loss_points": own - float(rates.min()),
                "error_points": float(rates.std(ddof=1)) / math.sqrt(len(rates)),
            }
            self.state.put(key, row)
        return row

    def searched(
        self, rewriter: Rewriter, name: str, effort: Effort, *, bases: int = 1, seed: int = 0
    ) -> list[dict[str, Any]]:
        """Replication of a named attack by budget and overshoot, in a fleet dealt out over so many of the bases."""
        attack = ATTACKS[name]
        fields = {key: getattr(attack, key) for key in sorted(getattr(attack, "__dataclass_fields__", ()))}
        names = [subject.network for subject in self.study.bases[:bases]]
        key = ["search", names, asdict(effort), attack.name, fields, seed, to_parameters(rewriter)]
        rows: list[dict[str, Any]] | None = self.state.get(key)
        if rows is None:
            templates = [fuse(subject.base, rewriter, "uint8") for subject in self.study.bases[:bases]]
            fleet = copies(templates, effort.victims + 1)
            found: Replication = search(fleet, *self.test, attack, effort, seed=seed)
            rows = [{"attack": name, **row} for row in found.plain()]
            self.state.put(key, rows)
        return rows

    def hunted(self, rewriter: Rewriter, *, bases: int = 1, seed: int = 0) -> list[dict[str, Any]]:
        """The result of all attacks at the full effort."""
        effort = self.study.search
        return [row for name in ATTACKS for row in self.searched(rewriter, name, effort, bases=bases, seed=seed)]


def worst(rows: Sequence[dict[str, Any]], rate: str = "rate") -> dict[str, Any]:
    """The row of the highest replication: of all samples, or (`near_rate`) of those found near the clean image."""
    return max(rows, key=lambda row: (row[rate], row["overshoot"]))


def at_end(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the full budget."""
    most = max(row["budget"] for row in rows)
    return [row for row in rows if row["budget"] == most]


def finalists(rows: Sequence[tuple[dict[str, Any], Rewriter]]) -> list[tuple[dict[str, Any], Rewriter]]:
    """Of the QIM settings within the allowance, the best screened of each form, then the best of the rest."""
    within = [pair for pair in rows if pair[0]["loss_points"] + pair[0]["error_points"] <= ALLOWED_POINTS]
    ranked = sorted(
        (pair for pair in within if isinstance(pair[1], Qim)), key=lambda pair: float(pair[0]["screened_worst"])
    )
    firsts = [
        next((pair for pair in ranked if isinstance(pair[1], Qim) and pair[1].squared is form), None)
        for form in (False, True)
    ]
    out = [pair for pair in firsts if pair is not None]
    return out + [pair for pair in ranked if pair not in out][: FINALISTS - len(out)]


def studied(study: Study, state: State) -> list[dict[str, Any]]:
    """All candidates of one dataset with what is known of them; the chosen one is marked."""
    bench = Bench(study, state)
    rows = []
    for name, rewriter in candidates():
        row: dict[str, Any] = {"name": name, "parameters": to_parameters(rewriter), **bench.accuracy(rewriter)}
        if row["loss_points"] <= NEAR_POINTS:
            row["screen"] = bench.searched(rewriter, SCREEN, study.screen)
            row["screened_worst"] = worst(at_end(row["screen"]))["rate"]
        print(f"{study.subject.name} {name}: lost {row['loss_points']:.2f}, {row.get('screened_worst')}", flush=True)
        rows.append((row, rewriter))
    found = finalists(rows)
    for row, rewriter in found:
        row["search"] = bench.hunted(rewriter)
        row["worst"] = worst(at_end(row["search"]))
        print(f"{study.subject.name} {row['name']}: worst {row['worst']}", flush=True)
    if found:
        row, rewriter = min(found, key=lambda pair: float(pair[0]["worst"]["rate"]))
        row["chosen"], row["confirm"] = True, bench.hunted(rewriter, seed=CONFIRM)
        print(f"{study.subject.name}, other images: worst {worst(row['confirm'])}", flush=True)
        row["confirm_bases"] = bench.hunted(rewriter, bases=len(study.bases), seed=CONFIRM)
        print(f"{study.subject.name}, {len(study.bases)} bases: worst {worst(row['confirm_bases'])}", flush=True)
    return [row for row, _ in rows]


def figures_of(dataset: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Flat figures of one dataset."""
    out: dict[str, float] = {}
    for row in rows:
        out[f"{dataset}_{row['name']}_accuracy_loss"] = row["loss_points"]
        if "search" in row:
            for name in ATTACKS:
                of = worst([one for one in at_end(row["search"]) if one["attack"] == name])
                out[f"{dataset}_{row['name']}_{name}_to_s3_at_full_budget"] = of["rate"]
        if row.get("chosen"):
            out |= _chosen(dataset, row)
    return out


def _chosen(dataset: str, row: dict[str, Any]) -> dict[str, float]:
    """Figures of the chosen setting, on images that had no part in the choice."""
    replication = f"{dataset}_worst_replication_to_s3"
    most, end = worst(row["confirm"]), at_end(row["confirm"])
    out = {
        f"{dataset}_accuracy_loss": row["loss_points"],
        f"{dataset}_accuracy_loss_error": row["error_points"],
        replication: most["rate"],
        f"{replication}_low": most["interval"][0],
        f"{replication}_high": most["interval"][1],
        f"{replication}_at_full_budget": worst(end)["rate"],
        f"{replication}_within_l2_1": worst(row["confirm"], "near_rate")["near_rate"],
        f"{replication}_within_l2_1_at_full_budget": worst(end, "near_rate")["near_rate"],
        f"{dataset}_found_within_l2_1_at_full_budget": min(o["near"] / max(1, o["samples"]) for o in end),
        f"{dataset}_replication_s1_at_full_budget": max(o["rate"] for o in end if o["overshoot"] == 1),
        f"{dataset}_within_both_bars": int(most["rate"] <= ALLOWED_REPLICATION),
        f"{dataset}_within_both_bars_at_full_budget": int(worst(end)["rate"] <= ALLOWED_REPLICATION),
    }
    for words, found in (("", row["confirm"]), ("_several_bases", row["confirm_bases"])):
        for budget in sorted({one["budget"] for one in found}):
            of = worst([one for one in found if one["budget"] == budget])
            out[f"{dataset}{words}_worst_replication_to_s3_at_{budget}"] = of["rate"]
        for name in ATTACKS:
            of = worst([one for one in at_end(found) if one["attack"] == name])
            out[f"{dataset}{words}_{name}_to_s3_at_full_budget"] = of["rate"]
    return out


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--state", type=Path, help="file of finished rows, from which to continue")
    parser.add_argument("--subject", choices=[study.subject.name for study in STUDIES], help="one dataset alone")
    args = parser.parse_args()
    source_commit()
    state = State(args.state)
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    n: dict[str, int] = {"overshoots": len(OVERSHOOTS)}
    for study in QUICK if args.quick else STUDIES:
        if args.subject in (None, study.subject.name):
            rows = studied(study, state)
            raw[study.subject.name] = {"network": study.subject.network, "candidates": rows}
            figures |= figures_of(study.subject.name, rows)
            figures[f"{study.subject.name}_noise_turned"] = Bench(study, state).noise_turned()
            n |= {f"{study.subject.name}_{key}": getattr(study.search, key) for key in ("images", "victims", "queries")}
    path = result_path(NAME, quick=args.quick, out=args.out)
    write_result(NAME, figures=figures, raw=raw, seeds=[0, CONFIRM], n=n, path=path)


if __name__ == "__main__":
    main()
