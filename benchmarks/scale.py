"""A million queries on a fleet through a Dask cluster of separate processes, with a check of the ledger.

    python -m benchmarks.scale [--quick]

HopSkipJump runs on QIM copies of the small GTSRB network, one for each device, in worker processes that hold the copies
(`variegate attack run --dask`); the copies are neither sealed nor isolated. Each unit compares its copy's count of
labels with the sum of its searches. Afterwards the ledger is compared with every shard, units and queries are counted
again by SQL, and random samples are shown to the copies again: `ledger_errors` counts all differences.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from testbed import campaigns
from testbed.result import result_path, source_commit, write_result
from variegate.attack.campaign.query import open_results

SEED, WORKERS = 21, 2
_FILE = """
schema = 1
name = "scale"
seed = {seed}

[data]
set = "gtsrb-test"
count = {count}
choose = "random"

[[fleet]]
name = "qim"
copies = {devices}
bases = ["{base}"]
rewriter = {{ kind = "qim" }}

[[attack]]
name = "hopskipjump"
kind = "hopskipjump"
queries = {queries}

[replay]
overshoots = [1.0]
victims = 2

[run]
unit = 13
"""


@contextlib.contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """A scheduler and workers as processes of their own; the scheduler's address."""
    place = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    with contextlib.ExitStack() as stack:

        def started(*arguments: str) -> None:
            process = subprocess.Popen(  # noqa: S603  our own command
                [*dask, *arguments],
                env=campaigns.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)

        started("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(place))
        until = time.monotonic() + 60
        while not (place.exists() and place.read_text()):
            if time.monotonic() > until:
                raise RuntimeError("the scheduler does not start")
            time.sleep(0.1)
        address = str(json.loads(place.read_text())["address"])
        for i in range(workers):
            local = str(folder / f"worker{i}")
            started("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", local)
        yield address


def errors(folder: Path, sample: int) -> list[str]:
    """All in which ledger, shards and copies differ."""
    done = subprocess.run(  # noqa: S603  our own command
        campaigns.command("verify", folder, "--sample", str(sample), "--json"),
        env=campaigns.environment(),
        stdout=subprocess.PIPE,
        check=False,
    )
    found = json.loads(done.stdout)
    out = list(found["differences"])
    out += [f"unit {i} is not done" for i in range(found["done"], found["units"])]
    with open_results(folder) as connection:
        in_shards = connection.execute(
            "SELECT sum(queries), count(*), count(DISTINCT attacker) FROM samples"
        ).fetchone()
        in_ledger = connection.execute(
            "SELECT sum(queries), sum(images), count(DISTINCT attacker) FROM units"
        ).fetchone()
    if in_shards != in_ledger:
        out.append(f"shards have {in_shards}, and the ledger {in_ledger}")
    return out


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few devices and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    devices, count, queries = (3, 2, 60) if args.quick else (20, 26, 2_000)
    with tempfile.TemporaryDirectory(prefix="variegate-scale-") as name:
        folder = Path(name)
        file = folder / "campaign.toml"
        base = campaigns.write_base(folder)
        file.write_text(_FILE.format(seed=SEED, count=count, devices=devices, queries=queries, base=base))
        out = folder / "campaign"
        with cluster(folder, WORKERS) as address:
            begun = time.monotonic()
            ended = json.loads(campaigns.attack("run", file, "--out", out, "--dask", address, "--json"))
            took = time.monotonic() - begun
        wrong = errors(out, 20 if args.quick else 200)
    print("\n".join(wrong))
    write_result(
        "scale",
        figures={
            "queries": ended["queries"],
            "devices": devices,
            "ledger_errors": len(wrong),
            "queries_per_second": ended["queries"] / took,
        },
        raw={"ended": ended, "seconds": took, "errors": wrong},
        seeds=[SEED],
        n={"workers": WORKERS, "units": ended["units"], "images": count, "queries_per_image": queries},
        path=result_path("scale", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
