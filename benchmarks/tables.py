"""Puts the committed figures into the README and docs/replication.md, between their markers.

python -m benchmarks.tables            rewrites both
python -m benchmarks.tables --check    fails when it differs; a test does the same
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import tables_attack
from benchmarks.paper import ACCURACY, COST
from benchmarks.status import stale
from testbed.result import load
from testbed.source import REPOSITORY

README = REPOSITORY / "README.md"
BEGIN, END = "<!-- figures: python -m benchmarks.tables -->", "<!-- end of figures -->"
_KINDS = ("qim", "permutation", "spread")


def accuracy() -> list[str]:
    """Table of accuracies."""
    document = load("accuracy")
    f, n = document["figures"], document["n"]
    lines = [
        (
            f"**Accuracy of sealed, flashed copies**, whole test set, {n['copies']} copies each, mean and standard "
            "deviation in % (`python -m benchmarks.accuracy`)"
        ),
        "",
        "| | base | QIM | permutation | spread spectrum |",
        "|---|---|---|---|---|",
    ]
    for name, label in (("cifar10", "CIFAR-10, ResNet-20"), ("gtsrb", "GTSRB, small CNN")):
        cells = " | ".join(f"{f[f'{name}_{k}']:.2f} ± {f[f'{name}_{k}_deviation']:.2f}" for k in _KINDS)
        lines.append(f"| {label} ({n[f'{name}_images']:,} images) | {f[f'{name}_base']:.2f} | {cells} |")
        theirs = " | ".join(
            f"{share} ± {deviation}" for share, deviation in (ACCURACY[name][k] for k in ("base", *_KINDS))
        )
        lines.append(
            f"| {label.partition(',')[0]}, paper's Table 1, VGG-19, ten copies of each of ten bases | {theirs} |"
        )
    worst = "; ".join(
        f"{label} " + ", ".join(f"{kind} {f[f'{name}_{kind}_worst_loss']:.2f}" for kind in _KINDS)
        for name, label in (("cifar10", "CIFAR-10"), ("gtsrb", "GTSRB"))
    )
    lines += [
        "",
        f"The copy that loses most against its base, in points: {worst}.",
        "",
        (
            f"Labels that differ from the torch reference: {f['label_disagreements']} of "
            f"{sum(n[f'{d}_images'] for d in ('cifar10', 'gtsrb')) * n['copies'] * len(_KINDS):,}; "
            f"{f['label_disagreements_beyond_tie']} of them with a margin above 0.00001 "
            f"(largest {f['largest_disagreement_margin']:.1g})."
        ),
    ]
    return lines


def runtime() -> list[str]:
    """Table of overheads."""
    f = load("runtime")["figures"]
    lines = [
        (
            "**Speed of a copy for uint8 frames against the bare base in onnxruntime** (floats in, logits out), one "
            "thread, median of paired ratios with a 95 % interval (`python -m benchmarks.runtime`)"
        ),
        "",
        "| | bare base | QIM | permutation |",
        "|---|---|---|---|",
    ]
    for short, label in (("resnet20", "ResNet-20"), ("gtsrb", "GTSRB CNN")):
        for batch in (1, 64):
            cells = []
            for kind in ("qim", "permutation"):
                key = f"overhead_{kind}_{short}_b{batch}"
                low, high = f[f"{key}_low"], f[f"{key}_high"]
                cells.append(f"{100 * f[key]:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})")
            lines.append(f"| {label}, batch {batch} | {f[f'bare_us_{short}_b{batch}']:,.0f} µs | {' | '.join(cells)} |")
    lines += [
        "",
        (
            f"The runtime's own path (checks, expiry, budget) adds {f['path_us']:.0f} µs to a query at batch 1. A "
            f"block of the budget is reserved by a flush of the device's counter, {f['reserve_us']:,.0f} µs here."
        ),
    ]
    return lines


def export() -> list[str]:
    """Speeds of export."""
    f = load("export")["figures"]
    return [
        "**Copies per second**, one core, ResNet-20, files and registry included (`python -m benchmarks.export`)",
        "",
        "| | copies/s | against `torch.onnx.export` of each copy | against AES-256-GCM of the same bytes |",
        "|---|---|---|---|",
        (
            f"| single file | {f['single_copies_per_s']:.0f} | {f['single_vs_reexport']:,.0f} times as fast "
            f"| {f['single_vs_aes']:.3f} of its speed |"
        ),
        (
            f"| envelope, shared component | {f['envelope_copies_per_s']:,.0f} "
            f"| {f['envelope_vs_reexport']:,.0f} times as fast | |"
        ),
    ]


def cost() -> list[str]:
    """What a copy costs, beside the paper's Table 3."""
    made, speed = load("export")["figures"], load("runtime")["figures"]
    network = load("train_gtsrb")["figures"]
    seconds, kilobytes, _ = COST["independent"]
    lines = [
        (
            "**What a copy costs**, GTSRB CNN, beside the paper's Table 3 (VGG-19 on a V100, base 3.5 ms): from "
            "`benchmarks.train_gtsrb` (two cores), `benchmarks.export` and `benchmarks.runtime`"
        ),
        "",
        "| | seconds to make it | paper | inference takes longer by | paper | stored for each copy, paper |",
        "|---|---|---|---|---|---|",
        f"| independent training | {network['training_seconds']:.0f} | {seconds:,} | 0 | 0 | {kilobytes:,} kB |",
    ]
    for kind, label in (("qim", "QIM"), ("permutation", "permutation")):
        _, size, milliseconds = COST[kind]
        extra = speed[f"overhead_{kind}_gtsrb_b1"] * speed["bare_us_gtsrb_b1"]
        second = 1 / made["gtsrb_single_copies_per_s"]
        lines.append(f"| {label} | {second:.4f} | 0 | {extra:.0f} µs | {milliseconds:g} ms | {size} kB |")
    return lines


