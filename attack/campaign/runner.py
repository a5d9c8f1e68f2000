"""Runs a campaign's units to their end: hands them out, keeps what comes, writes shards, notes it in the ledger."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from variegate.attack.campaign import folder as folders
from variegate.attack.campaign.check import against_shards, damaged
from variegate.attack.campaign.engine import Engine, chosen, started
from variegate.attack.campaign.ledger import DONE, Ledger
from variegate.attack.campaign.messages import ImageDone, Job, UnitDone, UnitFailed, outcome_from_bytes
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.software import KEY, difference, recorded, software
from variegate.attack.campaign.units import Unit
from variegate.attack.outcome import Status
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.files import PUBLIC, write_atomic

ATTEMPTS = 3
"""Times that a unit is tried in one run."""
_WAIT_S = 0.5
_MOST_TOLD = 20


@dataclass
class Row:
    """Where one attack on one fleet stands.

    Attributes:
        units: All units.
        done: Of them done.
        failed: Of them given up.
        total: Images.
        images: Of them attacked.
        found: Of those attacked in this run, with a sample.
        queries: Labels asked for in this run.
        distances: Of samples found in this run.
    """

    units: int = 0
    done: int = 0
    failed: int = 0
    total: int = 0
    images: int = 0
    found: int = 0
    queries: int = 0
    distances: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median distance of samples found in this run; infinite without one."""
        return statistics.median(self.distances) if self.distances else float("inf")


