"""What goes beyond one search on one device: attackers who own several, or who prepare before they search.

A search (`search.Attack`) sees one image and the answers to its points. A strategy is given all images, all devices
that the attacker owns, and pictures to learn from. Labels that it spends on learning come out of the images' budgets
in equal shares, so that it may be held against a search that is allowed the same number of labels for each image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from variegate.attack import driver
from variegate.attack.lane import Task
from variegate.attack.oracle import Oracle, to_frames, to_points
from variegate.attack.outcome import Outcome, Status
from variegate.attack.search import Attack, Norm, distance
from variegate.keys.errors import MisuseError


@runtime_checkable
class Strategy(Protocol):
    """One configured strategy. Frozen dataclasses, as `search.Attack`.

    Attributes:
        name: As in a campaign's file.
        profile: Likewise.
        norm: Of the distances.
        devices: How many devices the attacker owns; the samples are judged on the first.
        targets: Whether it can aim at a class.
        pooled: Whether outcomes come at the end, for all images together.
    """

    name: ClassVar[str]
    profile: ClassVar[str]

    @property
    def targets(self) -> bool: ...  # noqa: D102
    @property
    def norm(self) -> Norm: ...  # noqa: D102
    @property
    def devices(self) -> int: ...  # noqa: D102
    @property
    def pooled(self) -> bool: ...  # noqa: D102

    def outcomes(self, tasks: Sequence[Task], own: Sequence[Oracle], pictures: NDArray[Any]) -> Iterator[Outcome]:
        """Attacks images.

        Args:
            tasks: The images.
            own: The attacker's devices, as many as `devices`.
            pictures: What the devices may be asked about beside the images, frames (M, *shape) of their dtype.

        Yields:
            One outcome for each task. `queries` counts the labels of the device that was asked most.

        Raises:
            MisuseError: The budget does not suffice for what is learnt first.
            LimitError, RefusedError, DeviceError: A device's.
        """
        ...


def devices_of(attack: Attack | Strategy) -> int:
    """How many devices an attacker owns."""
    return attack.devices if isinstance(attack, Strategy) else 1


def check_devices(attack: Attack | Strategy, own: Sequence[Oracle]) -> None:
    """Raises unless an attacker has as many devices as the attack is for.

    Raises:
        MisuseError: There are more or fewer.
    """
    if len(own) != devices_of(attack):
        raise MisuseError(
            f"the attack {attack.name} is for {devices_of(attack)} of the attacker's devices, and has {len(own)}"
        )


def is_pooled(attack: Attack | Strategy) -> bool:
    """Whether outcomes come at the end, for all images together."""
    return isinstance(attack, Strategy) and attack.pooled


def run(
    attack: Attack | Strategy, tasks: Iterable[Task], own: Sequence[Oracle], pictures: NDArray[Any]
) -> Iterator[Outcome]:
    """Attacks images, by a search on one device (`driver.run`) or by a strategy.

    Args:
        attack: Either.
        tasks: The images.
        own: The attacker's devices.
        pictures: As `Strategy.outcomes`.

    Raises:
        MisuseError: There are more or fewer devices than the attack needs; and as `Strategy.outcomes`.
        LimitError, RefusedError, DeviceError: As either.
    """
    check_devices(attack, own)
    if isinstance(attack, Strategy):
        return attack.outcomes(list(tasks), own, pictures)
    return driver.run(attack, tasks, own[0])


def clean_frames(tasks: Sequence[Task], dtype: str) -> NDArray[Any]:
    """The tasks' images, (N, *shape)."""
    return np.stack([to_frames(task.problem.clean, dtype).reshape(task.problem.shape) for task in tasks])


def own_labels(tasks: Sequence[Task]) -> NDArray[np.int64]:
    """What the first device says of the tasks' images, int64 (N,)."""
    return np.array([task.problem.label for task in tasks], np.int64)


def charged(tasks: Sequence[Task], labels: int) -> tuple[list[Task], list[int]]:
    """Tasks whose budgets have paid for labels that were asked for all of them, and each one's share.

    Raises:
        MisuseError: The budgets do not suffice.
    """
    each, more = divmod(labels, len(tasks))
    shares = [each + (i < more) for i in range(len(tasks))]
    if any(share >= task.problem.queries for share, task in zip(shares, tasks, strict=True)):
        most = sum(task.problem.queries for task in tasks)
        raise MisuseError(
            f"it takes {labels} labels to prepare, and the {len(tasks)} images have {most}",
            hint="give more queries for each image, or more images at once",
        )
    rest = [
        replace(
            task,
            problem=replace(task.problem, queries=task.problem.queries - share),
            checkpoints=tuple(mark - share for mark in task.checkpoints if mark > share),
        )
        for share, task in zip(shares, tasks, strict=True)
    ]
    return rest, shares


def delayed(outcome: Outcome, share: int, checkpoints: Sequence[int]) -> Outcome:
    """The outcome of a search that began when so many labels were spent."""
    return replace(
        outcome,
        queries=outcome.queries + share,
        trace=tuple((at + share, length) for at, length in outcome.trace),
        checkpoints={mark: outcome.checkpoints.get(mark - share) for mark in checkpoints},
    )


def judged(task: Task, sample: NDArray[Any], label: int, queries: int, norm: Norm) -> Outcome:
    """The outcome of a sample that was there at the end alone, and which the first device answers with a label."""
    clean = to_points(to_frames(task.problem.clean, str(sample.dtype)))
    length = float(distance(to_points(sample).reshape(1, -1), clean, norm)[0])
    there = label != task.problem.label
    return Outcome(
        key=task.key,
        status=Status.FOUND if there else Status.NONE,
        reason="",
        sample=sample if there else None,
        label=label if there else None,
        distance=length if there else float("inf"),
        queries=queries,
        trace=((queries, length),) if there else (),
        checkpoints={mark: sample if there and mark >= queries else None for mark in task.checkpoints},
    )
