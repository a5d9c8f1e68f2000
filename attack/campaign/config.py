"""A campaign's file: TOML, checked against `schema.json`, then for what a schema cannot say.

Every refusal names the key by its path, as in `fleet[1].rewriter.alpha`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from variegate.attack.campaign.schema import check, quoted, wrong
from variegate.attack.kinds import from_config
from variegate.attack.search import STARTS, Attack
from variegate.attack.strategy import Strategy, devices_of
from variegate.keys.errors import Refusal, RefusedError, VariegateError
from variegate.keys.files import read_capped

MAX_CONFIG_BYTES = 1 << 20
MAX_UNITS = 1_000_000
OVERSHOOTS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images are attacked. Exactly one of `images` and `set` is given.

    Attributes:
        images: Path of an .npz, seen from the campaign's file; empty for none.
        set: Name of a set in the data folder; empty for none.
        count: How many.
        choose: "right-by-all", "random" or "first".
        class_names: A name for each class; empty when they are not known.
    """

    images: str = ""
    set: str = ""
    count: int
    choose: str = "right-by-all"
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Copies that attack each other.

    Attributes:
        name: In results.
        copies: How many.
        bases: Paths, seen from the campaign's file; copy i has base i mod their number.
        release: Path of a release's folder instead of bases, rewriter, dtype and input; seen from the campaign's file.
        rewriter: `kind` and parameters.
        dtype: Of frames.
        input: layout, value_range, mean, std of the bases' input, as far as given.
        devices: URIs instead of bases.
        frame_rate: Of a real device, frames/s; None when not stated.
    """

    name: str
    copies: int
    bases: tuple[str, ...] = ()
    release: str = ""
    rewriter: Mapping[str, Any] = field(default_factory=lambda: {"kind": "none"})
    dtype: str = "uint8"
    input: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    frame_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class AttackRun:
    """One attack as configured.

    Attributes:
        name: In results.
        kind: Of the algorithm.
        profile: "corrected" or "art-1.20".
        parameters: Of the algorithm.
        queries: For each image.
        budgets: Checkpoints, ascending.
        targeted: Whether a class is wanted, drawn for each image.
        starts: Pictures to start from.
        fleets: Names of the fleets it attacks.
        attackers: How many copies of each attack; None for all.
        images: "each" or "split".
    """

    name: str
    kind: str
    profile: str = "corrected"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    queries: int
    budgets: tuple[int, ...] = ()
    targeted: bool = False
    starts: int = STARTS
    fleets: tuple[str, ...]
    attackers: int | None = None
    images: str = "each"

    @cached_property
    def attack(self) -> Attack | Strategy:
        """As configured."""
        return from_config(self.kind, self.profile, self.parameters)

    @property
    def devices(self) -> int:
        """How many copies each attacker owns: the one that is attacked, and those after it."""
        return devices_of(self.attack)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Where samples are shown.

    Attributes:
        overshoots: Factors s.
        victims: "all" others, or so many after the attacker.
    """

    overshoots: tuple[float, ...] = OVERSHOOTS
    victims: int | Literal["all"] = "all"


@dataclass(frozen=True, kw_only=True)
class Running:
    """How it is computed; results do not depend on `workers` and `engine`.

    Attributes:
        workers: Processes.
        unit: Images of a unit of work.
        engine: "processes", "serial" or the address of a Dask scheduler.
    """

    workers: int = 2
    unit: int = 16
    engine: str = "processes"


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """A checked campaign.

    Attributes:
        name: Of the campaign.
        seed: Of all randomness.
        data: The images.
        fleets: The copies.
        attacks: What is run on them.
        replay: Where samples are shown.
        run: How it is computed.
    """

    name: str
    seed: int
    data: Data
    fleets: tuple[Fleet, ...]
    attacks: tuple[AttackRun, ...]
    replay: Replay = field(default_factory=Replay)
    run: Running = field(default_factory=Running)

    def fleet(self, name: str) -> Fleet:
        """The fleet of this name."""
        return next(fleet for fleet in self.fleets if fleet.name == name)

    def attack(self, name: str) -> AttackRun:
        """The attack of this name."""
        return next(attack for attack in self.attacks if attack.name == name)


def load(path: Path) -> Campaign:
    """Reads a campaign's file, which may be hostile.

    Raises:
        MisuseError: There is no such file.
        RefusedError: `TOO_LARGE`; `MALFORMED`, naming the key.
    """
    return parse(read_capped(path, limit=MAX_CONFIG_BYTES))


