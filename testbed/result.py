"""Writes the result of a command of `benchmarks/` or `assurance/`: one JSON file with all data to repeat it.

It calls `write_result` once, at its end::

    args = parser.parse_args()
    source_commit()  # before this run writes any tracked file itself
    ...
    write_result(
        "speed_copy",
        figures={"ratio_batch_1": interval.median},
        raw={"seconds": samples},
        seeds=[0],
        n={"repeats": 31},
        path=result_path("speed_copy", quick=args.quick, out=args.out),
    )

The file is ``results/<name>.json`` in the folder of the command, with the keys

    command   the command line, `python -m <folder>.<module> args`
    commit    of the source: see `source_commit`
    date      when it was written, UTC, ISO 8601
    source    the files that the command needs, each with a digest of what it does: see `source`
    seeds     the seeds used
    n         how many of what (images, repeats, queries), by name
    versions  of python and of the packages that matter, by name
    cpu       {"model", "cores"}
    figures   flat numbers under stable names: what the README and the documents quote
    raw       the repeats behind them

and is written only by a full run: a quick run writes elsewhere, so that it cannot replace real figures.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from testbed.source import REPOSITORY, source_of
from variegate.keys.errors import MisuseError
from variegate.keys.files import PUBLIC, write_atomic

FOLDERS: Final = {name: REPOSITORY / name / "results" for name in ("benchmarks", "assurance")}
"""Folders of committed results, by the folder of their commands."""

# torch counts only where it took part: a device benchmark runs without it.
_PACKAGES: Final = ("numpy", "onnxruntime", "onnx", "cryptography")


def committed(name: str) -> Path:
    """The file of a committed result; where there is none yet, the one that the running command would write."""
    for folder in FOLDERS.values():
        if (path := folder / f"{name}.json").exists():
            return path
    return FOLDERS.get(_program().partition(".")[0], FOLDERS["benchmarks"]) / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """A committed result."""
    document: dict[str, Any] = json.loads(committed(name).read_text("utf-8"))
    return document


def result_path(name: str, *, quick: bool, out: Path | None) -> Path:
    """Where a run writes its result.

    Args:
        name: The result's name.
        quick: Whether this is a smoke run, whose figures mean nothing.
        out: The path that the person asked for, or None.

    Returns:
        `out` where given; else a file in a new temporary folder for a quick run, and the committed file
        `committed` one for a full run.
    """
    if out is not None:
        return out
    if quick:
        return Path(tempfile.mkdtemp(prefix="variegate-")) / f"{name}.json"
    return committed(name)


def write_result(
    name: str,
    *,
    figures: Mapping[str, float | int],
    raw: object,
    seeds: Sequence[int],
    n: Mapping[str, int],
    path: Path | None = None,
) -> Path:
    """Write one result file, whole or not at all, and print where.

    Args:
        name: The result's name: lower-case letters, digits and underscores.
        figures: Flat numbers under stable names; finite.
        raw: Anything JSON can hold: the repeats behind the figures.
        seeds: The seeds used; empty where nothing was random.
        n: Counts, by name.
        path: Where to write, from `result_path`; None for the committed file.

    Returns:
        The file written.

    Raises:
        MisuseError: `name` is not a name, or a value is not a finite number or not something JSON can hold.
    """
    if not (name.isidentifier() and name.islower() and name.isascii()):
        raise MisuseError(f"{name!r} is no name for a result", hint="use lower-case letters, digits and _")
    target = path if path is not None else committed(name)
    document = {
        "command": _command(),
        "commit": source_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source_of(_program()),
        "seeds": list(seeds),
        "n": dict(n),
        "versions": _versions(),
        "cpu": _cpu(),
        "figures": dict(figures),
        "raw": raw,
    }
    try:
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise MisuseError(
            f"the result {name} cannot be written as JSON: {error}",
            hint="turn numpy values into float, int and list, and leave out nan and infinity",
        ) from error
    _replace(target, text)
    print(f"wrote {target}")
    return target


@functools.cache
def source_commit() -> str:
    """The commit of the source, with ``-dirty`` where the tree differs from it.

    Committed results do not count as a difference, so that one benchmark can run after another. The answer is
    fixed by the first call of a process: a benchmark that writes another tracked file asks before it does.

    Returns:
        The hash; ``uncommitted`` in a repository without a commit; ``unknown`` outside a repository.
    """
    try:
        changes = _git("status", "--porcelain", "--", ".", *(f":(exclude){folder}/results" for folder in FOLDERS))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    try:
        commit = _git("rev-parse", "--verify", "HEAD")
    except subprocess.CalledProcessError:
        return "uncommitted"
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(REPOSITORY), *arguments)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _command() -> str:
    module = _program()
    program = f"-m {module}" if module else Path(sys.argv[0]).name
    return " ".join(("python", program, *(shlex.quote(_plain(word)) for word in sys.argv[1:])))


def _program() -> str:
    """The module that runs as `python -m`; empty where a file does."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    # `python -m package` runs package.__main__; the command line names the package alone.
    return specification.name.removesuffix(".__main__") if specification else ""


def _plain(word: str) -> str:
    """A path that reveals nothing of the machine: relative to the repository, or its last part."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else path.name


def _versions() -> dict[str, str]:
    packages = (*_PACKAGES, "torch") if "torch" in sys.modules else _PACKAGES
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> dict[str, str | int]:
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
                break
    return {"model": model, "cores": os.cpu_count() or 1}


def _replace(target: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader finds the old file or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, text.encode(), mode=PUBLIC, overwrite=True)
