"""White-box study: torch copies are the copies, DeepFool is exact where it can be, rows are written whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.study_copies import Ensemble, open_copies, to_tensor
from benchmarks.study_gradients import cosines, logarithm, loss_gradients, rows
from benchmarks.study_outputs import change
from testbed import bases
from testbed.subjects import GTSRB
from testbed.torch_ops import Copy
from variegate.attack.oracle import to_points
from variegate.attack.whitebox.deepfool import DeepFool
from variegate.attack.whitebox.pgd import Pgd
from variegate.export.fuse import IMAGE, LABEL, fuse
from variegate.export.intake.probe import session
from variegate.export.rewriters import Permutation, Qim, Rewriter
from variegate.keys.errors import MisuseError
from variegate.keys.primitives import sha256

SEEDS = [sha256(bytes([i])) for i in range(4)]
QIM = Qim(grid=(4, 4), repeats=2, steps=(128,), beta=4.0)


def linear(rewriter: Rewriter, tmp_path: Path, count: int = 2) -> list[Copy]:
    return open_copies(bases.Linear(), bases.base(tmp_path).contract, rewriter, SEEDS[:count], "uint8")


@pytest.mark.data
@pytest.mark.parametrize("rewriter", [Permutation(), Qim(grid=(4, 8), repeats=1, steps=(128,), beta=4.0)])
def test_a_torch_copy_answers_as_the_device_does_on_real_images(rewriter: Rewriter) -> None:
    frames, _ = GTSRB.test_set(300)
    # Blends lie near boundaries, where copies differ.
    frames = np.concatenate([frames, ((frames.astype(np.uint16) + frames[::-1]) // 2).astype(np.uint8)])
    template = fuse(GTSRB.base, rewriter, "uint8")
    opened = open_copies(GTSRB.module, GTSRB.base.contract, rewriter, SEEDS[:2], "uint8")
    labels = Ensemble(opened).labels(to_tensor(frames)).numpy()
    for seed, ours in zip(SEEDS, labels, strict=False):
        device = session(template.graph, template.values(seed)).run([LABEL], {IMAGE: frames})[0]
        assert np.array_equal(ours, device)
    assert not np.array_equal(labels[0], labels[1])


def test_an_ensemble_is_the_mean_of_its_copies(tmp_path: Path) -> None:
    copies = linear(QIM, tmp_path, 3)
    images = to_tensor(bases.images(20))
    mean = torch.stack([copy.scores(images) + copy.offset for copy in copies]).mean(dim=0)
    assert torch.allclose(Ensemble(copies).scores(images), mean, atol=1e-6)
    with pytest.raises(MisuseError):
        Ensemble([])


class Affine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.from_numpy(bases.weights()) + torch.tensor([0.0, 0.3, -0.2, 0.1, 0.4])


def nearest(images: Tensor) -> np.ndarray:
    """Distances to the nearest boundary of `Affine`, from the textbook."""
    scores = Affine()(images).numpy()
    own = scores.argmax(axis=1)
    w = bases.weights()
    out = np.full(len(own), np.inf)
    for i, c in enumerate(own):
        for k in range(bases.CLASSES):
            if k != c:
                out[i] = min(out[i], (scores[i, c] - scores[i, k]) / np.linalg.norm(w[:, c] - w[:, k]))
    return out


def test_deepfool_is_exact_on_an_affine_model() -> None:
    images = to_tensor(bases.images(30))
    attack = DeepFool(overshoot=1e-3, bounded=False)
    found = torch.from_numpy(attack.run(Affine(), images))
    lengths = (found - images).flatten(1).norm(dim=1).numpy()
    assert (Affine()(found).argmax(dim=1) != Affine()(images).argmax(dim=1)).all()
    assert np.allclose(lengths, nearest(images) * 1.001, rtol=1e-3)


def test_deepfool_through_softmax_and_an_ensemble_is_exact_too(tmp_path: Path) -> None:
    """Planted: an ensemble of one base, rewritten by nearly nothing, is that base."""
    contract = bases.base(tmp_path).contract
    copies = open_copies(Affine(), contract, Permutation(alpha=1e-6), SEEDS[:3], "float32")
    images = to_tensor(bases.images(30))
    found = torch.from_numpy(DeepFool(overshoot=1e-3, bounded=False).run(Ensemble(copies), images))
    assert np.allclose((found - images).flatten(1).norm(dim=1).numpy(), nearest(images) * 1.001, rtol=1e-2)


def test_deepfool_is_bounded_and_says_what_makes_no_sense(tmp_path: Path) -> None:
    images = to_tensor(bases.images(10))
    found = DeepFool(iterations=1).run(Ensemble(linear(QIM, tmp_path)), images)
    assert found.min() >= 0
    assert found.max() <= 1
    with pytest.raises(MisuseError):
        DeepFool(iterations=0)
    with pytest.raises(MisuseError):
        DeepFool(candidates=1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_stays_in_its_ball_and_succeeds_where_the_ball_crosses_the_boundary(norm: str) -> None:
    images = to_tensor(bases.images(30))
    classes = Affine()(images).argmax(dim=1)
    # The largest L2 ball holds the nearest boundary of all; for Linf, each pixel takes its share.
    epsilon = float(nearest(images).max()) * (1.5 if norm == "l2" else 1.5 / np.sqrt(768) * 2)
    found = Pgd(norm=norm, epsilon=epsilon, steps=40).run(Affine(), images, classes)  # type: ignore[arg-type]
    away = (found - images.numpy()).reshape(30, -1)
    lengths = np.linalg.norm(away, axis=1) if norm == "l2" else np.abs(away).max(axis=1)
    assert lengths.max() <= epsilon * (1 + 1e-5)
    assert (Affine()(torch.from_numpy(found)).argmax(dim=1) != classes).numpy().mean() > 0.9
    with pytest.raises(MisuseError):
        Pgd(epsilon=0)


def test_pgd_goes_on_where_the_model_is_sure_of_itself() -> None:
    """The slope is so small that the square of its length is 0 in float32."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(dim=1)
            return torch.stack([60 + 0 * mean, 100 * mean], dim=1)

    images = torch.full((2, 3, 4, 4), 0.1)
    found = Pgd(epsilon=1.0).run(Sure(), images, torch.zeros(2, dtype=torch.int64))
    assert np.allclose(np.linalg.norm((found - images.numpy()).reshape(2, -1), axis=1), 1.0, atol=1e-5)
    assert (found > 0.1).all()


