"""The demo's attack, tracing, pages, and a small run of the whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from variegate.attack import Replay
from variegate.attack.outcome import Outcome, Status
from variegate.cli.main import main
from variegate.demo import tell
from variegate.demo.output import SUMMARY, check_folder, write
from variegate.demo.pictures import amplification, difference
from variegate.demo.results import OVERSHOOTS, Attacked
from variegate.demo.story import Options, Story
from variegate.demo.tell import Chapter
from variegate.forensics import Suspect, Verdict
from variegate.keys.errors import MisuseError

SHAPE = (3, 16, 16)
Bytes = NDArray[np.uint8]


def test_the_change_between_pictures_is_shown_as_large_as_fits() -> None:
    clean = np.full(SHAPE, 250, np.uint8)
    adversarial = clean - np.arange(3, dtype=np.uint8)[:, None, None]
    assert amplification(clean, adversarial) == 63
    assert [int(x.max()) for x in difference(clean, adversarial)] == [127, 64, 1]


# Page and folder


def outcome(sample: Bytes | None) -> Outcome:
    return Outcome(
        key=0,
        status=Status.NONE if sample is None else Status.FOUND,
        reason="",
        sample=sample,
        label=None if sample is None else 6,
        distance=float("inf") if sample is None else 0.2,
        queries=900,
        trace=() if sample is None else ((900, 0.2),),
        checkpoints={},
    )


def told() -> Story:
    """A story with one result, without having run."""
    rng = np.random.default_rng(8)
    clean = rng.integers(1, 250, (3, 32, 32), np.uint8)
    found = outcome(clean + np.uint8(1))
    story = Story(Options(signs=2, queries=900))
    story.attacked = [
        Attacked(clean, 5, found, {"A": 6, "B": 5, "C": 5, "base": 5}),
        Attacked(clean, 4, outcome(None), {}),
    ]
    story.curves = {
        "with": Replay(
            1, OVERSHOOTS, {"A": (1, 1, 1, 0, 0), "B": (0,) * 5, "C": (0, 0, 0, 0, 1)}, dict.fromkeys("ABC", 1)
        ),
        "without": Replay(1, OVERSHOOTS, {"base": (1,) * len(OVERSHOOTS)}, {"base": 1}),
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


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (1e-12, "The seller accuses Alice, rightly"),
        (1e-8, "The seller accuses nobody: an innocent buyer would look as bad"),
    ],
)
def test_page_and_terminal_say_whether_anybody_is_accused(tmp_path: Path, p: float, words: str) -> None:
    suspects = (Suspect("Alice", p, (p,)), *(Suspect(f"buyer {i}", 0.5, (0.5,)) for i in range(999)))
    story = told()
    story.verdicts = {"with": Verdict(suspects, "Alice" if p * 1000 < 1e-6 else None, 2)}
    story.chapters = [tell.trace(story.verdicts, "Alice")]
    write(tmp_path / "out", story, "variegate demo")
    assert (tmp_path / "out" / "index.html").read_text("utf-8").count(words) == 2  # at the top, and where it is shown
    assert words in story.chapters[0].note
    wrong = replace(story.verdicts["with"], accused="buyer 7")
    assert "WRONGLY" in tell.finding(wrong, "Alice")


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
    page = (out / "index.html").read_text("utf-8")
    accused = summary["trace"]["with"]["accused"]
    assert ("accuses Alice, rightly" in page) == (accused == "Alice") == ("accuses nobody" not in page)
    assert "traced back" not in page
    # A folder that is not a demo's own is refused before any work.
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
