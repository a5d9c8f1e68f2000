"""From a base to sealed copies on devices: releases, calibration, sealing, fleets, and the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from testbed import bases
from tests.support.processes import heed_interrupts
from tests.support.registries import from_zero
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.calibrate import FINE_STEP, STEP, calibrate, candidates
from variegate.export.fleet import BATCH, COMPONENT_FILE, Exporter, file_name
from variegate.export.fleet_list import FleetLine, read_list
from variegate.export.intake.base import Base, from_torch
from variegate.export.parity import CopyJudge, ParitySet, measure
from variegate.export.registry import Registry
from variegate.export.release import Release, make_release
from variegate.export.rewriters import Permutation, Qim, to_parameters
from variegate.export.sealing import CopyOrder, Terms, seal_copies, share_component
from variegate.keys.artefact import Artefact
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import Policy
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
    return make_release("spring", base, Qim(grid=(4, 8), steps=(64,), beta=3.0), IMAGES)


@pytest.fixture(scope="module")
def folder(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "spring"
    release.save(path)
    return path


def wanted(count: int) -> list[FleetLine]:
    devices = [DeviceIdentity.generate("camera-v1", KEM_CLASSIC).public for _ in range(count)]
    return [FleetLine(buyer=f"buyer {i}/{i}", device=device) for i, device in enumerate(devices)]


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


def test_a_killed_prepare_is_done_again_and_a_file_is_no_folder(release: Release, tmp_path: Path) -> None:
    release.save(tmp_path / "r")
    (tmp_path / "r" / "release.toml").unlink()
    (tmp_path / "r" / "payload.bin").write_bytes(b"half")
    replace(release, name="frühling \U0001f337").save(tmp_path / "r")
    assert Release.load(tmp_path / "r").name == "frühling \U0001f337"
    for path in (tmp_path / "r" / "payload.bin", tmp_path / "r" / "payload.bin" / "x"):
        with pytest.raises(MisuseError, match="not a folder"):
            release.save(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("classes = 5", "classes = 6"),
        ("classes = 5", 'classes = "5"'),
        ("grid = [4, 8]", "grid = [8, 4]"),
        ("grid = [4, 8]", "grid = [3, 8]"),
        ("steps = [64]", "steps = [128]"),
        ("repeats = 1", "repeats = 100000000000000000000"),
        ("height = 16", "height = 32"),
        ('dtype = "uint8"', 'dtype = "float32"'),
        ('layout = "NCHW"', 'layout = "other"'),
    ],
)
def test_an_edited_release_does_not_fit_its_payload(folder: Path, tmp_path: Path, old: str, new: str) -> None:
    edited = shutil.copytree(folder, tmp_path / "r") / "release.toml"
    text = edited.read_text()
    assert old in text
    edited.write_text(text.replace(old, new))
    with pytest.raises(RefusedError) as refused:
        Release.load(tmp_path / "r")
    assert (refused.value.refusal, refused.value.hint) == (Refusal.MALFORMED, "prepare the release again")


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
    with pytest.raises((RefusedError, MisuseError)) as refused:
        Release.load(path)
    if damage == "parity":
        assert refused.value.hint == "prepare the release again"


def test_calibration_takes_the_strongest_within_the_allowance(base: Base) -> None:
    validation = measure(base, IMAGES)
    truth = validation.probabilities.argmax(axis=1)
    found = calibrate(base, "permutation", validation, truth, dtype="uint8", allowed_points=5, copies=4)
    assert isinstance(found.rewriter, Permutation)
    assert found.base_accuracy == 1
    assert all(t.loss_points + t.error_points > 5 for t in found.tried[:-1])
    assert found.tried[-1].loss_points <= 5
    # Few images are an error of their own, on top of that of few copies.
    assert all(t.error_points > 100 * t.deviation / 4**0.5 for t in found.tried if t.loss_points)
    alphas = [float(str(t.parameters["alpha"])) for t in found.tried]
    assert alphas == sorted(alphas, reverse=True)
    with pytest.raises(MisuseError, match="no qim"):
        calibrate(base, "qim", validation, truth, dtype="uint8", allowed_points=-1, copies=2)
    with pytest.raises(MisuseError, match="unknown"):
        calibrate(base, "none", validation, truth, dtype="uint8", allowed_points=1)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_lattices_are_finer_where_noise_turns_the_base(base: Base, dtype: str) -> None:
    shown = measure(base, IMAGES if dtype == "uint8" else IMAGES / np.float32(255))
    best = np.sort(shown.probabilities, axis=1)
    order = (best[:, -1] - best[:, -2]).argsort()
    for rows, step in ((order[-60:], STEP), (order[:12], FINE_STEP)):
        one = ParitySet(shown.images[rows], shown.probabilities[rows])
        truth = one.probabilities.argmax(axis=1)
        found = calibrate(base, "qim", one, truth, dtype=dtype, allowed_points=100, copies=2)
        assert isinstance(found.rewriter, Qim)
        assert (found.turned > 0.1) == (step == FINE_STEP)
        assert 0.7 < found.rewriter.real_steps(base.contract)[0] / step < 1.45


def test_a_fleet_is_made_once_and_resumed(folder: Path, tmp_path: Path) -> None:
    fleet = wanted(BATCH + 6)
    exporter = Exporter(folder, SELLER, TERMS, tmp_path / "out")
    with from_zero(tmp_path / "r.sqlite") as registry:
        (tmp_path / "out" / ".making-killed").mkdir(parents=True)
        (tmp_path / "out" / ".making-killed" / "killed-1.vgc").touch()
        (tmp_path / "out" / ".making-killed" / ".made").touch()
        first = exporter.fleet(fleet[:BATCH], registry)
        assert not list((tmp_path / "out").glob(".*"))
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


@pytest.mark.parametrize("cohort", [None, "europe"])
@pytest.mark.parametrize(
    "terms",
    [
        replace(TERMS, vendor="Other"),
        replace(TERMS, policy=Policy(budget=7)),
        replace(TERMS, not_after=2**33),
        replace(TERMS, measurements={"os": bytes(32)}),
        None,
    ],
)
def test_a_copy_on_other_terms_is_made_anew(
    folder: Path, tmp_path: Path, terms: Terms | None, cohort: str | None
) -> None:
    """None stands for new signing keys under the same terms."""
    first = Exporter(folder, SELLER, TERMS, tmp_path / "out", cohort)
    other = replace(first, seller=SELLER.with_new_signing_keys()) if terms is None else replace(first, terms=terms)
    fleet = wanted(1)
    with from_zero(tmp_path / "r") as registry:
        made = [exporter.fleet(fleet, registry).made for exporter in (first, first, other, other, first)]
        assert [(row.sequence, row.security_counter) for row in registry.rows()] == [(1, 0), (2, 1), (3, 2)]
    assert made == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("terms", "word"),
    [
        ({"vendor": ""}, "text"),
        ({"vendor": "a\nb"}, "text"),
        ({"not_after": -1}, "number"),
        ({"policy": Policy(budget=1 << 63)}, "number"),
        ({"policy": Policy(rate_per_hour=10**20)}, "manifest|CBOR|number"),
        ({"policy": Policy(rate_per_hour=1, burst=1 << 63)}, "number"),
        ({"policy": Policy(grace_s=1 << 63)}, "number"),
        ({"measurements": {"os": b"short"}}, "bytes"),
    ],
)
def test_what_no_device_would_read_is_not_sealed(release: Release, terms: dict[str, Any], word: str) -> None:
    order = CopyOrder(buyer="acme", device=wanted(1)[0].device, epoch=0, sequence=1, security_counter=0)
    with pytest.raises(MisuseError, match=f"no device would read this copy: .*({word})"):
        seal_copies(release, SELLER, [order], replace(TERMS, **terms))


@pytest.mark.parametrize("buyer", ["b" * 128, "\u00fc" * 128, "a" + "\U0001f337" * 127, "x" * 98 + "/" * 30])
def test_a_file_name_is_never_too_long(tmp_path: Path, buyer: str) -> None:
    device = wanted(1)[0].device
    order = CopyOrder(buyer=buyer, device=device, epoch=0, sequence=2**63 - 1, security_counter=0)
    name = file_name(order, shared=False)
    (tmp_path / f".{name}.12345678").touch()
    assert unquote(name)[:8] == buyer[:8]
    assert re.fullmatch(r"([^%]|%[0-9A-F]{2})*", name)


@pytest.mark.parametrize("repeats", [10**8, 10**20])
def test_keyed_tensors_are_capped_before_they_are_drawn(base: Base, repeats: int) -> None:
    with pytest.raises(MisuseError, match="keyed tensors"):
        Qim(repeats=repeats).tensors(base.contract, "uint8")


@pytest.mark.parametrize("shape", [(3, -8, 8), (3, 8, 0), (3, 99_999_999, 99_999_999)])
def test_an_impossible_image_is_refused_before_it_is_drawn(shape: tuple[int, int, int]) -> None:
    with pytest.raises(RefusedError) as refused:
        from_torch(bases.Linear(), shape)
    assert refused.value.refusal is Refusal.CONTRACT


def test_a_failed_trace_is_one_refusal_and_no_noise() -> None:
    script = """
