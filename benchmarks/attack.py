"""Our attacks compared with ART's and Foolbox's: same attack, same limit of queries, same network, same run.

    python -m benchmarks.attack [--quick] [--out FILE]

Every measurement is a process of its own with one thread (`benchmarks.attack_worker`). Within a repeat the candidates
run one after another, and each ratio is of one repeat. All attacks get the same starting pictures and are stopped at
the same query, the toolkits by an exception from inside. The toolkits' time excludes the judging of their points and
the conversion of their dtypes; our time includes the driver's own judging.

Speed is that of HopSkipJump. `vs_art_*` compares our profile `art-1.20` with ART's black-box estimator, on the same
onnxruntime session: ART has no estimator for ONNX, so the difference is its own work beside the forward pass.
`vs_art_torch_*` uses ART's torch estimator with the torch module, as ART's users also do. `vs_foolbox_*` uses Foolbox's
PyTorchModel with the torch module, because Foolbox has no model for ONNX; `vs_foolbox_same_forward_*` uses it with our
session, inside a torch module that does nothing else. `forward_share_*` is the time inside `session.run` over the time
of the whole search, for our HopSkipJump (`corrected`); `of_raw_*` is its queries per second over those of the bare
session with batches of 128. `own_us_*` is the time of one query beside the forward pass. Queries per second are those
of a core, by processor time, because the machine may have other work; only `two_processes_speedup_*` and shares use the
clock.

`median_l2_2000_*` are medians over images of the distance of the nearest fooling frame that was asked, for ResNet-20,
2,000 queries and each toolkit's default settings (ART's GeoDA with a tolerance of 1e-3, because its 0.1 is wider than
the result).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from benchmarks.runtime import with_argmax
from testbed.result import result_path, source_commit, write_result
from testbed.subjects import CIFAR10, GTSRB, Subject
from variegate.export.fuse import IMAGE
from variegate.export.intake.probe import session

_ROOT: Final = Path(__file__).resolve().parents[1]
_POOL: Final = 1_000
HSJ, HSJ_ART, CGBA = "ours:hopskipjump:corrected", "ours:hopskipjump:art-1.20", "ours:cgba:corrected"
ART, ART_TORCH = "art:hopskipjump", "art_torch:hopskipjump"
FOOLBOX, FOOLBOX_TORCH = "foolbox:hopskipjump", "foolbox_torch:hopskipjump"
SPEED: Final = ("raw", HSJ, HSJ_ART, CGBA, ART, ART_TORCH, FOOLBOX, FOOLBOX_TORCH)
RAYS, SURFREE = "ours:rays:corrected", "ours:surfree:corrected"
QUALITY: Final = (CGBA, ART, FOOLBOX, HSJ, SURFREE, "art:geoda", RAYS)
"""Attacks whose distances are compared. The Boundary attack is left out on both sides: it needs far more queries."""
RATIOS: Final = {
    "vs_art": (HSJ_ART, ART),
    "vs_art_torch": (HSJ_ART, ART_TORCH),
    "vs_foolbox": (HSJ, FOOLBOX_TORCH),
    "vs_foolbox_same_forward": (HSJ, FOOLBOX),
}
_MOST: Final = 4
IMAGES: Final = {ART: 1, ART_TORCH: 1}
"""Images of a speed measurement; `_MOST` where not named, as ours and Foolbox's share batches."""


def prepare(subject: Subject, folder: Path, count: int) -> None:
    """Writes the network and `count` images that it reads rightly, each with a start of another class, for workers."""
    graph = with_argmax(subject.base.model)
    (folder / "network.onnx").write_bytes(graph)
    images, truth = subject.test_set(_POOL)
    frames = images / np.float32(255)
    opened = session(graph)
    labels = np.concatenate([opened.run(None, {IMAGE: frames[i : i + 100]})[0] for i in range(0, _POOL, 100)])
    right = np.flatnonzero(labels == truth)
    rng = np.random.default_rng(0)
    chosen = rng.choice(right, count, replace=False)
    starts = [rng.choice(right[truth[right] != truth[i]]) for i in chosen]
    np.savez(
        folder / "images.npz",
        number=chosen,
        clean=frames[chosen],
        truth=labels[chosen],
        starts=frames[starts],
        classes=np.int64(subject.base.contract.classes),
        subject=np.str_(subject.name),
    )


