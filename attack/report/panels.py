"""Pictures of samples: the clean image, the frame found, and what changed, amplified.

Clean images are not in the shards; they are those of the campaign's inputs.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from variegate.attack.campaign import images
from variegate.attack.campaign.folder import IMAGES, MAX_INPUT_BYTES, MAX_SHARD_BYTES, SAMPLES
from variegate.attack.oracle import to_points
from variegate.attack.report.data import Campaign
from variegate.attack.report.interleaving import interleaved
from variegate.attack.report.replication import FOOLS
from variegate.attack.report.results import Group
from variegate.keys.errors import Refusal, RefusedError, VariegateError
from variegate.keys.files import read_capped
from variegate.keys.primitives import sha256

MOST = 12
"""Samples shown."""
_CHANNELS = (3, 1)
_MAX_SIDE = 512
_KEY, _FRAME = ("fleet", "attack", "profile", "norm", "attacker", "image"), ("dtype", "sample")


@dataclass(frozen=True)
class Panel:
    """One sample.

    Attributes:
        group: fleet, attack, profile, norm.
        attacker: Copy it was found on.
        image: Index in the data.
        true_class: Of the clean image.
        label: That the attacker's copy gives.
        distance: In the attack's norm.
        victims: Other copies that it was shown to as it was found.
        fooled: Those of them that it fools.
        sample: PNG as a data URI.
        clean: PNG as a data URI; None where the data is not at hand.
        difference: PNG as a data URI, 127 for no change; None where the data is not at hand.
        factor: By which the difference is amplified.
    """

    group: Group
    attacker: int
    image: int
    true_class: int
    label: int
    distance: float
    victims: int
    fooled: int
    sample: str
    clean: str | None
    difference: str | None
    factor: int


def panels(campaign: Campaign) -> list[Panel]:
    """For each group the sample that fools most victims and, after all of these, the one of median distance.

    `MOST` in all; fleets take turns.

    Args:
        campaign: Loaded.

    Raises:
        RefusedError: `MALFORMED`: the clean images or a shard were changed.
    """
    out = []
    clean = _clean(campaign)
    chosen = _chosen(campaign)
    frames = _frames(campaign, chosen)
    for row in chosen:
        known = clean.get(row[5])
        frame = _frame(frames[row[: len(_KEY)]], None if known is None else known.shape)
        if frame is None:
            continue
        original = None if known is None else to_points(known)
        shown = to_points(frame)
        factor, difference = _amplified(shown - original) if original is not None else (1, None)
        out.append(
            Panel(
                (row[0], row[1], row[2], row[3]), row[4], row[5], row[6], row[7], row[8], row[9], row[10],
                sample=_png(shown),
                clean=None if original is None else _png(original),
                difference=None if difference is None else _png(difference),
                factor=factor,
            )
        )  # fmt: skip
    return out


def _chosen(campaign: Campaign) -> list[tuple[str, str, str, str, int, int, int, int, float, int, int]]:
    query = f"""
    WITH shown AS (
        SELECT fleet, attack, profile, norm, attacker, image, count(*) AS victims, count(*) FILTER (c) AS fooled
        FROM pairs
        WHERE budget = 0 AND overshoot = (SELECT arg_min(overshoot, abs(overshoot - 1)) FROM replays) GROUP BY ALL
    ), ranked AS (
        SELECT fleet, attack, profile, norm, attacker, image, true_class, label, distance,
            coalesce(victims, 0) AS victims, coalesce(fooled, 0) AS fooled,
            row_number() OVER (
                PARTITION BY fleet, attack, profile, norm ORDER BY fooled DESC NULLS LAST, image, attacker
            ) AS worst,
            row_number() OVER (PARTITION BY fleet, attack, profile, norm ORDER BY distance, image, attacker) AS place,
            count(*) OVER (PARTITION BY fleet, attack, profile, norm) AS of
        FROM samples LEFT JOIN shown USING (fleet, attack, profile, norm, attacker, image)
        WHERE status = 'found' AND {FOOLS} AND isfinite(distance) AND image >= 0
    )
    SELECT fleet, attack, profile, norm, attacker, image, true_class, label, distance, victims, fooled, worst
    FROM ranked WHERE worst = 1 OR place = (of + 1) // 2
    ORDER BY fleet, attack, profile, norm, worst, image"""  # noqa: S608  only this module's words
    rows = interleaved(
        campaign.rows(query), fleet=lambda row: str(row[0]), weight=lambda row: int(row[10]) if row[11] == 1 else -1
    )
    return [tuple(row[:11]) for row in rows[:MOST]]


def _frames(
    campaign: Campaign, chosen: Sequence[Sequence[object]]
) -> dict[tuple[object, ...], list[tuple[str, bytes]]]:
    """Type and bytes of the chosen samples' frames, by the columns that name them.

    Raises:
        RefusedError: `MALFORMED`: a shard was changed since it was loaded.
    """
    wanted = {tuple(row[: len(_KEY)]) for row in chosen}
    out: dict[tuple[object, ...], list[tuple[str, bytes]]] = {key: [] for key in wanted}
    for shard in campaign.shards:
        if not wanted or not shard.path.startswith(f"{SAMPLES}/"):
            continue
        data = read_capped(campaign.folder / shard.path, limit=MAX_SHARD_BYTES)
        if sha256(data).hex() != shard.sha256:
            raise RefusedError(Refusal.MALFORMED, f"{campaign.folder / shard.path} was changed while it was read")
        table: Any = pq.read_table(pa.BufferReader(data), columns=[*_KEY, *_FRAME])
        keys = zip(*(table[name].to_pylist() for name in _KEY), strict=True)
        for i, key in enumerate(keys):
            if key in wanted:
                out[key].append((table["dtype"][i].as_py(), table["sample"][i].as_py()))
    return out


def _frame(parts: Sequence[tuple[str, bytes]], shape: tuple[int, ...] | None) -> NDArray[Any] | None:
    """The frame, (C, H, W); where the shape is not known, a square of one or three channels is tried."""
    if len(parts) != 1 or parts[0][0] not in {"uint8", "float32"} or not parts[0][1]:
        return None
    try:
        flat = np.frombuffer(parts[0][1], np.dtype(parts[0][0]))
    except ValueError:
        return None
    if not np.isfinite(flat).all():
        return None
    for channels in _CHANNELS:
        side = math.isqrt(len(flat) // channels)
        wanted = shape or (channels, side, side)
        if math.prod(wanted) == len(flat) and wanted[0] in _CHANNELS and max(wanted[1:]) <= _MAX_SIDE:
            return flat.reshape(wanted)
    return None


def _clean(campaign: Campaign) -> dict[int, NDArray[np.uint8]]:
    """Clean images (C, H, W) by their index in the data; none where the campaign's inputs are not there or damaged.

    Raises:
        RefusedError: `MALFORMED`: they are not those that the ledger knows.
    """
    try:
        data = read_capped(campaign.folder / IMAGES, limit=MAX_INPUT_BYTES)
        known = images.from_bytes(data)
    except VariegateError:
        return {}
    if campaign.images_sha256 not in ("", sha256(data).hex()):
        raise RefusedError(Refusal.MALFORMED, f"{campaign.folder / IMAGES} was changed since the campaign was made")
    return dict(zip(known.index.tolist(), known.x, strict=True))


def _amplified(difference: NDArray[np.float32]) -> tuple[int, NDArray[np.float32]]:
    """The difference around grey, amplified by a power of two that nearly fills the range."""
    most = float(np.abs(difference).max(initial=0))
    factor = 1 if most == 0 else 2 ** max(0, min(8, math.floor(math.log2(0.5 / most))))
    return factor, np.clip(0.5 + factor * difference, 0, 1).astype(np.float32)


def _png(points: NDArray[np.float32]) -> str:
    """A picture (C, H, W) in 0..1 as a data URI."""
    pixels = np.rint(np.clip(points, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
