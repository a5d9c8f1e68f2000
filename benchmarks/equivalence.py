"""Tests whether our profile `art-1.20` is equivalent to ART 1.20.1: median L2 against queries, on the same network.

    python -m benchmarks.equivalence [--quick] [--attack NAME] [--cache DIR] [--out FILE]

ART with its defaults and our attacks run untargeted on a small GTSRB network in float32, with the same limits, on
images that it reads rightly. They are compared at fixed numbers of queries, the marks; at each mark the iterate is
taken that the attack would return if it ended there. Random numbers differ, so medians over many images are compared:
the log ratio of ours to ART's, with a paired bootstrap over images. Equivalence at a mark is shown if the 90 % interval
lies within log 1.1 on either side of 0, which is two one-sided tests at 5 %. `--cache` skips an attack that was run
before; `--attack` leaves out the others.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.equivalence_network import halved, trained
from benchmarks.peers import art
from testbed.result import result_path, source_commit, write_result
from testbed.zoo.data import gtsrb_test
from variegate.attack.algorithms.boundary_art import ArtBoundary
from variegate.attack.algorithms.geoda_art import ArtGeoDA
from variegate.attack.algorithms.hopskipjump_art import ArtHopSkipJump
from variegate.attack.driver import outcomes
from variegate.attack.lane import task
from variegate.attack.oracle import Oracle
from variegate.attack.search import Attack, seeded
from variegate.keys.errors import MisuseError
from variegate.keys.files import PUBLIC, write_atomic

MARGIN = math.log(1.1)
_RESAMPLES = 10_000
_POOL = 6_000
_INTERVAL = (5.0, 95.0)

Pairs = NDArray[np.float64]
"""L2 distances (2, marks, images): ours, ART's."""


@dataclass(frozen=True)
class Study:
    """One attack.

    Attributes:
        figure: Its name in figures.
        attack: Ours.
        marks: Numbers of queries; the last is the cap.
        images: How many.
        skipped: Images at the head that are left out.
    """

    figure: str
    attack: Attack
    marks: tuple[int, ...]
    images: int
    skipped: int = 0


STUDIES = (
    Study("hsj", ArtHopSkipJump(), (500, 1_000, 2_000), 2_000),
    # A first run with the 800 images before these left the mark at 500 open: -0.075, interval -0.130 to -0.012.
    Study("boundary", ArtBoundary(), (500, 1_000, 2_000), 3_000, skipped=800),
    Study("geoda", ArtGeoDA(), (250, 500, 1_000), 3_000),
)


def at(trace: Sequence[tuple[int, float]], mark: int) -> float:
    """The distance of the last iterate within so many queries; infinite before the first."""
    return next((length for queries, length in reversed(trace) if queries <= mark), math.inf)


def measure(study: Study, oracle: Oracle) -> Pairs:
    """Runs both."""
    images = gtsrb_test()
    points, truth = halved(images.x[:_POOL]), images.y[:_POOL]
    labels = np.concatenate([oracle.labels(points[i : i + 100]) for i in range(0, _POOL, 100)])
    chosen = np.flatnonzero(labels == truth)[study.skipped : study.skipped + study.images]
    cap = study.marks[-1]
    # One more query than the cap: ours keeps one for its judgement.
    tasks = [
        task(int(i), points[i], int(truth[i]), queries=cap + 1, rng=seeded("equivalence", study.figure, int(i)))
        for i in chosen
    ]
    began = time.monotonic()
    ours = [outcome.trace for outcome in outcomes(study.attack, tasks, oracle)]
    print(f"{study.figure}: ours took {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    theirs = [art.search(study.attack.name, oracle, points[i], int(truth[i]), cap=cap, seed=int(i)) for i in chosen]
    print(f"{study.figure}: ART took {time.monotonic() - began:.0f} s", flush=True)
    return np.array([[[at(trace, mark) for trace in side] for mark in study.marks] for side in (ours, theirs)])


def judged(study: Study, pairs: Pairs) -> dict[str, Any]:
    """Log ratios of medians with their intervals, mark by mark."""
    rng = np.random.default_rng(0)
    rows = []
    for i, mark in enumerate(study.marks):
        both = pairs[:, i]
        medians = np.median(both, axis=1)
        if not np.isfinite(medians).all():
            raise MisuseError(f"half of the images have no iterate of {study.figure} at {mark} queries")
        drawn = rng.integers(0, both.shape[1], (_RESAMPLES, both.shape[1]))
        ours, theirs = (np.median(side[drawn], axis=1) for side in both)
        low, high = np.percentile(np.log(ours / theirs), _INTERVAL)
        rows.append(
            {
                "queries": mark,
                "median_l2": float(medians[0]),
                "median_l2_art": float(medians[1]),
                "log_ratio": float(math.log(medians[0] / medians[1])),
                "low": float(low),
                "high": float(high),
                "equivalent": int(low > -MARGIN and high < MARGIN),
            }
        )
        print(study.figure, rows[-1], flush=True)
    # As text, rounded: the figures are made from the whole numbers. An image without an iterate yet has inf.
    distances = [[" ".join(f"{d:.4g}" for d in mark) for mark in side] for side in pairs.tolist()]
    return {"attack": study.figure, "marks": rows, "distances_ours_art": distances}


def _cached(study: Study, oracle: Oracle, cache: Path | None) -> Pairs:
    file = cache / f"{study.figure}.json" if cache else None
    if file and file.is_file():
        return np.array(json.loads(file.read_text("utf-8")))
    pairs = measure(study, oracle)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(pairs.tolist()).encode(), mode=PUBLIC, overwrite=True)
    return pairs


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and queries; a smoke test")
    parser.add_argument("--attack", choices=[study.figure for study in STUDIES], help="this one alone; not for results")
    parser.add_argument("--cache", type=Path, help="folder that keeps finished attacks")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    oracle = trained(1) if args.quick else trained()
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    images: list[int] = []
    for study in STUDIES:
        if args.attack not in (None, study.figure):
            continue
        used = Study(study.figure, study.attack, (200, 300), 4) if args.quick else study
        row = judged(used, _cached(used, oracle, args.cache))
        rows.append(row)
        images.append(used.images)
        marks = row["marks"]
        figures[f"max_abs_log_ratio_{study.figure}"] = max(abs(mark["log_ratio"]) for mark in marks)
        figures[f"lower_{study.figure}"] = min(mark["low"] for mark in marks)
        figures[f"upper_{study.figure}"] = max(mark["high"] for mark in marks)
        figures[f"equivalent_{study.figure}"] = int(all(mark["equivalent"] for mark in marks))
    figures["n"] = min(images)
    partial = args.quick or args.attack is not None
    write_result(
        "equivalence",
        figures=figures,
        raw=rows,
        seeds=[0],
        n={"images": min(images), "resamples": _RESAMPLES},
        path=result_path("equivalence", quick=partial, out=args.out),
    )


if __name__ == "__main__":
    main()
