"""One measurement of `benchmarks.attack`, in a process of its own with one thread.

    python -m benchmarks.attack_worker FOLDER CANDIDATE FIRST COUNT QUERIES

It prepares everything, prints `ready`, waits for a line, attacks, and prints one JSON object. It imports only what the
candidate needs, so that its peak memory is that of the candidate. Candidates are `raw` (the network alone),
`ours:<attack>:<profile>`, `art:<attack>` and `foolbox:hopskipjump` over the same onnxruntime session, and
`art_torch:<attack>` and `foolbox_torch:hopskipjump` over the torch module.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from variegate.export.intake.probe import session

IMAGE: Final = "image"
BATCH: Final = 128
_RAW_FRAMES: Final = 4_096


class Network:
    """An onnxruntime session on one thread, as an oracle (`attack.oracle.Oracle`) that times itself."""

    dtype: Final = "float32"
    batch: Final = BATCH

    def __init__(self, graph: bytes, shape: tuple[int, int, int], classes: int) -> None:
        self._session = session(graph)
        self.shape, self.classes = shape, classes
        self.queries, self.calls, self.forward_s = 0, 0, 0.0

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        """As `Oracle.labels`."""
        start = time.perf_counter()
        labels: NDArray[np.int64] = self._session.run(None, {IMAGE: np.asarray(frames)})[0]
        self.forward_s += time.perf_counter() - start
        self.queries += len(frames)
        self.calls += 1
        return labels


Work = Callable[[], Mapping[str, Any]]


def raw(network: Network, images: Mapping[str, NDArray[Any]], queries: int) -> Work:
    """The network alone, full batches."""
    frames = np.resize(images["clean"], (BATCH, *network.shape))

    def work() -> Mapping[str, Any]:
        for _ in range(0, min(queries, _RAW_FRAMES), BATCH):
            network.labels(frames)
        return {"queries": network.queries, "forward_s": network.forward_s}

    return work


def ours(network: Network, images: Mapping[str, NDArray[Any]], queries: int, kind: str, profile: str) -> Work:
    """An attack of ours."""
    from variegate.attack.algorithms.table import DEFAULTS  # noqa: PLC0415  peers do without it
    from variegate.attack.driver import outcomes  # noqa: PLC0415
    from variegate.attack.lane import task  # noqa: PLC0415
    from variegate.attack.search import seeded  # noqa: PLC0415

    attack = DEFAULTS[kind, profile]()

    def work() -> Mapping[str, Any]:
        tasks = [
            task(
                int(number),
                clean,
                int(label),
                starts=start[np.newaxis],
                queries=queries,
                rng=seeded("attack", int(number)),
            )
            for number, clean, label, start in zip(*(images[k] for k in _COLUMNS), strict=True)
        ]
        found = outcomes(attack, tasks, network)
        return {
            "queries": network.queries,
            "calls": network.calls,
            "forward_s": network.forward_s,
            "distances": [outcome.distance for outcome in found],
        }

    return work


_COLUMNS: Final = ("number", "clean", "truth", "starts")


def peer(network: Network, images: Mapping[str, NDArray[Any]], queries: int, toolkit: str, kind: str) -> Work:
    """An attack of another toolkit."""
    meters = importlib.import_module("benchmarks.peers.meter")
    given = {name: images[name] for name in _COLUMNS[1:]}
    shape, classes = network.shape, network.classes
    toolkit, _, torch_too = toolkit.partition("_")
    if torch_too or toolkit == "foolbox":
        importlib.import_module("torch").set_num_threads(1)
    module = importlib.import_module("testbed.subjects") if torch_too else None
    subject = None if module is None else {s.name: s for s in module.SUBJECTS}[str(images["subject"])]
    if toolkit == "foolbox":
        foolbox = importlib.import_module("benchmarks.peers.foolbox")
        answer = network.labels if subject is None else foolbox.torch_network(subject.module.eval())
        meter = meters.Meter(answer, queries)

        def work() -> Mapping[str, Any]:
            distances = foolbox.search(meter, classes=classes, **given)
            return {**_metered(meter), "distances": distances}

        return work
    art = importlib.import_module("benchmarks.peers.art_search")
    answer = network.labels if subject is None else art.torch_network(subject.module.eval(), shape, classes)
    meter = meters.Meter(answer, queries)
    estimator = art.black_box(meter, shape, classes)

    def work_art() -> Mapping[str, Any]:
        distances = art.search(kind, estimator, meter, budget=queries, **given)
        return {**_metered(meter), "distances": distances}

    return work_art


def _metered(meter: Any) -> dict[str, float]:
    return {"queries": meter.queries, "forward_s": meter.forward_s, "judge_s": meter.judge_s}


def _peak_rss_mib() -> float:
    # Not getrusage: its peak begins with the parent's.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def main() -> None:
    """Runs one measurement."""
    folder, candidate, first, count, queries = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    with np.load(folder / "images.npz") as loaded:
        cut = slice(first, first + count)
        images = {name: loaded[name][cut] if loaded[name].ndim else loaded[name] for name in loaded.files}
    shape = images["clean"].shape[1:]
    network = Network((folder / "network.onnx").read_bytes(), shape, int(images["classes"]))
    kind, *rest = candidate.split(":")
    if kind == "raw":
        work = raw(network, images, count * queries)
    elif kind == "ours":
        work = ours(network, images, queries, *rest)
    else:
        work = peer(network, images, queries, kind, *rest)
    network.labels(np.repeat(images["clean"], BATCH, axis=0)[:BATCH])
    network.queries, network.calls, network.forward_s = 0, 0, 0.0
    print("ready", flush=True)
    sys.stdin.readline()
    start, started = time.perf_counter(), time.process_time()
    done = dict(work())
    judge = done.pop("judge_s", 0.0)
    done["wall_s"] = time.perf_counter() - start - judge
    done["cpu_s"] = time.process_time() - started - judge
    done["peak_rss_mib"] = _peak_rss_mib()
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
