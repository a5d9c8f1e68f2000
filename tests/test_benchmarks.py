"""Every benchmark runs, small, from its command, and writes the figures that it promises."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.result import committed
from testbed.source import REPOSITORY
from testbed.zoo.data import require_data
from testbed.zoo.gtsrb_tiny import weights

PROMISED = {
    "accuracy": {
        f"{d}_{k}" for d in ("cifar10", "gtsrb") for k in ("base", "qim", "permutation", "spread")
    } | {"label_disagreements"},
    "export": {"single_copies_per_s", "envelope_copies_per_s", "single_vs_reexport", "single_vs_aes"},
    "runtime": {
        f"overhead_{k}_{n}_b{b}" for k in ("qim", "permutation") for n in ("resnet20", "gtsrb") for b in (1, 64)
    } | {"path_us"},
    "tamper": {
        "mutations_tried", "mutations_accepted", "cuts_tried", "bricks", "off_diagonal_opened", "budget_exceeded"
    },
    "powercut": {"cuts_tried", "double_cuts_tried", "sigkills", "bricks", "rollbacks_tried", "rollbacks_accepted"},
    "isolation": {"root_windows_protected", "root_windows_control"},
    "serve": {
        "enclave_us_over_bare_b1", "enclave_overhead_b64", "secret_pages_overhead_b1", "http_us_over_constant_b1"
    },
    "soak": {
        "requests", "labels", "attacks", "wrong_labels", "unexpected", "kills", "hangs", "rss_growth_mib", "fd_growth",
        "budget_error",
    },
    "fuzz": {"executions", "targets", "findings", "open_findings", "planted_found"},
    "equivalence": {"max_abs_log_ratio_hsj", "max_abs_log_ratio_boundary", "max_abs_log_ratio_geoda", "n"},
    "calibration": {"gtsrb_accuracy_loss", "gtsrb_worst_replication_to_s3"},
    "collusion": {f"gtsrb_qim_{made}_s3" for made in ("alone_k1", "vote_k8", "all_k8", "smoothed_k1")},
    "replication": {"gtsrb_qim_hsj_net_s1", "gtsrb_qim_hsj_net_s2", "gtsrb_qim_hsj_net_s3"},
    "attractors": {"grid4x8_median_l2", "grid4x8_replication_s1"},
    "resume": {"kills", "different_bytes"},
    "scale": {"queries", "devices", "ledger_errors", "queries_per_second"},
    "study": {
        f"{d}_{k}" for d in ("cifar10", "gtsrb") for k in (
            "none_h1_median_cosine", "qim_h2_median_cosine", "qim_h3_median_cosine", "permutation_clone_agreement",
            "partners_labels_right", "partners_vote_right", "qim_gained_g_own", "qim_gained_g_victim",
        )
    },
    "house": {"product_lines_before", "product_lines_after", "readme_bytes", "public_names", "stale_figures"},
    "train_gtsrb": {"accuracy"},
    "train_tiny": {"accuracy", "accuracy_a", "accuracy_b", "accuracy_c"},
    "train_world": {"accuracy"},
}  # fmt: skip
COMMITTED = PROMISED | {
    "attack": {
        "forward_share_resnet20", "vs_art_resnet20", "vs_art_gtsrb", "vs_foolbox_resnet20", "median_l2_2000_ours",
        "median_l2_2000_best_peer",
    },
    "replication": {
        f"{d}_{kind}_{attack}_net_{s}"
        for d in ("gtsrb", "cifar10")
        for kind in (
            "independent", "permutation", "permutation_training", "spread", "spread_training", "qim", "qim_squared",
            "qim_training",
        )
        for attack in ("hsj_art", "boundary_art", "geoda_art", "hsj", "boundary", "geoda")
        for s in ("s1", "s2", "s3")
    },
    "replication_adaptive": {"gtsrb_qim_cgba_net_s3", "gtsrb_qim_hsj_linf_net_s3", "cifar10_qim_cgba_net_s3"},
    "replication_paper": {f"{d}_qim_hsj_paper_net_{s}" for d in ("gtsrb", "cifar10") for s in ("s1", "s2", "s3")},
}  # fmt: skip
"""What a full run writes; a small one may find no sample for some cells of Table 2."""
MODULES = {name: f"assurance.{name}" for name in ("fuzz", "powercut", "resume", "soak", "tamper")}
MODULES["isolation"] = "assurance.memory"
NEED_DATA = {
    "calibration",
    "equivalence",
    "replication",
    "collusion",
    "accuracy",
    "resume",
    "scale",
    "export",
    "runtime",
    "soak",
    "isolation",
    "serve",
    "attractors",
    "study",
    "train_gtsrb",
    "train_tiny",
}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", PROMISED)
def test_a_benchmark_runs_small_and_writes_its_figures(name: str, tmp_path: Path) -> None:
    if name in NEED_DATA:
        require_data()
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", MODULES.get(name, f"benchmarks.{name}"), "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert set(document) == {
        *("command", "commit", "date", "source", "seeds", "n", "versions", "cpu", "figures", "raw"),
    }
    assert PROMISED[name] <= set(document["figures"])


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_result_has_the_promised_figures(name: str) -> None:
    path = committed("world" if name == "train_world" else name)
    figures = json.loads(path.read_text())["figures"]
    assert COMMITTED[name] <= set(figures)
    if name == "tamper":
        assert (figures["mutations_accepted"], figures["bricks"], figures["budget_exceeded"]) == (0, 0, 0)
    if name == "fuzz":
        assert (figures["open_findings"], figures["planted_found"]) == (0, 1)
    if name == "powercut":
        assert (figures["bricks"], figures["rollbacks_accepted"]) == (0, 0)
    if name == "resume":
        assert figures["kills"] >= 20
        assert figures["different_bytes"] == 0
    if name == "scale":
        assert figures["queries"] >= 1_000_000
        assert figures["devices"] >= 20
        assert figures["ledger_errors"] == 0
    if name == "train_tiny":
        for letter, row in json.loads(path.read_text())["raw"]["networks"].items():
            assert hashlib.sha256(weights(letter).read_bytes()).hexdigest() == row["weights_sha256"]
    if name == "soak":
        assert (figures["wrong_labels"], figures["unexpected"], figures["budget_error"]) == (0, 0, 0)


def test_the_tables_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.tables", "--check"], cwd=REPOSITORY, check=False)
    assert done.returncode == 0
