"""ART and Foolbox attack a real copy through the adapters, and what they ask is counted."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    # Of the toolkits and of what they use; none of it is ours to mend.
    warnings.simplefilter("ignore")
    from art.attacks.evasion import HopSkipJump
    from foolbox.attacks.blended_noise import LinearSearchBlendedUniformNoiseAttack
    from foolbox.attacks.boundary_attack import BoundaryAttack
    from foolbox.criteria import Misclassification

from testbed import bases
from variegate.attack.oracle import Counted, to_frames, to_points
from variegate.attack.oracles.adapters import art_classifier, foolbox_model, one_hot
from variegate.attack.oracles.local import LocalCopy
from variegate.export.fuse import fuse
from variegate.export.intake.base import Base
from variegate.export.rewriters import Permutation
from variegate.keys.errors import LimitError

IMAGES = bases.images(4, seed=7)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return bases.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=["uint8", "float32"])
def copy(base: Base, request: Any) -> LocalCopy:
    return LocalCopy(fuse(base, Permutation(alpha=0.8), request.param), bytes(32), batch=16)


def judged(copy: LocalCopy, adversarial: Any, labels: Any) -> Any:
    """Which samples fool the device as it takes them."""
    return copy.labels(to_frames(np.asarray(adversarial), copy.dtype)) != labels


def test_one_hot_scores_in_calls_that_the_device_takes(copy: LocalCopy) -> None:
    points = to_points(bases.images(50))
    counted = Counted(copy)
    scores = one_hot(counted, points)
    assert (counted.queries, counted.calls) == (50, 4)
    assert scores.dtype == np.float32
    assert np.array_equal(scores.sum(axis=1), np.ones(50))
    frames = to_frames(points, copy.dtype)
    expected = np.concatenate([copy.labels(frames[i : i + 10]) for i in range(0, 50, 10)])
    assert np.array_equal(scores.argmax(axis=1), expected)


def test_an_attack_of_art(copy: LocalCopy) -> None:
    counted = Counted(copy)
    classifier = art_classifier(counted)
    points = to_points(IMAGES)
    before = counted.queries
    predictions = classifier.predict(points)
    assert counted.queries - before == len(points)
    labels = predictions.argmax(axis=1)
    attack = HopSkipJump(
        classifier, targeted=False, norm=2, max_iter=10, max_eval=300, init_eval=50, init_size=50, verbose=False
    )
    np.random.seed(0)  # noqa: NPY002 - ART's own
    found = attack.generate(x=points)
    assert judged(copy, found, labels).sum() >= 3
    distances = np.linalg.norm((found - points).reshape(len(points), -1), axis=1)
    assert np.median(distances) < 2  # random noise is 10 away
    assert counted.queries > 4 * 100


def test_an_attack_of_foolbox(copy: LocalCopy) -> None:
    counted = Counted(copy)
    model = foolbox_model(counted)
    points = torch.from_numpy(to_points(IMAGES))
    scores = model(points)
    assert scores.dtype == torch.float32
    assert counted.queries == 4
    assert (model.bounds.lower, model.bounds.upper) == (0, 1)
    labels = scores.argmax(dim=1)
    torch.manual_seed(0)
    attack = BoundaryAttack(LinearSearchBlendedUniformNoiseAttack(steps=50), steps=60, tensorboard=False)
    found = attack.run(model, points, Misclassification(labels))
    assert judged(copy, found.numpy(), labels.numpy()).sum() >= 2
    assert counted.queries > 4 * 60


def test_a_budget_ends_a_toolkits_attack(copy: LocalCopy) -> None:
    model = foolbox_model(Counted(copy, budget=5))
    model(torch.from_numpy(to_points(IMAGES)))
    with pytest.raises(LimitError):
        model(torch.from_numpy(to_points(IMAGES)))


def test_without_a_toolkit_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['art'] = None; sys.modules['foolbox'] = None\n"
        "from variegate.attack.oracles import adapters\n"
        "from variegate.keys.errors import MisuseError\n"
        "for make in (adapters.art_classifier, adapters.foolbox_model):\n"
        "    try: make(None)\n"
        "    except MisuseError as error: print(error.message, '|', error.hint)\n"
        "print(sorted({'torch', 'onnx', 'art', 'foolbox'} & {n for n in sys.modules if sys.modules[n]}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, loaded = done.stdout.splitlines()
    assert first == "ART is not installed | pip install adversarial-robustness-toolbox"
    assert second.startswith("Foolbox is not installed | pip install")
    assert loaded in ("[]", "['torch']")  # torch comes with Foolbox's adapter alone
