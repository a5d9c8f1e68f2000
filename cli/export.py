"""`variegate export`: a release from a base model, and sealed copies for buyers.

Reading a registry loads neither onnx nor torch: the code of the other commands is imported when they run.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable
from dataclasses import asdict

from variegate.cli import export_options
from variegate.cli.console import emit, note, table
from variegate.export.fleet_list import check_buyer
from variegate.export.registry import Registry
from variegate.keys.errors import MisuseError

_LIST_LIMIT = 64
_SHOWN = 32
"""Characters of a buyer id in a table."""
_UEID = re.compile("[0-9a-f]{1,66}")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the group's commands."""
    commands = parser.add_subparsers(metavar="COMMAND")
    export_options.prepare(commands).set_defaults(run=_in("export_prepare", "run"))
    export_options.copy(commands).set_defaults(run=_in("export_copies", "copy"))
    export_options.fleet(commands).set_defaults(run=_in("export_copies", "fleet"))
    export_options.registry(commands).set_defaults(run=_registry)


def _in(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        status: int = getattr(importlib.import_module(f"variegate.cli.{module}"), function)(args)
        return status

    return run


def _registry(args: argparse.Namespace) -> int:
    if not args.path.exists():
        raise MisuseError(f"there is no registry at {args.path}")
    buyer = None if args.buyer is None else check_buyer(args.buyer)
    ueid = None if args.ueid is None else args.ueid.lower()
    if ueid is not None and _UEID.fullmatch(ueid) is None:
        raise MisuseError("--ueid is 1 to 66 hexadecimal digits")
    with Registry(args.path, read_only=True) as registry:
        rows = [asdict(row) for row in registry.rows(buyer=buyer, ueid=ueid)]
    columns = ("made", "release", "buyer", "ueid", "epoch", "security_counter", "sequence", "file")
    shown = [[_cell(c, row[c]) for c in columns] for row in rows[-_LIST_LIMIT:]]
    emit(rows, args.json, lambda: table(shown, columns) if rows else "no copies")
    if len(rows) > _LIST_LIMIT and not args.json:
        note(f"the last {_LIST_LIMIT} of {len(rows)}; --json prints all")
    return 0


def _cell(column: str, value: str | int) -> str | int:
    """A value as a table shows it."""
    if column == "ueid":
        return str(value)[:18]
    if column == "buyer" and len(str(value)) > _SHOWN:
        return f"{str(value)[: _SHOWN - 3]}..."
    return value
