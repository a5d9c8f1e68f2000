"""The loss of protection by interleaved supports: QIM at one B, d and beta, from dense messages to the finest grid.

    python -m benchmarks.attractors [--quick]

HopSkipJump searches by labels alone on one GTSRB copy, for images that three copies read rightly. Each sample is scaled
by an overshoot s and shown to the two other copies. Rows differ in the grid only, so equal replication means that the
cheap convolution does not weaken the protection. This studies one design choice on one network, not the strength of the
protection.
"""

from __future__ import annotations

import argparse
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from testbed.result import result_path, source_commit, write_result
from testbed.subjects import GTSRB
from variegate.attack import attack_images, replay
from variegate.attack.oracle import ask_all
from variegate.attack.oracles.local import LocalCopy
from variegate.attack.report.statistics import wilson
from variegate.export.fuse import fuse
from variegate.export.rewriters import Qim
from variegate.keys.primitives import sha256

B, BETA, OVERSHOOTS = 32, 4.0, (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
SETTINGS = (
    Qim(grid=(4, 8), repeats=1, steps=(128,), beta=BETA),
    Qim(grid=(2, 4), repeats=4, steps=(256,), beta=BETA),
    Qim(grid=(4, 4), repeats=2, steps=(128,), beta=BETA),
    Qim(grid=(2, 2), repeats=8, steps=(256,), beta=BETA),
    Qim(grid=(1, 1), repeats=32, steps=(512,), beta=BETA),
    # Twice the messages: what calibration chooses for this network within half a point.
    Qim(grid=(4, 8), repeats=2, steps=(128,), beta=BETA),
)
_POOL, _COPIES = 2_000, 3


def study(rewriter: Qim, count: int, queries: int) -> dict[str, Any]:
    """Searches on the first copy, replays on the others."""
    images, truth = GTSRB.test_set(_POOL)
    template = fuse(GTSRB.base, rewriter, "uint8")
    fleet = [LocalCopy(template, sha256(b"attractors", bytes([i]))) for i in range(_COPIES)]
    answers = np.stack([ask_all(copy, images) for copy in fleet])
    good = np.flatnonzero((answers == truth).all(axis=0))
    chosen = np.random.default_rng(0).choice(good, count, replace=False)
    trial = attack_images(fleet[0], "hopskipjump", images[chosen], truth[chosen], queries=queries, seed=1)
    shown = replay(trial, {str(i): copy for i, copy in enumerate(fleet[1:], 1)}, OVERSHOOTS)
    hits = dict(zip(OVERSHOOTS, map(sum, zip(*shown.fooled.values(), strict=True)), strict=True))
    pairs = shown.samples * len(shown.fooled)
    distances = [one.distance for one in trial.outcomes.values() if one.sample is not None]
    return {
        "grid": rewriter.grid,
        "repeats": rewriter.repeats,
        "d": rewriter.real_steps(GTSRB.base.contract)[0],
        "accuracy_on_pool": float((answers == truth).mean()),
        "searched": len(distances),
        "median_l2": float(np.median(distances)),
        "replication": {str(s): hits[s] / max(1, pairs) for s in OVERSHOOTS},
        "interval": {str(s): astuple(wilson(hits[s], max(1, pairs))) for s in OVERSHOOTS},
        "shown": pairs,
    }


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    count, queries = (2, 400) if args.quick else (40, 5_000)
    figures: dict[str, float] = {}
    rows = []
    for setting in SETTINGS[:2] if args.quick else SETTINGS:
        row = study(setting, count, queries)
        rows.append(row)
        print(row, flush=True)
        name = f"grid{setting.grid[0]}x{setting.grid[1]}" + (f"_b{setting.messages}" if setting.messages != B else "")
        figures[f"{name}_d"], figures[f"{name}_median_l2"] = row["d"], row["median_l2"]
        for s in ("1.0", "2.0", "3.0"):
            figures[f"{name}_replication_s{s[0]}"] = row["replication"][s]
    write_result(
        "attractors",
        figures=figures,
        raw=rows,
        seeds=[0, 1],
        n={"images": count, "queries": queries, "victims": _COPIES - 1},
        path=result_path("attractors", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
