"""Lists the figures that were made from other source than today's.

    python -m benchmarks.status [--json] [--derive]

A result names the files that its command needed, each with a digest of what the file does (`testbed.source`). It is
current if today's files do the same. Older results did not name their files: `--derive` added those of the commit that
each result names, and marks them as derived.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from testbed.result import FOLDERS
from testbed.source import REPOSITORY, changed, source_of
from variegate.keys.files import PUBLIC, write_atomic

_SHOWN = 4
_MOVED = {f"benchmarks.{name}": f"assurance.{name}" for name in ("fuzz", "powercut", "resume", "soak", "tamper")} | {
    "benchmarks.isolation": "assurance.memory",
    "benchmarks.root": "assurance.root.measure",
}
"""Commands that have another name today."""


@dataclass(frozen=True)
class Standing:
    """How a result stands against today's source.

    Attributes:
        name: Of the result.
        module: Its command, by today's name.
        date: When it was made.
        derived: Whether its files were taken from its commit later.
        changed: Files that do something else today.
    """

    name: str
    module: str
    date: str
    derived: bool
    changed: tuple[str, ...]


@functools.cache
def standings() -> tuple[Standing, ...]:
    """Of all committed results, in the order of their names."""
    out = []
    for path in sorted((path for folder in FOLDERS.values() for path in folder.glob("*.json")), key=lambda p: p.stem):
        document = json.loads(path.read_text("utf-8"))
        module = _module(document)
        today = _MOVED.get(module, module)
        differences = changed(document.get("source", {}), _today(today))
        out.append(Standing(path.stem, today, document["date"], document.get("derived", False), tuple(differences)))
    return tuple(out)


def stale() -> set[str]:
    """Commands whose results were made from other source than today's."""
    return {one.module for one in standings() if one.changed}


def derive() -> None:
    """Gives results without their source the files of their commit."""
    for path in (path for folder in FOLDERS.values() for path in folder.glob("*.json")):
        document = json.loads(path.read_text("utf-8"))
        if "source" in document:
            continue
        commit = document["commit"]
        found = source_of(_module(document), lambda file, commit=commit: _at(commit, file))  # type: ignore[misc]
        write_atomic(path, _text({**document, "source": found, "derived": True}), mode=PUBLIC, overwrite=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--derive", action="store_true", help="first add the source of their commit to old results")
    args = parser.parse_args()
    if args.derive:
        derive()
    if args.json:
        json.dump([asdict(one) for one in standings()], sys.stdout, indent=2)
        return
    for one in standings():
        files = f"{len(one.changed)} files changed: {', '.join(one.changed[:_SHOWN])}" if one.changed else "current"
        print(f"{one.name:22} {one.date[:10]} {files}{', ...' if len(one.changed) > _SHOWN else ''}")
    print(f"{sum(bool(one.changed) for one in standings())} of {len(standings())} results were made from other source")


def _module(document: dict[str, Any]) -> str:
    return str(document["command"].split()[2])


@functools.cache
def _today(module: str) -> dict[str, str]:
    return source_of(module)


def _at(commit: str, path: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), "show", f"{commit}:{path}"]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603  our own words
    return done.stdout.decode() if done.returncode == 0 else None


def _text(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


if __name__ == "__main__":
    main()
