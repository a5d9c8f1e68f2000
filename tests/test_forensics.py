"""Tracing: the exact null, who is accused and who is not, and the command on real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from testbed import bases
from variegate import forensics
from variegate.cli.main import main
from variegate.export.intake.contract import Contract
from variegate.export.registry import Registry, Row, parameters_text
from variegate.export.release import Release, make_release
from variegate.export.rewriters import Permutation, Qim, to_parameters
from variegate.forensics import Sample
from variegate.forensics.attractors import AttractorTracer
from variegate.keys import recipe
from variegate.keys.errors import MisuseError
from variegate.keys.primitives import sha256
from variegate.keys.seller import Seller

SHAPE = (3, 16, 16)
Bytes = NDArray[np.uint8]
CONTRACT = Contract(
    layout="NCHW", channels=3, height=16, width=16, classes=6, class_names=tuple("abcdef"), outputs="logits"
)
QIM = Qim(grid=(4, 4), steps=(64,), beta=4.0)


def seed(i: int) -> bytes:
    return sha256(b"test-forensics", i.to_bytes(4, "little"))


def ascended(image: Bytes, key: bytes, wrong: int, right: int, changes: int) -> Sample:
    """Moves pixels by one level wherever that brings class `wrong` nearer to its attractors, and `right` away."""
    tracer, image = AttractorTracer(QIM, CONTRACT), image.copy()
    rng = np.random.default_rng(0)
    flat = image.reshape(-1)
    for index in rng.permutation(flat.size)[:changes]:
        tries = np.stack([image] * 3)
        tries.reshape(3, -1)[1, index] += 1
        tries.reshape(3, -1)[2, index] -= 1
        errors = tracer.errors(key, tries)
        image[:] = tries[(errors[:, wrong] - errors[:, right]).argmin()]
    return Sample(image, wrong, right)


def test_trace_accuses_the_copy_a_sample_leans_on() -> None:
    rng = np.random.default_rng(3)
    tracer = AttractorTracer(QIM, CONTRACT)
    seeds = {f"buyer {i}": seed(i) for i in range(300)}
    images = rng.integers(20, 230, (3, *SHAPE), np.uint8)
    samples = [ascended(images[i], seeds["buyer 123"], 2 * i, 2 * i + 1, 250) for i in range(3)]
    verdict = tracer.trace(samples, seeds)
    assert verdict.accused == "buyer 123"
    assert verdict.rank("buyer 123") == 1
    assert verdict.classes == 6
    assert verdict.suspects[0].p_value * 300 < 1e-6 < verdict.corrected(verdict.suspects[1])
    # Fusing says more than any sample by itself.
    assert verdict.suspects[0].p_value < min(verdict.suspects[0].each)
    # The same samples accuse nobody when the copy was never registered.
    del seeds["buyer 123"]
    assert tracer.trace(samples, seeds).accused is None


def test_trace_accuses_nobody_for_noise() -> None:
    rng = np.random.default_rng(4)
    seeds = {f"buyer {i}": seed(i) for i in range(500)}
    samples = [Sample(rng.integers(0, 256, SHAPE, np.uint8), i, 5 - i) for i in range(3)]
    verdict = AttractorTracer(QIM, CONTRACT).trace(samples, seeds)
    assert verdict.accused is None
    assert verdict.corrected(verdict.suspects[0]) > 1e-3
    with pytest.raises(MisuseError):
        AttractorTracer(QIM, CONTRACT).trace([], seeds)
    with pytest.raises(MisuseError):
        AttractorTracer(QIM, CONTRACT).trace(samples, {})


@pytest.mark.parametrize("rewriter", [QIM, Qim(grid=(2, 4), repeats=2, steps=(16, 64))])
def test_innocent_p_values_are_uniform(rewriter: Qim) -> None:
    """Kolmogorov and Smirnov, at 1e-4; with samples that share classes, so that dependence would show."""
    rng = np.random.default_rng(7)
    image = rng.integers(0, 256, SHAPE, np.uint8)
    near = image.copy()
    near[0] ^= 1
    samples = [Sample(image, 1, 2), Sample(near, 1, 2), Sample(rng.integers(0, 256, SHAPE, np.uint8), 2, 4)]
    count = 3000
    verdict = AttractorTracer(rewriter, CONTRACT).trace(samples, {str(i): seed(i) for i in range(count)})
    assert verdict.classes == 3
    for values in (
        np.array([s.p_value for s in verdict.suspects]),
        np.sort([s.each[1] for s in verdict.suspects]),
    ):
        steps = np.arange(count + 1) / count
        gap = max((steps[1:] - values).max(), (values - steps[:-1]).max())
        assert gap < np.sqrt(np.log(2 / 1e-4) / 2 / count)


def test_null_is_the_law_of_the_errors() -> None:
    """Every dither of one message, exhaustively: the errors' law is the one that is convolved."""
    one = Qim(grid=(1, 1), steps=(8,))
    contract = CONTRACT
    tracer = AttractorTracer(one, contract)
    keyed = recipe.expand(one.tensors(contract, "uint8"), seed(0))
    projected = float((keyed["r0"][0] * 77).sum())
    errors = sorted(abs(u - round(u)) for u in (projected + t / 8 - 0.5 for t in range(8)))
    for value in set(errors):
        assert tracer.p_value(value, 1) == pytest.approx(sum(e <= value for e in errors) / 8)
    assert tracer.p_value(1.0, 2) == pytest.approx(1)
    with pytest.raises(MisuseError):
        AttractorTracer(Qim(steps=(1,)), contract)


