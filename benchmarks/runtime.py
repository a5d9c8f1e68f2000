"""Speed of a copy compared with the bare base in onnxruntime, and of the runtime's own path.

    python -m benchmarks.runtime [--quick]

Everything runs on one thread, alternating within the run, over five sets of sessions. The bare base takes float32
images and gives logits; a copy gives a label. The figures `overhead_*` compare the copy as shipped, for uint8 frames,
with the bare base on ready floats: the strictest comparison. `overhead_float_*` use the copy for float32 frames,
`overhead_label_only_*` the base with only an ArgMax. `path_us` is the time of `Enclave.classify` (checks, expiry,
budget) minus a run of the same session, under a budget so large that reservations of 1,024 are rare. Every reservation
flushes the device's counter, timed as `reserve_us`; a budget below 65,536 is reserved in smaller blocks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from testbed.cars import DEVICE_CLASS, flashed
from testbed.result import result_path, source_commit, write_result
from testbed.settings import calibrated
from testbed.subjects import CIFAR10, GTSRB, Subject
from testbed.timing import alternate, ratio
from variegate.device_sim.device import Device
from variegate.export.fuse import IMAGE, fuse
from variegate.export.intake.probe import session
from variegate.export.release import make_release
from variegate.export.rewriters import Permutation, Qim
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller

BATCHES = (1, 64)
SETUPS = 5
_SEED = bytes(32)


def with_argmax(model: onnx.ModelProto) -> bytes:
    """The base with an ArgMax behind it and nothing else."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    scores = out.graph.output[0].name
    out.graph.node.append(onnx.helper.make_node("ArgMax", [scores], ["label"], axis=1, keepdims=0))
    del out.graph.output[:]
    out.graph.output.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["batch"]))
    return bytes(out.SerializeToString(deterministic=True))


def candidates(subject: Subject, batch: int) -> Mapping[str, Callable[[], object]]:
    """The bare base and its copies, each as a call that answers one batch of real images."""
    images, _ = subject.test_set(batch)
    floats = images / np.float32(255)
    out: dict[str, Callable[[], object]] = {}

    def add(name: str, graph: bytes, feed: Any, keyed: dict[str, Any] | None = None) -> None:
        opened = session(graph, keyed)
        out[name] = lambda: opened.run(None, {IMAGE: feed})

    add("bare", subject.base.model.SerializeToString(), floats)
    add("label_only", with_argmax(subject.base.model), floats)
    for rewriter in (calibrated(subject.name, Qim.kind), calibrated(subject.name, Permutation.kind)):
        for dtype, feed in (("uint8", images), ("float32", floats)):
            template = fuse(subject.base, rewriter, dtype)
            name = rewriter.kind if dtype == "uint8" else f"float_{rewriter.kind}"
            add(name, template.graph, feed, template.values(_SEED))
    # The cost of dense messages, which the interleaved supports avoid: same B and beta, the nearest step.
    chosen = calibrated(subject.name, Qim.kind)
    if isinstance(chosen, Qim):
        dense = replace(chosen, grid=(1, 1), repeats=chosen.messages, steps=(512,))
        template = fuse(subject.base, dense, "uint8")
        add("dense_qim", template.graph, images, template.values(_SEED))
    return out


def over_setups(subject: Subject, batch: int, *, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per call over several sets of sessions: two sessions of one graph can differ by some per cent."""
    out: dict[str, list[float]] = {}
    for _ in range(SETUPS):
        for name, values in alternate(candidates(subject, batch), repeats=repeats, seconds=seconds).items():
            out.setdefault(name, []).extend(values)
    return out


def path_overhead(subject: Subject, repeats: int, seconds: float) -> list[float]:
    """Seconds that `Enclave.classify` adds to a run of its own session, at batch 1, for each repeat."""
    images, _ = subject.test_set(64)
    rewriter = calibrated(subject.name, Qim.kind)
    release = make_release("path", subject.base, rewriter, images)
    seller = Seller.generate()
    frame, batch = images[0], images[:1]
    with flashed(release, seller, "path", Policy(budget=10**9)) as enclave:
        # The enclave's own session: two sessions of one graph differ by more than the path costs.
        bare = enclave._engine._session  # type: ignore[union-attr]  # noqa: SLF001
        samples = alternate(
            {"enclave": lambda: enclave.classify(frame), "bare": lambda: bare.run(None, {IMAGE: batch})},
            repeats=repeats,
            seconds=seconds,
        )
    return [a - b for a, b in zip(samples["enclave"], samples["bare"], strict=True)]


def reserve_seconds(count: int) -> list[float]:
    """Seconds for reservations on a simulated device's counter, each flushed to its file."""
    with TemporaryDirectory(prefix="variegate-") as folder:
        device = Device.create(Path(folder) / "device", DEVICE_CLASS, Seller.generate().root)
        out = []
        for _ in range(count):
            start = time.perf_counter()
            device.reserve("budget.0", 1, 1, 1 << 40)
            out.append(time.perf_counter() - start)
        device.close()
    return out


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    repeats, seconds = (1, 0.02) if args.quick else (9, 0.1)
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    for subject, short in ((CIFAR10, "resnet20"), (GTSRB, "gtsrb")):
        for batch in BATCHES:
            samples = over_setups(subject, batch, repeats=repeats, seconds=seconds)
            raw[f"{short}_b{batch}"] = samples
            bare_us = 1e6 * float(np.median(samples["bare"]))
            figures[f"bare_us_{short}_b{batch}"] = bare_us
            for name in samples:
                if name != "bare":
                    key = f"overhead_{name}_{short}_b{batch}"
                    interval = ratio(samples, name, "bare")
                    figures[key] = interval.median - 1
                    figures[f"{key}_low"], figures[f"{key}_high"] = interval.low - 1, interval.high - 1
                    print(f"{key}: {100 * figures[key]:+.2f} % of {bare_us:.0f} us", flush=True)
        path = path_overhead(subject, SETUPS * repeats, seconds)
        raw[f"path_{short}"] = path
        figures[f"path_us_{short}"] = 1e6 * float(np.median(path))
        print(f"path_us_{short}: {figures[f'path_us_{short}']:.1f}", flush=True)
    raw["reserve"] = reserve_seconds(repeats)
    figures["reserve_us"] = 1e6 * float(np.median(raw["reserve"]))
    figures["path_us"] = max(figures["path_us_resnet20"], figures["path_us_gtsrb"])
    n = {"setups": SETUPS, "repeats": repeats}
    write_result(
        "runtime", figures=figures, raw=raw, seeds=[], n=n, path=result_path("runtime", quick=args.quick, out=args.out)
    )


if __name__ == "__main__":
    main()