def parse(data: bytes) -> Campaign:
    """Reads a campaign.

    Raises:
        RefusedError: `MALFORMED`, naming the key.
    """
    try:
        values = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "not UTF-8, or nested too deeply"
        raise RefusedError(Refusal.MALFORMED, quoted(f"the campaign is not valid TOML: {why}")) from None
    check(values)
    fleets = tuple(_fleet(i, fleet) for i, fleet in enumerate(values["fleet"]))
    names = tuple(fleet.name for fleet in fleets)
    _unique("fleet", names)
    attacks = tuple(_attack(i, attack, names) for i, attack in enumerate(values["attack"]))
    _unique("attack", [attack.name for attack in attacks])
    copies = {fleet.name: fleet.copies for fleet in fleets}
    for i, attack in enumerate(attacks):
        for name in attack.fleets:
            if attack.devices > copies[name]:
                raise wrong(f"attack[{i}].parameters.devices", f"is more than the {copies[name]} copies of {name}")
    source = values["data"]
    if ("images" in source) == ("set" in source):
        raise wrong("data", "needs either images or set")
    replay = values.get("replay", {})
    overshoots = tuple(float(s) for s in replay.get("overshoots", OVERSHOOTS))
    if len(set(overshoots)) != len(overshoots):
        raise wrong("replay.overshoots", "names one twice")
    run = Running(**values.get("run", {}))
    attackers = sum(min(copies[f], a.attackers or copies[f]) for a in attacks for f in a.fleets)
    if attackers * math.ceil(source["count"] / run.unit) > MAX_UNITS:
        raise wrong("run.unit", f"is too small: there would be more than {MAX_UNITS} units")
    return Campaign(
        name=values["name"],
        seed=values["seed"],
        data=Data(**{**source, "class_names": tuple(source.get("class_names", ()))}),
        fleets=fleets,
        attacks=attacks,
        replay=Replay(overshoots=overshoots, victims=replay.get("victims", "all")),
        run=run,
    )


def _fleet(number: int, values: dict[str, Any]) -> Fleet:
    where = f"fleet[{number}]"
    if "devices" in values:
        for key in ("bases", "release", "rewriter", "input", "dtype"):
            if key in values:
                raise wrong(f"{where}.{key}", "makes no sense beside devices, which are what they are")
        devices = tuple(values["devices"])
        if len(set(devices)) != len(devices):
            raise wrong(f"{where}.devices", "names one twice")
        if values.get("copies", len(devices)) != len(devices):
            raise wrong(f"{where}.copies", f"is not the number of devices, {len(devices)}")
        return Fleet(
            name=values["name"], copies=len(devices), devices=devices, frame_rate=_rate(values), rewriter={}, dtype=""
        )
    for key in ("bases", "copies"):
        if key not in values and not (key == "bases" and "release" in values):
            raise wrong(f"{where}.{key}", "is missing")
    if "release" in values:
        for key in ("bases", "rewriter", "input", "dtype"):
            if key in values:
                raise wrong(f"{where}.{key}", "makes no sense beside a release, which has its own")
        name, copies, release = values["name"], values["copies"], values["release"]
        return Fleet(name=name, copies=copies, release=release, frame_rate=_rate(values), rewriter={}, dtype="")
    rewriter = values.get("rewriter", {"kind": "none"})
    if rewriter["kind"] == "none" and set(rewriter) != {"kind"}:
        raise wrong(f"{where}.rewriter.{min(set(rewriter) - {'kind'})}", "is not known for kind none")
    input_ = {key: tuple(v) if isinstance(v, list) else v for key, v in values.get("input", {}).items()}
    return Fleet(
        name=values["name"],
        copies=values["copies"],
        bases=tuple(values["bases"]),
        rewriter=rewriter,
        dtype=values.get("dtype", "uint8"),
        input=input_,
        frame_rate=_rate(values),
    )


def _rate(values: dict[str, Any]) -> float | None:
    return float(values["frame_rate"]) if "frame_rate" in values else None


def _attack(number: int, values: dict[str, Any], fleets: Sequence[str]) -> AttackRun:
    where = f"attack[{number}]"
    budgets = tuple(values.get("budgets", ()))
    if list(budgets) != sorted(set(budgets)) or (budgets and budgets[-1] > values["queries"]):
        raise wrong(f"{where}.budgets", "must ascend, up to queries")
    chosen = tuple(values.get("fleets", fleets))
    for i, name in enumerate(chosen):
        if name not in fleets:
            raise wrong(f"{where}.fleets[{i}]", f"is no fleet: {name}")
    _unique(f"{where}.fleets", chosen, what="")
    targeted = values.get("targeted", False)
    plain = values.get("profile") == "art-1.20" and not targeted
    more = {**values, "budgets": budgets, "fleets": chosen, "starts": values.get("starts", 0 if plain else STARTS)}
    run = AttackRun(**more)
    try:
        from_config(run.kind, run.profile, run.parameters, where)
    except VariegateError as error:
        message = quoted(f"campaign: {error.message}")
        raise RefusedError(Refusal.MALFORMED, message, hint=error.hint) from error
    if targeted and isinstance(run.attack, Strategy) and not run.attack.targets:
        raise wrong(f"{where}.targeted", f"is not for {run.kind} as it is set: it cannot aim")
    return run


def _unique(where: str, names: Sequence[str], what: str = ".name") -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise wrong(f"{where}[{i}]{what}", f"is there twice: {name}")
