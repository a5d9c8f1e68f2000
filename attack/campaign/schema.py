"""Holds a campaign's file to `schema.json`, and says what is wrong with it, and where, in a sentence of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.shown import printable

_SCHEMA = Path(__file__).with_name("schema.json")
_MAX_DEPTH = 16
_MAX_MESSAGE = 300
_INTEGER = range(-(1 << 63), 1 << 63)
"""What TOML has; Python's parser takes longer ones, which no float holds."""


def schema_text() -> str:
    """The JSON Schema of a campaign's file."""
    return _SCHEMA.read_text("utf-8")


def check(values: dict[str, Any]) -> None:
    """Checks what TOML gave.

    Raises:
        RefusedError: `MALFORMED`, naming the key by its path.
    """
    for where, value in _leaves(values, (), 0):
        if isinstance(value, float) and not math.isfinite(value):
            raise wrong(_dotted(where), "is not a finite number")
        if isinstance(value, int) and value not in _INTEGER:
            raise wrong(_dotted(where), "is not an integer of 64 bits")
    errors = sorted(_validator().iter_errors(values), key=lambda error: [str(part) for part in error.absolute_path])
    if errors:
        raise _explained(errors[0])


def wrong(where: str, what: str) -> RefusedError:
    """The error for a key."""
    return RefusedError(Refusal.MALFORMED, quoted(f"campaign: {where} {what}"))


def quoted(text: str) -> str:
    """A message that quotes a file: fit for a terminal, and short."""
    return printable(text[:_MAX_MESSAGE])


@cache
def _validator() -> Any:
    # JSON Schema takes 2.0 for an integer; TOML does not, and neither does what reads it.
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    strict: Any = extend(Draft202012Validator, type_checker=types)
    return strict(json.loads(schema_text()))


def _leaves(value: object, where: tuple[str | int, ...], depth: int) -> Iterator[tuple[tuple[str | int, ...], object]]:
    if depth > _MAX_DEPTH:
        raise wrong(_dotted(where), "is nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*where, key), depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _leaves(inner, (*where, i), depth + 1)
    else:
        yield where, value


def _explained(error: ValidationError) -> RefusedError:
    """One sentence for a schema's error; the library's own words quote whole tables."""
    where = tuple(error.absolute_path)
    given: Any = error.instance
    rule: Any = error.validator_value
    shown = json.dumps(given, default=str)[:60] if not isinstance(given, dict | list) else "this"
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"] if isinstance(error.schema, dict) else {}
            where, what = (*where, min(set(given) - set(known))), "is not known"
        case "required":
            where, what = (*where, next(key for key in rule if key not in given)), "is missing"
        case "enum":
            what = f"must be one of {', '.join(rule)}, not {shown}"
        case "const":
            what = f"must be {rule}, not {shown}"
        case "type":
            what = f"must be of type {rule}, not {shown}"
        case "pattern":
            what = f"must match {rule}"
        case "oneOf":
            what = f"must be one of {', '.join(str(one.get('const', one.get('type'))) for one in rule)}, not {shown}"
        case _:
            what = f"does not keep {error.validator} {json.dumps(rule)[:60]}"
    return wrong(_dotted(where), what)


def _dotted(where: Sequence[str | int]) -> str:
    out = ""
    for part in where:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out or "the file"
