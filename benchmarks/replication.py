"""Table 2: the rate at which samples found on one copy fool another, for every kind of copy, attack and profile.

    python -m benchmarks.replication [SET] [--quick] [--out FILE] [--folder FOLDER] [--only NAME ...]

Runs the committed campaigns of `benchmarks/configs` through the campaign engine and reads their shards. A figure is
`<dataset>_<kind>_<attack>_net_s<overshoot>`, as in `gtsrb_qim_hsj_net_s1`. It covers pairs of a sample and another copy
of its fleet, where both copies are right on the clean image and the sample, scaled by the overshoot, fools its own
copy. The figure is the share of these pairs in which it fools the other copy too. Kinds ending in `_training` have
several independently trained bases, divided among the copies; the others have one. Attacks ending in `_art` are those
of the profile `art-1.20`.

With --only, the rows of the set's other campaigns are those of the committed result, and `raw.kept` names their commit.
With --folder, campaigns are kept there, and a stopped run continues. Each image of a cell is attacked on one copy of
the fleet, each copy in turn, so a cell has as many samples as the campaign has images.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.campaign_bases import write_bases
from testbed.result import load, result_path, source_commit, write_result
from testbed.zoo.data import data_root
from variegate.attack.campaign import config, folder, runner
from variegate.attack.campaign.config import Campaign
from variegate.attack.campaign.data import FOLDER_VARIABLE
from variegate.attack.campaign.prepare import prepare
from variegate.attack.report import data, replication
from variegate.attack.report.replication import Cell

NAME: Final = "replication"
CONFIGS: Final = Path(__file__).parent / "configs"
SETS: Final = {
    NAME: ("gtsrb_table2_art", "gtsrb_table2", "cifar10_table2_art", "cifar10_table2"),
    "replication_paper": ("gtsrb_paper", "cifar10_paper"),
    "replication_adaptive": ("gtsrb_adaptive", "cifar10_adaptive"),
}
"""Campaigns by the result file they write: Table 2, one attack at the paper's budget, and attacks that go further."""
CAMPAIGNS: Final = tuple(name for names in SETS.values() for name in names)
_FIGURES_AT: Final = {1.0: "s1", 1.5: "s1p5", 2.0: "s2", 3.0: "s3"}


def smaller(campaign: Campaign) -> Campaign:
    """The same campaign with few images and queries, for a smoke run."""
    attacks = tuple(replace(attack, queries=min(attack.queries, 120), budgets=()) for attack in campaign.attacks)
    fleets = tuple(replace(fleet, copies=min(fleet.copies, 3)) for fleet in campaign.fleets)
    small = replace(campaign.data, count=3)
    return replace(campaign, data=small, fleets=fleets, attacks=attacks, run=replace(campaign.run, unit=3, workers=0))


def worked(name: str, root: Path, *, quick: bool) -> Path:
    """The folder of a campaign that is done; one that is there continues where it stopped."""
    made = root / name
    if not made.exists():
        campaign = config.load(CONFIGS / f"{name}.toml")
        folder.create(made, prepare(smaller(campaign) if quick else campaign, root))
    ended = runner.run(made)
    if ended.failed:
        raise SystemExit(f"{name}: units failed: {ended.failed[:5]}")
    return made


def cells(made: Path) -> list[Cell]:
    """Replication by fleet, attack, profile, norm, budget and overshoot."""
    with data.open_campaign(made) as campaign:
        replication.prepare(campaign)
        return replication.by_overshoot(campaign)


def figures_of(dataset: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Flat figures at the end of the budget; a cell in which no sample was found has none."""
    return {
        f"{dataset}_{row['fleet']}_{row['attack']}_net_{_FIGURES_AT[row['overshoot']]}": row["net"]["rate"]
        for row in rows
        if row["budget"] == 0 and row["overshoot"] in _FIGURES_AT and row["net"]["rate"] is not None
    }


def plain(cell: Cell) -> dict[str, Any]:
    """A row for the result file."""
    names = (*replication.GROUP, "budget", "overshoot")
    row: dict[str, Any] = dict(zip(names, cell.keys, strict=True))
    for kind, rate in (("raw", cell.raw), ("net", cell.net), ("shown", cell.shown)):
        row[kind] = {
            "hits": rate.hits,
            "trials": rate.trials,
            "images": rate.images,
            "rate": rate.share,
            "wilson": [rate.wilson.low, rate.wilson.high],
            "clustered": [rate.clustered.low, rate.clustered.high],
        }
    return row


def main() -> None:
    """Runs the campaigns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", choices=SETS, default=NAME, help="which campaigns; also the result's name")
    parser.add_argument("--quick", action="store_true", help="few images and queries; a smoke test")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--folder", type=Path, help="folder that keeps campaigns, to continue them")
    parser.add_argument("--only", nargs="+", choices=CAMPAIGNS, help="only these campaigns of the set")
    args = parser.parse_args()
    source_commit()
    os.environ.setdefault(FOLDER_VARIABLE, str(data_root()))
    root = args.folder or Path(tempfile.mkdtemp(prefix="variegate-"))
    write_bases(root / "bases")
    figures: dict[str, float] = {}
    raw: dict[str, Any] = {}
    n: dict[str, int] = {}
    seeds: set[int] = set()
    earlier = load(args.set) if args.only and not args.quick else None
    for name in SETS[args.set]:
        if args.only and name not in args.only:
            if earlier is None:
                continue
            campaign = config.load(CONFIGS / f"{name}.toml")
            raw[name] = earlier["raw"][name]
            commit = earlier["raw"].get("kept", {}).get(name, earlier["commit"])
            raw["kept"] = raw.get("kept", {}) | {name: commit}
            n |= {key: earlier["n"][key] for key in (f"{name}_images", f"{name}_copies")}
        else:
            made = worked(name, root, quick=args.quick)
            campaign = config.load(made / folder.CONFIG)
            raw[name] = [plain(cell) for cell in cells(made)]
            n[f"{name}_images"] = campaign.data.count
            n[f"{name}_copies"] = max(fleet.copies for fleet in campaign.fleets)
        figures |= figures_of(name.partition("_")[0], raw[name])
        seeds.add(campaign.seed)
        print(f"{name}: done", flush=True)
    if args.folder is None:
        shutil.rmtree(root)
    path = result_path(args.set, quick=args.quick, out=args.out)
    write_result(args.set, figures=figures, raw=raw, seeds=sorted(seeds), n=n, path=path)


if __name__ == "__main__":
    main()
