"""Rewriters by name, to and from plain parameters (as in TOML and the registry)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from variegate.export.rewriters.definition import Rewriter
from variegate.export.rewriters.permutation import Permutation
from variegate.export.rewriters.qim import Qim
from variegate.export.rewriters.spread import SpreadSpectrum
from variegate.keys.errors import MisuseError

KINDS: Mapping[str, type[Permutation | Qim | SpreadSpectrum]] = {
    kind.kind: kind for kind in (Qim, Permutation, SpreadSpectrum)
}


_MAX_STEPS = 16


def to_parameters(rewriter: Rewriter) -> dict[str, object]:
    """Plain values: `kind` and the parameters."""
    if not isinstance(rewriter, Permutation | Qim | SpreadSpectrum):
        raise MisuseError(f"rewriter {rewriter.kind} is not one of the table")
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(rewriter).items()}
    return {"kind": rewriter.kind, **plain}


def from_parameters(parameters: Mapping[str, object]) -> Rewriter:
    """Reads `to_parameters`.

    Raises:
        MisuseError: For an unknown kind or parameter, or a value that does not fit.
    """
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in parameters.items()}
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise MisuseError(f"rewriter {kind!r} is unknown", hint="known are " + ", ".join(KINDS))
    defaults = asdict(KINDS[kind]())
    for name, value in values.items():
        if name not in defaults:
            known = ", ".join(defaults)
            raise MisuseError(f"rewriter.{name} is unknown for {kind}", hint=f"known are {known}")
        if not _fits(name, value, defaults[name]):
            raise MisuseError(f"rewriter.{name} has the wrong type")
    return KINDS[kind](**values)


def _fits(name: str, value: object, default: object) -> bool:
    """Whether a value has the type and, for pairs, the length of the default."""
    if isinstance(default, tuple):
        lengths = (2,) if name == "grid" else range(1, _MAX_STEPS + 1)
        return isinstance(value, tuple) and all(type(v) is int for v in value) and len(value) in lengths
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)
