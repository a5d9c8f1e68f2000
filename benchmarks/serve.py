"""Cost of isolation and HTTP: the enclave process compared with bare onnxruntime, the server with a constant.

    python -m benchmarks.serve [--quick]

A ResNet-20 with QIM, sealed and flashed. `bare` is an onnxruntime session of the same graph and tensors in this
process, with one thread and the same arrays. `isolated` is `classify_batch` of an enclave process with all protections
except secret pages; `secret` has these too. Two sessions of one graph differ by some per cent, so everything is
measured over several sets of processes and sessions, alternating within each. At batch 1 the figure is a difference in
microseconds, at batch 64 a ratio. Frames reach the enclave through shared memory; `shared_memory_vs_inline_*` compares
this, at batch 1, with frames in the packet. A batch of 64 does not fit into a packet.

For HTTP, the device's server is compared with an application on the same server that reads the body and returns
constant labels. The client is the same, with one kept connection and binary tensors. The label socket is measured too.
Behind both is the enclave with every protection. The time that HTTP adds beyond the constant's cost and the enclave's
own median is a separate figure.
"""

from __future__ import annotations

import argparse
import functools
import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve_http import HttpProbe, SocketProbe, binary_request, server, timed
from testbed.cars import DEVICE_CLASS
from testbed.result import result_path, source_commit, write_result
from testbed.settings import calibrated
from testbed.subjects import CIFAR10
from testbed.timing import alternate, ratio
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.release import Release, make_release
from variegate.export.rewriters import Qim
from variegate.export.sealing import CopyOrder, Terms, seal_copies
from variegate.isolation.host import IsolatedHost
from variegate.isolation.policy import DevicePolicy
from variegate.keys.artefact import Artefact
from variegate.keys.manifest import Policy
from variegate.keys.seller import Seller
from variegate.runtime import Enclave
from variegate.runtime.engine import INPUT, OUTPUT
from variegate.runtime.port import LabelPort

BATCHES = (1, 64)
DTYPES = ("uint8", "float32")
_BUDGET = Policy(budget=10**9)


@contextmanager
def car(release: Release, seller: Seller) -> Iterator[Path]:
    """A folder with a device that holds a copy of the release."""
    with TemporaryDirectory(prefix="variegate-") as folder:
        place = Path(folder) / "device"
        with Device.create(place, DEVICE_CLASS, seller.root) as device:
            order = CopyOrder(buyer="serve", device=device.identity, epoch=0, sequence=1, security_counter=0)
            (copy,) = seal_copies(release, seller, [order], Terms(vendor="benchmark", policy=_BUDGET))
            flash(device, Artefact.from_bytes(copy.to_bytes()))
        yield place


@contextmanager
def opened(release: Release, seller: Seller) -> Iterator[tuple[Enclave, LabelPort, LabelPort]]:
    """The same release booted in this process, isolated, and isolated with secret pages."""
    with ExitStack() as stack:
        found = []
        for host in (None, IsolatedHost(DevicePolicy(secret_pages=False)), IsolatedHost(DevicePolicy())):
            place = stack.enter_context(car(release, seller))
            found.append(stack.enter_context(Device.open(place, host=host)).boot())
        own, isolated, secret = found
        assert isinstance(own, Enclave)
        yield own, isolated, secret


def calls(
    own: Enclave, isolated: LabelPort, secret: LabelPort, frames: NDArray[Any]
) -> Mapping[str, Callable[[], Any]]:
    """Each way to the labels of the same frames."""
    session = own._engine._session  # type: ignore[union-attr]  # noqa: SLF001  the bare session of the same copy
    return {
        "bare": lambda: session.run([OUTPUT], {INPUT: frames}),
        "in_process": lambda: own.classify_batch(frames),
        "isolated": lambda: isolated.classify_batch(frames),
        "secret": lambda: secret.classify_batch(frames),
    }


