"""Part of `assurance.tamper`: flashes whose power is cut; `assurance.powercut` does this for more than flashes."""

from __future__ import annotations

import random
from pathlib import Path

from assurance.powercut.scenarios import Score, cut, operations, recover, scenarios
from variegate.device_sim.storage import Fault


def power_cuts(folder: Path, *, seeds: int, double: int, seed: int) -> tuple[dict[str, float | int], object]:
    """A flash cut at every storage operation; then flashes cut once and cut again while they recover.

    Args:
        folder: To work in; must not exist.
        seeds: Cuts at each operation, each letting other sectors land.
        double: Flashes cut twice.
        seed: Seed of the random numbers.

    Returns:
        Figures, and the storage operations of an uncut flash.
    """
    chance = random.Random(seed)  # noqa: S311  to repeat
    folder.mkdir()
    target, score = folder / "target", Score()
    first, update = (s for s in scenarios(folder) if s.name in {"first", "update"})
    counts = {scenario.name: operations(scenario, target) for scenario in (first, update)}
    for scenario in (first, update):
        for operation in range(1, counts[scenario.name] + 1):
            for landing in range(seeds):
                if not cut(scenario, target, Fault(operation, landing)):
                    raise RuntimeError("the flash was over before the power cut")
                score.cuts += 1
                score.judge(scenario, target)
    while score.double_cuts < double:
        cut(update, target, Fault(chance.randint(1, counts["update"]), chance.randrange(1 << 30)))
        fault = Fault(chance.randint(1, counts["update"]), chance.randrange(1 << 30))
        score.double_cuts += recover(update, target, fault) is None
        score.judge(update, target)
    figures: dict[str, float | int] = {"power_cuts_tried": score.cuts + score.double_cuts, "bricks": score.bricks}
    return figures, {"storage_operations": counts}
