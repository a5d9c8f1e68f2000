"""`variegate attack try`: a table and exact counts, over a device's folder, HTTP and a socket."""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from testbed.artefacts import CLASSES, SHAPE, frames
from testbed.devices import workplace
from testbed.serving import device_with, serving
from variegate.attack.oracle import Counted, ask_all, to_points
from variegate.attack.oracles.http import HttpOracle
from variegate.attack.oracles.port import PortOracle
from variegate.attack.search import Norm, Problem, Result, Search
from variegate.attack.trial import Trial
from variegate.cli.attack_try import text_of
from variegate.cli.interrupts import Interruptible
from variegate.cli.main import main
from variegate.keys.envelope import SealedKeys
from variegate.keys.errors import DeviceError
from variegate.keys.manifest import Policy
from variegate.runtime.port import LabelPort


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as folder:
        np.savez(folder / "val.npz", x=frames(6), y=np.arange(6) % CLASSES)
        np.savez(folder / "floats.npz", x=to_points(frames(6)))
        yield folder


@pytest.fixture(scope="module")
def port(place: Path) -> Iterator[LabelPort]:
    # Always one copy: of others, few queries may leave an image unfooled.
    with device_with(place / "plain", keys=SealedKeys(bytes(32), bytes(32))) as device:
        yield device.boot()


@pytest.fixture(scope="module")
def url(place: Path, port: LabelPort) -> Iterator[str]:
    with serving(port, socket=place / "labels") as service:
        assert service.address is not None
        yield f"http://127.0.0.1:{service.address[1]}"


def tried(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["attack", "try", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_counts_are_exact_and_samples_fool_the_device(
    place: Path, url: str, port: LabelPort, capsys: pytest.CaptureFixture[str]
) -> None:
    before = port.status().answered
    out = place / "samples.npz"
    status, text, _ = tried(
        capsys, url, "--images", place / "val.npz", "--queries", 150, "--count", 4, "--json", "--out", out
    )
    assert status == 0
    found = json.loads(text)
    assert found["queries"] == port.status().answered - before
    assert found["queries"] == sum(one["queries"] for one in found["images"])
    assert all(one["queries"] <= 150 for one in found["images"])
    clean = port.classify_batch(frames(6)[:4])
    assert [one["clean_label"] for one in found["images"]] == clean.tolist()
    assert [one["true_class"] for one in found["images"]] == [0, 1, 2, 3]
    assert {one["status"] for one in found["images"]} == {"found"}
    with np.load(out) as samples:
        assert samples["sample"].dtype == np.uint8
        assert np.array_equal(port.classify_batch(samples["sample"]), samples["label"])
        assert (samples["label"] != clean).all()
        away = (to_points(samples["sample"]) - to_points(samples["clean"])).reshape(4, -1)
        assert np.linalg.norm(away, axis=1) == pytest.approx(samples["distance"], rel=1e-5)
        assert np.array_equal(samples["clean"], frames(6)[:4])
        assert samples["distance"].tolist() == [one["distance"] for one in found["images"]]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((0, *SHAPE), np.uint8), "holds no images"),
        (np.zeros((4, 4), np.uint8), "is not of shape"),
        (np.zeros((1, *SHAPE), np.int64), "is neither uint8 nor float32"),
    ],
)
def test_what_is_wrong_with_images_is_told(
    x: NDArray[Any], words: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "val.npz", x=x)
    status, _, error = tried(capsys, url, "--images", tmp_path / "val.npz")
    assert status != 0
    assert f"x of {tmp_path / 'val.npz'} {words}" in error


