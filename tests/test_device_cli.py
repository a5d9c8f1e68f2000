"""`variegate device`, from a seller's key to labels, in processes of its own where it matters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testbed.artefacts import CLASS, SHAPE, frames, seal_for
from variegate.cli.main import main
from variegate.keys.identity import DevicePublic
from variegate.keys.manifest import Policy
from variegate.keys.rotation import rotate
from variegate.keys.seller import Seller


def run(*words: object) -> int:
    return main(["device", *map(str, words)])


@pytest.fixture(scope="module")
def seller() -> Seller:
    return Seller.generate()


@pytest.fixture
def home(tmp_path: Path, seller: Seller) -> Path:
    (tmp_path / "seller.root").write_bytes(seller.root.to_bytes())
    assert run("new", tmp_path / "car", "--class", CLASS, "--root", tmp_path / "seller.root") == 0
    return tmp_path


def public(home: Path) -> DevicePublic:
    assert run("identity", home / "car", "--out", home / "car.json") == 0
    return DevicePublic.from_json((home / "car.json").read_bytes())


def sealed(home: Path, seller: Seller, **changes: Any) -> Path:
    path = home / "copy.vgc"
    (home / "car.json").unlink(missing_ok=True)
    path.write_bytes(seal_for(public(home), seller.signer, **changes).to_bytes())
    return path


def test_flash_classify_status(home: Path, seller: Seller, capsys: pytest.CaptureFixture[str]) -> None:
    artefact = sealed(home, seller, policy=Policy(budget=640))
    assert run("flash", home / "car", artefact) == 0
    shown = frames(3)
    np.save(home / "many.npy", shown)
    np.save(home / "one.npy", shown[0])
    Image.fromarray(shown[0].transpose(1, 2, 0)).save(home / "one.png")
    capsys.readouterr()
    assert run("classify", home / "car", home / "many.npy", home / "one.npy", home / "one.png") == 0
    labels = capsys.readouterr().out.split()
    assert len(labels) == 5
    assert labels[0] == labels[3] == labels[4]
    assert run("classify", home / "car", home / "many.npy", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"image": str(home / "many.npy"), "labels": [int(x) for x in labels[:3]]}
    ]
    assert run("status", home / "car", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["confirmed"] == "a"
    assert status["images"]["a"]["budget"] == 640
    assert run("status", home / "car") == 0
    assert "lifecycle:" in capsys.readouterr().out


def test_envelope_and_component_apart(home: Path, seller: Seller) -> None:
    artefact = seal_for(public(home), seller.signer)
    (home / "e").write_bytes(artefact.envelope)
    (home / "c").write_bytes(artefact.component)
    assert run("flash", home / "car", home / "e", "--component", home / "c") == 0


def test_refusal_is_told_inside_only(home: Path, seller: Seller, capsys: pytest.CaptureFixture[str]) -> None:
    artefact = sealed(home, seller, not_after=1)
    capsys.readouterr()
    assert run("flash", home / "car", artefact) == 1
    said = capsys.readouterr().err
    assert "expired" not in said
    assert "artefact refused" in said
    assert run("log", home / "car") == 0
    assert "expired" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x.npy", "x.png"])
def test_images_that_are_none(home: Path, seller: Seller, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flash", home / "car", sealed(home, seller)) == 0
    image = home / name
    for content in (b"", b"\x93NUMPY\x01\x00", b"\x89PNG\r\n\x1a\n1234", b"PK\x03\x04" + bytes(40)):
        image.write_bytes(content)
        assert run("classify", home / "car", image) == 1
        assert "is no" in capsys.readouterr().err
    Image.new("RGB", (5, 4)).save(home / "big.png")
    assert run("classify", home / "car", home / "big.png") == 1
    assert "5 x 4" in capsys.readouterr().err
    np.save(home / "float.npy", np.zeros(SHAPE, np.float64))
    assert run("classify", home / "car", home / "float.npy") == 1
    assert run("classify", home / "car", home / "missing.npy") == 2


def test_status_shows_what_remains(home: Path, seller: Seller, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flash", home / "car", sealed(home, seller, epoch=3, policy=Policy(budget=640))) == 0
    np.save(home / "many.npy", frames(5))
    assert run("classify", home / "car", home / "many.npy") == 0
    capsys.readouterr()
    assert run("status", home / "car", "--json") == 0
    image = json.loads(capsys.readouterr().out)["images"]["a"]
    assert (image["budget"], image["remaining"]) == (640, 635)


def test_classify_waits_for_the_rate(home: Path, seller: Seller, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flash", home / "car", sealed(home, seller, policy=Policy(rate_per_hour=36000, burst=2))) == 0
    np.save(home / "two.npy", frames(2))
    capsys.readouterr()
    assert run("classify", home / "car", home / "two.npy", home / "two.npy") == 0
    said = capsys.readouterr()
    assert len(said.out.split()) == 4
    assert said.err.count("waiting") == 1
    assert run("flash", home / "car", sealed(home, seller, sequence=2, policy=Policy(rate_per_hour=1, burst=2))) == 0
    capsys.readouterr()
    assert run("classify", home / "car", home / "two.npy") == 1
    said = capsys.readouterr()
    assert "query rate exceeded: allowed in 7" in said.err
    assert "waiting" not in said.err


def remaining(home: Path, capsys: pytest.CaptureFixture[str]) -> int:
    capsys.readouterr()
    assert run("status", home / "car", "--json") == 0
    left: int = json.loads(capsys.readouterr().out)["images"]["a"]["remaining"]
    return left


def test_what_cannot_be_answered_is_not_charged(home: Path, seller: Seller, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flash", home / "car", sealed(home, seller, policy=Policy(budget=640))) == 0
    np.save(home / "two.npy", frames(2))
    (home / "bad.npy").write_bytes(b"noise")
    assert run("classify", home / "car", home / "two.npy", home / "bad.npy") == 1
    assert run("classify", home / "car", home / "two.npy", home / "missing.npy") == 2
    (home / "there").write_bytes(b"x")
    (home / "dangling").symlink_to(home / "nowhere")
    for receipt in (home / "there", home / "dangling", home / "no" / "r", home / "there" / "r"):
        assert run("classify", home / "car", home / "two.npy", "--receipt", receipt) == 2
    assert capsys.readouterr().out == ""
    assert (home / "there").read_bytes() == b"x"
    assert remaining(home, capsys) == 640
    assert run("classify", home / "car", home / "two.npy", "--receipt", home / "r") == 0
    assert (home / "r").exists()
    assert remaining(home, capsys) == 638


def test_labels_that_were_charged_are_shown_when_a_later_file_is_refused(
    home: Path, seller: Seller, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("flash", home / "car", sealed(home, seller, policy=Policy(budget=3))) == 0
    np.save(home / "two.npy", frames(2))
    capsys.readouterr()
    assert run("classify", home / "car", home / "two.npy", home / "two.npy", "--json") == 1
    said = capsys.readouterr()
    assert [len(one["labels"]) for one in json.loads(said.out)] == [2]
    assert "budget" in said.err


def test_help_names_what_export_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flash", "--help") == 0
    assert "acme.vge --component component.vgb" in capsys.readouterr().out


def test_follow(home: Path, seller: Seller) -> None:
    (home / "to2.root").write_bytes(rotate(seller).statement)
    assert run("follow", home / "car", home / "to2.root") == 0
    assert run("follow", home / "car", home / "to2.root") == 1


def test_misuse(home: Path) -> None:
    assert run("status", home / "none") == 2
    assert run("new", home / "car", "--class", CLASS, "--root", home / "seller.root") == 2
    for folder in (home / "no" / "car", home / "seller.root" / "car"):
        assert run("new", folder, "--class", CLASS, "--root", home / "seller.root") == 2
    assert run("classify", home / "car", home / "x.npy") == 1  # nothing flashed
    (home / "bad.root").write_bytes(b"x")
    assert run("new", home / "car2", "--class", CLASS, "--root", home / "bad.root") == 1
    assert not (home / "car2").exists()


@pytest.mark.parametrize("nonce", ["", "00", "00" * 7, "00" * 65, "zz" * 8])
def test_a_nonce_that_no_evidence_takes_spends_no_boot(
    home: Path, nonce: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("attest", home / "none", f"--nonce={nonce}", "--out", home / "token.eat") == 2
    said = capsys.readouterr().err
    assert "argument --nonce: " in said
    assert ("not hexadecimal" if nonce.startswith("z") else "8 to 64 bytes") in said


def test_evidence_without_a_place_spends_no_boot(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "there.eat").write_bytes(b"")
    # The device is not there, either: the place is looked at first.
    nowhere = "no such folder"
    for out, reason in (("no/token.eat", nowhere), ("seller.root/t", nowhere), ("there.eat", "is there")):
        assert run("attest", home / "none", "--nonce", "00" * 8, "--out", home / out) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert str(home / out) in said
    assert run("attest", home / "none", "--nonce", "00" * 8, "--out", home / "token.eat") == 2
    assert str(home / "none") in capsys.readouterr().err


def test_needs_neither_torch_nor_onnx_nor_pillow(home: Path, seller: Seller) -> None:
    """The bare installation: forbidden packages cannot be imported, and a device is flashed and asked."""
    artefact = sealed(home, seller)
    np.save(home / "one.npy", frames(1)[0])
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxsim', 'PIL', 'variegate.export'): sys.modules[name] = None\n"
        "from variegate.cli.main import main\n"
        "car, artefact, image = sys.argv[1:]\n"
        "sys.exit(main(['device', 'flash', car, artefact]) or main(['device', 'classify', car, image]))"
    )
    words = [sys.executable, "-c", code, str(home / "car"), str(artefact), str(home / "one.npy")]
    child = subprocess.run(words, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip().isdigit()
