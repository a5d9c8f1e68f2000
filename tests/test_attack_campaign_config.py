"""Campaign files and their images, wrong and hostile: every refusal names the key, and nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.small_campaign import TEXT, write_inputs
from variegate.attack.campaign import data
from variegate.attack.campaign.config import Campaign, parse
from variegate.attack.campaign.images import from_bytes as images_from_bytes
from variegate.attack.campaign.resolved import to_toml
from variegate.attack.campaign.units import units, victims
from variegate.attack.report import assessment
from variegate.cli.main import main
from variegate.keys.errors import MisuseError, Refusal, RefusedError

QIM = 'rewriter = { kind = "qim", grid = [4, 4], beta = 0.5 }'
WRONG = [
    # what is written, in place of what, and the path that the message names
    ("", "schema = 1", "schema is missing"),
    ("schema = 2", "schema = 1", "schema must be 1"),
    ("schema = 1\nspeed = 3", "schema = 1", "speed is not known"),
    ('"od\\u001b[31md" = 3\nschema = 1', "schema = 1", "od?[31md is not known"),
    ('seed = "x"', "seed = 11", "seed must be of type integer"),
    ("seed = -1", "seed = 11", "seed does not keep minimum 0"),
    ("seed = 11.0", "seed = 11", "seed must be of type integer"),
    ("count = 6.0", "count = 6", "data.count must be of type integer"),
    ("overshoots = [1.0]\nvictims = 2.0", "overshoots = [1.0, 2.0]", "replay.victims must be one of all, integer"),
    ('name = "a/b"', 'name = "small"', "name must match"),
    ('name = "qim\\n"', 'name = "qim"', "fleet[0].name must match"),
    ('unit = 2\nengine = "serial\\n"', "unit = 2", "run.engine must match"),
    ("count = 0", "count = 6", "data.count does not keep minimum 1"),
    ('count = 6\nset = "gtsrb-test"', "count = 6", "data needs either images or set"),
    ('set = "imagenet"', 'images = "images.npz"', "data.set must be one of"),
    ('count = 6\nchoose = "best"', "count = 6", "data.choose must be one of"),
    ('name = "qim"', 'name = "perm"', "fleet[1].name is there twice"),
    ("copys = 3", "copies = 3", "fleet[0].copys is not known"),
    ("", "copies = 3", "fleet[0].copies is missing"),
    ("", 'bases = ["a.onnx", "b.onnx"]', "fleet[0].bases is missing"),
    ('rewriter = { kind = "magic" }', QIM, "fleet[0].rewriter.kind must be one of"),
    ('rewriter = { kind = "none", beta = 1 }', QIM, "fleet[0].rewriter.beta is not known"),
    (f'{QIM}\ndevices = ["socket:/x"]', QIM, "fleet[0].bases makes no sense beside devices"),
    (f'{QIM}\nrelease = "r"', QIM, "fleet[0].bases makes no sense beside a release"),
    ('release = "r\\u0000"', 'bases = ["a.onnx", "b.onnx"]', "fleet[0].release must match"),
    (f"{QIM}\ninput = {{ scale = 2 }}", QIM, "fleet[0].input.scale is not known"),
    ("frame_rate = 0", "frame_rate = 30", "fleet[1].frame_rate does not keep minimum"),
    ("frame_rate = 1e-320", "frame_rate = 30", "fleet[1].frame_rate does not keep minimum"),
    ('images = "a\\u0000b"', 'images = "images.npz"', "data.images must match ^[^\\x00]*$"),
    ('bases = ["a.onnx", "\\u0000"]', 'bases = ["a.onnx", "b.onnx"]', "fleet[0].bases[1] must match"),
    (
        'name = "cars"\ndevices = ["device:\\u0000"]\n\n[[fleet]]\nname = "qim"',
        'name = "qim"',
        "fleet[0].devices[0] must match",
    ),
    ("frame_rate = nan", "frame_rate = 30", "fleet[1].frame_rate is not a finite number"),
    ('kind = "voodoo"\nqueries = 120', 'kind = "hopskipjump"\nqueries = 120', "attack[0].kind: there is no attack"),
    ("queries = 120\nparameters = { mean = 1 }", "queries = 120", "attack[0].parameters.mean: hopskipjump has no such"),
    ("queries = 120\nparameters = { first = -1 }", "queries = 120", "attack[0].parameters.first"),
    (
        f"queries = 120\nparameters = {{ wide = 1{'0' * 400} }}",
        "queries = 120",
        "attack[0].parameters.wide is not an integer of 64 bits",
    ),
    (
        'kind = "boundary"\nparameters = { proposals = 1000000000 }\nqueries = 120',
        'kind = "hopskipjump"\nqueries = 120',
        "attack[0].parameters.proposals must be from 1 to 1000",
    ),
    (
        'kind = "geoda"\nprofile = "art-1.20"\nparameters = { max_iter = 1000000000 }\nqueries = 120',
        'kind = "hopskipjump"\nqueries = 120',
        "attack[0].parameters.max_iter must be from 1 to 100000",
    ),
    (
        'kind = "geoda"\nprofile = "art-1.20"\nparameters = { lambda_param = 1e300 }\nqueries = 120',
        'kind = "hopskipjump"\nqueries = 120',
        "attack[0].parameters.lambda_param must be from 0.01 to 1",
    ),
    ('profile = "art-2"', 'profile = "art-1.20"', "attack[1].profile must be one of"),
    ("budgets = [50, 20]", "budgets = [20, 120]", "attack[0].budgets must ascend"),
    ("budgets = [20, 121]", "budgets = [20, 120]", "attack[0].budgets must ascend, up to queries"),
    ('images = "some"', 'images = "split"', "attack[1].images must be one of"),
    ('fleets = ["none"]', 'fleets = ["qim"]', "attack[1].fleets[0] is no fleet: none"),
    ('fleets = ["qim", "qim"]', 'fleets = ["qim"]', "attack[1].fleets[1] is there twice"),
    ("overshoots = [1.0, inf]", "overshoots = [1.0, 2.0]", "replay.overshoots[1] is not a finite number"),
    ("overshoots = [1.0, 1]", "overshoots = [1.0, 2.0]", "replay.overshoots names one twice"),
    ("overshoots = []", "overshoots = [1.0, 2.0]", "replay.overshoots does not keep minItems"),
    ('overshoots = [1.0]\nvictims = "none"', "overshoots = [1.0, 2.0]", "replay.victims must be one of all, integer"),
    ("unit = 0", "unit = 2", "run.unit does not keep minimum 1"),
    ('unit = 2\nengine = "ray"', "unit = 2", "run.engine must match"),
    ("count = 1000000\n", "count = 6", "run.unit is too small"),
    ("seed = 11\nseed = 12", "seed = 11", "the campaign is not valid TOML"),
    (f"deep = {'[' * 100}{']' * 100}\nseed = 11", "seed = 11", "is nested too deeply"),
    (f"deep = {'[' * 100_000}\nseed = 11", "seed = 11", "the campaign is not valid TOML"),
]


@pytest.mark.parametrize(("written", "instead", "words"), WRONG)
def test_what_is_wrong_is_named_by_its_path(written: str, instead: str, words: str) -> None:
    assert instead in TEXT
    text = TEXT.replace(instead, written, 1)
    with pytest.raises(RefusedError) as caught:
        parse(text.encode())
    assert words in caught.value.message
    assert caught.value.refusal is Refusal.MALFORMED
    assert len(caught.value.message) <= 320
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("hours", ["1e-320", "0", "0.0009", "-1", "nan"])
def test_hours_a_day_have_a_least_value(hours: str) -> None:
    with pytest.raises(RefusedError, match=r"^assessment: hours_per_day is "):
        assessment.parse(f"schema = 1\nhours_per_day = {hours}".encode())
    assert assessment.parse(b"schema = 1\nhours_per_day = 0.001").hours_per_day == 0.001


def test_a_resolved_campaign_is_read_back_as_it_was() -> None:
    campaign = parse(TEXT.encode())
    text = to_toml(campaign)
    assert parse(text.encode()) == campaign
    assert to_toml(parse(text.encode())) == text
    devices = TEXT.replace(
        'name = "perm"\ncopies = 2\nbases = ["a.onnx"]', 'name = "perm"\ndevices = ["socket:/a\\u007f"]'
    )
    devices = devices.replace('rewriter = { kind = "permutation", alpha = 0.3 }\ndtype = "float32"\n', "")
    campaign = parse(devices.encode())
    assert campaign.fleet("perm").devices == ("socket:/a\x7f",)
    assert parse(to_toml(campaign).encode()) == campaign
    released = TEXT.replace('bases = ["a.onnx", "b.onnx"]', 'release = "spring"').replace(QIM + "\n", "")
    campaign = parse(released.encode())
    assert campaign.fleet("qim").release == "spring"
    assert parse(to_toml(campaign).encode()) == campaign


@pytest.mark.parametrize("data", [b"\xff\xfe", b"", b"schema = 1", b"\x00" * 100, b"fleet = 3\nattack = 4"])
def test_bytes_that_are_no_campaign_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedError):
        parse(data)


def small() -> Campaign:
    return parse(TEXT.encode())


def test_units_cover_every_image_once() -> None:
    campaign = small()
    every = units(campaign)
    assert len({unit.name for unit in every}) == len(every)
    for attack in campaign.attacks:
        for name in attack.fleets:
            own = [unit for unit in every if (unit.attack, unit.fleet) == (attack.name, name)]
            attackers = min(attack.attackers or 99, campaign.fleet(name).copies)
            assert {unit.attacker for unit in own} == set(range(attackers))
            images = sorted((unit.attacker, i) for unit in own for i in unit.images)
            if attack.images == "each":
                assert images == [(a, i) for a in range(attackers) for i in range(6)]
            else:
                assert sorted(i for _, i in images) == list(range(6))


def test_victims_are_all_others_or_so_many_after_the_attacker() -> None:
    campaign = small()
    unit = next(unit for unit in units(campaign) if unit.fleet == "qim" and unit.attacker == 2)
    assert victims(campaign, unit) == [0, 1, 2]
    for count, expected in ((0, [2]), (1, [0, 2]), (9, [0, 1, 2])):
        assert victims(replace(campaign, replay=replace(campaign.replay, victims=count)), unit) == expected


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def member(data: bytes, header: bytes = b"") -> bytes:
    """An .npz whose x.npy is these bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header + data)
        archive.writestr("y.npy", npy(np.zeros(1, np.int64)))
    return buffer.getvalue()


