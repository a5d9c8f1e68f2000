"""Campaign folders as the engine leaves them, made up: figures that are known, and figures that look like real ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from variegate.attack.campaign import config, ledger
from variegate.attack.campaign.folder import CONFIG, shard
from variegate.attack.campaign.images import Images, to_bytes
from variegate.attack.campaign.messages import UnitDone
from variegate.attack.campaign.resolved import to_toml
from variegate.attack.campaign.shards import REPLAYS, SAMPLES
from variegate.attack.campaign.units import units
from variegate.keys.primitives import sha256

TRUE, OTHER = 3, 5
_UNIT = {"fleet": "qim", "attack": "hopskipjump", "profile": "corrected", "norm": "l2"}


def sample(image: int, *, attacker: int = 0, found: bool = True, frame: bytes = b"", **changes: Any) -> dict[str, Any]:
    """A row of `samples`; a frame of 1 x 2 x 2 unless told otherwise."""
    row = {
        **_UNIT,
        "attacker": attacker,
        "image": image,
        "true_class": TRUE,
        "target": None,
        "status": "found" if found else "none",
        "reason": "",
        "label": OTHER if found else None,
        "queries": 1000,
        "distance": 0.5 if found else float("inf"),
        "dtype": "uint8",
        "sample": (frame or bytes(4)) if found else None,
        "trace_queries": [10, 100] if found else [],
        "trace_distance": [2.0, 0.5] if found else [],
        "budgets": [],
        "budget_samples": [],
    }
    return {**row, **changes}


def replay(image: int, victim: int, *, fooled: bool, clean: bool = True, **changes: Any) -> dict[str, Any]:
    """A row of `replays` at overshoot 1 and the end of the budget."""
    row = {
        **_UNIT,
        "attacker": 0,
        "image": image,
        "true_class": TRUE,
        "target": None,
        "budget": 0,
        "overshoot": 1.0,
        "victim": victim,
        "label": OTHER if fooled else TRUE,
        "clean_label": TRUE if clean else OTHER,
        "l2": 0.5,
        "linf": 0.05,
    }
    return {**row, **changes}


def write(
    folder: Path, samples: Sequence[Mapping[str, Any]], replays: Sequence[Mapping[str, Any]], **unit: str
) -> Path:
    """A campaign of one shard of each kind; `unit` replaces names in every row."""
    for kind, schema, rows in (("samples", SAMPLES, samples), ("replays", REPLAYS, replays)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([{**row, **unit} for row in rows], schema=schema)
        pq.write_table(table, folder / kind / "unit.parquet")
    (folder / "campaign.toml").write_text('schema = 1\nname = "known"\n')
    return folder


def write_whole(
    folder: Path, samples: Sequence[Mapping[str, Any]], replays: Sequence[Mapping[str, Any]], *, frame_rate: float
) -> Path:
    """A campaign of one unit, copy 0 of two, with the file and the ledger that the engine would have left."""
    write(folder, samples, replays)
    campaign = config.parse(_WHOLE.format(count=len(samples), frame_rate=frame_rate).encode())
    (unit,) = units(campaign)
    data = {}
    for kind in ("samples", "replays"):
        made = (folder / kind / "unit.parquet").rename(shard(folder, kind, unit))
        data[kind] = made.read_bytes()
    resolved = to_toml(campaign).encode()
    (folder / CONFIG).write_bytes(resolved)
    ledger.create(folder, [unit], {CONFIG: sha256(resolved).hex()})
    with ledger.Ledger(folder, write=True) as book:
        book.finish(
            UnitDone(
                unit=unit.name,
                **data,
                samples_rows=len(samples),
                replays_rows=len(replays),
                queries=sum(row["queries"] for row in samples),
                clean_queries=3 * len(samples),
                replay_queries=len(replays),
            )
        )
    return folder


_WHOLE = """
schema = 1
name = "known"
seed = 1
[data]
images = "images.npz"
count = {count}
[[fleet]]
name = "qim"
copies = 2
bases = ["base.onnx"]
rewriter = {{ kind = "qim" }}
frame_rate = {frame_rate}
[[attack]]
name = "hopskipjump"
kind = "hopskipjump"
queries = 1000
attackers = 1
[run]
unit = {count}
"""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A made-up campaign.

    Attributes:
        fleets: Name -> how far a sample reaches beyond its own copy: 0 not at all, 1 everywhere.
        attacks: (attack, profile, norm).
        copies: In each fleet; each attacks all others.
        images: That each attacks.
        budgets: At which samples are replayed, besides the end.
        overshoots: At which they are replayed.
        seed: Of everything.
    """

    fleets: Mapping[str, float] = field(default_factory=lambda: {"qim": 0.02, "permutation": 0.85, "independent": 0.1})
    attacks: Sequence[tuple[str, str, str]] = (
        ("hopskipjump", "art-1.20", "l2"),
        ("hopskipjump", "corrected", "l2"),
        ("rays", "corrected", "linf"),
    )
    copies: int = 4
    images: int = 20
    budgets: Sequence[int] = (500, 2000)
    overshoots: Sequence[float] = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
    seed: int = 7
    side: int = 32


