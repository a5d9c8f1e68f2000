"""No folder is made where another user may rename it and put a link in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed import bases
from testbed.artefacts import CLASS, MemorySigner
from tests.support.small_campaign import write_inputs
from variegate.attack.campaign import config
from variegate.attack.campaign import folder as campaigns
from variegate.attack.campaign.prepare import prepare
from variegate.attack.report import write as reports
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.image import build, tools
from variegate.export.release import make_release
from variegate.export.rewriters import Permutation
from variegate.keys.errors import MisuseError
from variegate.keys.files import refuse_shared

SIGNER = MemorySigner()


@pytest.mark.parametrize(
    ("mode", "taken"), [(0o755, True), (0o1777, True), (0o777, False), (0o775, False), (0o757, False)]
)
def test_a_folder_that_others_may_write_is_taken_if_it_is_sticky(tmp_path: Path, mode: int, taken: bool) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    (tmp_path / "link").symlink_to("open")
    for folder in (tmp_path / "open", tmp_path / "link", Path(os.path.relpath(tmp_path / "open"))):
        if taken:
            refuse_shared(folder)
        else:
            with pytest.raises(MisuseError, match="others may write") as caught:
                refuse_shared(folder)
            assert "chmod go-w" in str(caught.value.hint)


def _device(out: Path, _: Path) -> None:
    Device.create(out, CLASS, SIGNER.root)


def _image(out: Path, beside: Path) -> None:
    build(beside / "none", out)


def _campaign(out: Path, beside: Path) -> None:
    path = write_inputs(beside)
    campaigns.create(out, prepare(config.load(path), path.parent))


def _release(out: Path, beside: Path) -> None:
    make_release("spring", bases.base(beside), Permutation(alpha=0.8), bases.images(64)).save(out)


def _deep_release(out: Path, beside: Path) -> None:
    _release(out / "below" / "it", beside)


def _report(out: Path, _: Path) -> None:
    reports._check_out(out, signed=False)


@pytest.mark.parametrize("make", [_device, _image, _campaign, _release, _deep_release, _report])
def test_a_folder_is_made_in_none_that_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None]
) -> None:
    monkeypatch.setattr(tools, "need", lambda _: None)  # an image's folder is looked at before anything is built
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(MisuseError, match="others may write"):
        make(place / "made", tmp_path)
    assert list(place.iterdir()) == []


def test_a_broker_is_made_in_no_folder_that_others_may_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    (tmp_path / "root").write_bytes(SIGNER.root.to_bytes())
    (tmp_path / "pass").write_text("a passphrase that is long enough")
    (tmp_path / "pass").chmod(0o600)
    words = ["--root", str(tmp_path / "root"), "--passphrase-file", str(tmp_path / "pass")]
    assert main(["broker", "new", str(place / "broker"), *words]) != 0
    assert "others may write" in capsys.readouterr().err
    assert list(place.iterdir()) == []
    place.chmod(0o1777)
    assert main(["broker", "new", str(place / "broker"), *words]) == 0
