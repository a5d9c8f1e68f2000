"""Speed of export: single files and envelopes, on one core, compared with three named peers.

    python -m benchmarks.export [--quick]

The peers are (a) `torch.onnx.export` (its present exporter, `dynamo=True`) of the whole copy again for each buyer; (b)
AES-256-GCM of the same bytes and nothing else; (c) training a copy, from the committed result of
`benchmarks.train_gtsrb`. Copies are made as for a fleet: keys, parity check, sealing, signing, files written and
flushed, rows in the registry. `*_in_memory` leave out files and registry. All alternate in every round.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import nn

from testbed.result import load, result_path, source_commit, write_result
from testbed.settings import calibrated
from testbed.subjects import CIFAR10, GTSRB, Subject
from testbed.torch_ops import Copy
from variegate.export.fleet import BATCH, Exporter, hand_out
from variegate.export.outbox import making
from variegate.export.registry import Registry
from variegate.export.release import make_release
from variegate.export.rewriters import Qim
from variegate.export.sealing import CopyOrder, SharedComponent, Terms, seal_copies, share_component
from variegate.keys.identity import DeviceIdentity
from variegate.keys.seller import Seller

_MARK = "VARIEGATE_BENCHMARK_ON_ONE_CORE"


class _Labels(nn.Module):
    """A copy that ends in a label, as the exported graph does."""

    def __init__(self, copy: Copy) -> None:
        super().__init__()
        self.copy = copy

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.copy.scores(images).argmax(dim=1)


def reexport(subject: Subject, seed: bytes) -> None:
    """One `torch.onnx.export` of a whole copy, rewriter and ArgMax included."""
    copy = Copy(subject.module, subject.base.contract, calibrated(subject.name, Qim.kind), seed, "float32")
    torch.onnx.export(
        _Labels(copy).eval(),
        (torch.zeros(2, 3, 32, 32),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=20,
        verbose=False,
    )


class Workshop:
    """Everything that makes copies of one release, set up; `steps` are timed."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        images, _ = subject.test_set(256)
        self.subject = subject
        self.release = make_release("speed", subject.base, calibrated(subject.name, Qim.kind), images)
        self.release.save(folder / "release")
        self.seller, self.terms = Seller.generate(), Terms(vendor="benchmark")
        self.devices = [DeviceIdentity.generate("camera-v1").public for _ in range(BATCH)]
        self.registry = Registry(folder / "registry.sqlite")
        self.exporters = {
            name: Exporter(folder / "release", self.seller, self.terms, folder / name, cohort)
            for name, cohort in (("single", None), ("envelope", "cohort"))
        }
        for exporter in self.exporters.values():
            exporter.folder.mkdir()
            # A release's one-time set-up is not a copy's cost.
            exporter.release.judge.check(bytes(32), exporter.release.parity.head(16))
        self.shared = share_component(self.release, self.seller, "cohort")
        self.cipher = AESGCM(bytes(32))
        self.made = 0

    def orders(self) -> list[CopyOrder]:
        """A batch of new orders."""
        self.made += 1
        return [
            CopyOrder(buyer=f"b{i}", device=device, epoch=self.made, sequence=self.made, security_counter=0)
            for i, device in enumerate(self.devices)
        ]

    def fleet(self, name: str) -> None:
        """One batch as a fleet export makes it: sealed, written, flushed, registered."""
        exporter = self.exporters[name]
        with making(exporter.folder) as made:
            hand_out(made, exporter.make(self.orders(), made), self.registry)

    def in_memory(self, shared: SharedComponent | None) -> None:
        """One batch, sealed only."""
        seal_copies(self.release, self.seller, self.orders(), self.terms, shared)

    def aes(self) -> None:
        """AES-256-GCM of a batch's worth of components and nothing else."""
        for _ in range(BATCH):
            self.cipher.encrypt(bytes(12), self.release.payload, None)

    def steps(self) -> dict[str, Callable[[], None]]:
        """The alternatives that are timed, a batch each."""
        return {
            "single": lambda: self.fleet("single"),
            "envelope": lambda: self.fleet("envelope"),
            "single_in_memory": lambda: self.in_memory(None),
            "envelope_in_memory": lambda: self.in_memory(self.shared),
            "aes": self.aes,
        }


def measure_subject(subject: Subject, rounds: int, reexports: int) -> dict[str, list[float]]:
    """Seconds for a copy by each way, all ways in turn in every round; re-exports spread over the rounds."""
    with TemporaryDirectory(prefix="variegate-") as temporary:
        workshop = Workshop(subject, Path(temporary))
        steps = workshop.steps()
        if reexports:
            reexport(subject, bytes(32))
        out: dict[str, list[float]] = {name: [] for name in (*steps, "reexport")}
        for number in range(rounds):
            for name, step in steps.items():
                out[name].append(timed(step) / BATCH)
            if number < reexports:
                out["reexport"].append(timed(lambda: reexport(subject, os.urandom(32))))
        workshop.registry.__exit__(None, None, None)
    return out


def timed(step: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def on_one_core() -> None:
    """Starts again on one core: thread pools are sized when libraries are imported."""
    if os.environ.get(_MARK) == "1":
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    command = [sys.executable, "-m", "benchmarks.export", *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, _MARK: "1", "OMP_NUM_THREADS": "1"})  # noqa: S606


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few copies; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    on_one_core()
    source_commit()
    rounds, reexports = (2, 1) if args.quick else (16, 5)
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    for subject, prefix in ((CIFAR10, ""), (GTSRB, "gtsrb_")):
        samples = measure_subject(subject, rounds, 0 if prefix else reexports)
        raw[prefix + "seconds_per_copy"] = samples
        cost = {name: float(np.median(values)) for name, values in samples.items() if values}
        for name in ("single", "envelope", "single_in_memory", "envelope_in_memory"):
            figures[f"{prefix}{name}_copies_per_s"] = 1 / cost[name]
        figures[f"{prefix}single_vs_aes"] = cost["aes"] / cost["single"]
        if "reexport" in cost:
            figures["reexport_seconds"] = cost["reexport"]
            figures["single_vs_reexport"] = cost["reexport"] / cost["single"]
            figures["envelope_vs_reexport"] = cost["reexport"] / cost["envelope"]
        print({k: round(v, 3) for k, v in figures.items() if k.startswith(prefix)}, flush=True)
    training = load("train_gtsrb")["figures"]["training_seconds"]
    figures["gtsrb_single_vs_training"] = training * figures["gtsrb_single_copies_per_s"]
    write_result(
        "export",
        figures=figures,
        raw=raw,
        seeds=[],
        n={"rounds": rounds, "copies_per_round": BATCH, "reexports": reexports},
        path=result_path("export", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