def latencies(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls."""
    out = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        out.append(time.perf_counter() - start)
    return out


def enclaves(figures: dict[str, float], raw: dict[str, Any], *, setups: int, repeats: int, seconds: float) -> None:
    """The enclave process against bare onnxruntime."""
    images, _ = CIFAR10.test_set(256)
    for dtype in DTYPES:
        shown = images if dtype == "uint8" else (images / np.float32(255)).astype(np.float32)
        release = make_release("serve", CIFAR10.base, calibrated("cifar10", Qim.kind), shown)
        seller = Seller.generate()
        samples: dict[str, list[float]] = {}
        every: dict[str, list[float]] = {}
        for _ in range(setups):
            with opened(release, seller) as (own, isolated, secret):
                for batch in BATCHES:
                    ways = calls(own, isolated, secret, np.ascontiguousarray(shown[:batch]))
                    labels = {name: np.asarray(call()).ravel().tolist() for name, call in ways.items()}
                    assert all(value == labels["bare"] for value in labels.values()), "labels differ"
                    for name, values in alternate(ways, repeats=repeats, seconds=seconds).items():
                        samples.setdefault(f"{name}_b{batch}", []).extend(values)
                    for name in ways:
                        found = latencies(ways[name], max(20, int(4 * seconds / samples[f"{name}_b{batch}"][-1])))
                        every.setdefault(f"{name}_b{batch}", []).extend(found)
        raw[dtype] = samples
        _summary(figures, dtype, samples, every)


def _summary(
    figures: dict[str, float], dtype: str, samples: dict[str, list[float]], every: dict[str, list[float]]
) -> None:
    suffix = "" if dtype == "uint8" else "_float32"
    bare = np.array(samples["bare_b1"])
    for name in ("in_process", "isolated", "secret"):
        over = 1e6 * (np.array(samples[f"{name}_b1"]) - bare)
        key = {"isolated": "enclave", "in_process": "in_process", "secret": "secret"}[name]
        figures[f"{key}_us_over_bare_b1{suffix}"] = float(np.median(over))
        figures[f"{key}_overhead_b64{suffix}"] = ratio(samples, f"{name}_b64", "bare_b64").median - 1
    interval = ratio(samples, "isolated_b64", "bare_b64")
    figures[f"enclave_overhead_b64{suffix}_low"] = interval.low - 1
    figures[f"enclave_overhead_b64{suffix}_high"] = interval.high - 1
    for batch in BATCHES:
        interval = ratio(samples, f"secret_b{batch}", f"isolated_b{batch}")
        figures[f"secret_pages_overhead_b{batch}{suffix}"] = interval.median - 1
        for name in ("bare", "in_process", "isolated", "secret"):
            values = 1e6 * np.array(every[f"{name}_b{batch}"])
            for percentile in (50, 95, 99):
                figures[f"{name}_p{percentile}_us_b{batch}{suffix}"] = float(np.percentile(values, percentile))
            figures[f"{name}_labels_per_s_b{batch}{suffix}"] = batch / float(np.median(samples[f"{name}_b{batch}"]))
    for key in ("enclave_us_over_bare_b1", "enclave_overhead_b64", "secret_pages_overhead_b1"):
        print(f"{key}{suffix}: {figures[key + suffix]:.4g}", flush=True)


def http(figures: dict[str, float], raw: dict[str, Any], *, rounds: int) -> None:
    """The server and the label socket in front of the protected enclave, against a constant on the same server."""
    images, _ = CIFAR10.test_set(256)
    release = make_release("serve", CIFAR10.base, calibrated("cifar10", Qim.kind), images)
    with car(release, Seller.generate()) as place:
        path = place.parent / "labels"
        for batch in BATCHES:
            request = binary_request(images[:batch])
            with (
                server("constant", "--batch", str(batch)) as constant_port,
                server("device", place, "--socket", path) as port,
                HttpProbe(constant_port, request) as constant,
                HttpProbe(port, request) as real,
                SocketProbe(path, images[:batch]) as direct,
            ):
                asks: dict[str, Callable[[], object]] = {
                    "constant": constant.ask,
                    "http": real.ask,
                    "socket": direct.ask,
                }
                for ask in asks.values():
                    ask()
                assert np.array_equal(real.ask(), direct.ask())
                found = timed(asks, rounds)
            raw[f"http_b{batch}"] = {name: values.tolist() for name, values in found.items()}
            for name, values in found.items():
                for percentile in (50, 95, 99):
                    figures[f"{name}_p{percentile}_us_b{batch}"] = 1e6 * float(np.percentile(values, percentile))
                figures[f"{name}_labels_per_s_b{batch}"] = batch / float(np.median(values))
            over = 1e6 * float(np.median(found["http"] - found["constant"]))
            figures[f"http_us_over_constant_b{batch}"] = over
            figures[f"http_us_over_constant_and_enclave_b{batch}"] = over - figures[f"secret_p50_us_b{batch}"]
            print(f"http_us_over_constant_b{batch}: {over:.0f}", flush=True)


def transport(figures: dict[str, float], raw: dict[str, Any], *, repeats: int, seconds: float) -> None:
    """Frames inside of a packet against frames in shared memory: a round trip to a process that copies them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shared = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
    child = os.fork()
    if child == 0:
        ours.close()
        while packet := theirs.recv(1 << 18):
            count = int.from_bytes(packet[:4], "little")
            np.frombuffer(packet, np.uint8, offset=4).copy() if count == 0 else shared[:count].copy()
            theirs.send(packet[:4])
        os._exit(0)
    theirs.close()

    def inline(frames: bytes) -> None:
        ours.send(bytes(4) + frames)
        ours.recv(16)

    def mapped(frames: bytes) -> None:
        shared[: len(frames)] = np.frombuffer(frames, np.uint8)
        ours.send(len(frames).to_bytes(4, "little"))
        ours.recv(16)

    for size, name in ((3 * 32 * 32, "uint8"), (4 * 3 * 32 * 32, "float32")):
        frames = os.urandom(size)
        ways: dict[str, Callable[[], object]] = {
            "inline": functools.partial(inline, frames),
            "shared": functools.partial(mapped, frames),
        }
        samples = alternate(ways, repeats=repeats, seconds=seconds)
        raw[f"transport_{name}"] = samples
        figures[f"shared_memory_vs_inline_{name}_b1"] = ratio(samples, "shared", "inline").median
        print(f"shared_memory_vs_inline_{name}_b1: {figures[f'shared_memory_vs_inline_{name}_b1']:.3f}", flush=True)
    ours.close()
    os.waitpid(child, 0)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    setups, repeats, seconds = (1, 1, 0.02) if args.quick else (5, 9, 0.1)
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    transport(figures, raw, repeats=repeats, seconds=seconds)
    enclaves(figures, raw, setups=setups, repeats=repeats, seconds=seconds)
    http(figures, raw, rounds=20 if args.quick else 1000)
    write_result(
        "serve",
        figures=figures,
        raw=raw,
        seeds=[],
        n={"setups": setups, "repeats": repeats, "http_rounds": 20 if args.quick else 1000},
        path=result_path("serve", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