def tamper() -> list[str]:
    """Figures of the mutation sweep."""
    f = load("tamper")["figures"]
    return [
        (
            f"**Tampering** (`python -m assurance.tamper`): {f['mutations_tried']:,} mutations of a sealed artefact, "
            f"{f['cuts_tried']:,} truncations (a small graph, every byte), "
            f"{f['mutations_accepted'] + f['cuts_accepted']} accepted; {f['power_cuts_tried']:,} power cuts while "
            f"flashing, {f['bricks']} devices bricked; copies opened on a wrong device: {f['off_diagonal_opened']}; "
            "query budgets exceeded under kills and restored disks (the counters are hardware and not restored): "
            f"{f['budget_exceeded']}."
        ),
    ]


def attractors() -> list[str]:
    """Table of the study of supports."""
    document = load("attractors")
    n = document["n"]
    lines = [
        (
            f"**Interleaved supports against dense messages**, GTSRB, one HopSkipJump with {n['queries']:,} queries an "
            f"image, {n['images']} images, {n['victims']} other copies: share of found samples that fool them after "
            "scaling by s, with Wilson 95 % intervals (`python -m benchmarks.attractors`)"
        ),
        "",
        "| grid | B | d | accuracy, % | median L2 | s = 1 | s = 2 | s = 3 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in document["raw"]:
        grid, cells = row["grid"], []
        for s in ("1.0", "2.0", "3.0"):
            low, high = row["interval"][s]
            cells.append(f"{100 * row['replication'][s]:.1f} % ({100 * low:.0f} to {100 * high:.0f})")
        messages = row["repeats"] * grid[0] * grid[1]
        lines.append(
            f"| {grid[0]} x {grid[1]} | {messages} | {row['d']:.3f} | {100 * row['accuracy_on_pool']:.1f} "
            f"| {row['median_l2']:.3f} | {' | '.join(cells)} |"
        )
    lines += ["", "One attack at one budget: it compares designs and does not say what the protection is worth."]
    return lines


def serve() -> list[str]:
    """Table of the cost of isolation and HTTP."""
    f = load("serve")["figures"]

    def row(name: str, label: str, batch: int) -> str:
        at = [f"{f[f'{name}_p{percentile}_us_b{batch}']:,.0f}" for percentile in (50, 95, 99)]
        return f"| {label} | {batch} | {' | '.join(at)} | {f[f'{name}_labels_per_s_b{batch}']:,.0f} |"

    lines = [
        (
            "**Latency of a ResNet-20 copy with QIM**, uint8 frames, one thread, microseconds "
            "(`python -m benchmarks.serve`)"
        ),
        "",
        "| | batch | median | 95 % | 99 % | labels/s |",
        "|---|---|---|---|---|---|",
    ]
    labels = {
        "bare": "bare onnxruntime session of the same copy, in-process",
        "in_process": "`Enclave`, in-process",
        "isolated": "enclave process, ordinary pages",
        "secret": "enclave process, secret pages (the default)",
        "socket": "label socket, secret pages",
        "http": "HTTP, secret pages",
        "constant": "HTTP, same server returning a constant",
    }
    lines += [row(name, label, batch) for batch in (1, 64) for name, label in labels.items()]
    low, high = (100 * f[f"enclave_overhead_b64_{end}"] for end in ("low", "high"))
    return [
        *lines,
        "",
        (
            f"Isolation adds {f['enclave_us_over_bare_b1']:.0f} µs to bare onnxruntime at batch 1 (float32: "
            f"{f['enclave_us_over_bare_b1_float32']:.0f} µs) and {100 * f['enclave_overhead_b64']:+.1f} % at batch 64 "
            f"({low:+.1f} to {high:+.1f}); secret pages add {100 * f['secret_pages_overhead_b1']:+.1f} % and "
            f"{100 * f['secret_pages_overhead_b64']:+.1f} % to that. At batch 1, HTTP costs "
            f"{f['http_us_over_constant_b1']:,.0f} µs more than the constant, of which "
            f"{f['http_us_over_constant_and_enclave_b1']:,.0f} µs are not the enclave's."
        ),
    ]


def isolation() -> list[str]:
    """Root's reads."""
    document = load("isolation")
    f = document["figures"]
    return [
        (
            f"**What root reads of a serving enclave** (`python -m assurance.memory`): {document['n']['enclaves']} "
            "enclaves (ResNet-20 and the GTSRB network, QIM and permutation, protected and not) by `/proc/PID/mem`, "
            f"`process_vm_readv`, ptrace and `pidfd_getfd`. Windows of weights, messages and keys found: "
            f"{f['root_windows_protected']:,} in {f['bytes_read_protected'] / 2**20:,.0f} MiB read of protected ones, "
            f"{f['root_windows_control']:,} in the same without protection."
        ),
    ]


def root() -> list[str]:
    """Root's attacks on an open machine and in a locked image."""
    f = load("root")["figures"]
    return [
        (
            f"**What root does to a serving device** (`python -m assurance.root.measure`): {f['attacks']} attacks, in "
            f"a VM under QEMU. Without the lock {f['succeed_open']} succeed ({f['windows_read_open']:,} windows of "
            f"weights, messages and keys read, {f['labels_beyond_budget_open']:,} labels beyond the budget, where an "
            f"attack stops once that is shown), {f['failed_open']} fail and {f['impossible_open']} lack what they "
            f"need; in the locked image {f['succeed_locked']} succeed, with {f['windows_read_locked']} windows and "
            f"{f['labels_beyond_budget_locked']} labels. Power to first label: {f['boot_s_locked']:.0f} s without "
            f"acceleration; image: {f['image_bytes'] / 1e6:.0f} MB; a query over HTTP takes "
            f"{f['latency_ratio']:.0f} times as long inside as outside."
        ),
    ]


def powercut() -> list[str]:
    """Figures of the sweep of power cuts."""
    f = load("powercut")["figures"]
    return [
        (
            f"**Power cuts while flashing** (`python -m assurance.powercut`): {f['cuts_tried']:,} single and "
            f"{f['double_cuts_tried']:,} double cuts, torn sectors and reordered writes among them, and "
            f"{f['sigkills']:,} real SIGKILLs: {f['bricks']} devices bricked; {f['rollbacks_tried']:,} rollbacks tried "
            f"afterwards, {f['rollbacks_accepted']} accepted."
        ),
    ]


def soak() -> list[str]:
    """Figures of the soak."""
    document = load("soak")
    f, seconds = document["figures"], document["n"]["seconds"]
    return [
        (
            f"**Soak** (`python -m assurance.soak`): {seconds / 60:.0f} minutes of good and hostile clients, the "
            f"enclave killed and stopped now and then: {f['requests']:,} requests, {f['wrong_labels']} wrong labels, "
            f"memory {f['rss_growth_mib']:+.1f} MiB, descriptors {f['fd_growth']:+.0f}, budget error "
            f"{f['budget_error']}."
        ),
    ]


def fuzz() -> list[str]:
    """Figures of the fuzzing."""
    f = load("fuzz")["figures"]
    return [
        (
            f"**Fuzzing** (`python -m assurance.fuzz`): {f['executions']:,} executions over "
            f"{f['targets']} targets, {f['open_findings']} open findings; what was found before is kept in "
            "`tests/vectors/fuzz/`."
        ),
    ]


def house() -> list[str]:
    """How large the product is, before and after it was put in order."""
    f = load("house")["figures"]
    names = {
        "product_lines": "lines of the product's Python",
        "product_files": "files",
        "public_names": "public functions and classes of modules",
        "faces": "packages with a face (`__all__`)",
        "importers": "pairs of a file and another folder that it imports",
        "test_lines": "lines of tests",
        "readme_bytes": "bytes of README.md",
    }
    return [
        (
            "**The house**, before and after it was put in order (`python -m benchmarks.house`)"
            + (f"; `make check` takes {f['check_seconds']:.0f} s on two cores" if "check_seconds" in f else "")
        ),
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {label} | {f[f'{key}_before']:,} | {f[f'{key}_after']:,} |" for key, label in names.items()),
    ]


SECTIONS: tuple[Callable[[], list[str]], ...] = (
    accuracy,
    runtime,
    export,
    cost,
    serve,
    isolation,
    root,
    powercut,
    soak,
    tamper,
    fuzz,
    attractors,
    tables_attack.replication,
    tables_attack.calibration,
    tables_attack.study,
    tables_attack.equivalence,
    tables_attack.attack,
    tables_attack.engine,
    house,
)


def summary() -> list[str]:
    """Six figures for the README, the weakest first."""
    c, a = load("calibration")["figures"], load("accuracy")["figures"]
    r, s = load("runtime")["figures"], load("serve")["figures"]
    o, w = load("root")["figures"], load("powercut")["figures"]
    worst = {
        name: ", ".join(
            f"{100 * c[f'{key}_worst_replication_to_s3_at_{queries}']:.1f} % after {queries:,}"
            for queries in (2000, 8000)
        )
        for name, key in (("GTSRB", "gtsrb"), ("CIFAR-10", "cifar10"))
    }
    rows = [
        (
            "samples that fool another copy (worst of three searches and of s from 1 to 3), by queries per sample",
            "; ".join(f"{name} {words}" for name, words in worst.items()),
            "benchmarks.calibration",
        ),
        (
            "loss of accuracy in a copy, points",
            f"CIFAR-10 {a['cifar10_qim_loss']:.2f}, GTSRB {a['gtsrb_qim_loss']:.2f}",
            "benchmarks.accuracy",
        ),
        (
            "extra time of a copy of ResNet-20 over its base, batch 1",
            f"{100 * r['overhead_qim_resnet20_b1']:.1f} %",
            "benchmarks.runtime",
        ),
        (
            "extra time of a query in the isolated process",
            f"{s['enclave_us_over_bare_b1']:.0f} µs",
            "benchmarks.serve",
        ),
        (
            "root's attacks that succeed: on an open machine, in a locked image",
            f"{o['succeed_open']} of {o['attacks']}, {o['succeed_locked']} of {o['attacks']}",
            "assurance.root.measure",
        ),
        (
            "power cuts while flashing, devices bricked",
            f"{w['cuts_tried'] + w['double_cuts_tried']:,}, {w['bricks']}",
            "assurance.powercut",
        ),
    ]
    lines = [f"| {what} | {figure} | `python -m {command}` |" for what, figure, command in rows]
    return ["| | | made by |", "|---|---|---|", *lines]


DOCUMENTS: dict[Path, tuple[Callable[[], list[str]], ...]] = {
    README: (summary,),
    README.parent / "docs" / "measurements.md": SECTIONS,
    README.parent / "docs" / "replication.md": (tables_attack.table2, tables_attack.adaptive),
}


def replaced(path: Path) -> str:
    """A document's text with the block between the markers as it should be."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    blocks = [_marked("\n".join(section()).strip()) for section in DOCUMENTS[path]]
    return before + "\n\n".join([BEGIN, *blocks, END]) + after


def _marked(text: str) -> str:
    """A section whose command has figures from other source than today's says so."""
    return re.sub(r"`(?:python -m )?((?:benchmarks|assurance)\.[\w.]+)`", _mark, text)


def _mark(match: re.Match[str]) -> str:
    return match[0] + (" *(from earlier source)*" if match[1] in stale() else "")


def main() -> None:
    """Rewrites or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 when a document differs")
    args = parser.parse_args()
    new = {path: replaced(path) for path in DOCUMENTS}
    if args.check:
        sys.exit(int(any(text != path.read_text("utf-8") for path, text in new.items())))
    for path, text in new.items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
