"""From a campaign's file to all that its work needs: bases fused, devices asked what they take, images chosen.

Buyers' seeds are simulated: SHA-256 of the campaign's seed, the fleet and the copy. Real copies get theirs from the
seller's master secret (`keys`); a device given by its URI has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from variegate.attack.campaign.config import Campaign, Fleet
from variegate.attack.campaign.copies import Copies, FleetCopies, Graph, Opener, open_device_oracle
from variegate.attack.campaign.data import read_images, read_set
from variegate.attack.campaign.images import Images
from variegate.attack.campaign.schema import wrong
from variegate.attack.oracle import Counted, ask_all, to_frames, to_points
from variegate.attack.search import seeded
from variegate.keys.errors import Refusal, RefusedError, VariegateError
from variegate.keys.primitives import sha256

if TYPE_CHECKING:
    from variegate.export.fuse import Template
    from variegate.export.intake.base import Base
    from variegate.export.intake.contract import InputSpec

POOL = 512
"""Pictures that attacks may start from, drawn from the data."""
_BLOCK = 128
_RIGHT = "right-by-all"
_NAME = 100
"""Most characters of a class's name, as in a campaign's file; a release may have longer ones."""
_ENOUGH = 20
"""Labels that tell whether a fleet reads images at all."""
_POOR, _FAR = 0.5, 0.15
"""Shares of right labels below which a fleet is said to be set up wrongly: by itself, and against the best fleet."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A campaign with all that its work needs.

    Attributes:
        campaign: The file's content.
        fleets: The copies.
        images: The images.
        choosing: Labels that were asked for to choose the images, by fleet, where any were.
        most_to_choose: Most labels that each copy could be asked for to choose them.
    """

    campaign: Campaign
    fleets: tuple[FleetCopies, ...]
    images: Images
    choosing: Mapping[str, int] = field(default_factory=dict)
    most_to_choose: int = 0


def prepare(
    campaign: Campaign,
    folder: Path,
    *,
    choose: bool = True,
    opened: Opener = open_device_oracle,
    tell: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Loads bases, opens devices, chooses images.

    Args:
        campaign: The checked file.
        folder: That paths in it are seen from.
        choose: Whether to choose images; else the first stand in for them, and no copy is asked.
        opened: Opens devices.
        tell: Told what is being done.

    Raises:
        MisuseError: A file is not there, or too few images are.
        RefusedError: A base or the images are refused, or do not fit one another; the message names the key.
        LimitError, DeviceError: A device does not answer; the message names it.
    """
    source = campaign.data
    x, y = read_images(folder / source.images) if source.images else read_set(source.set)
    if source.count > len(x):
        raise _too_few(source.count, len(x))
    pool = seeded(campaign.seed, "pool").permutation(len(x))[:POOL]
    _check_aims(campaign, y[pool])
    loaded = cache(_base)  # fleets may share a base
    fleets = []
    names: set[tuple[str, ...]] = set()
    for i, fleet in enumerate(campaign.fleets):
        tell(f"fleet {fleet.name}: {fleet.copies} copies")
        if fleet.devices:
            copies = _of_devices(i, fleet, folder, opened)
        else:
            templates = _released(i, fleet, folder) if fleet.release else _fused(i, fleet, folder, loaded)
            names |= {templates[0].contract.class_names} - {()}
            copies = _of_templates(campaign, fleet, templates)
        if copies.shape != x.shape[1:]:
            raise wrong(f"fleet[{i}]", f"takes images of {copies.shape}, and the data has {x.shape[1:]}")
        if y.max() >= copies.classes:
            raise wrong(f"fleet[{i}]", f"has {copies.classes} classes, and the data more")
        fleets.append(copies)
    choice = _Choice(campaign, x, y, Copies(tuple(fleets), opened=opened))
    try:
        tell(f"images: {source.count} of {len(x)}, {source.choose}")
        chosen = choice.places() if choose else np.arange(source.count)
    finally:
        choice.copies.close()
        # Told also when it fails: a device with a budget has answered them.
        for name, labels in choice.labels.items():
            right = choice.right[name]
            tell(f"fleet {name} was asked for {labels} labels to choose images, and read {right} rightly")
            share, best = choice.share(name), max(map(choice.share, choice.labels))
            if labels > _ENOUGH and (share < _POOR or share < best - _FAR):
                tell(
                    f"fleet {name} reads {share:.0%} of images rightly, the best fleet {best:.0%}: are mean, std and "
                    "layout of its input as its bases want them?"
                )
    if len(names) == 1 and not source.class_names:  # fleets that disagree leave it open
        source = replace(source, class_names=tuple(name[:_NAME] for name in names.pop()))
    return Prepared(
        campaign=replace(campaign, data=source),
        fleets=tuple(fleets),
        images=Images(x=x[chosen], y=y[chosen], index=chosen, pool_x=x[pool], pool_y=y[pool]),
        choosing=choice.labels,
        most_to_choose=len(x) if source.choose == _RIGHT else 0,
    )


def _check_aims(campaign: Campaign, pool: NDArray[np.int64]) -> None:
    """Refuses targeted attacks where no image could be aimed at another class."""
    for i, attack in enumerate(campaign.attacks):
        if attack.targeted and len(np.unique(pool)) < 2:  # noqa: PLR2004  one's own and another
            raise wrong(f"attack[{i}].targeted", "has no class to aim at: all images are of one")


def _released(number: int, fleet: Fleet, folder: Path) -> list[Template]:
    from variegate.export.release import Release  # noqa: PLC0415  heavy

    try:
        return [Release.load(folder / fleet.release).template]
    except VariegateError as error:
        raise wrong(f"fleet[{number}].release", f"is refused: {error.message}") from error


