"""A campaign is killed at random moments and resumed, and then compared byte for byte with an uninterrupted one.

    python -m assurance.resume [--quick]

The attacks are real ones on copies of the small GTSRB network, through `variegate attack`. SIGKILL hits the whole
process group, command and workers, at moments drawn uniformly from the start of each run; `resume` continues with
another number of workers each time. A campaign that ends before its next kill is compared, and another one is started,
until there were enough kills. The comparison covers every shard and the ledger's content, also for a campaign with
another number of workers.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from testbed import campaigns
from testbed.result import result_path, source_commit, write_result

SEED = 20
_WORKERS = (2, 1, 3, 0)
_START_S = 2.0
"""About the time that the command needs to start."""
_FILE = """
schema = 1
name = "resume"
seed = {seed}

[data]
set = "gtsrb-test"
count = {count}

[[fleet]]
name = "qim"
copies = 3
bases = ["{base}"]
rewriter = {{ kind = "qim" }}

[[fleet]]
name = "permutation"
copies = 2
bases = ["{base}"]
rewriter = {{ kind = "permutation" }}

[[attack]]
name = "hopskipjump"
kind = "hopskipjump"
queries = {queries}
budgets = [{half}, {queries}]

[[attack]]
name = "cgba"
kind = "cgba"
queries = {queries}
budgets = [{half}, {queries}]

[run]
unit = 3
workers = 2
"""


def killed(file: Path, folder: Path, alone: Path, alone_s: float, kills: int) -> list[dict[str, Any]]:
    """Campaigns that are killed, until there were enough kills.

    Args:
        file: The campaign's.
        folder: To work in.
        alone: The one left alone.
        alone_s: Seconds that it took.
        kills: Kills wanted.

    Returns:
        For each campaign: its kills, units done at each, and bytes that differ in the end.
    """
    chance = random.Random(SEED)  # noqa: S311  to repeat
    rounds: list[dict[str, Any]] = []
    left = kills
    while left:
        out = folder / f"killed{len(rounds)}"
        moments: list[dict[str, float]] = []
        running = True
        while running and left:
            workers = _WORKERS[(kills - left) % len(_WORKERS)]
            arguments = ("resume", out) if out.exists() else ("run", file, "--out", out)
            delay = chance.uniform(0, _START_S + 2 * alone_s / kills)
            running = not _ended(campaigns.command(*arguments, "--workers", str(workers)), delay)
            if running:
                left -= 1
                done = len(list((out / "replays").glob("*.parquet")))
                moments.append({"after_s": delay, "workers": workers, "units_on_disk": done})
                print(f"kill {kills - left}: after {delay:.2f} s, {workers} workers, {done} units on disk", flush=True)
        if running:
            campaigns.attack(*(("resume", out) if out.exists() else ("run", file, "--out", out)))
        rounds.append({"kills": moments, "different_bytes": campaigns.different_bytes(alone, out)})
    return rounds


def _ended(command: list[str], delay: float) -> bool:
    """Runs a command; whether it ended before it was killed."""
    with subprocess.Popen(  # noqa: S603  our own command
        command,
        env=campaigns.environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            status = process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return False
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return True


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few kills and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    kills, count, queries = (3, 3, 100) if args.quick else (20, 6, 1_500)
    with tempfile.TemporaryDirectory(prefix="variegate-resume-") as name:
        folder = Path(name)
        file = folder / "campaign.toml"
        base = campaigns.write_base(folder)
        file.write_text(_FILE.format(seed=SEED, count=count, queries=queries, half=queries // 2, base=base))
        begun = time.monotonic()
        campaigns.attack("run", file, "--out", folder / "alone")
        alone_s = time.monotonic() - begun
        other = folder / "other"
        campaigns.attack("run", file, "--out", other, "--workers", "0" if args.quick else "3")
        between = campaigns.different_bytes(folder / "alone", other)
        rounds = killed(file, folder, folder / "alone", alone_s, kills)
        shards = [path.stat().st_size for path in (folder / "alone").rglob("*.parquet")]
    write_result(
        "resume",
        figures={
            "kills": sum(len(one["kills"]) for one in rounds),
            "different_bytes": between + sum(one["different_bytes"] for one in rounds),
        },
        raw={"other_workers_different_bytes": between, "alone_s": alone_s, "campaigns": rounds},
        seeds=[SEED],
        n={"shards": len(shards), "shard_bytes": sum(shards), "images": count, "queries_per_image": queries},
        path=result_path("resume", quick=args.quick, out=args.out),
    )


if __name__ == "__main__":
    main()