def measure(folder: Path, candidate: str, shares: Sequence[tuple[int, int]], queries: int) -> list[dict[str, Any]]:
    """Runs one candidate in as many processes at once as there are shares of the images (first, count)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(  # noqa: S603  our own interpreter and words
            [sys.executable, "-W", "ignore", "-m", "benchmarks.attack_worker", str(folder), candidate]
            + [str(number) for number in (*share, queries)],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in shares
    ]
    try:
        for worker in workers:
            if worker.stdout is None or worker.stdout.readline() != "ready\n":
                raise RuntimeError(f"the worker of {candidate} did not start")
        for worker in workers:
            if worker.stdin is not None:
                worker.stdin.write("go\n")
                worker.stdin.flush()
        out = [json.loads(worker.communicate()[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return out


def rate(done: Sequence[Mapping[str, Any]], clock: str = "cpu_s") -> float:
    """Queries per second of processes that ran at once."""
    return float(sum(one["queries"] / one[clock] for one in done))


def speed(folder: Path, short: str, repeats: int, queries: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures and repeats of one network."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SPEED}
    doubled: list[list[dict[str, Any]]] = []
    for repeat in range(repeats):
        turn = repeat % len(SPEED)
        for name in SPEED[turn:] + SPEED[:turn]:
            runs[name] += measure(folder, name, [(0, IMAGES.get(name, _MOST))], queries)
        doubled.append(measure(folder, HSJ, [(0, _MOST), (_MOST, _MOST)], queries))
    rates = {name: np.array([rate([one]) for one in done]) for name, done in runs.items()}
    figures = {f"{key}_{short}": float(np.median(rates[a] / rates[b])) for key, (a, b) in RATIOS.items()}
    for name, done in runs.items():
        key = name.removesuffix(":corrected").replace(":", "_").replace("-", "_").replace(".", "_")
        figures[f"queries_per_s_{key}_{short}"] = float(np.median(rates[name]))
        figures[f"peak_rss_mib_{key}_{short}"] = float(np.median([run["peak_rss_mib"] for run in done]))
        own = [1e6 * (run["wall_s"] - run["forward_s"]) / run["queries"] for run in done]
        figures[f"own_us_{key}_{short}"] = float(np.median(own))
        share = [run["forward_s"] / run["wall_s"] for run in done]
        figures[f"share_{key}_{short}"] = float(np.median(share))
    for name, suffix in ((HSJ, ""), (CGBA, "_cgba")):
        figures[f"forward_share{suffix}_{short}"] = float(
            np.median([one["forward_s"] / one["wall_s"] for one in runs[name]])
        )
        figures[f"of_raw{suffix}_{short}"] = float(np.median(rates[name] / rates["raw"]))
    two = np.array([rate(pair, "wall_s") for pair in doubled])
    one = np.array([rate([single], "wall_s") for single in runs[HSJ]])
    figures[f"two_processes_speedup_{short}"] = float(np.median(two / one))
    return figures, {"runs": runs, "two_processes": doubled}


def quality(
    folder: Path, candidates: Sequence[str], count: int, queries: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Medians of distances at the same queries, each candidate over the same images in two processes."""
    half = count // 2
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    best = {"ours": math.inf, "best_peer": math.inf}
    for name in candidates:
        done = measure(folder, name, [(0, half), (half, count - half)], queries)
        distances = [length for one in done for length in one["distances"]]
        raw[name] = {"distances": [length if math.isfinite(length) else None for length in distances]}
        median = float(np.median(distances))
        toolkit, kind, *profile = name.split(":")
        norm = "linf" if kind == "rays" else "l2"
        key = "_".join(["ours" if toolkit == "ours" else toolkit, kind, *profile]).removesuffix("_corrected")
        print(f"median {norm} {name}: {median:.3f}", flush=True)
        if not math.isfinite(median):
            continue
        figures[f"median_{norm}_2000_{key.replace('-', '_').replace('.', '_')}"] = median
        if norm == "l2":
            side = "ours" if toolkit == "ours" else "best_peer"
            best[side] = min(best[side], median)
    figures.update({f"median_l2_2000_{side}": value for side, value in best.items()})
    return figures, raw


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    repeats, count, queries = (1, 2, 40) if args.quick else (3, 50, 2_000)
    candidates = (CGBA, ART) if args.quick else QUALITY
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    for subject, short in ((CIFAR10, "resnet20"), (GTSRB, "gtsrb")):
        with TemporaryDirectory(prefix="variegate-") as name:
            folder = Path(name)
            prepare(subject, folder, max(count, 2 * _MOST))
            found, raw[f"speed_{short}"] = speed(folder, short, repeats, queries)
            figures |= found
            for key in ("forward_share", "of_raw", "of_raw_cgba", *RATIOS, "two_processes_speedup"):
                print(f"{key}_{short}: {found[f'{key}_{short}']:.3f}", flush=True)
            if subject is CIFAR10:
                found, raw["quality"] = quality(folder, candidates, count, queries)
                figures |= found
    for toolkit, name in (("ours", "ours_hopskipjump"), ("art", "art_hopskipjump"), ("foolbox", "foolbox_hopskipjump")):
        figures[f"peak_rss_mib_{toolkit}"] = figures[f"peak_rss_mib_{name}_resnet20"]
    n = {"repeats": repeats, "images": count, "queries": queries, "speed_images": _MOST}
    path = result_path("attack", quick=args.quick, out=args.out)
    write_result("attack", figures=figures, raw=raw, seeds=[0], n=n, path=path)


if __name__ == "__main__":
    main()