@pytest.mark.parametrize("rewriter", [Permutation(), QIM])
def test_gradients_are_the_slopes_of_the_loss(rewriter: Rewriter, tmp_path: Path) -> None:
    """Lattices too: their errors are piecewise linear, so that short differences are exact but for a rare kink."""
    contract = bases.base(tmp_path).contract
    copy = open_copies(bases.Linear(), contract, rewriter, SEEDS[:1], "float32")[0].double()
    images = to_tensor(bases.images(6)).double() * 0.9 + 0.0337
    classes = torch.arange(6) % 5
    slopes = loss_gradients(logarithm(copy), images, classes)
    step = 1e-7 * torch.from_numpy(slopes / np.linalg.norm(slopes, axis=1, keepdims=True)).reshape(images.shape)

    def loss(at: Tensor) -> Tensor:
        return -logarithm(copy)(at).gather(1, classes[:, None]).squeeze(1)

    with torch.no_grad():
        rise = ((loss(images + step) - loss(images - step)) / 2e-7).numpy()
    assert np.allclose(rise, np.linalg.norm(slopes, axis=1), rtol=1e-3)


def test_cosines_and_which_pairs_a_hypothesis_takes() -> None:
    g = np.eye(3)
    assert np.allclose(cosines(g, g), 1)
    assert np.allclose(cosines(g, g[[1, 2, 0]]), 0)
    assert len(cosines(g, np.zeros((3, 3)))) == 0
    four = [g, g, -g, -g]
    within = [row.cosine for row in rows("H2", "f", four, [0, 0, 1, 1])]
    across = [row.cosine for row in rows("H3", "f", four, [0, 0, 1, 1])]
    assert np.allclose(within, 1)
    assert np.allclose(across, -1)
    assert (len(within), len(across)) == (6, 12)


def test_copies_of_one_base_share_what_f_paid_for_and_not_what_g_paid_for(tmp_path: Path) -> None:
    copies = linear(QIM, tmp_path)
    clean = to_tensor(bases.images(60))
    found = torch.from_numpy(DeepFool().run(Ensemble(copies[:1]), clean))
    samples = to_tensor(np.rint(found.numpy() * 255).clip(0, 255).astype(np.uint8))
    own, attacked = copies[0].labels(clean), copies[0].labels(samples)
    fooled = own != attacked
    mine, theirs = (change(copy, clean[fooled], samples[fooled], own[fooled], attacked[fooled]) for copy in copies)
    assert np.array_equal(mine.gained_f, theirs.gained_f)
    # Planted: beta is far above any p, so that the attack pays with G; the victim's G moves either way.
    assert mine.gained_g.mean() > 0.1
    assert abs(theirs.gained_g.mean()) < mine.gained_g.mean() / 2
    margins = mine.gained_f + mine.gained_g - mine.lost_f - mine.lost_g
    assert (margins > 0).all()
    assert np.median(mine.share_g) > 0.5


def test_points_of_bytes_come_back() -> None:
    assert np.array_equal(to_tensor(bases.images(2)).numpy(), to_points(bases.images(2)))
