"""The red team's tables, which `benchmarks.tables` writes after those of the product."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.paper import REPLICATION
from benchmarks.replication import CONFIGS
from testbed.result import load
from variegate.attack.campaign import config

_FLEETS = {
    "independent": "independent training",
    "permutation": "permutation",
    "permutation_training": "permutation, several bases",
    "spread": "spread spectrum",
    "spread_training": "spread spectrum, several bases",
    "qim": "QIM",
    "qim_squared": "QIM, squared",
    "qim_training": "QIM, several bases",
}
_DATASETS = {"gtsrb": "GTSRB", "cifar10": "CIFAR-10"}
_CAMPAIGNS = {
    "table2_art": "profile `art-1.20` on devices of floats",
    "table2": "profile `corrected` on devices of bytes",
    "paper": "HopSkipJump of profile `art-1.20` to its own end, devices of floats",
    "adaptive": "further attacks of profile `corrected`, devices of bytes",
}
_CURVES = ("paper", "adaptive")
"""Campaigns that are about the budget: samples taken midway are shown, and else left to the result file."""
_OVERSHOOTS = (1.0, 1.5, 2.0, 3.0)


def _share(cell: Mapping[str, Any], rate: str = "net") -> str:
    """A rate with its interval by images, in %."""
    of = cell[rate]
    if of["rate"] is None:
        return "none found"
    low, high = of["clustered"]
    return f"{100 * of['rate']:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _at(cells: Sequence[Mapping[str, Any]], overshoot: float) -> Mapping[str, Any]:
    return next(cell for cell in cells if cell["overshoot"] == overshoot)


def replication() -> list[str]:
    """The campaign at the paper's budget; the others are in a document of their own."""
    return [
        (
            "**Replication**: of the samples found on one copy, the share that fools another copy of the fleet after "
            "scaling by s, in %, net of clean errors, with 95 % intervals over images "
            "(`python -m benchmarks.replication replication_paper`). [replication.md](replication.md) has "
            "Table 2 in both profiles, where other attacks and smaller budgets fare worse, and what differs from the "
            "paper."
        ),
        *_tables("replication_paper"),
    ]


def table2() -> list[str]:
    """Table 2, one table for each campaign."""
    return _tables("replication")


def adaptive() -> list[str]:
    """The campaigns of other attacks and longer searches."""
    return _tables("replication_adaptive")


def _queries(name: str) -> str:
    """How many labels the attacks of a committed campaign may ask for."""
    attacks = config.load(CONFIGS / f"{name}.toml").attacks
    most = max(attack.queries for attack in attacks)
    fewer = [f"{attack.name} {attack.queries:,}" for attack in attacks if attack.queries < most]
    return f"up to {most:,} queries" + (f" ({', '.join(fewer)})" if fewer else "")


def _tables(result: str) -> list[str]:
    document = load(result)
    lines: list[str] = []
    n = document["n"]
    campaigns = {name: rows for name, rows in document["raw"].items() if name != "kept"}
    for name, rows in campaigns.items():
        dataset, _, kind = name.partition("_")
        lines += [
            "",
            f"{_DATASETS[dataset]}, {_CAMPAIGNS[kind]}, {_queries(name)}, {n[f'{name}_images']} images a cell:",
            "",
            "| copies | attack | queries | " + " | ".join(f"s = {s:g}" for s in _OVERSHOOTS) + " | paper, s = 1 |",
            "|---|---|---|" + "---|" * (len(_OVERSHOOTS) + 1),
        ]
        shown = [row for row in rows if row["budget"] == 0 or kind in _CURVES]
        for key in dict.fromkeys((row["fleet"], row["attack"], row["budget"]) for row in shown):
            cells = [row for row in shown if (row["fleet"], row["attack"], row["budget"]) == key]
            fleet, attack, budget = key
            paper = REPLICATION.get((dataset, fleet), {}).get(re.sub("_(art|paper)$", "", attack))
            shares = " | ".join(_share(_at(cells, s)) for s in _OVERSHOOTS)
            lines.append(
                f"| {_FLEETS[fleet]} | {attack.removesuffix('_paper')} "
                f"| {f'{budget:,}' if budget else 'all'} | {shares} "
                f"| {'' if paper is None or budget else f'{paper[0]} ± {paper[1]}'} |"
            )
    return lines