def test_every_way_gives_the_same(place: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--images", place / "floats.npz", "--queries", 60, "--count", 3, "--attack", "hopskipjump")
    tables = [tried(capsys, device, *words)[1] for device in (url, f"socket:{place / 'labels'}", url + "/copy")]
    assert tables[0] == tables[1] == tables[2]
    header, *rows, last = tables[0].splitlines()
    assert header.split() == ["image", "true", "label", "found", "distance", "queries", "note"]
    assert len(rows) == 3
    assert last.startswith("3 of 3 images fool the device, for ")
    assert tried(capsys, url, *words, "--seed", 1)[1] != tables[0]


def test_a_simulated_device_is_turned_on(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with device_with(tmp_path, policy=Policy(budget=100)):
        pass
    device, words = f"device:{tmp_path / 'device'}", ("--images", place / "val.npz", "--queries", 80, "--count", 4)
    status, text, _ = tried(capsys, device, *words, "--attack", "rays", "--json")
    assert status == 0
    found = json.loads(text)
    assert found["norm"] == "linf"
    assert 4 < found["queries"] <= 100
    status, text, error = tried(capsys, device, *words)
    assert (status, text) == (1, "")
    assert "budget is spent" in error


def test_colluders_pool_their_devices(
    place: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--images", place / "val.npz", "--queries", 100, "--count", 3)
    with device_with(tmp_path) as other:
        theirs = other.boot()
        before = theirs.status().answered
        with serving(theirs) as service:
            assert service.address is not None
            friend = f"http://127.0.0.1:{service.address[1]}"
            out = tmp_path / "samples.npz"
            more = ("--attack", "colluders", "--json", "--out", out)
            status, text, error = tried(capsys, url, friend, *words, *more)
            assert status == 0, error
            found = json.loads(text)
            assert found["devices"] == [url, friend]
            # Each frame of a search goes to both, the clean images to the first.
            assert found["queries"] == sum(2 * one["queries"] - 1 for one in found["images"])
            assert theirs.status().answered - before == sum(one["queries"] - 1 for one in found["images"])
            with np.load(out) as samples:
                assert (theirs.classify_batch(samples["sample"]) != samples["clean_label"]).all()
            status, text, error = tried(capsys, url, friend, *words)
            assert (status, text) == (2, "")
            assert "the attack hopskipjump is for 1 of the attacker's devices, and has 2" in error
    status, text, error = tried(capsys, url, *words, "--attack", "colluders")
    assert (status, text) == (2, "")
    assert "is for 2 of the attacker's devices, and has 1" in error


def test_a_clone_learns_from_all_images_of_the_file(place: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--images", place / "val.npz", "--queries", 60, "--count", 2, "--attack", "clone", "--json")
    status, text, error = tried(capsys, url, *words)
    assert status == 0, error
    found = json.loads(text)
    assert found["queries"] == sum(one["queries"] for one in found["images"]) == 2 * 60
    status, text, error = tried(capsys, url, *words[:-1], "--queries", 6)
    assert (status, "a clone needs more than 7 queries" in error) == (2, True)


def test_the_help_lists_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = tried(capsys, "--help")
    assert status == 0
    words = "--profile PROFILE art-1.20 (boundary, geoda, hopskipjump) or corrected (every attack) (default: corrected)"
    assert words in " ".join(text.split())


def test_what_cannot_be_is_refused_before_a_query(
    place: Path, url: str, port: LabelPort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = port.status().answered
    good = place / "val.npz"
    damaged: dict[str, dict[str, Any]] = {
        "flat": {"x": frames(2)[0]},
        "wide": {"x": frames(2).astype(np.float64)},
        "above": {"x": to_points(frames(2)) * 2},
        "none": {"x": frames(2)[:0]},
        "empty": {"x": to_points(frames(2))[:, :, :0]},
        "short": {"x": frames(2), "y": np.arange(1)},
        "long": {"x": frames(40), "y": np.zeros(41, np.int64)},
        "negative": {"x": frames(2), "y": np.array([0, -1])},
        "huge": {"x": frames(2), "y": np.array([0, (1 << 64) - 1], np.uint64)},
        "words": {"x": frames(2), "y": np.array([0.5, 1.5])},
        "other": {"images": frames(2)},
    }
    for name, arrays in damaged.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert tried(capsys, url, "--images", tmp_path / f"{name}.npz")[0] == 1
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    assert tried(capsys, url, "--images", tmp_path / "noise.npz")[0] == 1
    np.savez(tmp_path / "small.npz", x=frames(2)[:, :, :2])
    (tmp_path / "there.npz").touch()
    np.savez(tmp_path / "beyond.npz", x=frames(2), y=np.array([0, CLASSES]))
    for words in (
        (url, "--images", tmp_path / "small.npz"),
        (url, "--images", tmp_path / "beyond.npz"),
        (url, "--images", tmp_path / "nothing.npz"),
        (url, "--images", good, "--queries", 1),
        (url, "--images", good, "--count", 0),
        (url, "--images", good, "--count", "x"),
        (url, "--images", good, "--wait", "nan"),
        (url, "--images", good, "--attack", "guess"),
        (url, "--images", good, "--profile", "mine"),
        (url, "--images", good, "--out", tmp_path / "there.npz"),
        (url, "--images", good, "--ca", good),
        ("camera7", "--images", good),
    ):
        assert tried(capsys, *words)[0] == 2
    assert tried(capsys, "http://127.0.0.1:1", "--images", good)[0] == 1
    assert port.status().answered == before
    assert frames(1).shape[1:] == SHAPE


def test_a_device_that_stops_before_any_search_leaves_no_file(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = Policy(rate_per_hour=3600, burst=5)
    with device_with(tmp_path, policy=policy) as device, serving(device.boot(), socket=tmp_path / "labels"):
        words = ("--images", place / "val.npz", "--queries", 200, "--wait", 0.02, "--out", tmp_path / "out.npz")
        status, text, error = tried(capsys, f"socket:{tmp_path / 'labels'}", *words)
    assert (status, text) == (1, "")
    assert "rate is exceeded" in error
    assert not (tmp_path / "out.npz").exists()


def test_what_a_device_answered_before_it_failed_is_kept(
    place: Path,
    url: str,
    port: LabelPort,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left, labels = [600], HttpOracle.labels

    def unplugged(oracle: HttpOracle, frames: NDArray[Any]) -> NDArray[np.int64]:
        left[0] -= len(frames)
        if left[0] < 0:
            raise DeviceError("the device is gone")
        return labels(oracle, frames)

    monkeypatch.setattr(HttpOracle, "labels", unplugged)
    out, before = place / "unplugged.npz", port.status().answered
    words = (url, "--images", place / "floats.npz", "--queries", 500)
    status, text, error = tried(capsys, *words, "--json", "--out", out)
    found = json.loads(text)
    assert status == 1
    assert error.endswith(f"wrote the results so far to {out}\nvariegate: the device is gone\n")
    assert found["error"] == "the device is gone"
    assert 400 < found["queries"] == sum(one["queries"] for one in found["images"])
    assert found["queries"] == port.status().answered - before
    assert {one["reason"] for one in found["images"]} <= {"", "stopped"}
    kept = [one["image"] for one in found["images"] if one["status"] == "found"]
    assert kept
    with np.load(out) as samples:
        assert samples["image"].tolist() == kept
        # Nobody asked them again, but whoever asks now sees that they fool the device.
        assert set(samples["label"].tolist()) == {-1}
        assert (port.classify_batch(samples["sample"]) != samples["clean_label"]).all()
    status, text, error = tried(capsys, *words)
    assert (status, text) == (1, "")
    assert error.endswith("variegate: the device is gone\n")


def test_an_interrupted_trial_keeps_what_it_has(
    place: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, labels = [0], HttpOracle.labels

    def interrupted(oracle: HttpOracle, frames: NDArray[Any]) -> NDArray[np.int64]:
        asked[0] += len(frames)
        if asked[0] > 300:
            os.kill(os.getpid(), signal.SIGINT)
        return labels(oracle, frames)

    monkeypatch.setattr(HttpOracle, "labels", interrupted)
    out, before = tmp_path / "out.npz", signal.getsignal(signal.SIGINT)
    words = ("--images", place / "floats.npz", "--queries", 5000, "--count", 3, "--json", "--out", out)
    status, text, error = tried(capsys, url, *words)
    assert (status, json.loads(text)["error"]) == (130, "interrupted")
    assert error.endswith("variegate: interrupted\n")
    with np.load(out) as samples:
        assert len(samples["sample"]) == 3
    assert signal.getsignal(signal.SIGINT) is before


class _Interrupts:
    """An attack that is interrupted while it thinks, and thinks on."""

    name: ClassVar[str] = "interrupts"
    norm: Norm = "l2"
    result: Result = "best"

    def search(self, problem: Problem) -> Search:
        yield np.ones((1, problem.clean.size), np.float32)
        os.kill(os.getpid(), signal.SIGINT)
        yield np.zeros((1, problem.clean.size), np.float32)


def test_an_interruption_between_questions_ends_the_searches_at_the_next() -> None:
    with workplace() as folder, device_with(folder) as device:
        oracle = PortOracle(device.boot())
        # The device's keys are new each time, and with them what it says of a white frame.
        white = int(oracle.labels(np.full((1, *SHAPE), 255, np.uint8))[0])
        drawn = (frames(200) > 127).astype(np.uint8) * np.uint8(255)
        others = drawn[ask_all(oracle, drawn) != white]
        interruptible = Interruptible([oracle])
        trial = Trial(interruptible.devices, _Interrupts(), others[:1], queries=10, seed=0)
        with pytest.raises(KeyboardInterrupt), interruptible:
            trial.run()
    (outcome,) = trial.outcomes.values()
    assert (outcome.queries, trial.queries) == (1, 2)
    assert outcome.sample is not None
    assert (outcome.sample == 255).all()


def test_samples_are_asked_again_by_themselves_while_the_budget_lasts(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget that ends in the middle of a call refuses it whole; single frames still fit."""
    with device_with(tmp_path, policy=Policy(budget=400), keys=SealedKeys(bytes(32), bytes(32))):
        pass
    out, words = tmp_path / "out.npz", ("--images", place / "floats.npz", "--queries", 500)
    status, text, _ = tried(capsys, f"device:{tmp_path / 'device'}", *words, "--out", out)
    assert status == 0
    assert "images fool the device" in text
    assert "; the device's budget ended the trial early" in text
    with np.load(out) as samples:
        assert len(samples["label"]) > 1
        assert (samples["label"] >= 0).all()


class _Bright:
    """Reads what its first pixel says; takes one frame a call."""

    shape, dtype, classes, batch = SHAPE, "uint8", 2, 1

    def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
        return (frames.reshape(len(frames), -1)[:, 0] > 127).astype(np.int64)


def test_a_spent_budget_keeps_samples_that_could_not_be_asked_again() -> None:
    frame = np.zeros((1, *SHAPE), np.uint8)

    class Brightens:
        """Asks the brightest picture again and again."""

        name: ClassVar[str] = "brightens"
        norm: Norm = "l2"
        result: Result = "best"

        def search(self, problem: Problem) -> Search:
            while True:
                yield np.ones((1, problem.clean.size), np.float32)

    for budget, label, spent in ((10, -1, True), (11, 1, False)):
        trial = Trial(Counted(_Bright(), budget=budget), Brightens(), frame, queries=11, seed=0)
        trial.run(lambda _: None)
        with np.load(io.BytesIO(trial.archive())) as samples:
            assert samples["label"].tolist() == [label]
        assert (trial.spent, trial.queries) == (spent, budget)
        assert ("1 of them could not be asked again alone" in text_of(trial)) is spent


def test_images_that_are_misread_when_clean_are_marked_and_not_counted(
    place: Path, url: str, port: LabelPort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = port.classify_batch(frames(6))[:4]
    true = clean.copy()
    true[1] = (true[1] + 1) % CLASSES
    np.savez(tmp_path / "val.npz", x=frames(6)[:4], y=true)
    out = tmp_path / "out.npz"
    words = (url, "--images", tmp_path / "val.npz", "--queries", 100)
    status, text, _ = tried(capsys, *words, "--out", out)
    assert status == 0
    _, *rows, last = text.splitlines()
    assert [row.endswith("misread when clean") for row in rows] == [False, True, False, False]
    assert last.startswith("3 of 3 images fool the device, for ")
    assert last.endswith("; 1 more are misread when clean, and not counted")
    found = json.loads(tried(capsys, *words, "--json")[1])
    assert [one["misread"] for one in found["images"]] == [False, True, False, False]
    lengths = [one["distance"] for one in found["images"] if not one["misread"]]
    assert found["median_distance"] == np.median(lengths)
    with np.load(out) as samples:
        assert samples["misread"].tolist() == [False, True, False, False]


def test_a_search_has_few_starts_however_many_images_there_are() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (300, *SHAPE), np.uint8)

    class Halves:
        """Reads every other image of another class, and then everything of the first."""

        shape, dtype, classes, batch = SHAPE, "uint8", 2, 512

        def labels(self, frames: NDArray[Any]) -> NDArray[np.int64]:
            return (frames.reshape(len(frames), -1)[:, 0] > 127).astype(np.int64)

    class Noting:
        """An attack that only looks at what it is given."""

        name: ClassVar[str] = "noting"
        norm: Norm = "l2"
        result: Result = "best"

        def __init__(self) -> None:
            self.starts: list[NDArray[Any]] = []

        def search(self, problem: Problem) -> Search:
            self.starts.append(problem.starts)
            yield problem.clean[np.newaxis]

    attack = Noting()
    Trial(Halves(), attack, frame, queries=10, seed=1).run(lambda _: None)
    assert {len(starts) for starts in attack.starts} == {8}
    assert not np.array_equal(attack.starts[0], attack.starts[2])


def test_the_attack_that_the_documents_show_works(
    place: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "attack" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "example.py").write_text(code.replace("http://127.0.0.1:8000", url))
    monkeypatch.chdir(place)
    runpy.run_path(str(tmp_path / "example.py"), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [str(i) for i in range(6)]
    assert {(row[1], row[4]) for row in rows} == {("found", "200")}
