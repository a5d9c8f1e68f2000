"""Checks the JSON of an exported program, string by string, before torch evaluates any of it.

The rule is an allow-list. Keys and strings are names of letters, digits and `_.+-`; the few places that need more have
a grammar of their own. Everything else is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from variegate.keys.errors import Refusal, RefusedError

_NAME = re.compile(r"[A-Za-z0-9_.+\-]{0,300}", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,300}", re.ASCII)
# aten holds torch's own tensor functions, none of which reaches the file system or the interpreter.
_TARGET = re.compile(
    r"torch\.ops\.aten\.[a-z_][a-z0-9_]*\.[A-Za-z][A-Za-z0-9_]*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(max|min|int|float|not)",
    re.ASCII,
)
# The output of sympy's srepr for sizes: symbols with assumptions, integers, and arithmetic.
_EXPRESSION = re.compile(
    r"(?:Symbol\('[su]\d{1,6}'(?:, (?:positive|integer|nonnegative|zero)=(?:True|False))*\)"
    r"|[su]\d{1,6}|-?\d{1,12}|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CleanDiv|Eq|Ne|Le|Lt|Ge|Gt"
    r"|[()+\-*/, ])*",
    re.ASCII,
)
_SYMBOL = re.compile(r"[su]\d{1,6}", re.ASCII)
_TREE_TYPES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", None})
_FREE_TEXT = frozenset({"as_string", "as_strings"})  # string arguments of aten: written with repr, never evaluated
_REFUSED_KEYS = frozenset({"as_graph", "as_graphs", "as_operator", "as_custom_obj"})
_EMPTY_KEYS = frozenset({"custom_obj_values", "treespec_namedtuple_fields"})
_LONGEST = 500


def checked_program(program: object) -> dict[str, Any]:
    """Checks the parsed JSON of an exported program.

    Args:
        program: The content of `models/<name>.json`.

    Returns:
        A copy without metadata and guards, safe to give to torch's deserialiser.

    Raises:
        RefusedError: `MODEL` for an operator or object that is not taken, `MALFORMED` for anything else.
    """
    try:
        checked = _checked(program, "")
    except RecursionError as error:
        raise _refused("the program is nested too deeply") from error
    if not isinstance(checked, dict):
        raise _refused("the program is not a JSON object")
    checked["guards_code"] = []
    return checked


def _checked(value: object, key: str) -> object:
    if key == "metadata":  # stack traces and names of the seller's: nothing that computes
        return {}
    if isinstance(value, dict):
        return _checked_object(value, key)
    if isinstance(value, list):
        return [_checked(item, key) for item in value]
    if isinstance(value, str):
        return _checked_text(value, key)
    return value


def _checked_object(value: dict[str, object], key: str) -> dict[str, object]:
    if key in _EMPTY_KEYS and value:
        raise _needs_code("custom objects or named tuples")
    if key == "range_constraints" and not all(map(_SYMBOL.fullmatch, value)):
        raise _refused("the program constrains something that is not a symbol")
    if key in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values") and not all(
        map(_IDENTIFIER.fullmatch, value)
    ):
        raise _refused("a value in the program has no plain name")
    checked: dict[str, object] = {}
    for name, item in value.items():
        if _NAME.fullmatch(name) is None:
            raise _refused("a key of the program is not a plain name")
        if name in _REFUSED_KEYS:
            raise _needs_code("subgraphs, operators as values or custom objects")
        if name != "guards_code":
            checked[name] = _checked(item, name)
    return checked


def _checked_text(text: str, key: str) -> str:
    if key == "target" and _TARGET.fullmatch(text) is None:
        raise _needs_code("an operator outside torch.ops.aten")
    if key == "expr_str" and (len(text) > _LONGEST or "**" in text or _EXPRESSION.fullmatch(text) is None):
        raise _refused("a size in the program is not a plain expression")
    if key in ("in_spec", "out_spec"):
        _check_tree(text)
    elif key == "name" and text and _IDENTIFIER.fullmatch(text) is None:
        raise _refused("a value in the program has no plain name")
    elif key not in ("expr_str", *_FREE_TEXT) and _NAME.fullmatch(text) is None:
        raise _refused("a string of the program is not a plain name")
    return text


def _check_tree(text: str) -> None:
    """Checks a tree specification: nested tuples, lists and dictionaries of plain keys."""
    try:
        _, root = json.loads(text)
        _check_branch(root)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _refused("the program's arguments are described wrongly") from error


def _check_branch(branch: dict[str, Any]) -> None:
    if branch["type"] not in _TREE_TYPES:
        raise _needs_code("arguments of a type of its own")
    context = branch["context"]
    keys = json.loads(context) if isinstance(context, str) else context
    if keys is not None and not (isinstance(keys, list) and all(_plain_key(item) for item in keys)):
        raise _refused("the program's arguments are described wrongly")
    for child in branch["children_spec"]:
        _check_branch(child)


def _plain_key(item: object) -> bool:
    return isinstance(item, str) and _NAME.fullmatch(item) is not None


def _needs_code(what: str) -> RefusedError:
    return RefusedError(
        Refusal.MODEL,
        f"the program holds {what}",
        hint="export a plain feed-forward module, or give an ONNX file",
    )


def _refused(message: str) -> RefusedError:
    return RefusedError(Refusal.MALFORMED, message, hint="save it again with torch.export.save")
