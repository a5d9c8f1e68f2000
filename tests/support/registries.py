"""Registries for tests that name their numbers."""

from __future__ import annotations

from pathlib import Path

from variegate.export.registry import Registry


def from_zero(path: Path) -> Registry:
    """A registry whose clock stands at 0: counters from 0, numbers from 1."""
    return Registry(path, clock=lambda: 0)