import torch
from variegate.export.intake.base import from_torch
from variegate.keys.errors import RefusedError
try:
    from_torch(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 2)), (3, 8, 8))
except RefusedError as error:
    print(error.refusal)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("model\n", "")


def test_another_signer_signs_alone(folder: Path, tmp_path: Path) -> None:
    other = Seller.generate()
    with Device.create(tmp_path / "car", "camera-v1", other.root) as device, Registry(tmp_path / "r") as registry:
        exporter = Exporter(folder, SELLER, TERMS, tmp_path / "out", signer=other.signer)
        exporter.fleet([FleetLine(buyer="acme", device=device.identity)], registry)
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


def test_an_interrupted_fleet_leaves_no_half_files_and_says_little(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a terminal's group; it comes while one worker or more still starts."""
    script = (
        "import sys; from pathlib import Path; from tests.test_export import *\n"
        "f = Path(sys.argv[1]); seller = Seller.from_secret(bytes.fromhex(sys.stdin.read()))\n"
        "e = Exporter(Path(sys.argv[2]), seller, TERMS, f / 'out')\n"
        "try:\n    e.fleet(wanted(8 * BATCH), Registry(f / 'r.sqlite'), jobs=2)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path, folder],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    assert child.stdin is not None
    child.stdin.write(SELLER.to_secret().hex().encode())
    child.stdin.close()
    child.stdin = None
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.vgc")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGINT)
    _, shown = child.communicate(timeout=60)
    assert (child.returncode, shown.decode()) == (130, "")
    assert not list((tmp_path / "out").glob(".*"))
    assert len(list((tmp_path / "out").glob("*.vgc"))) < 8 * BATCH


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
        before = {path.name for path in (tmp_path / "out").glob("*.vgc")}
        # Registered first, named then: the kill leaves no file outside the registry.
        assert before <= {row.file for row in registry.rows()}
        report = Exporter(folder, SELLER, TERMS, tmp_path / "out").fleet(read_list(tmp_path / "fleet.csv"), registry)
        newest = {row.ueid: row.file for row in registry.rows()}
    assert report.skipped == len(before)
    assert len(newest) == 4 * BATCH
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(newest.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns are missing"),
        ("buyer\nx\n", "columns"),
        ("buyer,device,colour\nx,d.json,red\n", "columns"),
        ("buyer,device\nx,none.json\n", "line 2: cannot read .*none.json: no such file"),
        ("buyer,device\n", "the list is empty"),
        ("buyer,buyer,device\nx,x,d.json\n", "columns"),
        ("buyer,device,epoch\nx,d.json,9223372036854775808\n", "line 2: epoch must lie"),
        ("buyer,device,security_counter\nx,d.json,100000000000000000000\n", "line 2: security_counter must lie"),
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


def test_a_list_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    device = wanted(1)[0].device
    (tmp_path / "d.json").write_text(device.to_json())
    (tmp_path / "fleet.csv").write_text("\ufeffbuyer , device, epoch\r\n acme gmbh , d.json , 3 \r\n", "utf-8")
    assert read_list(tmp_path / "fleet.csv") == [FleetLine(buyer="acme gmbh", device=device, epoch=3)]


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
    run("keys", "revoke", "seller.key", "--revoked", "revoked", "--ueid", ueid)
    run(*seal, "--out", "more", "--revoked", "revoked", status=1)
    run("keys", "rotate", "seller.key", "--out", "new.key", "--statement", "to-new", "--revoked", "revoked")
    assert main([*seal, "--out", "more", "--signer", "new.key", "--revoked", "revoked"]) == 1
    assert "1 of these devices are revoked" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()
    run(*seal, "--out", "more", "--budget", "0", status=2)
    run("export", "prepare", "missing.onnx", "--out", "rel2", status=2)
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


@pytest.fixture(scope="module")
def shop(base: Base, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line takes, good and bad."""
    import onnx  # noqa: PLC0415

    home = tmp_path_factory.mktemp("shop")
    onnx.save(base.model, home / "model.onnx")
    shutil.copytree(folder, home / "rel")
    (home / "pass").write_text("a passphrase for a test")
    (home / "pass").chmod(0o600)
    SELLER.save(home / "seller.key", "a passphrase for a test")
    (home / "d.json").write_text(wanted(1)[0].device.to_json())
    (home / "fleet.csv").write_text("buyer,device\nacme,d.json\n")
    (home / "partial.toml").write_text("schema = 1\nbeta = 2.5\n")
    (home / "huge.toml").write_text("schema = 1\nrepeats = 100000000000000000000\n")
    (home / "latin1").write_bytes("b\u00e4r\n".encode("latin-1"))
    (home / "twice").write_text("a\na\nb\nc\nd\n")
    (home / "four").write_text("a\nb\nc\nd\n")
    truth = np.zeros(300, np.int64)
    np.savez(home / "empty.npz", x=IMAGES[:0], y=truth[:0])
    np.savez(home / "seven.npz", x=IMAGES[:7], y=truth[:7])
    for name, value in (("over", 1.5), ("nan", np.nan), ("under", -0.1)):
        np.savez(home / f"{name}.npz", x=np.full((8, 3, 16, 16), value, np.float32), y=truth[:8])
    return home


@pytest.fixture
def in_shop(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shop as the present folder."""
    monkeypatch.chdir(shop)
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", "pass")
    return shop


PREPARE = ("prepare", "model.onnx", "--out", "new")
COPY = ("copy", "rel", "--seller", "seller.key", "--buyer", "acme", "--device", "d.json", "--out", "copies")
FLEET = ("fleet", "rel", "--seller", "seller.key", "--list", "fleet.csv", "--out", "copies")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("prepare", "none.onnx", "--out", "new"), 2, "cannot read none.onnx: no such file"),
        (("prepare", ".", "--out", "new"), 1, ""),
        (("prepare", "testbed.bases:Linear", "--shape", "3,16,16", "--weights", "w.safetensors"), 2, "--out"),
        (
            ("prepare", "testbed.bases:Linear", "--shape", "3,16,16", "--weights", "w", "--out", "new"),
            2,
            "cannot read w: no such file",
        ),
        (("prepare", "testbed.bases:Linear", "--shape", "3,-8,8", "--out", "new"), 1, "at least 1"),
        ((*PREPARE, "--loss", "nan"), 2, "the loss must be"),
        ((*PREPARE, "--loss", "inf"), 2, "the loss must be"),
        ((*PREPARE, "--loss", "-1"), 2, "the loss must be"),
        ((*PREPARE, "--name", ""), 2, "name has 1 to"),
        ((*PREPARE, "--mean", "a,b,c"), 2, "give numbers, as in"),
        ((*PREPARE, "--validation", "none.npz"), 2, "cannot read none.npz"),
        ((*PREPARE, "--validation", "empty.npz"), 2, "holds no images"),
        ((*PREPARE, "--validation", "seven.npz"), 2, "holds 7 images"),
        ((*PREPARE, "--dtype", "float32", "--validation", "over.npz"), 2, "finite and lie in 0..1"),
        ((*PREPARE, "--dtype", "float32", "--validation", "under.npz"), 2, "finite and lie in 0..1"),
        ((*PREPARE, "--dtype", "float32", "--validation", "nan.npz"), 2, "finite and lie in 0..1"),
        ((*PREPARE, "--class-names", "latin1"), 2, "not UTF-8"),
        ((*PREPARE, "--class-names", "twice"), 2, "must be different"),
        ((*PREPARE, "--class-names", "four"), 1, "4 class names for 5 classes"),
        ((*PREPARE, "--parameters", "huge.toml"), 2, "keyed tensors"),
        ((*PREPARE, "--parameters", "none.toml"), 2, "cannot read none.toml: no such file"),
        (("prepare", "model.onnx", "--out", "rel"), 2, "holds a release already"),
        (("prepare", "model.onnx", "--out", "pass"), 2, "pass is not a folder"),
        ((*COPY, "--budget", "100000000000000000000"), 2, "--budget must lie in"),
        ((*COPY, "--rate-per-hour", "9223372036854775808"), 2, "--rate-per-hour must lie in"),
        ((*COPY, "--burst", "9223372036854775808"), 2, "--burst must lie in"),
        ((*COPY, "--grace", "9223372036854775808"), 2, "--grace must lie in"),
        ((*COPY, "--not-after", "1969-01-01T00:00:00+00:00"), 2, "from 1970 on"),
        ((*COPY, "--not-after", "2020-01-01T00:00:00+00:00"), 2, "has passed already"),
        ((*COPY, "--not-after", "yesterday"), 2, "give date, time and zone"),
        ((*COPY, "--vendor", ""), 2, "--vendor has"),
        ((*COPY, "--vendor", "a\nb"), 2, "--vendor has"),
        ((*COPY, "--security-counter", "100000000000000000000"), 2, "--security-counter must lie in"),
        ((*COPY, "--epoch", "9223372036854775808"), 2, "--epoch must lie in"),
        ((*COPY, "--seller", "d.json"), 1, "d.json is not a key file"),
        ((*COPY, "--out", ".", "--registry", "nodir/x"), 2, "cannot open nodir/x"),
        ((*COPY, "--out", "pass", "--registry", "fresh"), 2, "cannot write to pass: file exists"),
        (("copy", "norel", *COPY[2:]), 2, "norel is not a release folder"),
        ((*FLEET, "--jobs", "0"), 2, "--jobs must be at least 1"),
        ((*FLEET, "--list", "nofile"), 2, "cannot read nofile: no such file"),
        (("registry", "none"), 2, "there is no registry at none"),
        (("registry", "."), 2, ". is a folder"),
        ((*COPY, "--registry", "."), 2, ". is a folder"),
        (("registry", "seller.key", "--ueid", "xyz"), 2, "hexadecimal digits"),
    ],
)
def test_a_mistake_has_a_status_and_words(
    in_shop: Path,
    arguments: tuple[str, ...],
    status: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(in_shop.iterdir())
    assert main(["export", *arguments]) == status
    shown = capsys.readouterr().err
    assert words in shown
    assert "internal error" not in shown
    assert "Errno" not in shown
    assert sorted(in_shop.iterdir()) == before


@pytest.mark.parametrize("more", [(), ("--parameters", "partial.toml")])
def test_parameters_left_out_fit_the_image(
    base: Base, in_shop: Path, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_shop == Path.cwd()
    assert main(["export", "prepare", "model.onnx", "--out", str(tmp_path / "r"), *more]) == 0
    first = next(candidates("qim", base.contract))
    assert first != Qim()
    expected = {**to_parameters(first), **({"beta": 2.5} if more else {})}
    assert to_parameters(Release.load(tmp_path / "r").template.rewriter) == expected
    assert "B = 32 messages for each class, d = 0.0512\n" in capsys.readouterr().out


def test_the_registry_is_shown_and_searched(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = [replace(w, buyer=f"{i}" * 100) for i, w in enumerate(wanted(2))]
    with Registry(tmp_path / "r") as registry:
        Exporter(shop / "rel", SELLER, TERMS, tmp_path / "out").fleet(fleet, registry)
    ueid = fleet[0].device.ueid.hex()
    for asked in (ueid, ueid.upper(), ueid[:18]):
        assert main(["export", "registry", str(tmp_path / "r"), "--ueid", asked]) == 0
        shown = capsys.readouterr().out
        assert f"  {'0' * 29}...  " in shown
        assert "1" * 29 not in shown.replace(ueid[:18], "")
    (tmp_path / "empty").touch()
    assert main(["export", "registry", str(tmp_path / "empty")]) == 1
    assert (tmp_path / "empty").stat().st_size == 0
