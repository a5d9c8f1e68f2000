"""Holds a campaign's ledger, inputs and shards to one another, without asking a copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from variegate.attack.campaign import folder as folders
from variegate.attack.campaign import shards
from variegate.attack.campaign.config import Campaign
from variegate.attack.campaign.ledger import DONE, Ledger, UnitEntry
from variegate.attack.campaign.units import units, victims
from variegate.keys.errors import MisuseError, Refusal, RefusedError, VariegateError
from variegate.keys.files import read_capped
from variegate.keys.primitives import sha256

_SCHEMAS = {folders.SAMPLES: shards.SAMPLES, folders.REPLAYS: shards.REPLAYS}


def against_shards(folder: Path, ledger: Ledger, campaign: Campaign) -> list[str]:
    """What does not agree, one sentence each.

    Args:
        folder: The campaign's.
        ledger: Opened.
        campaign: As its file says.

    Raises:
        RefusedError: `MALFORMED`: the ledger cannot be read, or has a unit that is none of the campaign's.
        DeviceError: Storage failed.
    """
    out = []
    entries = _entries(ledger, campaign)
    if [entry.unit for entry in entries] != units(campaign):
        out.append("the ledger does not have the campaign's units")
    out += damaged(folder, ledger, campaign).values()
    known = {entry.unit.name for entry in entries}
    left = set(ledger.counts()) - {entry.unit.name for entry in entries if entry.state != DONE}
    out += [f"the ledger keeps outcomes of {unit}, which is done or no unit" for unit in sorted(left)]
    for kind in (folders.SAMPLES, folders.REPLAYS):
        for path in sorted((folder / kind).glob("*.parquet")):
            if path.stem not in known:
                out.append(f"{kind}/{path.name} is the shard of no unit: remove it")
    return out


def damaged(folder: Path, ledger: Ledger, campaign: Campaign) -> dict[str, str]:
    """Units whose shards, or outcomes under way, are not what the ledger knows: name, and one sentence.

    Args:
        folder: The campaign's.
        ledger: Opened.
        campaign: As its file says.

    Raises:
        RefusedError: `MALFORMED`: the ledger cannot be read, or has a unit that is none of the campaign's.
        DeviceError: Storage failed.
    """
    out = {}
    under_way = ledger.counts()
    for entry in _entries(ledger, campaign):
        faults = list(_of_unit(folder, entry, campaign)) if entry.state == DONE else []
        if entry.unit.name in under_way:
            try:
                ledger.outcomes(entry.unit.name)
            except RefusedError as error:
                faults.append(error.message)
        if faults:
            out[entry.unit.name] = "; ".join(faults)
    return out


def shard_bytes(folder: Path, kind: str, entry: UnitEntry) -> bytes:
    """A shard of a unit that is done, if it is the one that the ledger knows.

    Raises:
        RefusedError: `MALFORMED`: it is not there, no regular file, or another; `TOO_LARGE`.
        DeviceError: Storage failed.
    """
    path = folders.shard(folder, kind, entry.unit)
    try:
        data = read_capped(path, limit=folders.MAX_SHARD_BYTES)
    except MisuseError as error:
        raise RefusedError(Refusal.MALFORMED, error.message) from error
    if sha256(data).hex() != (entry.samples_sha256 if kind == folders.SAMPLES else entry.replays_sha256):
        raise RefusedError(Refusal.MALFORMED, f"{kind}/{path.name} is not what the ledger knows")
    return data


def rows_of(folder: Path, kind: str, entry: UnitEntry) -> shards.Rows:
    """Rows of a unit's shard.

    Raises:
        MisuseError: It is not there.
        RefusedError: `MALFORMED`; `TOO_LARGE`: it unpacks to too much.
        DeviceError: Storage failed.
    """
    path = folders.shard(folder, kind, entry.unit)
    name = f"{kind}/{path.name}"
    return shards.from_bytes(_SCHEMAS[kind], read_capped(path, limit=folders.MAX_SHARD_BYTES), name)


def _entries(ledger: Ledger, campaign: Campaign) -> list[UnitEntry]:
    """The ledger's; all of units whose fleet, attack, copy and images the campaign has."""
    entries, known = ledger.entries(), set(units(campaign))
    for entry in entries:
        if entry.unit not in known:
            message = f"the ledger does not have the campaign's units: {entry.unit.name} is none of them"
            raise RefusedError(Refusal.MALFORMED, message)
    return entries


def _of_unit(folder: Path, entry: UnitEntry, campaign: Campaign) -> Iterator[str]:
    for kind in (folders.SAMPLES, folders.REPLAYS):
        path = folders.shard(folder, kind, entry.unit)
        try:
            table = shards.read(_SCHEMAS[kind], shard_bytes(folder, kind, entry), f"{kind}/{path.name}")
        except VariegateError as error:
            yield error.message
            return
        rows = table.num_rows
        if kind == folders.SAMPLES:
            count = len(entry.unit.images)
            queries = sum(queries or 0 for queries in table["queries"].to_pylist())
            if (rows, rows) != (entry.samples_rows, count):
                yield f"{kind}/{path.name} has {rows} rows; the ledger says {entry.samples_rows}, the unit {count}"
            if queries != entry.queries:
                yield f"{kind}/{path.name} has {queries} queries, and the ledger {entry.queries}"
            clean = count * (1 + len(victims(campaign, entry.unit)))
            if entry.clean_queries != clean:
                yield f"the ledger has {entry.clean_queries} queries of clean images for {entry.unit.name}, not {clean}"
        elif not rows == entry.replays_rows == entry.replay_queries:
            yield f"{kind}/{path.name} has {rows} rows, and the ledger {entry.replays_rows}"