def calibration() -> list[str]:
    """The choice of the rewriter's default."""
    document = load("calibration")
    f, n = document["figures"], document["n"]
    lines = [
        (
            "**Calibration study**: of the QIM settings that cost at most 0.5 points, the one with the least "
            "replication at the full budget over three attacks and every overshoot up to 3, measured on images that "
            "had no part in the choice (`python -m benchmarks.calibration`; all candidates in the result file)"
        ),
        "",
        (
            "| | accuracy lost, points | worst replication to s = 3 | by queries for each search | three bases, by "
            "queries | one base at s = 1, all queries |"
        ),
        "|---|---|---|---|---|---|",
    ]
    settings = [
        "",
        (
            "Worst to s = 3 at the full budget by attack, of the settings that came so far; the chosen one (*) on the "
            "images of the choice, and on others:"
        ),
        "",
        f"| | accuracy lost, points | {' | '.join(_SEARCHES.values())} |",
        "|---|---|" + "---|" * len(_SEARCHES),
    ]
    for dataset, label in _DATASETS.items():
        if f"{dataset}_accuracy_loss" not in f:
            continue
        worst = f"{dataset}_worst_replication_to_s3"
        low, high = 100 * f[f"{worst}_low"], 100 * f[f"{worst}_high"]
        several = worst.replace("_worst", "_several_bases_worst")
        marks = sorted(int(key.removeprefix(f"{worst}_at_")) for key in f if re.fullmatch(rf"{worst}_at_\d+", key))
        one, more = (
            ", ".join(f"{mark:,}: {100 * f[f'{name}_at_{mark}']:.1f} %" for mark in marks) for name in (worst, several)
        )
        lines.append(
            f"| {label}, {document['raw'][dataset]['network']}, {n[f'{dataset}_images']} images "
            f"| {f[f'{dataset}_accuracy_loss']:.2f} | {100 * f[worst]:.1f} % ({low:.0f} to {high:.0f}) "
            f"| {one} | {more} | {100 * f[f'{dataset}_replication_s1_at_full_budget']:.1f} % |"
        )
        for row in document["raw"][dataset]["candidates"]:
            if "search" not in row:
                continue
            chosen, lost = row.get("chosen"), f"{row['loss_points']:.2f}"
            name = f"{label}, {_setting(row['parameters'])}"
            ends = _ends(f, f"{dataset}_{row['name']}")
            settings.append(f"| {name}{' *' if chosen else ''} | {lost} | {ends} |")
            if chosen:
                settings.append(f"| {name}, other images | {lost} | {_ends(f, dataset)} |")
                settings.append(f"| {name}, other images, three bases | | {_ends(f, f'{dataset}_several_bases')} |")
    return lines + settings


_SEARCHES = {"hopskipjump": "HopSkipJump, L2", "cgba": "CGBA, L2", "hopskipjump_linf": "HopSkipJump, Linf"}


def _ends(figures: Mapping[str, float], prefix: str) -> str:
    return " | ".join(f"{100 * figures[f'{prefix}_{name}_to_s3_at_full_budget']:.1f} %" for name in _SEARCHES)


def _setting(parameters: Mapping[str, Any]) -> str:
    messages = parameters["repeats"] * parameters["grid"][0] * parameters["grid"][1]
    form = "squared" if parameters["squared"] else "linear"
    steps = " and ".join(map(str, parameters["steps"]))
    return f"{form}, B = {messages}, D = {steps}, beta = {parameters['beta']:g}"


def most(figures: Mapping[str, float], peer: str, network: str) -> float:
    """How many times a peer's HopSkipJump an attack could be that took no time beside the forward pass."""
    raw, theirs = (figures[f"queries_per_s_{name}_{network}"] for name in ("raw", f"{peer}_hopskipjump"))
    return raw / theirs


def attack() -> list[str]:
    """Speed and reach beside other toolkits."""
    f = load("attack")["figures"]
    return [
        (
            "**Our attacks beside ART 1.20.1 and Foolbox 3.3.4**, HopSkipJump, one thread, queries per second "
            "(`python -m benchmarks.attack`)"
        ),
        "",
        "| | ResNet-20 | GTSRB CNN |",
        "|---|---|---|",
        *(
            f"| {label} | {f[f'{name}_resnet20']:.2f} | {f[f'{name}_gtsrb']:.2f} |"
            for name, label in (
                ("forward_share", "share of the time in the forward pass"),
                ("vs_art", "times ART, the same onnxruntime session below both"),
                ("vs_art_torch", "times ART over its own torch estimator"),
                ("vs_foolbox", "times Foolbox over its own torch model"),
                ("two_processes_speedup", "two processes against one"),
            )
        ),
        *(
            f"| {label} | {most(f, peer, 'resnet20'):.2f} | {most(f, peer, 'gtsrb'):.2f} |"
            for peer, label in (
                ("art", "most there could be: the bare session against ART over it"),
                ("art_torch", "most there could be: the bare session against ART over torch"),
            )
        ),
        "",
        (
            "At 2,000 queries on ResNet-20 the best of ours reaches a median L2 of "
            f"{f['median_l2_2000_ours']:.3f}, the best of theirs {f['median_l2_2000_best_peer']:.3f}."
        ),
    ]


