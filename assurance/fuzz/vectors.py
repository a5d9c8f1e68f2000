"""Inputs that are kept under `tests/vectors/fuzz`: earlier findings, and a few seeds of each target.

<target>/<first 16 digits of SHA-256>.bin
index.json      for each target and file: what was wrong, or nothing for a seed; and the verdict of today

python -m assurance.fuzz.vectors      adds the seeds, and takes the verdicts again
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "vectors" / "fuzz"
INDEX = FOLDER / "index.json"
_PATIENCE_S = 120

Index = dict[str, dict[str, dict[str, str]]]


def index() -> Index:
    """By target and file: `wrong` and `verdict`."""
    found: Index = json.loads(INDEX.read_text("utf-8")) if INDEX.exists() else {}
    return found


def kept(name: str, data: bytes, *, wrong: str = "") -> str:
    """Keeps an input; gives its name without the suffix."""
    digest = hashlib.sha256(data).hexdigest()[:16]
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{digest}.bin").write_bytes(data)
    whole = index()
    entry = whole.setdefault(name, {}).setdefault(f"{digest}.bin", {"wrong": "", "verdict": ""})
    entry["wrong"] = entry["wrong"] or wrong
    _write(whole)
    return digest


def replayed(name: str, files: list[Path], folder: Path) -> list[dict[str, str]]:
    """Shows files to a fresh process: `file`, and `verdict` or `finding` for each; fewer when it crashed or hung."""
    output = _worker("replay", name, folder, *files)
    return [json.loads(line) for line in output.decode().splitlines()]


def minimised(name: str, file: Path, folder: Path) -> bytes:
    """A smaller input with the same finding; empty when the process crashed."""
    return _worker("minimise", name, folder, file)


def _worker(what: str, name: str, folder: Path, *files: Path) -> bytes:
    command = [sys.executable, "-m", "assurance.fuzz.worker", what, name, str(folder), *map(str, files)]
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=_PATIENCE_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return b""
    return done.stdout


def _write(whole: Index) -> None:
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=True)
    INDEX.write_text(text + "\n", "utf-8")


def main() -> None:
    """Adds the seeds of targets that have none here, and takes the verdicts of all again."""
    from assurance.fuzz.all_targets import TARGETS  # noqa: PLC0415  a worker's parent does without

    for name, target in TARGETS.items():
        if not any(not entry["wrong"] for entry in index().get(name, {}).values()):
            for data in target.seeds():
                kept(name, data)
    whole = index()
    for name, entries in sorted(whole.items()):
        with tempfile.TemporaryDirectory(prefix="variegate-") as folder:
            said = replayed(name, [FOLDER / name / file for file in sorted(entries)], Path(folder))
        for one in said:
            entry, found = entries[one["file"]], one.get("verdict", f"FINDING {one.get('finding')}")
            if found != entry["verdict"]:
                print(f"{name}/{one['file']}: {entry['verdict']!r} becomes {found!r}")
            entry["verdict"] = found
        if len(said) < len(entries):
            print(f"{name}: only {len(said)} of {len(entries)} ran")
    _write(whole)


if __name__ == "__main__":
    main()
