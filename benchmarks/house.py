"""How large the house is, before and after it was put in order: lines, files, public names, imports, stale figures.

    python -m benchmarks.house [--quick] [--counts-only] [--out FILE]

The product is what the wheel has. `before` is the commit that this was asked at. Lines are all lines of Python files.
A public name is a top-level function or class without an underscore; an importer is a file of another folder that
imports one of the folder's modules. `check_seconds` is the time of `make check` once everything is installed.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.status import stale
from testbed.result import result_path, source_commit, write_result
from testbed.source import REPOSITORY

NAME: Final = "house"
BEFORE: Final = "2436156"
FOLDERS: Final = (
    *("attack", "attest", "cli", "demo", "device_sim", "export"),
    *("forensics", "isolation", "keys", "runtime", "serve"),
)


def texts(commit: str) -> dict[str, str]:
    """Python files and the README of a commit; of the working tree for "", which needs no repository."""
    if not commit:
        paths = [
            REPOSITORY / "README.md",
            *(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")),
        ]
        return {str(path.relative_to(REPOSITORY)): path.read_text("utf-8") for path in paths}
    command = ["git", "-C", str(REPOSITORY), "archive", commit]
    done = subprocess.run(command, capture_output=True, check=True)  # noqa: S603
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [one for one in archive if one.isfile() and (one.name.endswith(".py") or one.name == "README.md")]
        return {one.name: file.read().decode() for one in members if (file := archive.extractfile(one))}


def counts(commit: str) -> dict[str, int]:
    """Of one commit."""
    files = texts(commit)
    out = {"readme_bytes": len(files.pop("README.md").encode())}
    out |= dict.fromkeys(("lines", "files", "public_names", "faces", "importers", "test_lines"), 0)
    for path, text in files.items():
        folder = path.partition("/")[0]
        if folder == "tests":
            out["test_lines"] += len(text.splitlines())
        tree = ast.parse(text)
        out["importers"] += len(_foreign(tree) - {folder}) if folder in FOLDERS else 0
        if folder in FOLDERS:
            out["files"] += 1
            out["lines"] += len(text.splitlines())
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            out["public_names"] += sum(isinstance(n, kinds) and not n.name.startswith("_") for n in tree.body)
            out["faces"] += path.count("/") == 1 and path.endswith("__init__.py") and "__all__" in text
    return out


def _foreign(tree: ast.Module) -> set[str]:
    """Folders of ours that a file imports from."""
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("variegate.")}


def check_seconds() -> float:
    """Time of `make check`."""
    begin = time.monotonic()
    subprocess.run(["make", "check"], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)  # noqa: S607
    return time.monotonic() - begin


def main() -> None:
    """Counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test: today's counts alone")
    parser.add_argument("--counts-only", action="store_true", help="leaves make check out")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    source_commit()
    # A smoke test may run in a shallow clone.
    after = counts("" if args.quick else "HEAD")
    before = after if args.quick else counts(BEFORE)
    figures: dict[str, Any] = {}
    for name, value in after.items():
        key = {"lines": "product_lines", "files": "product_files"}.get(name, name)
        figures |= {f"{key}_before": before[name], f"{key}_after": value}
    figures |= {"readme_bytes": after["readme_bytes"], "public_names": after["public_names"]}
    figures["stale_figures"] = len(stale())
    raw = {"before": BEFORE, "folders": list(FOLDERS)}
    path = result_path(NAME, quick=args.quick, out=args.out)
    write_result(NAME, figures=figures, raw=raw, seeds=[], n={"runs": 1}, path=path)
    if not args.quick and not args.counts_only:
        # `make check` reads this very result, so that the counts must be there.
        figures["check_seconds"] = round(check_seconds(), 1)
        write_result(NAME, figures=figures, raw=raw, seeds=[], n={"runs": 1}, path=path)


if __name__ == "__main__":
    main()