Standing = Mapping[tuple[str, str], Row]
"""By fleet and attack."""
Watch = Callable[[Standing], None]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended.

    Attributes:
        units: All units of the campaign.
        done: Of them done.
        failed: Name and last reason of those given up.
        queries: Labels that attacks asked for, in units that are done.
        clean_queries: Labels of clean images, likewise.
        replay_queries: Labels of replayed samples, likewise.
        choosing_queries: Labels that were asked for to choose the images, before the campaign began.
        redone: Name of those that were damaged and went back to be done again, and what was wrong.
    """

    units: int
    done: int
    failed: tuple[tuple[str, str], ...]
    queries: int
    clean_queries: int
    replay_queries: int
    choosing_queries: int = 0
    redone: tuple[tuple[str, str], ...] = ()


def run(
    folder: Path,
    *,
    workers: int | None = None,
    engine: str | None = None,
    any_software: bool = False,
    redo_damaged: bool = False,
    watch: Watch = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> Ended:
    """Runs what is left of a campaign.

    Args:
        folder: The campaign's.
        workers: Processes; None for the file's.
        engine: "processes", "serial" or the address of a Dask scheduler; None for the file's.
        any_software: Whether other versions than those that began may go on; results are then a mixture.
        redo_damaged: Whether units whose shards are lost or changed are done again; a device is asked again for them.
        watch: Told where it stands, several times a second.
        tell: Told which units are done again.

    Raises:
        MisuseError: It is no campaign, another process runs it, or other software began it.
        RefusedError: `MALFORMED`: ledger, inputs or shards were changed or are damaged.
        DeviceError: Storage failed, or there are no workers; what was done is kept.
    """
    with Ledger(folder, write=True) as ledger:
        prepared = folders.read(folder, ledger.meta)
        redone = _redone(folder, ledger, prepared, tell, any_software=any_software) if redo_damaged else {}
        differences = against_shards(folder, ledger, prepared.campaign)
        if differences:
            hint = f"variegate attack verify {folder} lists all {len(differences)} differences"
            if damaged(folder, ledger, prepared.campaign):
                hint += f"; variegate attack resume {folder} --redo-damaged does damaged units again"
            raise RefusedError(Refusal.MALFORMED, f"the campaign was changed: {differences[0]}", hint=hint)
        folders.tidy(folder)
        ledger.revive()
        work = _Run(folder, ledger, prepared, watch)
        if work.left:
            if not any_software:
                _refuse_other_software(ledger.meta.get(KEY, ""))
            _note_software(ledger)
            name, number = chosen(prepared.campaign, workers, engine)
            hands = started(name, min(number, work.left), prepared, folder)
            try:
                work.to_end(hands)
            finally:
                hands.close()
        return replace(work.ended(), redone=tuple(sorted(redone.items())))


def _redone(
    folder: Path, ledger: Ledger, prepared: Prepared, tell: Callable[[str], None], *, any_software: bool
) -> dict[str, str]:
    """Sends damaged units back to be done again, and says so."""
    faults = damaged(folder, ledger, prepared.campaign)
    if faults:
        if not any_software:
            _refuse_other_software(ledger.meta.get(KEY, ""))
        folders.tidy(folder)  # first: what cannot be written again is not given up
        ledger.redo(faults)
        for unit, what in list(faults.items())[:_MOST_TOLD]:
            tell(f"unit {unit} is done again: {what}")
        if len(faults) > _MOST_TOLD:
            tell(f"and {len(faults) - _MOST_TOLD} more; the view failures has all")
    return faults


def _refuse_other_software(began: str) -> None:
    differs = difference(began, software())
    if differs:
        hint = "install what began it; or --any-software, and results are a mixture"
        raise MisuseError(f"the campaign was begun with other software: {differs}", hint=hint)


def _note_software(ledger: Ledger) -> None:
    """Whoever reads the results must be able to see that they are a mixture."""
    known = recorded(ledger.meta)
    if software() not in known:
        ledger.note(f"{KEY}-{len(known)}", software())


class _Run:
    """One run of a campaign."""

    def __init__(self, folder: Path, ledger: Ledger, prepared: Prepared, watch: Watch) -> None:
        self._folder, self._ledger, self._watch = folder, ledger, watch
        self._fleets = {fleet.name: fleet for fleet in prepared.fleets}
        entries = ledger.entries()
        self._units = {entry.unit.name: entry.unit for entry in entries}
        self._waiting = deque(entry.unit for entry in entries if entry.state != DONE)
        self._open = {unit.name for unit in self._waiting}
        self._attempts: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        counts = ledger.counts()
        for entry in entries:
            row = self._row(entry.unit)
            row.units += 1
            row.total += len(entry.unit.images)
            row.done += entry.state == DONE
            row.images += len(entry.unit.images) if entry.state == DONE else counts.get(entry.unit.name, 0)

    @property
    def left(self) -> int:
        """Units that are left."""
        return len(self._open)

    def to_end(self, engine: Engine) -> None:
        """Until no unit is left that may be tried."""
        while self._open:
            for _ in range(min(engine.room, len(self._waiting))):
                unit = self._waiting.popleft()
                engine.submit(Job(unit=unit, known=self._ledger.outcomes(unit.name)))
            events = engine.wait(_WAIT_S)
            # First of all: what follows may raise, or give a unit up.
            self._keep([event for event in events if isinstance(event, ImageDone)])
            for event in events:
                if event.unit not in self._open:
                    continue  # an event that comes after its unit has ended
                match event:
                    case UnitDone():
                        self._finish(event)
                    case UnitFailed():
                        self._fail(event)
            self._watch(self._rows)

    def ended(self) -> Ended:
        """How it ended."""
        done = [entry for entry in self._ledger.entries() if entry.state == DONE]
        return Ended(
            units=len(self._units),
            done=len(done),
            failed=tuple(sorted(self._failed.items())),
            queries=sum(entry.queries or 0 for entry in done),
            clean_queries=sum(entry.clean_queries or 0 for entry in done),
            replay_queries=sum(entry.replay_queries or 0 for entry in done),
            choosing_queries=sum(self._ledger.choosing.values()),
        )

    def _keep(self, images: list[ImageDone]) -> None:
        """Keeps outcomes of units that are not done; a unit that was given up has them when it is tried again."""
        images = [image for image in images if image.unit in self._open or image.unit in self._failed]
        for image in images:
            self._count(image)  # first, since it reads them: what cannot be read must not lie in the ledger
        if images:
            self._ledger.keep(images)

    def _count(self, done: ImageDone) -> None:
        unit = self._units[done.unit]
        fleet, row = self._fleets[unit.fleet], self._row(unit)
        outcome = outcome_from_bytes(done.outcome, fleet.shape, fleet.dtype)
        row.images = min(row.images + 1, row.total)
        row.queries += outcome.queries
        if outcome.status is Status.FOUND:
            row.found += 1
            row.distances.append(outcome.distance)

    def _finish(self, done: UnitDone) -> None:
        """Shards first, then the ledger: what the ledger calls done is on disk."""
        both = ((folders.SAMPLES, done.samples), (folders.REPLAYS, done.replays))
        for kind, data in both:
            if len(data) > folders.MAX_SHARD_BYTES:
                words = f"its {kind} take {len(data)} bytes, and what is read again at most {folders.MAX_SHARD_BYTES}"
                self._fail(UnitFailed(unit=done.unit, reason=f"{words}: a smaller [run] unit in a new campaign helps"))
                return
        for kind, data in both:
            write_atomic(folders.shard(self._folder, kind, done.unit), data, mode=PUBLIC, overwrite=True)
        self._ledger.finish(done)
        self._open.discard(done.unit)
        self._row(self._units[done.unit]).done += 1

    def _fail(self, failed: UnitFailed) -> None:
        tried = self._attempts[failed.unit] = self._attempts.get(failed.unit, 0) + 1
        last = tried >= ATTEMPTS
        self._ledger.fail(failed.unit, failed.reason, last=last)
        if last:
            self._open.discard(failed.unit)
            self._failed[failed.unit] = failed.reason
            self._row(self._units[failed.unit]).failed += 1
        else:
            self._waiting.append(self._units[failed.unit])

    def _row(self, unit: Unit) -> Row:
        return self._rows.setdefault((unit.fleet, unit.attack), Row())
