"""`variegate demo`: three buyers, three cars, one attacker, shown in tables and on a page. Needs the extra `demo`."""

from __future__ import annotations

import argparse
import textwrap
import time
from pathlib import Path

from variegate.cli.console import Progress, add_json_option, emit, note, table
from variegate.demo.output import check_folder, write
from variegate.demo.story import Options, Story
from variegate.demo.tell import Chapter

_WIDTH = 100


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the options; the group is one command."""
    parser.description = (
        "Three buyers get three sealed copies of a road-sign network. One buyer attacks her own car, shows what she "
        "found to the others, and the seller reads from it whose copy made it. Trains nothing, needs no data."
    )
    parser.formatter_class = argparse.HelpFormatter
    defaults = Options()
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="folder for page and pictures (%(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="write into a folder that is not an earlier demo's")
    parser.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        help="seed of all but the keys, which are new each time (%(default)s)",
    )
    parser.add_argument("--signs", type=int, default=defaults.signs, help="signs to attack (%(default)s)")
    parser.add_argument("--queries", type=int, default=defaults.queries, help="labels for each sign (%(default)s)")
    add_json_option(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    options = Options(seed=args.seed, signs=args.signs, queries=args.queries)
    check_folder(args.out, force=args.force)
    story, begin = Story(options), time.monotonic()
    for number, chapter in enumerate(story.run(Progress), 1):
        if not args.json:
            print(_text(number, chapter), flush=True)
    command = f"variegate demo --seed {options.seed} --signs {options.signs} --queries {options.queries}"
    written = write(args.out, story, command)
    if args.json:
        emit(story.summary(), True, str)
    note(f"{time.monotonic() - begin:.0f} s; see {', '.join(str(path) for path in written)}")
    return 0


def _text(number: int, chapter: Chapter) -> str:
    parts = [f"{number}. {chapter.title}", *_wrapped(chapter.text)]
    if chapter.rows:
        parts.append(textwrap.indent(table(chapter.rows, chapter.header), "  "))
    return "\n".join([*parts, *_wrapped(chapter.note)]) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")