def _fused(number: int, fleet: Fleet, folder: Path, loaded: Callable[[Path, InputSpec], Base]) -> list[Template]:
    # Heavy: torch and onnx. Workers never come here.
    from variegate.attack.oracles.local import plain  # noqa: PLC0415
    from variegate.export.fuse import fuse  # noqa: PLC0415
    from variegate.export.intake.contract import InputSpec  # noqa: PLC0415
    from variegate.export.rewriters import from_parameters  # noqa: PLC0415

    where = f"fleet[{number}]"
    try:
        rewriter = None if fleet.rewriter["kind"] == "none" else from_parameters(fleet.rewriter)
    except VariegateError as error:
        raise wrong(f"{where}.rewriter", f"is refused: {error.message}") from error
    templates = []
    for i, path in enumerate(fleet.bases[: fleet.copies]):
        try:
            base = loaded(folder / path, InputSpec(**fleet.input))
            templates.append(plain(base, fleet.dtype) if rewriter is None else fuse(base, rewriter, fleet.dtype))
        except VariegateError as error:
            raise wrong(f"{where}.bases[{i}]", f"is refused: {error.message}") from error
    first = templates[0]
    for i, template in enumerate(templates):
        if (template.shape, template.contract.classes) != (first.shape, first.contract.classes):
            raise wrong(f"{where}.bases[{i}]", "differs in images or classes from the first")
    return templates


def _of_templates(campaign: Campaign, fleet: Fleet, templates: Sequence[Template]) -> FleetCopies:
    first = templates[0]
    return FleetCopies(
        name=fleet.name,
        dtype=first.dtype,
        shape=first.shape,
        classes=first.contract.classes,
        graphs=tuple(Graph(graph=t.graph, constants=t.constants, tensors=t.tensors) for t in templates),
        seeds=tuple(
            sha256(b"variegate simulated fleet\0", f"{campaign.seed}\0{fleet.name}\0{copy}".encode())
            for copy in range(fleet.copies)
        ),
    )


def _base(path: Path, spec: InputSpec) -> Base:
    from variegate.export.intake.base import load_base  # noqa: PLC0415  heavy

    return load_base(path, spec)


def _of_devices(number: int, fleet: Fleet, folder: Path, opened: Opener) -> FleetCopies:
    """Asks the first what it takes; the others are held to it when they are opened."""
    uris = tuple(_absolute(uri, folder) for uri in fleet.devices)
    with _named(f"fleet[{number}].devices[0]"), opened(uris[0]) as device:
        return FleetCopies(
            name=fleet.name, dtype=device.dtype, shape=device.shape, classes=device.classes, devices=uris
        )


def _absolute(uri: str, folder: Path) -> str:
    """A device's URI with its path, if it has one, seen from the campaign's file."""
    kind, _, path = uri.partition(":")
    return f"{kind}:{(folder / path).absolute()}" if kind in ("device", "socket", "vehicle") and path else uri


class _Choice:
    """Chooses the images.

    Attributes:
        copies: The copies, opened as they are needed.
        labels: Asked for, by fleet.
        right: Of them right, likewise.
    """

    def __init__(self, campaign: Campaign, x: NDArray[np.uint8], y: NDArray[np.int64], copies: Copies) -> None:
        self._campaign, self._x, self._y = campaign, x, y
        self.copies = copies
        self.labels: dict[str, int] = {}
        self.right: dict[str, int] = {}

    def share(self, name: str) -> float:
        """Of the labels that a fleet was asked for, how many were right."""
        return self.right[name] / max(1, self.labels[name])

    def places(self) -> NDArray[np.int64]:
        """Of the images to attack, int64 (count,)."""
        count, choose = self._campaign.data.count, self._campaign.data.choose
        every = len(self._x)
        order = np.arange(every) if choose == "first" else seeded(self._campaign.seed, "images").permutation(every)
        if choose == _RIGHT:
            order = self._right(order, count)
            if len(order) < count:
                raise _too_few(count, len(order), " that every copy reads rightly")
        return order[:count].astype(np.int64)

    def _right(self, order: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The first of `order` that all copies read rightly, at least `count` of them where there are."""
        places = order[:0]
        # Neither the order of fleets nor the size of blocks changes what is found, but what devices are asked.
        fleets = sorted(enumerate(self.copies.fleets.values()), key=lambda one: bool(one[1].devices))
        devices = any(fleet.devices for _, fleet in fleets)
        while len(order) and len(places) < count:
            size = min(_BLOCK, count - len(places)) if devices else _BLOCK
            block, order = order[:size], order[size:]
            for i, fleet in fleets:
                for number in range(fleet.count):
                    if len(block):
                        block = block[self._labels(i, fleet, number, block) == self._y[block]]
                        self.right[fleet.name] += len(block)
            places = np.concatenate([places, block])
        return places

    def _labels(self, i: int, fleet: FleetCopies, number: int, block: NDArray[np.int64]) -> NDArray[np.int64]:
        with _named(f"fleet[{i}].devices[{number}]" if fleet.devices else f"fleet[{i}]"):
            oracle = Counted(self.copies.oracle(fleet.name, number))
            try:
                return ask_all(oracle, to_frames(to_points(self._x[block]), fleet.dtype))
            finally:
                self.labels[fleet.name] = self.labels.get(fleet.name, 0) + oracle.queries
                self.right.setdefault(fleet.name, 0)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Puts the key in front of what goes wrong, whatever class of error it is."""
    try:
        yield
    except VariegateError as error:
        error.message = f"campaign: {where}: {error.message}"
        error.args = (error.message,)
        raise


def _too_few(count: int, there: int, which: str = "") -> RefusedError:
    return RefusedError(Refusal.INPUT, f"campaign: data.count is {count}, and there are {there} images{which}")
