"""Power cuts of a device at every storage operation and again in the recovery, and real kills.

    python -m assurance.powercut [--quick] [--out PATH]

At a cut none, all, or a random part of the unsynced sectors and directory changes reach the disk, in random order.
After every cut the device is turned on: it must boot the old or the new image with that image's labels until no try is
left, then finish the interrupted operation and boot the new image. Then the old image is flashed, and the old disk is
restored and booted: if either works, it counts as a rollback. A kill is a SIGKILL of `variegate device flash` in a
process of its own.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from assurance.powercut.kills import kills
from assurance.powercut.scenarios import Scenario, Score, cut, operations, recover, scenarios
from testbed.devices import workplace
from testbed.result import result_path, write_result
from variegate.device_sim.storage import Fault

SEED = 31


@dataclass(frozen=True)
class Plan:
    """How much to try.

    Attributes:
        stride: Every which storage operation is cut.
        some: Cuts at each operation that let a random part land, besides one that lets none and one that lets all.
        double: Second cuts for each scenario at the most; a random sample where there are more.
        kills: Processes killed.
    """

    stride: int = 1
    some: int = 6
    double: int = 1200
    kills: int = 120


QUICK = Plan(stride=9, some=0, double=4, kills=1)


def main() -> None:
    """Runs everything and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--out", type=Path, help="write the result there instead")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    total, raw = Score(), {}
    with workplace() as folder:
        for scenario in scenarios(folder):
            started = time.perf_counter()
            score, raw[scenario.name] = swept(plan, scenario, folder / "cut")
            print(f"{scenario.name}: {raw[scenario.name]} in {time.perf_counter() - started:.0f} s", flush=True)
            total.add(score)
    with workplace() as folder:
        killed, raw["sigkills"] = kills(folder, count=plan.kills, seed=SEED)
        print(f"sigkills: {raw['sigkills']}", flush=True)
        total.add(killed)
    write_result(
        "powercut",
        figures={
            "cuts_tried": total.cuts,
            "double_cuts_tried": total.double_cuts,
            "sigkills": killed.cuts,
            "bricks": total.bricks,
            "rollbacks_tried": total.rollbacks_tried,
            "rollbacks_accepted": total.rollbacks_accepted,
        },
        raw={"scenarios": raw, "reasons": total.reasons},
        seeds=[SEED],
        n=asdict(plan),
        path=result_path("powercut", quick=args.quick, out=args.out),
    )


def swept(plan: Plan, scenario: Scenario, target: Path) -> tuple[Score, dict[str, int]]:
    """Cuts a scenario once at each operation, and again at each operation of the recovery.

    Args:
        plan: How much.
        scenario: The interrupted operation.
        target: A folder for copies of its device.

    Returns:
        The score, and remarks.
    """
    chance = random.Random(f"{SEED} {scenario.name}")  # noqa: S311  to repeat
    score, count = Score(), operations(scenario, target)
    landings = [(0, 0.0), (0, 1.0), *((seed, 0.5) for seed in range(plan.some))]
    seconds: list[tuple[Fault, int]] = []
    for operation in range(1, count + 1, plan.stride):
        for landing in landings:
            fault = Fault(operation, *landing)
            _cut(scenario, target, fault)
            score.cuts += 1
            score.judge(scenario, target)
        first = Fault(operation, chance.randrange(1 << 30))
        _cut(scenario, target, first)
        again = recover(scenario, target, None)
        if again is None:
            raise RuntimeError("the power went without a fault")
        seconds += [(first, second) for second in range(1, again + 1)]
    if operations(scenario, target) != count or cut(scenario, target, Fault(count + 1)):
        raise RuntimeError("the number of storage operations is not always the same")
    for first, second in sorted(chance.sample(seconds, min(plan.double, len(seconds))), key=str):
        _cut(scenario, target, first)
        if recover(scenario, target, Fault(second, chance.randrange(1 << 30))) is not None:
            raise RuntimeError("the recovery was over before the power cut")
        score.double_cuts += 1
        score.judge(scenario, target)
    return score, {
        "storage_operations": count,
        "double_cuts_there_are": len(seconds),
        **{name: value for name, value in vars(score).items() if isinstance(value, int)},
    }


def _cut(scenario: Scenario, target: Path, fault: Fault) -> None:
    if not cut(scenario, target, fault):
        raise RuntimeError("it was over before the power cut")
