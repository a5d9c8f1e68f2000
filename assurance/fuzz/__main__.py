"""Coverage-guided hostile bytes for all code that reads bytes from outside.

    python -m assurance.fuzz [--quick] [--seconds PER_TARGET] [--target NAME ...] [--corpus DIR] [--keep] [--out PATH]

Each target (`assurance.fuzz`) runs in a process of its own under atheris (libFuzzer over instrumented Python), from its
seeds and the vectors in `tests/vectors/fuzz`. `target` defines a finding. A finding is made smaller and tried in a
fresh process without instrumentation; it is open if it occurs there again. First a target with a planted mistake is
fuzzed for a few seconds: `planted_found` says whether the mistake was found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from assurance.fuzz import vectors
from assurance.fuzz.all_targets import PLANTED, TARGETS
from testbed.result import result_path, source_commit, write_result

SEED = 47
SECONDS = 30
QUICK = ("from_enclave",)
_NICE = 10
_PLANTED_S = 15
_LATE_S = 120
_STARTS = 4
"""Processes that a target gets: one that a finding ends is followed by the next."""


@dataclass
class Score:
    """The result of one target.

    Attributes:
        executions: Inputs run.
        edges: Branches of ours that were reached, as libFuzzer counts them; those of the seeds among them.
        findings: Each with what it was and whether it is open.
    """

    executions: int = 0
    edges: int = 0
    findings: list[dict[str, str | bool]] = field(default_factory=list)

    @property
    def open(self) -> int:
        """Findings that were found again."""
        return sum(bool(finding["open"]) for finding in self.findings)


def main() -> None:
    """Fuzzes every target in turn and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--seconds", type=int, help=f"seconds of fuzzing for each target (default: {SECONDS})")
    parser.add_argument(
        "--target", action="append", choices=tuple(TARGETS), metavar="NAME", help="only this target; may be repeated"
    )
    parser.add_argument("--corpus", type=Path, help="folder for inputs that reached new code, and to continue with")
    parser.add_argument("--keep", action="store_true", help="keep findings under tests/vectors/fuzz")
    parser.add_argument("--out", type=Path, help="write the result there instead")
    args = parser.parse_args()
    names = args.target or (QUICK if args.quick else tuple(TARGETS))
    seconds = args.seconds or (1 if args.quick else SECONDS)
    source_commit()  # before vectors are kept
    os.nice(_NICE)
    planted = _fuzzed(PLANTED.name, min(seconds, _PLANTED_S), None, keep=False)
    scores = {name: _fuzzed(name, seconds, args.corpus, keep=args.keep) for name in names}
    found = sum(len(score.findings) for score in scores.values())
    write_result(
        "fuzz",
        figures={
            "executions": sum(score.executions for score in scores.values()),
            "targets": len(scores),
            "findings": found,
            "planted_found": planted.open,
            "open_findings": sum(score.open for score in scores.values()),
        },
        raw={name: asdict(score) for name, score in scores.items()},
        seeds=[SEED],
        n={"seconds_per_target": seconds},
        # A run of some targets is no result.
        path=result_path("fuzz", quick=args.quick or args.target is not None, out=args.out),
    )


def _fuzzed(name: str, seconds: int, corpus: Path | None, *, keep: bool) -> Score:
    score, end, began = Score(), time.monotonic() + seconds, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="variegate-", dir=_memory()) as place:
        folder = Path(place)
        kept = None if corpus is None else corpus.resolve() / name
        for turn in range(_STARTS):
            left = round(end - time.monotonic())
            if left < 1:
                break
            run = folder / str(turn)
            run.mkdir()
            if kept is not None and kept.is_dir():
                shutil.copytree(kept, run / "corpus")
            _once(name, run, left, SEED + turn, score)
            if kept is not None:
                shutil.copytree(run / "corpus", kept, dirs_exist_ok=True)
        for data, text in _unique(folder):
            score.findings.append(_judged(name, folder, data, text, keep=keep))
    print(
        f"{name}: {score.executions} executions, {score.edges} edges, {len(score.findings)} findings, "
        f"{score.open} open, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return score


def _once(name: str, run: Path, seconds: int, seed: int, score: Score) -> None:
    command = ["fuzz", name, str(run), "--seconds", str(seconds), "--seed", str(seed)]
    output = _worker([*command, "--corpus", str(vectors.FOLDER / name)], seconds + _LATE_S)
    numbers = [int(number) for number in re.findall(r"^#(\d+)\s", output, re.MULTILINE)]
    done = re.search(r"^Done (\d+) runs", output, re.MULTILINE)
    score.executions += int(done[1]) if done else max(numbers, default=0)
    score.edges = max([score.edges, *(int(edges) for edges in re.findall(r"\bcov: (\d+)", output))])
    if done is None and not list(run.glob("artifact-*")):
        # It died without an input to blame; nobody is to take that for a quiet run.
        (run / "findings").mkdir(parents=True, exist_ok=True)
        (run / "findings" / "died.bin").write_bytes(b"")
        (run / "findings" / "died.txt").write_text(f"died\n{output[-2000:]}\n")


def _unique(folder: Path) -> list[tuple[bytes, str]]:
    """Findings of all processes, one for each kind; libFuzzer's own are hangs and crashes."""
    found: dict[str, tuple[bytes, str]] = {}
    for path in sorted(folder.glob("*/findings/*.bin")):
        text = path.with_suffix(".txt").read_text()
        found.setdefault(text.partition("\n")[0], (path.read_bytes(), text))
    for path in sorted(folder.glob("*/artifact-*")):
        kind = path.name.split("-")[1]
        found.setdefault(kind, (path.read_bytes(), f"{kind}\nlibFuzzer ended the process\n"))
    return list(found.values())


def _judged(name: str, folder: Path, data: bytes, text: str, *, keep: bool) -> dict[str, str | bool]:
    """Looks at a finding in fresh processes."""
    key, _, words = text.partition("\n")
    digest = hashlib.sha256(data).hexdigest()[:16]
    file = folder / f"{digest}.bin"
    file.write_bytes(data)
    if key == "died":
        return {"what": key, "text": words.strip(), "open": True, "file": ""}
    again = vectors.replayed(name, [file], folder / f"{digest}-again")
    if again and "finding" in again[0]:
        smaller = vectors.minimised(name, file, folder / f"{digest}-small")
        data = smaller or data
    if keep:
        digest = vectors.kept(name, data, wrong=text.strip().replace("\n", ": "))
    # A process that says nothing has crashed or hangs: that is the finding.
    return {"what": key, "text": words.strip(), "open": not again or "finding" in again[0], "file": digest}


def _worker(arguments: Sequence[str], seconds: int) -> str:
    command = [sys.executable, "-m", "assurance.fuzz.worker", *arguments]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=vectors.ROOT)  # noqa: S603
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.seek(0)
        return output.read().decode(errors="replace")


def _memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


if __name__ == "__main__":
    main()