def clean_images(made: Made) -> NDArray[np.uint8]:
    """Smooth coloured pictures, uint8 (images, 3, side, side)."""
    rng = np.random.default_rng(made.seed)
    y, x = np.mgrid[0 : made.side, 0 : made.side] / made.side
    out = []
    for _ in range(made.images):
        base = rng.uniform(0.2, 0.8, (3, 1, 1))
        wave = np.sin(2 * np.pi * (rng.uniform(0.5, 2) * x + rng.uniform(0.5, 2) * y))
        disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < rng.uniform(0.05, 0.15)) * rng.uniform(-0.3, 0.3, (3, 1, 1))
        out.append(np.clip(base + rng.uniform(-0.25, 0.25, (3, 1, 1)) * wave + disc, 0, 1))
    frames: NDArray[np.uint8] = np.rint(np.array(out) * 255).astype(np.uint8)
    return frames


def make(folder: Path, made: Made | None = None) -> Path:
    """Writes a campaign that looks like a real one, a pair of shards for each fleet, attacker and attack."""
    made = made or Made()
    clean = clean_images(made)
    for kind in ("samples", "replays"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    number = 0
    for fleet, reach in made.fleets.items():
        for attack, profile, norm in made.attacks:
            for attacker in range(made.copies):
                unit = {"fleet": fleet, "attack": attack, "profile": profile, "norm": norm}
                rng = np.random.default_rng([made.seed, number])
                samples, replays = _unit(made, clean, unit, attacker, reach=reach, rng=rng)
                for kind, schema, rows in (("samples", SAMPLES, samples), ("replays", REPLAYS, replays)):
                    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / kind / f"{number:04}.parquet")
                number += 1
    classes, index = np.full(made.images, TRUE, np.int64), np.arange(made.images, dtype=np.int64)
    (folder / "inputs").mkdir(exist_ok=True)
    pictures = Images(x=clean, y=classes, index=index, pool_x=clean[:1], pool_y=classes[:1])
    (folder / "inputs" / "images.npz").write_bytes(to_bytes(pictures))
    (folder / "campaign.toml").write_text(
        'schema = 1\nname = "made-up"\nseed = 7\n\n[data]\nset = "gtsrb-test"\ncount = 20\n'
        + "".join(
            f'\n[[fleet]]\nname = "{name}"\ncopies = {made.copies}\nrewriter = {{ kind = "{kind}" }}\n'
            for name, kind in zip(made.fleets, itertools.cycle(["qim", "permutation", "none"]), strict=False)
        )
    )
    return folder


def _unit(
    made: Made,
    clean: NDArray[np.uint8],
    unit: dict[str, Any],
    attacker: int,
    *,
    reach: float,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    samples: list[dict[str, Any]] = []
    replays: list[dict[str, Any]] = []
    for image in range(made.images):
        if rng.random() < 0.05:
            failed = rng.random() < 0.5
            why: dict[str, Any] = (
                {"status": "failed", "reason": "ValueError: no start is answered as wanted"} if failed else {}
            )
            samples.append(sample(image, attacker=attacker, found=False, **unit, **why))
            continue
        direction = rng.normal(size=clean[image].shape)
        final = float(np.exp(rng.normal(-1.2, 0.4))) * (1 + reach)
        queries = np.unique(np.geomspace(30, 5000, 24).astype(int))
        distances = np.maximum.accumulate(
            (final * (queries / 5000) ** -0.5 * rng.uniform(0.97, 1.03, len(queries)))[::-1]
        )
        distances = distances[::-1]
        distances[-1] = final
        direction /= np.linalg.norm(direction)
        frame = np.clip(clean[image] / 255 + final * direction, 0, 1)
        linf = float(np.abs(direction).max())
        row = sample(image, attacker=attacker, frame=np.rint(frame * 255).astype(np.uint8).tobytes(), **unit)
        row |= {
            "queries": 5000,
            "distance": final,
            "trace_queries": queries.tolist(),
            "trace_distance": distances.tolist(),
        }
        samples.append(row)
        luck = rng.random(made.copies)
        right = rng.random(made.copies) > 0.02
        right[attacker] = True
        for budget in (*made.budgets, 0):
            length = final if budget == 0 else float(distances[queries <= budget][-1])
            for s in made.overshoots:
                for victim in range(made.copies):
                    chance = min(1.0, reach * s**1.2 + 0.15 * max(0.0, length - 0.6))
                    fooled = s < 2.5 or rng.random() < 0.95 if victim == attacker else bool(luck[victim] < chance)
                    fooled = fooled or not right[victim]
                    replays.append(
                        replay(
                            image, victim, fooled=fooled, clean=bool(right[victim]), **unit, attacker=attacker,
                            budget=budget, overshoot=s, l2=length * s, linf=length * s * linf,
                        )
                    )  # fmt: skip
    return samples, replays
