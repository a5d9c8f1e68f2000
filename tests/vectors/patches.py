"""Artefact vectors that differ little from a good one are kept as patches: they show what is wrong with them."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path

Hunk = tuple[int, int, str]
"""Offset in the base, bytes removed there, bytes put there (hexadecimal); apply the last hunk first."""

_MOST_INSERTED = 1200


def difference(base: bytes, data: bytes) -> list[Hunk] | None:
    """The hunks that turn `base` into `data`, or None when they would hold more than 1,200 bytes."""
    if not data:
        return [(0, len(base), "")]
    start = next((i for i, (a, b) in enumerate(zip(base, data, strict=False)) if a != b), min(len(base), len(data)))
    # What follows the first difference is compared alone: most vectors differ in one place.
    matcher = SequenceMatcher(None, base[start:], data[start:], autojunk=False)
    hunks = [
        (start + i, j - i, data[start + k : start + m].hex())
        for tag, i, j, k, m in matcher.get_opcodes()
        if tag != "equal"
    ]
    return hunks if sum(len(hunk[2]) // 2 for hunk in hunks) <= _MOST_INSERTED else None


def patched(base: bytes, hunks: list[Hunk]) -> bytes:
    """Applies hunks."""
    for offset, removed, inserted in reversed(hunks):
        base = base[:offset] + bytes.fromhex(inserted) + base[offset + removed :]
    return base


def read_artefacts(folder: Path) -> dict[str, bytes]:
    """All committed artefact vectors by name."""
    files = {path.stem: path.read_bytes() for path in (folder / "artefacts").iterdir()}
    for name, patch in json.loads((folder / "patches.json").read_text("utf-8")).items():
        files[name] = patched(files[patch["base"]], patch["hunks"])
    return files
