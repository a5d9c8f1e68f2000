"""What computes results: versions of packages, and the source of attacks; a campaign keeps to one software."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from variegate.keys.primitives import sha256

KEY = "software"
"""Of the ledger's meta."""
_WORD = re.compile(r"[a-z0-9_-]{1,40}")
_PACKAGES = ("numpy", "onnxruntime", "pyarrow")
_SOURCES = (
    "attack/adaptive/*.py",
    "attack/algorithms/*.py",
    "attack/campaign/copies.py",
    "attack/campaign/replay.py",
    "attack/campaign/rows.py",
    "attack/campaign/shards.py",
    "attack/campaign/units.py",
    "attack/campaign/work.py",
    "attack/driver.py",
    "attack/kinds.py",
    "attack/lane.py",
    "attack/oracle.py",
    "attack/oracles/frames.py",
    "attack/oracles/vehicle*.py",
    "attack/outcome.py",
    "attack/overshoot.py",
    "attack/search.py",
    "attack/strategy.py",
    "attack/whitebox/deepfool.py",
    "attack/whitebox/pgd.py",
    "device_sim/world/camera.py",
    "export/intake/probe.py",
)


def sources() -> list[Path]:
    """Files of ours that results depend on: what searches, what photographs, what is shown, and what runs copies."""
    root = Path(__file__).resolve().parents[2]
    return sorted(path for pattern in _SOURCES for path in root.glob(pattern))


@cache
def software() -> str:
    """JSON: version of each package that results depend on, and the SHA-256 of our own source."""
    digest = sha256(*(sha256(path.name.encode(), b"\0", path.read_bytes()) for path in sources()))
    return json.dumps({**{name: _version(name) for name in _PACKAGES}, "attacks": digest.hex()}, sort_keys=True)


def recorded(meta: Mapping[str, str]) -> tuple[str, ...]:
    """All software that worked on a campaign, as `software` gives it, in turn; what began it comes first.

    Args:
        meta: Of the ledger.
    """
    further = sorted((name for name in meta if name.startswith(f"{KEY}-")), key=lambda name: (len(name), name))
    return (meta.get(KEY, ""), *(meta[name] for name in further))


def mixed(meta: Mapping[str, str]) -> str:
    """What differs between the software that worked on a campaign, in words; empty when it was one."""
    first, *further = recorded(meta)
    names = dict.fromkeys(name for other in further for name in difference(first, other).split(", ") if name)
    return ", ".join(names)


def difference(one: str, other: str) -> str:
    """What differs between two of `software`, in words; empty when nothing does."""
    if one == other:
        return ""
    try:
        before, now = json.loads(one), json.loads(other)
        names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    except (ValueError, AttributeError, TypeError, RecursionError):
        names = []
    # A ledger may say anything, and this is shown to people.
    return ", ".join(dict.fromkeys(name if _WORD.fullmatch(name) else "unknown" for name in names)) or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
