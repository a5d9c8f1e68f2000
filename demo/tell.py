"""The text of each chapter: one table of plain cells, and the words around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from variegate.attack import Replay
from variegate.demo.cars import BUYERS, Fleet, Model
from variegate.demo.results import OVERSHOOTS, Attacked
from variegate.device_sim.world.signs import SIGNS
from variegate.export.rewriters import Qim, from_parameters
from variegate.forensics import THRESHOLD, Verdict
from variegate.runtime import Status

Cell = str | int


@dataclass(frozen=True)
class Chapter:
    """One chapter.

    Attributes:
        key: Its name in the JSON summary.
        title: For people.
        text: Before the table.
        header: Names of the columns.
        rows: Cells.
        note: After the table; may be empty.
    """

    key: str
    title: str
    text: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def export(model: Model) -> Chapter:
    """The seller's export, and the candidates of the calibration."""
    c = model.calibration
    rows = [
        (
            _messages(t.parameters),
            str(t.parameters["grid"]),
            str(t.parameters["steps"]),
            f"{t.parameters['beta']:g}",
            f"{t.accuracy:.1%}",
            f"{t.loss_points:+.2f} ± {t.error_points:.2f}",
            "taken" if t is c.tried[-1] else "costs too much",
        )
        for t in c.tried
    ]
    return Chapter(
        "export",
        "The seller exports a network",
        f"The network reads {len(SIGNS)} road signs, {c.base_accuracy:.1%} of {c.images} fresh frames rightly. "
        "Nothing is trained: every copy is this network followed by attractors of its own. Calibration takes the "
        f"strongest that cost at most {c.allowed_points:g} points ({c.copies} copies each).",
        ("messages", "grid", "steps", "beta", "accuracy", "points lost", ""),
        tuple(rows),
    )


def _messages(parameters: dict[str, object]) -> int:
    rewriter = from_parameters(parameters)
    return rewriter.messages if isinstance(rewriter, Qim) else 0


def delivery(fleet: Fleet) -> Chapter:
    """The sealed and flashed copies, and the wrong car."""
    rows = [
        (
            car.name,
            car.buyer,
            f"{car.sealed // 1024} KiB",
            f"{car.report.chunks} chunks",
            _confirmed(car.report.confirmed),
        )
        for car in fleet.cars
    ]
    return Chapter(
        "delivery",
        "Three buyers, three cars",
        "Each car gets a copy that only this car can open. A car returns only labels.",
        ("car", "buyer", "sealed copy", "flashed", ""),
        tuple(rows),
        f"B's copy flashed on car A: “{fleet.wrong_car.outward}”. Car A's inner log says why: {fleet.wrong_car.inner}.",
    )


def drive(
    answers: Mapping[str, NDArray[np.int64]], passed: Mapping[str, NDArray[np.int64]], truth: NDArray[np.int64]
) -> Chapter:
    """How well each car reads, the frames as they are and through its camera."""
    rows = [
        (
            _reader(name),
            f"{np.mean(labels == truth):.1%}",
            f"{np.mean(labels == answers['base']):.1%}",
            f"{np.mean(passed[name] == truth):.1%}" if name in passed else "",
        )
        for name, labels in answers.items()
    ]
    together = np.mean(np.all([labels == answers["A"] for labels in answers.values()], axis=0))
    turned = np.mean([np.mean(passed[name] != answers[name]) for name in passed])
    return Chapter(
        "drive",
        f"They drive past {len(truth)} signs",
        "",
        ("reader", "read rightly", "agrees with the bare network", "read rightly when photographed again"),
        tuple(rows),
        f"All four agree on {together:.1%} of the signs. In the last column each frame was printed and the car "
        f"drove past it: a photograph from another place in another light changes {turned:.1%} of the labels.",
    )


def attack(attacked: Sequence[Attacked], status: Status, before: int | None, queries: int) -> Chapter:
    """The samples that the attacker found on car A."""
    rows = [
        (
            i,
            SIGNS[a.truth].name,
            "nothing found" if a.outcome.label is None else SIGNS[a.outcome.label].name,
            a.outcome.queries,
            "" if a.sample is None else f"{a.outcome.distance:.3f}",
            "" if a.sample is None else int(_difference(a).max()),
        )
        for i, a in enumerate(attacked, 1)
    ]
    return Chapter(
        "attack",
        f"{BUYERS['A']} attacks her own car",
        f"HopSkipJump by labels only, at most {queries} queries a sign, on {len(attacked)} signs of "
        "different kinds that all cars read rightly.",
        ("sign", "it shows", "car A now reads", "queries", "L2 (pixels 0..1)", "largest change (of 255)"),
        tuple(rows),
        f"Car A's signed budget: {before} labels left before, {status.remaining} after.",
    )


def read(attacked: Sequence[Attacked], photographed: Mapping[str, int]) -> Chapter:
    """The labels of each car."""
    hits = [(i, a) for i, a in enumerate(attacked, 1) if a.read]
    rows: list[tuple[Cell, ...]] = [
        (i, SIGNS[a.truth].name, *(_verdict(a.read[name], a.truth) for name in (*BUYERS, "base"))) for i, a in hits
    ]
    counts = ", ".join(f"{name} {sum(a.read[name] != a.truth for _, a in hits)}" for name in BUYERS)
    return Chapter(
        "read",
        "She shows the signs to the other cars",
        "The cars get the same bytes without a camera: the attacker's best case.",
        ("sign", "it shows", "car A", "car B", "car C", "bare network"),
        tuple(rows),
        f"Of {len(hits)} signs made on car A, these fool: {counts}. Printed and photographed by a car that drives "
        f"past, they fool: {', '.join(f'{name} {count}' for name, count in photographed.items())}; a photograph may be "
        f"misread by itself, too.",
    )


