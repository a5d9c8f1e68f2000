"""Root's attacks on a serving device: they must succeed in an open machine and fail in a locked one.

    python -m assurance.root.measure [--quick]

Both machines are the same image except for the lock: Debian's kernel under QEMU, without acceleration. Latency is a
ratio of two medians over HTTP, one frame at a time: inside the locked machine to the same command on this one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray

from assurance.root.attacker.attacks import FAILED, IMPOSSIBLE, SUCCEEDED
from assurance.root.device import made
from assurance.root.image import booted
from assurance.root.run import Report, attack
from testbed.bases import base, images
from testbed.images import free_port
from testbed.result import result_path, source_commit, write_result
from variegate.cli.console import note

_SLOW = 4.0
_QUICK = ["read_mem", "write_code", "sysctls"]
_QUERIES, _QUICK_QUERIES = 60, 5
_PATIENCE_S = 60.0


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three attacks, few queries")
    parser.add_argument("--out", type=Path, help="where to write the result")
    args = parser.parse_args()
    source_commit()
    only = _QUICK if args.quick else None
    queries = _QUICK_QUERIES if args.quick else _QUERIES
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    reports: dict[str, Report] = {}
    for name, locked in (("locked", True), ("open", False)):
        note(f"{name}: building, booting")
        with (
            TemporaryDirectory(prefix="variegate-") as folder,
            booted(Path(folder), base(Path(folder)), images(64), locked=locked) as one,
        ):
            figures[f"boot_s_{name}"] = one.boot_s
            if locked:
                figures["image_bytes"] = one.image_bytes
                inside = _latencies(one.machine.port, queries)
            note(f"{name}: up after {one.boot_s:.0f} s; attacking")
            reports[name] = attack(one.target, only=only, machine=True, slow=_SLOW)
        raw[name] = reports[name].to_json()
        note(reports[name].table())
    with _served_here() as port:
        outside = _latencies(port, queries)
    figures |= _counted(reports["open"], reports["locked"])
    figures["latency_ratio"] = statistics.median(inside) / statistics.median(outside)
    write_result(
        "root",
        figures=figures,
        raw={**raw, "inside_s": inside, "outside_s": outside},
        seeds=[0],
        n={"attacks": len(reports["locked"].results), "queries": queries},
        path=result_path("root", quick=args.quick, out=args.out),
    )


def _counted(opened: Report, locked: Report) -> dict[str, float]:
    """An attack counts in a machine that has what it needs."""
    tried = [one for one in locked.results if one.result != IMPOSSIBLE]
    shown = set(opened.names(SUCCEEDED))
    return {
        "attacks": len(locked.results),
        "succeed_open": len(opened.names(SUCCEEDED)),
        "failed_open": len(opened.names(FAILED)),
        "impossible_open": len(opened.names(IMPOSSIBLE)),
        "succeed_locked": len(locked.names(SUCCEEDED)),
        "impossible_locked": len(locked.names(IMPOSSIBLE)),
        "failed_locked_that_succeed_open": sum(1 for one in tried if one.result == FAILED and one.name in shown),
        "windows_read_open": sum(one.windows for one in opened.results),
        "windows_read_locked": sum(one.windows for one in locked.results),
        "labels_beyond_budget_open": _beyond(opened),
        "labels_beyond_budget_locked": _beyond(locked),
    }


def _beyond(report: Report) -> int:
    return sum(int(one.found.get("beyond", 0)) for one in report.results)


def _latencies(port: int, count: int) -> list[float]:
    """Seconds of single queries over one connection, the first not counted."""
    client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=120, connection_timeout=120)
    shown: NDArray[np.uint8] = images(1)
    image = triton.InferInput("image", shown.shape, "UINT8")
    image.set_data_from_numpy(shown)
    seconds = []
    for _ in range(count + 1):
        began = time.perf_counter()
        client.infer("copy", [image])
        seconds.append(time.perf_counter() - began)
    client.close()
    return seconds[1:]


@contextmanager
def _served_here() -> Iterator[int]:
    """The port of such a device served on this machine."""
    with TemporaryDirectory(prefix="variegate-") as folder:
        device = made(Path(folder) / "device", base(Path(folder)), images(64))
        port = free_port()
        serve = [sys.executable, "-m", "variegate.cli.main", "device", "serve", str(device.folder), "--port", str(port)]
        process = subprocess.Popen(serve, stderr=subprocess.DEVNULL)  # noqa: S603  this package
        try:
            _until_ready(port)
            yield port
        finally:
            process.terminate()
            process.wait()


def _until_ready(port: int) -> None:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the device does not serve")


if __name__ == "__main__":
    main()
