"""`variegate attack`: campaigns of attacks on fleets. Needs the extra `redteam`."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from variegate.attack.campaign import config, folder, runner
from variegate.attack.campaign.engine import chosen
from variegate.attack.campaign.prepare import prepare
from variegate.attack.campaign.schema import schema_text
from variegate.cli import attack_options as options
from variegate.cli import attack_report, attack_try
from variegate.cli.attack_watch import LiveTable
from variegate.cli.console import Progress, emit, note, table
from variegate.keys.shown import printable

_REFUSED, _INTERRUPTED = 1, 130
_MOST_LISTED = 20
_UNKNOWN = "not known"


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the group's commands."""
    commands = parser.add_subparsers(metavar="COMMAND")
    options.plan(commands).set_defaults(run=_plan)
    options.run(commands).set_defaults(run=_run)
    options.resume(commands).set_defaults(run=_resume)
    options.verify(commands).set_defaults(run=_verify)
    options.query(commands).set_defaults(run=_query)
    attack_report.add_commands(commands)
    options.schema(commands).set_defaults(run=_schema)
    attack_try.add_command(commands)


def _plan(args: argparse.Namespace) -> int:
    from variegate.attack.campaign.plan import plan  # noqa: PLC0415

    planned = config.load(args.file)
    chosen(planned, None, None)
    costs = plan(prepare(planned, args.file.parent, choose=False, tell=note))
    emit({**asdict(costs), "hours": costs.hours}, args.json, lambda: _plan_text(costs))
    return 0


def _run(args: argparse.Namespace) -> int:
    folder.check_new(args.out)
    campaign = config.load(args.file)
    chosen(campaign, args.workers, _engine(args))  # before devices are asked for labels
    folder.create(args.out, prepare(campaign, args.file.parent, tell=note))
    note(f"made {args.out}; if this is interrupted: variegate attack resume {args.out}")
    return _worked(args, args.out)


def _resume(args: argparse.Namespace) -> int:
    return _worked(args, args.campaign, any_software=args.any_software, redo_damaged=args.redo_damaged)


def _worked(args: argparse.Namespace, campaign: Path, **more: bool) -> int:
    engine = _engine(args)
    try:
        with LiveTable() as live:
            ended = runner.run(campaign, workers=args.workers, engine=engine, watch=live.show, tell=note, **more)
    except KeyboardInterrupt:
        # The command's own words would be to run it again, and a folder is made once.
        note(f"\nvariegate: interrupted; to continue: variegate attack resume {campaign}")
        return _INTERRUPTED
    facts = {**asdict(ended), "failed": dict(ended.failed), "redone": dict(ended.redone)}
    emit(facts, args.json, lambda: _ended_text(ended))
    if not ended.failed:
        return 0
    for unit, reason in ended.failed[:_MOST_LISTED]:
        note(f"unit {unit} failed {runner.ATTEMPTS} times: {printable(reason)}")
    note(f"{len(ended.failed)} units failed; variegate attack resume {campaign} tries them again")
    return _REFUSED


def _engine(args: argparse.Namespace) -> str | None:
    return args.dask if args.dask is not None else None if args.workers is None else "processes"


def _verify(args: argparse.Namespace) -> int:
    from variegate.attack.campaign.copies import open_device_oracle  # noqa: PLC0415
    from variegate.attack.campaign.verify import verify  # noqa: PLC0415

    opened = open_device_oracle if args.ask_devices else None
    with Progress("units") as line:
        verdict = verify(args.campaign, sample=args.sample, opened=opened, progress=lambda _done, _all: line.advance())
    emit(asdict(verdict), args.json, lambda: _verdict_text(verdict))
    return _REFUSED if verdict.differences else 0


def _query(args: argparse.Namespace) -> int:
    from variegate.attack.campaign.query import query  # noqa: PLC0415

    answer = query(args.campaign, args.sql)
    rows = [[_plain(value) for value in row] for row in answer.rows]
    data = [dict(zip(_distinct(answer.columns), row, strict=True)) for row in rows]
    emit(data, args.json, lambda: table([[_cell(v) for v in row] for row in rows], [*map(_cell, answer.columns)]))
    return 0


def _schema(args: argparse.Namespace) -> int:  # noqa: ARG001
    print(json.dumps(json.loads(schema_text()), indent=2))
    return 0


def _plan_text(costs: Any) -> str:
    header = (
        "fleet",
        "copies",
        "units",
        "queries",
        "clean",
        "replays",
        "choosing",
        "labels/s",
        "core-hours",
        "device-hours",
        "MiB",
    )
    rows = [
        (
            one.fleet,
            one.copies,
            one.units,
            one.queries,
            one.clean_queries,
            one.replay_queries,
            one.choosing_queries,
            _UNKNOWN if one.labels_per_s is None else f"{one.labels_per_s:.0f}",
            _UNKNOWN if one.core_hours is None else f"{one.core_hours:.2f}",
            "" if one.device_hours is None else f"{one.device_hours:.1f}",
            f"{one.bytes / 2**20:.1f}",
        )
        for one in costs.fleets
    ]
    labels = sum(one.queries + one.clean_queries + one.replay_queries for one in costs.fleets)
    choosing = sum(one.choosing_queries for one in costs.fleets)
    before = f", and before that at most {choosing} to choose images" if choosing else ""
    workers = f"with {costs.workers} worker" + ("s" if costs.workers != 1 else "")
    long = f"hours {workers} {_UNKNOWN}" if costs.hours is None else f"about {costs.hours:.2f} h {workers}"
    last = f"{costs.images} images, at most {labels} labels{before}, {long}; without the attacks' own work"
    if costs.choose == "right-by-all":
        last += f"\nrun refuses the campaign if fewer than {costs.images} images are read rightly by every copy"
    return f"{table(rows, header)}\n{last}"


def _ended_text(ended: runner.Ended) -> str:
    return (
        f"{ended.done} of {ended.units} units; {ended.queries} queries of attacks, {ended.clean_queries} of clean "
        f"images, {ended.replay_queries} of replays, {ended.choosing_queries} to choose images"
    )


def _verdict_text(verdict: Any) -> str:
    lines = [*map(printable, verdict.differences)]
    if verdict.mixed:
        lines.append(f"units were done by different software, so results are a mixture: {verdict.mixed} differs")
    words = "has devices, which were not asked: --ask-devices opens those that the campaign names"
    lines += [f"fleet {name} {words}" for name in verdict.not_asked]
    repeats = f"{verdict.samples} samples and {verdict.replays} replays asked again"
    lines.append(f"{verdict.done} of {verdict.units} units are done; {repeats}; {len(verdict.differences)} differences")
    return "\n".join(lines)


def _distinct(columns: Sequence[str]) -> list[str]:
    """Names of columns as keys: of equal ones, later ones are numbered from 2."""
    out: list[str] = []
    for name in columns:
        tries = (f"{name}_{number}" for number in itertools.count(2) if f"{name}_{number}" not in columns)
        out.append(next(key for key in itertools.chain([name], tries) if key not in out))
    return out


def _plain(value: object) -> Any:
    """A value of a query in JSON's types; bytes as their length, since a terminal wants no pictures."""
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _cell(value: Any) -> Any:
    """The output of `_plain` as a cell of a table."""
    if isinstance(value, int | float):
        return value
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
