"""A report's folder, written whole or not at all.

index.html          the page: one file that loads nothing
tables/*.csv *.json
campaign.toml       the resolved configuration, as it was found
digests.json        SHA-256 of every shard read, of the configuration and of every table
evidence/           for assessors: `evidence`, `manifest`
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from pathlib import Path

from variegate.attack.campaign.folder import CONFIG, IMAGES
from variegate.attack.campaign.software import mixed, recorded
from variegate.attack.report import manifest
from variegate.attack.report.assessment import Assessment
from variegate.attack.report.data import Campaign, check_folder, leave_out_far, open_campaign, table_of
from variegate.attack.report.evidence import evidence
from variegate.attack.report.page import Page
from variegate.attack.report.panels import panels
from variegate.attack.report.results import compute
from variegate.attack.report.tables import tables
from variegate.attack.report.weaknesses import weaknesses
from variegate.keys.errors import DeviceError, MisuseError, VariegateError
from variegate.keys.files import refuse_shared
from variegate.keys.primitives import sha256
from variegate.keys.signing import Signer

PAGE, DIGESTS, TABLES, EVIDENCE = "index.html", "digests.json", "tables", "evidence"
FORMAT = "variegate/1/attack-report"
_MODE = 0o755


def write_report(
    campaign: Path, out: Path, *, signer: Signer | None = None, assessment: Assessment | None = None
) -> Path:
    """Writes a campaign's report with its evidence. The same campaign gives the same page and tables.

    Args:
        campaign: The campaign's folder. It may be unfinished: the report says so.
        out: Folder for the report; not there yet, empty, or an earlier report of the same campaign, which is
            replaced, a signed one only by a signed one: neither a place to mount something nor a folder that this
            process works in.
        signer: Signs the evidence; unsigned without one. A campaign without a ledger is not signed.
        assessment: The assessor's judgement; cautious defaults without one.

    Returns:
        The page.

    Raises:
        MisuseError: There is no campaign, `out` holds something else, or what shall be signed has no ledger.
        RefusedError: `MALFORMED`: the campaign is damaged. Nothing is written.
        DeviceError: Storage failed. Nothing is left.
    """
    check_folder(campaign)
    _check_out(out, signed=signer is not None)
    with open_campaign(campaign) as loaded:
        _check_same_campaign(out, loaded.config_bytes)
        if signer is not None and not loaded.has_ledger:
            raise MisuseError(
                f"{campaign} has no ledger: nothing tells whether its shards are whole",
                hint="report it without a signature, or sign a campaign that `variegate attack run` made",
            )
        files = contents(loaded, assessment or Assessment(), signed=signer is not None)
    files |= manifest.files(files, signer)
    _write(out, files)
    return out / PAGE


def contents(campaign: Campaign, assessment: Assessment, *, signed: bool) -> dict[str, bytes]:
    """Files of a report by their path in it, without the manifest.

    Args:
        campaign: Loaded.
        assessment: The assessor's judgement.
        signed: Whether the manifest will be signed.
    """
    results = compute(campaign)
    every = tables(results)
    choose = str(table_of(campaign.config.get("data")).get("choose", ""))
    weak = weaknesses(
        results, campaign.units, has_ledger=campaign.has_ledger, choose=choose, mixture=mixed(campaign.meta)
    )
    files: dict[str, bytes] = {CONFIG: campaign.config_bytes}
    for table in every:
        files[f"{TABLES}/{table.name}.csv"] = table.csv()
        files[f"{TABLES}/{table.name}.json"] = table.json()
    files[DIGESTS] = _digests(campaign, files)
    digest = sha256(files[DIGESTS]).hex()
    files[PAGE] = Page(campaign, results, weak, panels(campaign), every, digest).render()
    if math.isfinite(min(assessment.max_l2, assessment.max_linf)):
        leave_out_far(campaign, assessment.max_l2, assessment.max_linf)
        results = compute(campaign)
    pack = evidence(campaign, results, weak, assessment, digest=digest, signed=signed)
    files |= {f"{EVIDENCE}/{name}": data for name, data in pack.items()}
    return files


def _digests(campaign: Campaign, files: dict[str, bytes]) -> bytes:
    document = {
        "format": FORMAT,
        "campaign": campaign.name,
        "files": {name: sha256(data).hex() for name, data in sorted(files.items())},
        "inputs": {IMAGES: campaign.images_sha256} if campaign.images_sha256 else {},
        "shards": {shard.path: {"sha256": shard.sha256, "rows": shard.rows} for shard in campaign.shards},
        "software": [text for text in recorded(campaign.meta) if text],
    }
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _check_out(out: Path, *, signed: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MisuseError(f"{out} is not a folder")
    if not out.absolute().parent.is_dir():
        raise MisuseError(f"cannot write {out}: its parent is no folder", hint="make the folder above it first")
    refuse_shared(out.resolve().parent)
    if out.exists():
        _check_replaceable(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if _is_report(out):
        if not signed and (out / manifest.SIGNATURE).exists():
            raise MisuseError(f"{out} is signed, and this report would not be", hint="choose another folder, or --sign")
        return
    raise MisuseError(
        f"{out} holds files that are not an earlier report's, or were changed since", hint="choose another folder"
    )


def _check_replaceable(out: Path) -> None:
    """Refuses a folder that another cannot take the place of."""
    place = out.resolve()
    if Path.cwd().is_relative_to(place):
        raise MisuseError(
            f"cannot replace {out}: it is the folder you work in, or above it", hint="name a folder in it, or move out"
        )
    if place.is_mount():
        raise MisuseError(f"cannot replace {out}: something is mounted there", hint="name a folder in it")


def _check_same_campaign(out: Path, config: bytes) -> None:
    """Refuses to replace a report of a campaign with another configuration."""
    earlier = out / CONFIG
    if earlier.exists() and earlier.read_bytes() != config:
        raise MisuseError(f"{out} holds the report of another campaign", hint="choose another folder")


def _is_report(out: Path) -> bool:
    """Whether every file is a report's own and unchanged: nothing else may be lost."""
    try:
        manifest.verify_evidence(out, None)
    except VariegateError:
        return False
    return True


def _write(out: Path, files: dict[str, bytes]) -> None:
    """All files into a folder beside the last place, synced, then renamed there."""
    out = out.resolve()
    place: Path | None = None
    old: Path | None = None
    try:
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        for name, data in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        place.chmod(_MODE)
        if out.exists():
            old = place.with_name(place.name + ".old")
            out.rename(old)
        try:
            place.rename(out)
        except OSError:
            if old is not None:
                old.rename(out)
            raise
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise DeviceError(f"cannot write {out}: {reason}", hint="check the space left") from error
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        if old is not None and out.exists():
            shutil.rmtree(old, ignore_errors=True)
