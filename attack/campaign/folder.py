"""A campaign's folder: what lies in it, made whole or not at all.

    campaign.toml     resolved
    ledger.sqlite     units, outcomes under way, digests of everything else
    inputs/images.npz   the images and their places in the data
    inputs/copies.cbor  graphs, weights and seeds of the copies; readable by its owner alone
    samples/  replays/  shards

A campaign needs its file, the data and the bases no more once it is made.
"""

from __future__ import annotations

import glob
import json
import secrets
import shutil
import tempfile
from pathlib import Path

from variegate.attack.campaign import config, copies_file, images, ledger
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.resolved import to_toml
from variegate.attack.campaign.software import KEY, software
from variegate.attack.campaign.units import Unit, units
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.files import PRIVATE, PUBLIC, held, read_capped, refuse_shared, write_atomic
from variegate.keys.primitives import sha256

CONFIG, IMAGES, COPIES = "campaign.toml", "inputs/images.npz", "inputs/copies.cbor"
SAMPLES, REPLAYS = "samples", "replays"
MAX_INPUT_BYTES = 4 << 30
MAX_SHARD_BYTES = 1 << 30
_GLOB = frozenset("*?[]")
_DRAWN = 16
_WAIT_S = 60.0
"""For another process that makes a campaign beside this one. A campaign that runs holds its folder for longer."""


def create(folder: Path, prepared: Prepared) -> None:
    """Makes the folder of a campaign in which nothing has been done yet.

    Args:
        folder: Not there yet.
        prepared: The campaign.

    Raises:
        MisuseError: It is there, or cannot be made.
        RefusedError: `TOO_LARGE`: its inputs could not be read again.
        DeviceError: Storage failed; nothing is left.
    """
    contents = {
        CONFIG: to_toml(prepared.campaign).encode(),
        IMAGES: images.to_bytes(prepared.images),
        COPIES: copies_file.to_bytes(prepared.fleets),
    }
    for name, data in contents.items():
        if len(data) > MAX_INPUT_BYTES:
            message = f"{name} would have {len(data)} bytes, and only {MAX_INPUT_BYTES} can be read again"
            raise RefusedError(Refusal.TOO_LARGE, message, hint="make campaigns of fewer images, fleets or bases")
    place = folder.with_name(f".{folder.name}.preparing.{secrets.token_hex(_DRAWN // 2)}")
    # Of two processes that make one campaign, one waits, and then finds it there.
    with held(folder.absolute().parent, _WAIT_S):
        _create(folder, place, contents, prepared)


def _create(folder: Path, place: Path, contents: dict[str, bytes], prepared: Prepared) -> None:
    check_new(folder)
    try:
        # Killed processes may have left some; a living one would hold the parent.
        for left in folder.absolute().parent.glob(f".{glob.escape(folder.name)}.preparing.{'?' * _DRAWN}"):
            shutil.rmtree(left, ignore_errors=True)
        place.mkdir()  # not with its parents: a link in its place would be followed
        for name in ("inputs", SAMPLES, REPLAYS):
            (place / name).mkdir()
        for name, data in contents.items():
            write_atomic(place / name, data, mode=PRIVATE if name == COPIES else PUBLIC)
        meta = {name: sha256(data).hex() for name, data in contents.items()}
        ledger.create(place, units(prepared.campaign), {**meta, KEY: software(), **_asked(prepared)})
        place.rename(folder)
    except OSError as error:
        raise DeviceError(f"cannot make {folder}: {(error.strerror or type(error).__name__).lower()}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _asked(prepared: Prepared) -> dict[str, str]:
    return {ledger.CHOOSING: json.dumps(dict(prepared.choosing), sort_keys=True)}


def check_new(folder: Path) -> None:
    """Looks whether `create` could make a folder, before work is spent on it.

    Raises:
        MisuseError: It is there, or its parent is not, or nothing can be made in that, or others may write that; or its
            path has characters that DuckDB takes for patterns.
    """
    if _GLOB & set(str(folder.absolute())):
        raise MisuseError(f"{folder} has one of the characters {' '.join(sorted(_GLOB))} in its path")
    if folder.exists() or folder.is_symlink():
        raise MisuseError(f"{folder} is there already", hint="variegate attack resume FOLDER goes on with a campaign")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise MisuseError(f"there is no folder {parent}")
    refuse_shared(parent)
    try:
        # Permission bits do not tell of read-only media, nor of what a server thinks of this user.
        Path(tempfile.mkdtemp(prefix=f".{folder.name}.checking.", dir=parent)).rmdir()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MisuseError(f"cannot make {folder}: {reason}", hint="name a folder that you may write in") from error


def read(folder: Path, meta: dict[str, str] | None = None) -> Prepared:
    """What a campaign was made of.

    Args:
        folder: The campaign's.
        meta: Digests by name, as the ledger has them; None trusts the files.

    Raises:
        MisuseError: A file is not there.
        RefusedError: `MALFORMED`: one was changed or is damaged, or they do not fit one another; `MODEL`: a copy's
            graph takes data from elsewhere; `TOO_LARGE`.
        DeviceError: Storage failed.
    """
    contents = {}
    for name in (CONFIG, IMAGES, COPIES):
        contents[name] = read_capped(folder / name, limit=MAX_INPUT_BYTES)
        if meta is not None and meta.get(name) != sha256(contents[name]).hex():
            raise RefusedError(Refusal.MALFORMED, f"{folder / name} was changed since the campaign was made")
    prepared = Prepared(
        campaign=config.parse(contents[CONFIG]),
        fleets=copies_file.from_bytes(contents[COPIES]),
        images=images.from_bytes(contents[IMAGES]),
    )
    held = [(fleet.name, fleet.count, fleet.shape, bool(fleet.devices)) for fleet in prepared.fleets]
    shape = prepared.images.x.shape[1:]
    if len(prepared.images) != prepared.campaign.data.count or held != [
        (fleet.name, fleet.copies, shape, bool(fleet.devices)) for fleet in prepared.campaign.fleets
    ]:
        raise RefusedError(Refusal.MALFORMED, f"the inputs of {folder} are not those of its {CONFIG}")
    return prepared


def shard(folder: Path, kind: str, unit: Unit | str) -> Path:
    """Path of a unit's shard; `kind` is `SAMPLES` or `REPLAYS`."""
    return folder / kind / f"{unit if isinstance(unit, str) else unit.name}.parquet"


def tidy(folder: Path) -> None:
    """Removes what a killed process left half written; makes a folder of shards that is not there any more.

    Raises:
        MisuseError: Something else is in its place, or nothing can be written there.
    """
    for kind in (SAMPLES, REPLAYS):
        try:
            # Does not make what a link points to.
            (folder / kind).mkdir(exist_ok=True)
            for path in (folder / kind).glob(".*"):
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            message = f"cannot write shards in {folder / kind}: {reason}"
            raise MisuseError(message, hint="shards need a folder there that you may write in") from error