def equivalence() -> list[str]:
    """Whether the profile `art-1.20` is ART's."""
    document = load("equivalence")
    f = document["figures"]
    names = {"hsj": "HopSkipJump", "boundary": "Boundary", "geoda": "GeoDA"}
    lines = [
        (
            "**Profile `art-1.20` against ART itself**, log ratio of median L2 at the marks of queries, 90 % "
            "interval; within ±0.095 both are equivalent by two one-sided tests at 10 % "
            "(`python -m benchmarks.equivalence`)"
        ),
        "",
        "| | largest difference | lowest bound | highest bound | equivalent |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {label} | {f[f'max_abs_log_ratio_{key}']:.3f} | {f[f'lower_{key}']:+.3f} | {f[f'upper_{key}']:+.3f} "
        f"| {'shown' if f[f'equivalent_{key}'] else 'not shown'} |"
        for key, label in names.items()
    ]
    return [*lines, "", f"At least {f['n']:,} images for each."]


def engine() -> list[str]:
    """Campaigns killed, and at scale."""
    resumed, scale = load("resume"), load("scale")
    r, s = resumed["figures"], scale["figures"]
    return [
        (
            f"**Campaigns** (`python -m assurance.resume`, `benchmarks.scale`): killed at {r['kills']} random "
            f"moments, resumed, and run with other numbers of workers: {r['different_bytes']} bytes of the results "
            f"differ. {s['queries']:,} queries over {s['devices']} devices through a Dask cluster: "
            f"{s['ledger_errors']} errors in the ledger."
        ),
    ]


def study() -> list[str]:
    """A few of the adaptive and white-box findings."""
    f = load("study")["figures"]
    rows = []
    for dataset, label in _DATASETS.items():
        for kind in ("none", "permutation", "qim"):
            names = (*(f"{h}_median_cosine" for h in ("h1", "h2", "h3")), "clone_agreement")
            values = [f.get(f"{dataset}_{kind}_{name}") for name in names]
            if any(value is not None for value in values):
                shown = " | ".join("" if value is None else f"{value:.2f}" for value in values)
                rows.append(f"| {label} | {kind} | {shown} |")
    return [
        (
            "**White-box study and clones** (`python -m benchmarks.study`): median cosine of loss gradients of two "
            "copies, and agreement of a clone trained on labels alone"
        ),
        "",
        "| | copies | H1, trained apart | H2, one base rewritten | H3, bases apart, rewritten | clone agrees |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *_collusion(),
    ]


_METHODS = {
    "alone": "alone",
    "vote": "majority of k copies asked",
    "all": "a sample that fools all k",
    "mean": "mean of k samples",
    "median": "median of k samples",
    "smoothed": "7 votes under noise for each label, 4 times the queries",
    "deepfool": "DeepFool on k copies, seen from inside (one base; another network)",
}


def _collusion() -> list[str]:
    """The success of k colluders on GTSRB, by labels and as a white box."""
    labels, inside = load("collusion"), load("study")
    raw, n, sizes = {**inside["raw"], **labels["raw"]}, labels["n"], (1, 2, 4, 8)
    lines = [
        (
            f"**Colluders and adaptive attacks**, GTSRB, HopSkipJump with {n['queries']:,} queries of each copy, "
            f"{n['images']} images, {n['victims']} victims (`python -m benchmarks.collusion`; DeepFool, "
            f"{inside['n']['images_white']} images: `benchmarks.study`): pairs fooled at s = 1 / s = 3, of those whose "
            "sample fools most of the makers' copies there (none: no sample does), net, with the median L2 at s = 1"
        ),
        "",
        "| copies | method | " + " | ".join(f"k = {k}" for k in sizes) + " |",
        "|---|---|" + "---|" * len(sizes),
    ]
    for kind in ("permutation", "qim", "qim_training"):
        for method, label in _METHODS.items():
            found = [_near_and_far(raw, f"gtsrb_{kind}_{method}", k) for k in sizes]
            if any(found):
                lines.append(f"| {_FLEETS[kind]} | {label} | {' | '.join(found)} |")
    return lines


def _near_and_far(raw: Mapping[str, Any], name: str, k: int) -> str:
    """Both rates of k colluders, and how far the samples lie; empty where it was not measured."""
    near, far = (raw.get(f"{name}_k{k}_{s}", raw.get(f"{name}_{s}_k{k}")) for s in ("s1", "s3"))
    if near is None or far is None:
        return ""
    shares = " / ".join(f"{row['hits']} of {row['trials']}" if row["trials"] else "none" for row in (near, far))
    return shares if near["median_l2"] is None else f"{shares} ({near['median_l2']:.2f})"


SECTIONS: tuple[Callable[[], list[str]], ...] = (replication, calibration, study, equivalence, attack, engine)
