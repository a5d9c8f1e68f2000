"""From a base to sealed copies on devices: releases, calibration, sealing, fleets, and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import bases
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.base import Base
from variegate.export.calibrate import calibrate
from variegate.export.fleet import BATCH, COMPONENT_FILE, Exporter
from variegate.export.fleet_list import Wanted, read_list
from variegate.export.parity import CopyJudge
from variegate.export.registry import Registry
from variegate.export.release import Release, make_release, measure
from variegate.export.rewriters import Permutation, Qim
from variegate.export.sealing import CopyOrder, Terms, seal_copies, share_component
from variegate.keys.artefact import Artefact
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.primitives import KEM_CLASSIC
from variegate.keys.seller import Seller

SELLER = Seller.generate()
TERMS = Terms(vendor="Example")
IMAGES = bases.images(300)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return bases.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def release(base: Base) -> Release:
    return make_release("spring", base, Qim(grid=(4, 8), steps=(64,), beta=3.0), IMAGES)[0]


@pytest.fixture(scope="module")
def folder(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "spring"
    release.save(path)
    return path


def wanted(count: int) -> list[Wanted]:
    devices = [DeviceIdentity.generate("camera-v1", KEM_CLASSIC).public for _ in range(count)]
    return [Wanted(buyer=f"buyer {i}/{i}", device=device) for i, device in enumerate(devices)]


@pytest.mark.parametrize("cohort", [None, "europe"])
def test_a_sealed_flashed_copy_answers_like_its_reference(release: Release, tmp_path: Path, cohort: str | None) -> None:
    with Device.create(tmp_path / "car", "camera-v1", SELLER.root) as device:
        shared = share_component(release, SELLER, cohort) if cohort else None
        order = CopyOrder(buyer="acme", device=device.identity, epoch=2, sequence=1, security_counter=0)
        (copy,) = seal_copies(release, SELLER, [order], TERMS, shared)
        if shared is None:
            artefact = Artefact.from_bytes(copy.to_bytes())
        else:
            assert len(copy.to_bytes()) < 8192
            artefact = Artefact(copy.to_bytes(), bytes(shared.file))
        flash(device, artefact)
        with device.boot() as enclave:
            labels = enclave.classify_batch(IMAGES)
    expected = CopyJudge(release.template).labels(SELLER.buyer_seed("acme", 2), release.parity)
    np.testing.assert_array_equal(labels[: len(expected)], expected)


def test_buyers_and_epochs_get_different_copies(release: Release) -> None:
    judge = CopyJudge(release.template)
    seeds = [SELLER.buyer_seed(buyer, epoch) for buyer in ("a", "b") for epoch in (0, 1)]
    labels = [judge.labels(seed, release.parity) for seed in seeds]
    for i, one in enumerate(labels):
        for other in labels[i + 1 :]:
            assert (one != other).any()


def test_a_shared_component_is_the_same_again_and_tells_cohorts_apart(release: Release) -> None:
    first, again, other = (share_component(release, SELLER, name) for name in ("a", "a", "b"))
    assert first.file == again.file
    assert first.ref.id != other.ref.id
    assert "cek" not in repr(first)


def test_a_release_survives_its_folder(release: Release, folder: Path) -> None:
    again = Release.load(folder)
    assert again.payload == release.payload
    assert again.template == release.template
    assert (folder / "payload.bin").stat().st_mode & 0o077 == 0
    with pytest.raises(MisuseError, match="already"):
        release.save(folder)


@pytest.mark.parametrize("damage", ["payload", "parity", "toml", "key", "schema", "rewriter", "missing"])
def test_a_damaged_release_is_refused(release: Release, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "r"
    release.save(path)
    manifest = path / "release.toml"
    text = manifest.read_text()
    if damage == "payload":
        data = bytearray((path / "payload.bin").read_bytes())
        data[len(data) // 2] ^= 1
        (path / "payload.bin").write_bytes(data)
    elif damage == "parity":
        (path / "parity.npz").write_bytes(b"PK\3\4 nonsense")
    elif damage == "toml":
        manifest.write_text(text + "= =")
    elif damage == "key":
        manifest.write_text(text.replace('name = "spring"', 'name = "spring"\nnaem = "x"'))
    elif damage == "schema":
        manifest.write_text(text.replace("schema = 1", "schema = 2"))
    elif damage == "rewriter":
        manifest.write_text(text.replace('kind = "qim"', 'kind = "qmi"'))
    else:
        manifest.unlink()
    with pytest.raises((RefusedError, MisuseError)):
        Release.load(path)


def test_calibration_takes_the_strongest_within_the_allowance(base: Base) -> None:
    validation = measure(base, IMAGES)
    truth = validation.probabilities.argmax(axis=1)
    found = calibrate(base, "permutation", validation, truth, dtype="uint8", allowed_points=5, copies=4)
    assert isinstance(found.rewriter, Permutation)
    assert found.base_accuracy == 1
    assert all(t.loss_points + t.error_points > 5 for t in found.tried[:-1])
    assert found.tried[-1].loss_points <= 5
    alphas = [float(str(t.parameters["alpha"])) for t in found.tried]
    assert alphas == sorted(alphas, reverse=True)
    with pytest.raises(MisuseError, match="no qim"):
        calibrate(base, "qim", validation, truth, dtype="uint8", allowed_points=-1, copies=2)
    with pytest.raises(MisuseError, match="unknown"):
        calibrate(base, "none", validation, truth, dtype="uint8", allowed_points=1)


def test_a_fleet_is_made_once_and_resumed(folder: Path, tmp_path: Path) -> None:
    fleet = wanted(BATCH + 6)
    exporter = Exporter(folder, SELLER, TERMS, tmp_path / "out")
    with Registry(tmp_path / "r.sqlite") as registry:
        first = exporter.fleet(fleet[:BATCH], registry)
        assert (first.made, first.skipped) == (BATCH, 0)
        lost = next(iter(registry.rows()))
        (tmp_path / "out" / lost.file).unlink()
        seen: list[tuple[int, int]] = []
        again = exporter.fleet(fleet, registry, progress=lambda done, total: seen.append((done, total)))
        assert (again.made, again.skipped) == (7, BATCH - 1)
        assert seen == [(7, 7)]
        rows = list(registry.rows())
        assert {r.sequence for r in rows if r.ueid == lost.ueid} == {1, 2}
        assert exporter.fleet(fleet, registry).made == 0
    text = (tmp_path / "r.sqlite").read_bytes()
    for w in fleet[:3]:
        assert SELLER.buyer_seed(w.buyer, 0) not in text
    assert not list((tmp_path / "out").glob(".*"))


def test_another_signer_signs_alone(folder: Path, tmp_path: Path) -> None:
    other = Seller.generate()
    with Device.create(tmp_path / "car", "camera-v1", other.root) as device, Registry(tmp_path / "r") as registry:
        exporter = Exporter(folder, SELLER, TERMS, tmp_path / "out", signer=other.signer)
        exporter.fleet([Wanted(buyer="acme", device=device.identity)], registry)
        flash(device, next((tmp_path / "out").glob("*.vgc")))
        with pytest.raises(MisuseError, match="one process"):
            exporter.fleet(wanted(2), registry, jobs=2)


def test_a_fleet_in_processes_shares_a_component(folder: Path, tmp_path: Path) -> None:
    fleet = wanted(2 * BATCH)
    exporter = Exporter(folder, SELLER, TERMS, tmp_path / "out", "europe")
    with Registry(tmp_path / "r.sqlite") as registry:
        assert exporter.fleet(fleet, registry, jobs=2).made == len(fleet)
        assert len({r.component for r in registry.rows()}) == 1
    assert (tmp_path / "out" / COMPONENT_FILE).exists()
    assert len(list((tmp_path / "out").glob("*.vge"))) == len(fleet)


def test_a_killed_fleet_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.test_export import *; "
        "f = Path(sys.argv[1]); seller = Seller.from_secret(bytes.fromhex(sys.stdin.read()));"
        "e = Exporter(Path(sys.argv[2]), seller, TERMS, f / 'out');"
        "e.fleet(read_list(f / 'fleet.csv'), Registry(f / 'r.sqlite'))"
    )
    fleet = wanted(4 * BATCH)
    lines = ["buyer,device"]
    for i, w in enumerate(fleet):
        (tmp_path / f"{i}.json").write_text(w.device.to_json())
        lines.append(f"{w.buyer},{i}.json")
    (tmp_path / "fleet.csv").write_text("\n".join(lines) + "\n")
    child = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, folder],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert child.stdin is not None
    child.stdin.write(SELLER.to_secret().hex().encode())
    child.stdin.close()
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() or len(list((tmp_path / "out").glob("*.vgc"))) < BATCH // 2:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with Registry(tmp_path / "r.sqlite") as registry:
        before = len(list(registry.rows()))
        report = Exporter(folder, SELLER, TERMS, tmp_path / "out").fleet(read_list(tmp_path / "fleet.csv"), registry)
        rows = list(registry.rows())
    assert report.skipped == before
    assert len(rows) == len({r.ueid for r in rows}) == 4 * BATCH
    assert len(list((tmp_path / "out").glob("*.vgc"))) == 4 * BATCH


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns are missing"),
        ("buyer\nx\n", "columns"),
        ("buyer,device,colour\nx,d.json,red\n", "columns"),
        ("buyer,device\nx,none.json\n", "line 2"),
        ("buyer,device\n,d.json\n", "line 2"),
        ("buyer,device,epoch\nx,d.json,-1\n", "line 2"),
        ("buyer,device,epoch\nx,d.json,one\n", "line 2"),
        ("buyer,device\nx,d.json,extra\n", "line 2"),
        ("buyer,device\nx\n", "line 2"),
        ("buyer,device\nx,d.json\ny,d.json\n", "twice"),
        ("buyer,device\nx,bad.json\n", "line 2"),
        ("buyer,device\nx,\x00.json\n", "line 2"),
    ],
)
def test_a_wrong_list_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "d.json").write_text(wanted(1)[0].device.to_json())
    (tmp_path / "bad.json").write_text('{"schema": 1}')
    (tmp_path / "fleet.csv").write_text(text)
    with pytest.raises(MisuseError, match=words):
        read_list(tmp_path / "fleet.csv")


def test_the_command_line_from_model_to_label(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx  # noqa: PLC0415

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pass").write_text("a passphrase for a test")
    (tmp_path / "pass").chmod(0o600)
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", str(tmp_path / "pass"))
    onnx.save(base.model, tmp_path / "model.onnx")
    shown = measure(base, IMAGES)
    np.savez(tmp_path / "val.npz", x=IMAGES, y=shown.probabilities.argmax(axis=1))

    def run(*argv: str, status: int = 0) -> str:
        assert main(argv) == status, capsys.readouterr().err
        return capsys.readouterr().out

    run("keys", "generate", "seller", "--out", "seller.key")
    run("keys", "root", "seller.key", "--out", "seller.root")
    out = run("export", "prepare", "model.onnx", "--validation", "val.npz", "--loss", "20", "--out", "rel", "--json")
    assert json.loads(out)["parity"]["differing"] == 0
    assert json.loads((tmp_path / "rel/calibration.json").read_text())["tried"]
    run("device", "new", "car", "--class", "camera-v1", "--root", "seller.root")
    run("device", "identity", "car", "--out", "car.json")
    seal = ("export", "copy", "rel", "--seller", "seller.key", "--buyer", "acme", "--device", "car.json")
    run(*seal, "--out", "copies", "--budget", "25")
    (row,) = json.loads(run("export", "registry", "registry.sqlite", "--json"))
    run("device", "flash", "car", f"copies/{row['file']}")
    np.save(tmp_path / "frames.npy", IMAGES[:20])
    labels = [int(line.split()[-1]) for line in run("device", "classify", "car", "frames.npy").splitlines()]
    seller = Seller.load(tmp_path / "seller.key", "a passphrase for a test")
    expected = CopyJudge(Release.load(tmp_path / "rel").template).labels(seller.buyer_seed("acme", 0), shown.head(20))
    assert labels == expected.tolist()
    run("device", "classify", "car", "frames.npy", status=1)
    assert "acme" in run("export", "registry", "registry.sqlite")
    ueid = row["ueid"]
    run("keys", "revoke", "seller.key", "--list", "revoked", "--ueid", ueid)
    run(*seal, "--out", "more", "--revoked", "revoked", status=1)
    assert not (tmp_path / "more").exists()
    run(*seal, "--out", "more", "--budget", "0", status=2)
    run("export", "prepare", "missing.onnx", "--out", "rel2", status=1)
    run("export", "prepare", "model.onnx", "--validation", "model.onnx", "--out", "rel2", status=1)
    assert not (tmp_path / "rel2").exists()


def test_a_copy_that_would_differ_is_not_sealed(release: Release) -> None:
    """The tail graph of another strength stands in for a fusing fault: the check of single copies must see it."""
    rewriter = release.template.rewriter
    assert isinstance(rewriter, Qim)
    faulty = replace(release)
    judge = CopyJudge(release.template)
    judge._session = CopyJudge(replace(release.template, rewriter=replace(rewriter, beta=0.2)))._session
    vars(faulty)["judge"] = judge
    device = wanted(1)[0].device
    orders = [CopyOrder(buyer=f"b{i}", device=device, epoch=0, sequence=i, security_counter=0) for i in range(8)]
    with pytest.raises(RefusedError) as refused:
        seal_copies(faulty, SELLER, orders, TERMS)
    assert refused.value.refusal is Refusal.PARITY
    assert len(seal_copies(release, SELLER, orders, TERMS)) == len(orders)
