"""The demo's attack, tracing, pages, and a small run of the whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from variegate.cli.main import main
from variegate.demo.attack import Found, Labels, hop_skip_jump
from variegate.demo.output import SUMMARY, check_folder, write
from variegate.demo.pictures import amplification, difference
from variegate.demo.results import OVERSHOOTS, Attacked, Curve, overshoot
from variegate.demo.story import Options, Story
from variegate.demo.tell import Chapter
from variegate.keys.errors import MisuseError

SHAPE = (3, 16, 16)
Bytes = NDArray[np.uint8]


def planted(rng: np.random.Generator, distance: float) -> tuple[Bytes, Labels, list[int]]:
    """A linear classifier whose boundary lies `distance` (L2, pixels 0..1) from a mid-grey image."""
    normal = rng.standard_normal(SHAPE)
    normal /= np.linalg.norm(normal)
    image = rng.integers(90, 160, SHAPE, np.uint8)
    level = float((normal * image).sum()) + 255 * distance
    asked: list[int] = []

    def labels(pictures: Bytes) -> NDArray[np.int64]:
        assert pictures.dtype == np.uint8
        asked.append(len(pictures))
        answers: NDArray[np.int64] = ((pictures * normal).sum(axis=(1, 2, 3)) > level).astype(np.int64)
        return answers

    return image, labels, asked


@pytest.mark.parametrize("start", ["noise", "pictures"])
def test_attack_comes_near_a_planted_boundary(start: str) -> None:
    rng = np.random.default_rng(5)
    image, labels, asked = planted(rng, 0.5)
    pictures = None
    if start == "pictures":
        pictures = rng.integers(0, 256, (20, *SHAPE), np.uint8)
    found = hop_skip_jump(labels, image, 0, queries=4000, rng=rng, start=pictures)
    assert found.adversarial is not None
    assert found.label == labels(found.adversarial[np.newaxis])[0] == 1
    assert 0.5 <= found.distance < 0.75
    measured = np.linalg.norm((found.adversarial.astype(float) - image) / 255)
    assert found.distance == pytest.approx(measured)
    assert sum(asked[:-1]) == found.queries <= 4000
    shrinking = [distance for _, distance in found.distances]
    assert shrinking == sorted(shrinking, reverse=True)


def test_attack_repeats_for_a_seed_and_keeps_to_any_budget() -> None:
    rng = np.random.default_rng(6)
    image, labels, asked = planted(rng, 0.3)
    first, second = (hop_skip_jump(labels, image, 0, queries=900, rng=np.random.default_rng(1)) for _ in range(2))
    assert first.adversarial is not None
    assert second.adversarial is not None
    assert np.array_equal(first.adversarial, second.adversarial)
    assert first.distances == second.distances
    for budget in (2, 17, 40, 151):
        asked.clear()
        found = hop_skip_jump(labels, image, 0, queries=budget, rng=np.random.default_rng(2))
        assert sum(asked) == found.queries <= budget


def test_attack_without_a_way_in_finds_nothing() -> None:
    image = np.zeros(SHAPE, np.uint8)

    def constant(pictures: Bytes) -> NDArray[np.int64]:
        return np.zeros(len(pictures), np.int64)

    for start in (None, np.full((2, *SHAPE), 255, np.uint8), np.empty((0, *SHAPE), np.uint8)):
        found = hop_skip_jump(constant, image, 0, queries=500, rng=np.random.default_rng(0), start=start)
        assert found.adversarial is None
        assert found.label is None
        assert found.distance == float("inf")
    with pytest.raises(MisuseError):
        hop_skip_jump(constant, image[:1], 0, start=image[np.newaxis], queries=500, rng=np.random.default_rng(0))
    with pytest.raises(MisuseError):
        hop_skip_jump(constant, image, 0, queries=1, rng=np.random.default_rng(0))


def test_overshoot_and_difference_keep_to_bytes() -> None:
    clean = np.full(SHAPE, 250, np.uint8)
    adversarial = clean - np.arange(3, dtype=np.uint8)[:, None, None]
    assert np.array_equal(overshoot(clean, adversarial, 1), adversarial)
    assert overshoot(clean, adversarial, 3)[2].min() == 244
    assert overshoot(adversarial, clean, 3).max() == 254
    assert overshoot(adversarial, clean, 8).max() == 255
    assert amplification(clean, adversarial) == 63
    assert [int(x.max()) for x in difference(clean, adversarial)] == [127, 64, 1]


# Page and folder


def told() -> Story:
    """A story with one result, without having run."""
    rng = np.random.default_rng(8)
    clean = rng.integers(1, 250, (3, 32, 32), np.uint8)
    found = Found(clean + np.uint8(1), 6, 900, ((900, 0.2),))
    story = Story(Options(signs=2, queries=900))
    story.attacked = [
        Attacked(clean, 5, found, {"A": 6, "B": 5, "C": 5, "base": 5}),
        Attacked(clean, 4, Found(None, None, 900, ()), {}),
    ]
    story.curves = {
        "with": Curve(1, {"A": (1, 1, 1, 0, 0), "B": (0,) * 5, "C": (0, 0, 0, 0, 1)}),
        "without": Curve(1, {"base": (1,) * len(OVERSHOOTS)}),
    }
    rows = (("<script>alert(1)</script>", 3),)
    story.chapters = [
        Chapter("read", "Reads & shows", "text", ("what", "n"), rows, "a note"),
        Chapter("curves", "Pushes", "", ("what", "n"), rows),
    ]
    return story


def test_page_is_self_contained(tmp_path: Path) -> None:
    written = write(tmp_path / "out", told(), "variegate demo")
    text = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert not re.search(r"(?i)https?:|//[a-z]|<script|<link|@import|url\(|data:", text)
    assert "Reads &amp; shows" in text
    assert "&lt;script&gt;" in text
    pictures = re.findall(r'src="([^"]+)"', text)
    assert len(pictures) == 6
    for name in pictures:
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in written] == ["index.html", "cars.png", SUMMARY]
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text("utf-8"))
    assert summary["attack"][1]["l2"] is None


def test_folder_of_others_is_not_touched(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", force=False)
    check_folder(tmp_path, force=False)
    write(tmp_path / "own", told(), "variegate demo")
    check_folder(tmp_path / "own", force=False)
    (tmp_path / "own" / "sign-09-clean.png").write_bytes(b"of an earlier run")
    write(tmp_path / "own", told(), "variegate demo")
    assert not (tmp_path / "own" / "sign-09-clean.png").exists()
    with pytest.raises(MisuseError):
        check_folder(tmp_path, force=False)
    check_folder(tmp_path, force=True)
    with pytest.raises(MisuseError):
        check_folder(tmp_path / "own" / SUMMARY, force=True)


@pytest.mark.parametrize("option", [{"seed": -1}, {"signs": 0}, {"signs": 17}, {"queries": 199}])
def test_options_out_of_range_are_refused(option: dict[str, int]) -> None:
    with pytest.raises(MisuseError):
        Options(**option)


@pytest.mark.slow
def test_small_run_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out), "--signs", "2", "--queries", "1500", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert json.loads((out / SUMMARY).read_text("utf-8")) == summary
    chapters = {chapter["key"]: chapter for chapter in summary["chapters"]}
    assert list(chapters) == ["export", "delivery", "drive", "attack", "read", "curves", "budget", "trace"]
    assert "refused" in chapters["delivery"]["note"]
    assert "wrong-device" in chapters["delivery"]["note"]
    assert chapters["budget"]["rows"][0][2] == "query budget is spent"
    for result in summary["attack"]:
        assert result["queries"] <= 1500
        assert result["read"]["A"] != result["shows"]
    assert summary["overshoot"]["with"]["fooled"]["A"][0] == 2
    assert summary["overshoot"]["without"]["fooled"]["base"][0] == 2
    assert summary["trace"]["with"]["registered"] == 1003
    assert summary["trace"]["without"]["accused"] is None
    assert summary["trace"]["with"]["accused"] in (None, "Alice")
    # A folder that is not a demo's own is refused before any work.
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
