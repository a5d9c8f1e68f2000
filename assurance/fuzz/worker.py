"""One target in a process of its own.

    python -m assurance.fuzz.worker fuzz NAME FOLDER --seconds S --seed N [--corpus DIR ...]
    python -m assurance.fuzz.worker replay NAME FOLDER FILE ...
    python -m assurance.fuzz.worker minimise NAME FOLDER FILE

`fuzz` runs libFuzzer over our instrumented Python. It writes findings to FOLDER/findings, one file for each kind and
place, and continues. `replay` and `minimise` print JSON; neither needs atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assurance.fuzz.target import Finding, Run, Target

_ROOM = 2 << 30
"""Address space that a target may take besides what its process has from the start: a bomb ends in MemoryError."""
_MINIMISE_S = 20.0
_AFRESH = 0.3
"""Share of mutations that begin with a seed."""
_HANG_S = 30
"""Wall time after which libFuzzer ends the process."""


def main() -> None:
    """Runs one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fuzz", "replay", "minimise"))
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, action="append", default=[])
    args = parser.parse_args()
    if args.what == "fuzz":
        fuzz(args.name, args.folder, args.corpus, seconds=args.seconds, seed=args.seed)
        return
    target = _target(args.name)
    with target.opened(_fresh(args.folder)) as run:
        _bound()
        if args.what == "minimise":
            sys.stdout.buffer.write(minimised(target, run, args.files[0].read_bytes()))
            return
        for path in args.files:
            print(json.dumps(_told(path.name, target, run, path.read_bytes())), flush=True)


def fuzz(name: str, folder: Path, corpora: list[Path], *, seconds: int, seed: int) -> None:
    """Fuzzes until the time is over; ends the process."""
    import atheris  # noqa: PLC0415  the other two do without

    with atheris.instrument_imports(include=["variegate"]):
        target = _target(name)
    found = folder / "findings"
    found.mkdir(parents=True, exist_ok=True)
    known: set[str] = set()
    opened = target.opened(_fresh(folder))
    run = opened.__enter__()  # libFuzzer ends the process: there is no leaving
    _bound()

    def one(data: bytes) -> None:
        said = judged(target, run, data)
        if not isinstance(said, str) and said.key not in known:
            known.add(said.key)
            name = hashlib.sha256(said.key.encode()).hexdigest()[:16]
            (found / f"{name}.bin").write_bytes(data)
            (found / f"{name}.txt").write_text(f"{said.key}\n{said.text}\n")

    from assurance.fuzz.target import judged  # noqa: PLC0415  after what is instrumented

    def plain(data: bytes, most: int) -> bytes:
        mutated: bytes = atheris.Mutate(data, most)  # another function once `Fuzz` runs
        return mutated

    words = folder / "words"
    words.write_text("".join('"{}"\n'.format("".join(f"\\x{byte:02x}" for byte in word)) for word in target.words))
    own = folder / "corpus"
    own.mkdir(exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (own / f"seed-{number}").write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={target.cap}",
        f"-timeout={_HANG_S}",
        "-rss_limit_mb=0",
        *(["-mutate_depth=2"] if target.mutate is not None else []),
        "-print_final_stats=1",
        f"-artifact_prefix={folder}/artifact-",
        *([f"-dict={words}"] if target.words else []),
        str(own),
        *(str(path) for path in corpora if path.is_dir()),
    ]
    atheris.Setup([sys.argv[0], *options], one, **_mutator(target, plain))
    atheris.Fuzz()


def _mutator(target: Target, plain: Callable[[bytes, int], bytes]) -> dict[str, Any]:
    mutate = target.mutate
    if mutate is None:
        return {}

    seeds = list(target.seeds())

    def custom(data: bytes, most: int, seed: int) -> bytes:
        chance = Random(seed)  # noqa: S311  to repeat
        if chance.random() < _AFRESH:
            # Most of a corpus is malformed in a new way; what is right but for one value would be tried too seldom.
            data = chance.choice(seeds)
        return mutate(data, most, chance, plain)

    return {"custom_mutator": custom}


def minimised(target: Target, run: Run, data: bytes) -> bytes:
    """Takes away pieces, ever smaller, as long as the same is found."""
    wanted, end = _key(target, run, data), time.monotonic() + _MINIMISE_S
    step = max(1, len(data) // 2)
    while wanted and step and time.monotonic() < end:
        for at in range(0, len(data), step):
            shorter = data[:at] + data[at + step :]
            if time.monotonic() < end and shorter != data and _key(target, run, shorter) == wanted:
                data = shorter
                break
        else:
            step //= 2
    return data


def _key(target: Target, run: Run, data: bytes) -> str:
    from assurance.fuzz.target import judged  # noqa: PLC0415  after what is instrumented

    said = judged(target, run, data)
    return "" if isinstance(said, str) else said.key


def _told(name: str, target: Target, run: Run, data: bytes) -> dict[str, str]:
    from assurance.fuzz.target import judged  # noqa: PLC0415  after what is instrumented

    said: str | Finding = judged(target, run, data)
    if isinstance(said, str):
        return {"file": name, "verdict": said}
    return {"file": name, "finding": said.key, "text": said.text}


def _target(name: str) -> Target:
    """Imported late: whoever fuzzes wants it instrumented."""
    from assurance.fuzz.all_targets import PLANTED, TARGETS  # noqa: PLC0415

    return PLANTED if name == PLANTED.name else TARGETS[name]


def _fresh(folder: Path) -> Path:
    place = folder / "place"
    place.mkdir(parents=True)
    return place


def _bound() -> None:
    """Bounds the address space, and lets a thread of a server or of libFuzzer still start."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
