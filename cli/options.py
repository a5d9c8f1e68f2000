"""What commands of several groups accept alike: commands with an example, whole numbers, moments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from typing import Any


def command(commands: Any, name: str, line: str, example: str) -> argparse.ArgumentParser:
    """A command with one line of help and an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=line,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def whole(least: int, most: int, what: str = "a whole number") -> Callable[[str], int]:
    """The type of an option that is a whole number within bounds."""

    def read(text: str) -> int:
        # ASCII: digits of other scripts count as digits, too.
        if not text.isascii() or not text.isdigit() or len(text) > len(str(most)) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"give {what}, {least} to {most}")
        return int(text)

    return read


def moment(text: str) -> int:
    """The type of an option that is a moment, ISO 8601 with a time zone: Unix seconds."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("give date, time and zone, as in 2027-01-01T00:00:00+00:00") from None
    if at.tzinfo is None:
        raise argparse.ArgumentTypeError("give a time zone, as in 2027-01-01T00:00:00+00:00")
    return int(at.timestamp())