def damaged(method: int) -> bytes:
    """An .npz packed by a method, with wrong bytes in the midst of what is packed."""
    buffer, x = io.BytesIO(), npy(np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", npy(np.zeros(20, np.int64)))
    packed = bytearray(buffer.getvalue())
    packed[45:60] = bytes(255 - byte for byte in packed[45:60])
    return bytes(packed)


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def promising() -> bytes:
    """A header for 2^40 images in front of one."""
    good = npy(np.zeros((1, 3, 2, 2), np.uint8))
    bad = good.replace(b"(1, 3, 2, 2)", b"(1099511627776, 3, 2, 2)")
    return bad[:8] + (int.from_bytes(good[8:10], "little") + len(bad) - len(good)).to_bytes(2, "little") + bad[10:]


X = np.zeros((4, 3, 2, 2), np.uint8)
Y = np.arange(4)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no zip": lambda: os.urandom(1000),
    "cut": lambda: npz(x=X, y=Y)[:-40],
    "pickles": lambda: npz(x=np.array([{}], dtype=object), y=Y),
    "without y": lambda: npz(x=X),
    "floats": lambda: npz(x=X.astype(np.float32), y=Y),
    "flat": lambda: npz(x=X.reshape(4, 12), y=Y),
    "none": lambda: npz(x=X[:0], y=Y[:0]),
    "too few classes": lambda: npz(x=X, y=Y[:3]),
    "classes below 0": lambda: npz(x=X, y=-Y),
    "classes too large": lambda: npz(x=X, y=Y + 2**40),
    "words for classes": lambda: npz(x=X, y=Y.astype(str)),
    "promises": lambda: member(promising()),
    "long header": lambda: member(b"\x93NUMPY\x01\x00" + (60_000).to_bytes(2, "little") + b"(" * 60_000),
    "no header": lambda: member(b"hello"),
    "damaged, plain": lambda: damaged(zipfile.ZIP_STORED),
    "damaged, deflate": lambda: damaged(zipfile.ZIP_DEFLATED),
    "damaged, bzip2": lambda: damaged(zipfile.ZIP_BZIP2),
    "damaged, LZMA": lambda: damaged(zipfile.ZIP_LZMA),
    "more than it says": lambda: member(npy(X) + b"more"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_inputs(tmp_path)
    (tmp_path / "images.npz").write_bytes(HOSTILE[name]())
    with pytest.raises(RefusedError):
        data.read_images(tmp_path / "images.npz")
    before = sorted(tmp_path.iterdir())
    assert main(["attack", "run", str(file), "--out", str(tmp_path / "out")]) == 1
    assert "images.npz" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_images_that_unpack_to_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_BYTES", 1000)
    with pytest.raises(RefusedError) as caught:
        data.read_npz(npz(x=np.zeros(2000, np.uint8)), ["x"], "it")
    assert caught.value.refusal is Refusal.TOO_LARGE


def test_a_campaigns_own_images_are_checked() -> None:
    good = {"x": X, "y": Y, "index": Y, "pool_x": X, "pool_y": Y}
    assert len(images_from_bytes(npz(**good))) == 4
    for name, bad in (("y", Y[:2]), ("pool_x", X[:, :1]), ("index", Y.astype(np.int32)), ("x", X.astype(np.int16))):
        with pytest.raises(RefusedError):
            images_from_bytes(npz(**{**good, name: bad}))


def test_sets_come_from_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)
    red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    planes = np.stack([green, red - green, blue - green])
    delta = planes.copy()
    for axis in (3, 2):
        delta = np.diff(delta, axis=axis, prepend=np.uint8(0))
    (tmp_path / "gtsrb-test.npz").write_bytes(npz(delta=delta, y=np.arange(5, dtype=np.uint8)))
    monkeypatch.delenv("VARIEGATE_DATA", raising=False)
    with pytest.raises(MisuseError, match="not at hand"):
        data.read_set("gtsrb-test")
    monkeypatch.setenv("VARIEGATE_DATA", str(tmp_path))
    x, y = data.read_set("gtsrb-test")
    assert np.array_equal(x, pixels)
    assert y.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(MisuseError):
        data.read_set("cifar10-test")


def test_what_does_not_fit_the_bases_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_inputs(tmp_path)
    for written, instead, words in (
        ('"a.onnx", "c.onnx"', '"a.onnx", "b.onnx"', "fleet[0].bases[1] is refused: cannot read"),
        ("grid = [5, 5]", "grid = [4, 4]", "fleet[0].bases[0] is refused: a grid of 5 x 5"),
        ("gamma = 1.0", "beta = 0.5", "fleet[0].rewriter is refused: rewriter.gamma is unknown"),
        ("count = 201", "count = 6", "data.count is 201"),
    ):
        file.write_text(TEXT.replace(instead, written, 1))
        for command in (["plan", str(file)], ["run", str(file), "--out", str(tmp_path / "out")]):
            assert main(["attack", *command]) == 1
            assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_schema_is_printed_and_plans_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["schema"] == {"const": 1}
    file = write_inputs(tmp_path)
    assert main(["attack", "plan", str(file), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [fleet["units"] for fleet in made["fleets"]] == [13, 9]
    assert (made["choose"], made["hours"] > 0) == ("right-by-all", True)
    assert main(["attack", "plan", str(file)]) == 0
    text = capsys.readouterr().out
    assert "before that at most 1000 to choose images" in text
    assert "refuses the campaign if fewer than 6 images are read rightly by every copy" in text
    assert main(["attack", "plan", str(tmp_path / "missing.toml")]) == 2
