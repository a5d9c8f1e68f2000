"""How fast copies are made: single files and envelopes, on one core, against three named peers.

    python -m benchmarks.export [--quick]

(a) `torch.onnx.export` of the whole copy again for each buyer; (b) AES-256-GCM of the same bytes and nothing else;
(c) training a copy, from the committed result of `benchmarks.train_gtsrb`. Copies are made as for a fleet: keys, parity
check, sealing, signing, files written and flushed, rows in the registry. `*_in_memory` leave out files and registry.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import nn

from benchmarks.bases import CIFAR10, GTSRB, Subject
from benchmarks.result import RESULTS, result_path, source_commit, write_result
from benchmarks.settings import calibrated
from variegate.export.fleet import BATCH, Exporter
from variegate.export.fleet_list import Wanted
from variegate.export.registry import Registry
from variegate.export.release import make_release
from variegate.export.rewriters import Qim
from variegate.export.rewriters.torch_ops import Copy
from variegate.export.sealing import CopyOrder, Terms, seal_copies, share_component
from variegate.keys.identity import DeviceIdentity
from variegate.keys.seller import Seller


class _Labels(nn.Module):
    """A copy that ends in a label, as the exported graph does."""

    def __init__(self, copy: Copy) -> None:
        super().__init__()
        self.copy = copy

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.copy.scores(images).argmax(dim=1)


def reexport_seconds(subject: Subject, repeats: int) -> list[float]:
    """Seconds for one `torch.onnx.export` of a whole copy, after one that warms up."""
    out = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        rewriter = calibrated(subject.name, Qim.kind)
        copy = Copy(subject.module, subject.base.contract, rewriter, bytes([i]) * 32, "float32")
        torch.onnx.export(
            _Labels(copy).eval(),
            (torch.zeros(2, 3, 32, 32),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=20,
            verbose=False,
        )
        out.append(time.perf_counter() - start)
        print(f"  torch.onnx.export: {out[-1]:.2f} s", flush=True)
    return out[1:]


def aes_seconds(payload: bytes, repeats: int) -> list[float]:
    """Seconds for AES-256-GCM over the component's plaintext."""
    cipher, out = AESGCM(bytes(32)), []
    for i in range(repeats):
        start = time.perf_counter()
        cipher.encrypt(i.to_bytes(12, "big"), payload, None)
        out.append(time.perf_counter() - start)
    return out


def fleet_seconds(folder: Path, release: Path, seller: Seller, wanted: list[Wanted], cohort: str | None) -> list[float]:
    """Seconds for each batch of a fleet export, files and registry included."""
    exporter = Exporter(release, seller, Terms(vendor="benchmark"), folder, cohort)
    exporter.release.judge  # noqa: B018  the release's one-time set-up is not a copy's cost
    exporter.release.payload  # noqa: B018
    times = [time.perf_counter()]
    with Registry(folder.with_suffix(".sqlite")) as registry:
        exporter.fleet(wanted, registry, progress=lambda done, total: times.append(time.perf_counter()))  # noqa: ARG005
    return list(np.diff(times))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few copies; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    batches, repeats = (2, 1) if args.quick else (16, 5)
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    for subject, prefix in ((CIFAR10, ""), (GTSRB, "gtsrb_")):
        measured = measure_subject(subject, batches)
        raw[prefix + "export"] = {k: [float(s) for s in v] for k, v in measured.items()}
        per_copy = {name: float(np.median(v)) / BATCH for name, v in measured.items() if name != "aes"}
        for name, seconds in per_copy.items():
            figures[f"{prefix}{name}_copies_per_s"] = 1 / seconds
        figures[f"{prefix}single_vs_aes"] = float(np.median(measured["aes"])) / per_copy["single"]
        print({k: round(v, 3) for k, v in figures.items() if k.startswith(prefix)}, flush=True)
        if not prefix:
            again = reexport_seconds(subject, repeats)
            raw["reexport"] = again
            figures["single_vs_reexport"] = float(np.median(again)) / per_copy["single"]
            figures["envelope_vs_reexport"] = float(np.median(again)) / per_copy["envelope"]
    training = json.loads((RESULTS / "train_gtsrb.json").read_text("utf-8"))["figures"]["training_seconds"]
    figures["gtsrb_single_vs_training"] = training * figures["gtsrb_single_copies_per_s"]
    write_result(
        "export",
        figures=figures,
        raw=raw,
        seeds=[],
        n={"copies": batches * BATCH, "reexports": repeats},
        path=result_path("export", quick=args.quick, out=args.out),
    )


def measure_subject(subject: Subject, batches: int) -> dict[str, list[float]]:
    """Seconds of each batch, by way of export, and of AES over one payload."""
    images, _ = subject.test_set(256)
    release, _ = make_release("speed", subject.base, calibrated(subject.name, Qim.kind), images)
    seller = Seller.generate()
    device = [DeviceIdentity.generate("camera-v1").public for _ in range(BATCH)]
    wanted = [Wanted(buyer=f"b{i}", device=device[i % BATCH], epoch=i // BATCH) for i in range(batches * BATCH)]
    with TemporaryDirectory(prefix="variegate-") as temporary:
        folder = Path(temporary)
        release.save(folder / "release")
        out = {
            "single": fleet_seconds(folder / "single", folder / "release", seller, wanted, None),
            "envelope": fleet_seconds(folder / "envelope", folder / "release", seller, wanted, "cohort"),
        }
    orders = [CopyOrder(buyer=w.buyer, device=w.device, epoch=w.epoch, sequence=1, security_counter=0) for w in wanted]
    shared, terms = share_component(release, seller, "cohort"), Terms(vendor="benchmark")
    for name, component in (("single_in_memory", None), ("envelope_in_memory", shared)):
        out[name] = []
        for i in range(0, len(orders), BATCH):
            start = time.perf_counter()
            seal_copies(release, seller, orders[i : i + BATCH], terms, component)
            out[name].append(time.perf_counter() - start)
    out["aes"] = aes_seconds(release.payload, 200)
    return out


if __name__ == "__main__":
    main()
