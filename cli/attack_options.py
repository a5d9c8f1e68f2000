"""The options of the commands of `variegate attack`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from variegate.cli.console import add_json_option

_FILE, _CAMPAIGN = "the campaign's TOML file", "a campaign's folder, as `run` makes it"


def plan(commands: Any) -> argparse.ArgumentParser:
    """Options of `attack plan`."""
    line = "estimate a campaign's cost: queries, core-hours, disk; attacks nothing"
    p = command(commands, "plan", line, "variegate attack plan gtsrb.toml")
    p.add_argument("file", type=Path, metavar="FILE", help=_FILE)
    add_json_option(p)
    return p


def run(commands: Any) -> argparse.ArgumentParser:
    """Options of `attack run`."""
    example = "variegate attack run gtsrb.toml --out gtsrb\n  variegate attack run gtsrb.toml --out gtsrb --workers 8"
    p = command(commands, "run", "run a campaign; it may be killed at any moment and resumed", example)
    p.add_argument("file", type=Path, metavar="FILE", help=_FILE)
    p.add_argument("--out", type=Path, required=True, metavar="CAMPAIGN", help="folder to make")
    _engine(p)
    return p


def resume(commands: Any) -> argparse.ArgumentParser:
    """Options of `attack resume`."""
    p = command(commands, "resume", "continue a campaign, and try failed units again", "variegate attack resume gtsrb")
    p.add_argument("campaign", type=Path, metavar="CAMPAIGN", help=_CAMPAIGN)
    help_software = (
        "continue with other versions or another source of the attacks than at the start; results are a mixture"
    )
    p.add_argument("--any-software", action="store_true", help=help_software)
    help_redo = (
        "repeat units whose shards are lost or changed, and ask their devices again; without it they are refused"
    )
    p.add_argument("--redo-damaged", action="store_true", help=help_redo)
    _engine(p)
    return p


def verify(commands: Any) -> argparse.ArgumentParser:
    """Options of `attack verify`."""
    line = "compare ledger and shards, and show stored samples to the copies again"
    p = command(commands, "verify", line, "variegate attack verify gtsrb --sample 100")
    p.add_argument("campaign", type=Path, metavar="CAMPAIGN", help=_CAMPAIGN)
    p.add_argument("--sample", type=_count, metavar="N", help="images to show again, drawn at random (default: all)")
    help_devices = "also open the campaign's device addresses and folders; for a campaign of your own"
    p.add_argument("--ask-devices", action="store_true", help=help_devices)
    add_json_option(p)
    return p


def query(commands: Any) -> argparse.ArgumentParser:
    """Options of `attack query`."""
    line = "answer SQL over the results: views samples, replays, units, failures"
    example = 'variegate attack query gtsrb "SELECT fleet, attack, median(distance) FROM samples GROUP BY ALL"'
    p = command(commands, "query", line, example)
    p.add_argument("campaign", type=Path, metavar="CAMPAIGN", help=_CAMPAIGN)
    p.add_argument("sql", metavar="SQL", help="one SELECT statement of DuckDB")
    add_json_option(p)
    return p


def schema(commands: Any) -> argparse.ArgumentParser:
    """Options of `attack schema`."""
    return command(commands, "schema", "print the JSON Schema of campaign files", "variegate attack schema > c.json")


def _engine(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=_count, metavar="N", help="worker processes (default: the file's); 0: none")
    where.add_argument(
        "--dask", metavar="ADDRESS", help="a Dask scheduler, tcp://HOST:PORT, whose workers do the units"
    )
    add_json_option(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:  # noqa: PLR2004  beyond any use
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a count")
    return int(text)


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
