"""Finds the source of a result: the files that a command imports, directly or indirectly, with a digest of each.

A digest covers what a file does: its syntax tree without docstrings, comments, layout and imports. So a better sentence
or a moved file does not make a figure old, but a renamed function does.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
_DIGITS = 16
Read = Callable[[str], str | None]
"""Text of a file by its path in the repository; None where there is none."""


def on_disk(path: str) -> str | None:
    """The file in the working tree."""
    file = REPOSITORY / path
    return file.read_text("utf-8") if file.is_file() else None


def source_of(module: str, read: Read = on_disk) -> dict[str, str]:
    """Files that a module needs, itself among them, with their digests.

    Args:
        module: As `python -m` takes it.
        read: Where files come from.
    """
    out: dict[str, str] = {}
    todo = [module]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for path in _paths(name):
            text = read(path)
            if text is not None and path not in out:
                tree = ast.parse(text)
                todo += _imports(tree)  # before the digest leaves them out
                out[path] = digest(tree)
    return dict(sorted(out.items()))


def changed(made_from: Mapping[str, str], today: Mapping[str, str]) -> list[str]:
    """Files that do something else today, that are new, or that are gone; a moved file is none of them."""
    old, new = Counter(made_from.values()), Counter(today.values())
    # How a result is written does not change what it says.
    writers = {
        f"{folder}/{name}.py" for folder in ("testbed", "benchmarks") for name in ("result", "source", "__init__")
    }
    unlike = {path for path, value in today.items() if value in new - old}
    gone = {path for path, value in made_from.items() if value in old - new and path not in today}
    return sorted((unlike | gone) - writers)


def digest(tree: ast.Module) -> str:
    """The digest of what a file does."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [part for part in body if not _says_nothing(part)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:_DIGITS]


def _says_nothing(node: ast.stmt) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return text or isinstance(node, ast.Import | ast.ImportFrom)


def _paths(module: str) -> list[str]:
    """Files that a module may be, seen from the repository."""
    place = module.removeprefix("variegate.").replace(".", "/")
    return [f"{place}.py", f"{place}/__init__.py", f"{place}/__main__.py"]


def _imports(tree: ast.Module) -> list[str]:
    out: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            out += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("variegate."):
            out.append(node.value)  # a process of its own, or a package's face
    return [name for name in out if name.partition(".")[0] in ("variegate", "benchmarks", "assurance", "testbed")]