def test_a_base_of_another_layout_is_traced_by_the_frames_of_its_devices() -> None:
    """Devices take (C, H, W) whatever the base's own layout; the lattice is the same."""
    frames = np.random.default_rng(6).integers(0, 256, (2, 3, 16, 12), np.uint8)
    ours = replace(CONTRACT, width=12, class_names=CONTRACT.class_names)
    others = replace(ours, layout="NHWC")
    same = AttractorTracer(QIM, others).errors(seed(1), frames)
    np.testing.assert_array_equal(same, AttractorTracer(QIM, ours).errors(seed(1), frames))


BUYERS = ("acme", "bolt", "coil")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A seller's folder: keys, a release, a registry of three buyers, and samples that lean on bolt's copy."""
    monkeypatch.chdir(tmp_path)
    Path("pass").write_text("pass")
    Path("pass").chmod(0o600)
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", "pass")
    seller = Seller.generate()
    seller.save(Path("seller.key"), "pass")
    rewriter = Qim(grid=(4, 4), repeats=2, steps=(64,), beta=4.0)
    release = make_release("spring", bases.base(tmp_path), rewriter, bases.images(64))
    release.save(Path("release"))
    with Registry(Path("r.sqlite")) as registry:
        registry.add(row(release, buyer, number) for number, buyer in enumerate(BUYERS))
    tracer = AttractorTracer(rewriter, release.template.contract)
    key = seller.buyer_seed("bolt", 0)
    images = np.random.default_rng(3).integers(20, 230, (2, *release.template.shape), np.uint8)
    samples = [leaning(tracer, image, key, 2 * i, 2 * i + 1) for i, image in enumerate(images)]
    np.savez("found.npz", sample=samples, label=[0, 2], clean_label=[1, 3])
    return tmp_path


def leaning(tracer: AttractorTracer, image: Bytes, key: bytes, wrong: int, right: int) -> Bytes:
    """As `ascended`, over another release."""
    image = image.copy()
    for index in np.random.default_rng(0).permutation(image.size)[:400]:
        tries = np.stack([image] * 3)
        tries.reshape(3, -1)[1, index] += 1
        tries.reshape(3, -1)[2, index] -= 1
        errors = tracer.errors(key, tries)
        image[:] = tries[(errors[:, wrong] - errors[:, right]).argmin()]
    return image


def row(release: Release, buyer: str, number: int) -> Row:
    return Row(
        made="2026-01-01T00:00:00+00:00",
        release=release.name,
        buyer=buyer,
        ueid=f"{number:02x}",
        device_class="car",
        epoch=0,
        sequence=number,
        security_counter=0,
        parameters=parameters_text(to_parameters(release.template.rewriter)),
        base=release.base_digest.hex(),
        component="00",
        artefact="00",
        file="f",
    )


COMMAND = ("trace", "release", "--seller", "seller.key", "--registry", "r.sqlite", "--samples")


def test_the_command_accuses_whose_copy_it_was(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "found.npz", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["accused"], said["buyers"], said["samples"]) == ("bolt", 3, 2)
    assert said["suspects"][0]["name"] == "bolt"
    assert main([*COMMAND, "found.npz"]) == 0
    assert "accused: bolt" in capsys.readouterr().out


def test_samples_of_nobody_accuse_nobody(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("noise.npz", sample=bases.images(4), label=[0, 1, 2, -1], clean_label=[1, 2, 3, 3])
    assert main([*COMMAND, "noise.npz"]) == 0
    assert "no accusation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "status", "words"),
    [
        ({"sample": np.zeros((1, 3, 9, 9), np.uint8), "label": [0], "clean_label": [1]}, 1, "holds no uint8 samples"),
        ({"sample": bases.images(1) / 255.0, "label": [0], "clean_label": [1]}, 1, "holds no uint8 samples"),
        ({"sample": bases.images(2), "label": [0], "clean_label": [1, 2]}, 1, "a label for each"),
        ({"sample": bases.images(1), "label": [5], "clean_label": [1]}, 1, "none of the 5 classes"),
        ({"sample": bases.images(1), "label": [1], "clean_label": [1]}, 2, "no sample to trace"),
        ({"sample": bases.images(1), "label": [1]}, 1, "bad.npz"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    shop: Path, arrays: dict[str, Any], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("bad.npz", **arrays)
    assert main([*COMMAND, "bad.npz"]) == status
    assert words in capsys.readouterr().err


def test_what_cannot_be_traced_says_so(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        ((*COMMAND, "none.npz"), "cannot read none.npz"),
        (("trace", "none", *COMMAND[2:], "found.npz"), "is not a release folder"),
        ((*COMMAND[:4], "--registry", "none", "--samples", "found.npz"), "there is no registry"),
    ):
        assert main(list(command)) == 2
        assert words in capsys.readouterr().err
    other = make_release("other", bases.base(shop), Permutation(), bases.images(64))
    samples = [Sample(bases.images(1)[0], 0, 1)]
    with pytest.raises(MisuseError, match="attractors of QIM"):
        forensics.trace(other, Seller.generate(), samples, [("acme", 0)])
    other.save(shop / "other")
    assert main(["trace", "other", *COMMAND[2:], "found.npz"]) == 2
    assert "no copy of this release" in capsys.readouterr().err