def curves(replays: Mapping[str, Replay]) -> Chapter:
    """The effect of overshoot."""
    rows: list[tuple[Cell, ...]] = []
    for key, origin in (("with", "car A"), ("without", "bare network")):
        curve = replays[key]
        rows += [
            (origin, _reader(name), *(f"{count}/{curve.samples}" for count in counts))
            for name, counts in curve.fooled.items()
        ]
    return Chapter(
        "curves",
        "She pushes harder",
        "The perturbation is stretched by s before it is shown. Numbers are signs that fool the car.",
        ("made on", "shown to", *(f"s = {s:g}" for s in OVERSHOOTS)),
        tuple(rows),
        "Without Variegate every car is the bare network: a sample that fools one fools all at s = 1. With Variegate "
        "a sample made on car A lies in attractors that only A has; pushed out of them it may fail on A too. Samples "
        "beyond the base's own boundary, such as those made on the bare network, can fool any copy: Variegate does "
        "not stop them. With so few signs these are examples, not rates.",
    )


def spent(remaining: int, answer: str) -> Chapter:
    """The end of the budget."""
    return Chapter(
        "budget",
        "Her budget ends",
        "",
        ("labels left on car A", "asked for", "answer"),
        ((remaining, remaining + 1, answer),),
    )


def trace(verdicts: Mapping[str, Verdict], guilty: str) -> Chapter:
    """The trace of the samples."""
    rows: list[tuple[Cell, ...]] = []
    notes = []
    if "with" in verdicts:
        verdict = verdicts["with"]
        rows += [
            (place, s.name, _p(s.p_value), _p(verdict.corrected(s)), "accused" if s.name == verdict.accused else "")
            for place, s in enumerate(verdict.suspects, 1)
            if place <= 3 or s.name in BUYERS.values()  # noqa: PLR2004
        ]
        own = next(s for s in verdict.suspects if s.name == guilty)
        notes.append(finding(verdict, guilty))
        alone = sum(p * len(verdict.suspects) < THRESHOLD for p in own.each)
        notes.append(
            f"{len(own.each)} samples together. One by one, {alone} of {len(own.each)} would be enough to accuse "
            f"(p of {guilty}'s copy: {', '.join(_p(p) for p in own.each)})."
        )
    if "without" in verdicts:
        control = verdicts["without"]
        notes.append(
            f"Control, samples made on the bare network: {control.accused or 'no accusation'} "
            f"(smallest p x N {_p(control.corrected(control.suspects[0]))})."
        )
    count = len(next(iter(verdicts.values())).suspects) if verdicts else 0
    return Chapter(
        "trace",
        "The seller reads the attractors",
        f"Near every image a copy has attractors of its own, in which a search ends. {count} buyers are "
        f"registered, three with cars. The attractors of each are derived again from the master secret. p is the "
        f"probability that an innocent copy fits the samples as well, p x N that any of all N does. Both are exact. "
        f"A buyer is accused if p x N < {THRESHOLD:g}.",
        ("place", "buyer", "p", "p x N", ""),
        tuple(rows),
        " ".join(notes) or "Nothing was found, so there is nothing to trace.",
    )


def headline(attacked: Sequence[Attacked], verdicts: Mapping[str, Verdict], guilty: str) -> str:
    """The result, in two sentences."""
    hits = [a for a in attacked if a.read]
    if not hits:
        return "The attacker found nothing on her own car."
    fooled = ", ".join(
        f"{sum(a.read[name] != a.truth for a in hits)} fool {buyer}'s"
        for name, buyer in BUYERS.items()
        if buyer != guilty
    )
    told = finding(verdicts["with"], guilty) if "with" in verdicts else ""
    return f"Of {len(hits)} signs that fool {guilty}'s car, {fooled}. {told}".strip()


def finding(verdict: Verdict, guilty: str) -> str:
    """Whom the seller accuses, and whether that is right."""
    chance = _p(verdict.corrected(verdict.suspects[0]))
    if verdict.accused is None:
        return (
            f"The seller accuses nobody: an innocent buyer would look as bad with probability {chance}; an accusation "
            f"needs less than {THRESHOLD:g}. More samples may help."
        )
    right = "rightly" if verdict.accused == guilty else "WRONGLY"
    return (
        f"The seller accuses {verdict.accused}, {right}: an innocent buyer would look as bad with probability {chance}."
    )


def _difference(attacked: Attacked) -> NDArray[np.int16]:
    if attacked.sample is None:
        return np.zeros(1, np.int16)
    out: NDArray[np.int16] = np.abs(attacked.sample.astype(np.int16) - attacked.clean)
    return out


def _confirmed(confirmed: bool) -> str:
    return "booted, tested, confirmed" if confirmed else "on trial"


def _reader(name: str) -> str:
    return f"car {name}" if name in BUYERS else "bare network"


def _verdict(label: int, truth: int) -> str:
    return "right" if label == truth else f"WRONG: {SIGNS[label].name}"


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"  # noqa: PLR2004
