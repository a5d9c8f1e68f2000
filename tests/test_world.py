"""The vehicle's world: signs, camera, stream and network."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("PIL")
torch = pytest.importorskip("torch")

from benchmarks import world_training as train  # noqa: E402
from variegate.device_sim.world import dataset, network  # noqa: E402
from variegate.device_sim.world.camera import CROP, Board, Pose, photograph, rephotograph  # noqa: E402
from variegate.device_sim.world.signs import SIGNS, render  # noqa: E402
from variegate.keys.errors import MisuseError, Refusal, RefusedError  # noqa: E402

MAGENTA = (255, 0, 255)  # no background has it


def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (CROP, CROP, 3), dtype=np.uint8)


def magenta_pixels(pose: Pose) -> NDArray[np.bool_]:
    """Where a magenta print is in the photograph."""
    board = np.broadcast_to(np.array(MAGENTA, dtype=np.uint8), (CROP, CROP, 3)).copy()
    red, green, blue = rephotograph(board, pose).astype(int).transpose(2, 0, 1)
    found: NDArray[np.bool_] = np.minimum(red, blue) - green > 127
    return found


class TestSigns:
    def test_classes_are_indexed_by_position_and_named_once(self) -> None:
        assert [sign.index for sign in SIGNS] == list(range(len(SIGNS)))
        assert len({sign.name for sign in SIGNS}) == len(SIGNS) >= 12

    def test_a_drawing_is_rgba_opaque_in_the_middle_and_clear_in_a_corner(self) -> None:
        for sign in SIGNS:
            drawn = render(sign, 64)
            assert drawn.shape == (64, 64, 4)
            assert drawn.dtype == np.uint8
            assert drawn[32, 32, 3] == 255
            assert min(drawn[0, 0, 3], drawn[-1, 0, 3]) == 0

    def test_every_two_signs_differ_visibly(self) -> None:
        drawn = [render(sign, 64).astype(int) for sign in SIGNS]
        for one, other in itertools.combinations(drawn, 2):
            assert (np.abs(one - other).max(axis=2) > 64).mean() > 0.01  # 30 and 80: half a digit

    def test_turn_left_is_turn_right_in_a_mirror(self) -> None:
        by_name = {sign.name: render(sign) for sign in SIGNS}
        left, right = by_name["turn left"], by_name["turn right"]
        assert np.abs(left[:, ::-1].astype(int) - right).mean() < 1

    @pytest.mark.parametrize("size", [0, 15, 100_000])
    def test_a_bad_size_is_misuse(self, size: int) -> None:
        with pytest.raises(MisuseError):
            render(SIGNS[0], size)


class TestCamera:
    def test_the_frontal_pose_gives_a_print_back(self) -> None:
        np.testing.assert_array_equal(rephotograph(picture(), Pose()), picture())

    def test_roll_turns_clockwise(self) -> None:
        turned = rephotograph(picture(), Pose(roll_deg=90))
        np.testing.assert_allclose(turned.astype(int), np.rot90(picture(), -1), atol=1)

    def test_yaw_and_pitch_foreshorten_and_bring_their_edge_nearer(self) -> None:
        pose = Pose(distance_m=4, box_scale=1.5)
        flat = magenta_pixels(pose)
        turned = magenta_pixels(replace(pose, yaw_deg=60))
        tilted = magenta_pixels(replace(pose, pitch_deg=60))
        assert turned.any(axis=0).sum() == pytest.approx(flat.any(axis=0).sum() * 0.5, abs=2)
        assert tilted.any(axis=1).sum() == pytest.approx(flat.any(axis=1).sum() * 0.5, abs=2)
        tall = turned.sum(axis=0)[turned.any(axis=0)]
        wide = tilted.sum(axis=1)[tilted.any(axis=1)]
        assert tall[-2] > tall[1]
        assert wide[1] > wide[-2]

    def test_a_box_too_far_right_and_low_shows_the_board_left_and_high(self) -> None:
        seen = magenta_pixels(Pose(box_x=0.25, box_y=0.25))
        assert seen[:23, :23].all()
        assert not seen[25:, 25:].any()

    @pytest.mark.parametrize("worse", [Pose(distance_m=60), Pose(blur_px=2)])
    def test_distance_and_blur_cost_detail(self, worse: Pose) -> None:
        near, poor = rephotograph(picture(), Pose()), rephotograph(picture(), worse)
        assert np.diff(poor.astype(int), axis=0).std() < 0.5 * np.diff(near.astype(int), axis=0).std()

    def test_light_follows_the_power_law_and_its_colour_the_temperature(self) -> None:
        grey = np.full((CROP, CROP, 3), 120, dtype=np.uint8)
        middle = (CROP // 2, CROP // 2)
        assert rephotograph(grey, Pose(light_gain=0.25))[middle][1] == round(120 * 0.25 ** (1 / 2.2))
        red, green, blue = (int(v) for v in rephotograph(grey, Pose(colour_temperature_k=3000))[middle])
        assert red > green == 120 > blue

    def test_noise_has_the_given_deviation_and_is_fixed_by_the_seed(self) -> None:
        grey = np.full((CROP, CROP, 3), 120, dtype=np.uint8)
        one, same, other = (rephotograph(grey, Pose(noise_sigma=10, seed=seed)) for seed in (1, 1, 2))
        assert one.std() == pytest.approx(10, rel=4 / math.sqrt(2 * one.size))
        np.testing.assert_array_equal(one, same)
        assert (one != other).mean() > 0.5

    def test_a_sign_stands_before_a_background_that_the_seed_fixes(self) -> None:
        board = Board.of_sign(render(SIGNS[5]))
        one, same, other = (photograph(board, Pose(seed=seed)) for seed in (1, 1, 2))
        assert one.shape == (CROP, CROP, 3)
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal(one[10:22, 10:22], other[10:22, 10:22])
        assert (one[:2] != other[:2]).any()
        np.testing.assert_array_equal(photograph(render(SIGNS[5]), Pose(seed=1)), one)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"yaw_deg": 90.0},
            {"distance_m": 0.0},
            {"light_gain": -1.0},
            {"colour_temperature_k": math.inf},
            {"blur_px": math.nan},
            {"noise_sigma": -0.1},
            {"box_scale": 0.0},
            {"seed": -1},
        ],
    )
    def test_an_impossible_pose_is_misuse(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(MisuseError, match=next(iter(wrong))):
            replace(Pose(), **wrong)

    def test_a_wrong_board_is_misuse(self) -> None:
        wrong: Any
        for wrong in (picture()[:16], picture().astype(np.float32), picture()[..., 0], picture()[:16, :16]):
            with pytest.raises(MisuseError):
                rephotograph(wrong, Pose())
        with pytest.raises(MisuseError):
            photograph(picture(), Pose())


class TestStream:
    def test_a_frame_depends_on_seed_and_index_only(self) -> None:
        taken = list(itertools.islice(dataset.stream(3), 12))
        later = next(dataset.stream(3, start=9))
        alone = dataset.frame(3, 9)
        for again in (later, alone):
            assert again.pose == taken[9].pose
            assert again.label == taken[9].label
            np.testing.assert_array_equal(again.image, taken[9].image)
        assert dataset.frame(4, 9).pose != alone.pose
        assert len({frame.pose.seed for frame in taken}) == len(taken)

    def test_a_batch_is_a_slice_of_the_stream(self) -> None:
        whole, part = dataset.batch(3, 0, 20), dataset.batch(3, 5, 10)
        np.testing.assert_array_equal(part.images, whole.images[5:15])
        np.testing.assert_array_equal(part.labels, whole.labels[5:15])
        frames = list(itertools.islice(dataset.stream(3), 20))
        np.testing.assert_array_equal(whole.images, np.stack([frame.image for frame in frames]))
        assert whole.labels.tolist() == [frame.label for frame in frames]

    def test_shapes_types_and_classes(self) -> None:
        frames = dataset.batch(7, 0, 300)
        assert frames.images.shape == (300, 3, CROP, CROP)
        assert frames.images.dtype == np.uint8
        assert frames.labels.dtype == np.int64
        assert set(frames.labels.tolist()) == set(range(len(SIGNS)))
        assert frames.images.min() < 20
        assert frames.images.max() == 255
        assert dataset.batch(7, 0, 0).images.shape == (0, 3, CROP, CROP)

    def test_bad_arguments_are_misuse_at_once(self) -> None:
        for call in (
            lambda: dataset.stream(-1),
            lambda: dataset.stream(0, start=-1),
            lambda: dataset.batch(0, 0, -1),
            lambda: dataset.frame(2**64, 0),
        ):
            with pytest.raises(MisuseError):
                call()


class TestNetwork:
    # On 10,000 fresh frames (benchmarks/results/world.json); 500 others may lie four binomial deviations below.
    MEASURED = 0.9907

    def test_it_reads_fresh_frames(self) -> None:
        deviation = math.sqrt(self.MEASURED * (1 - self.MEASURED) / 500)
        result = train.evaluate(network.load_signnet(), seed=11, images=500)
        assert result.images == 500
        assert result.accuracy > self.MEASURED - 4 * deviation

    def test_it_is_small(self) -> None:
        model = network.load_signnet()
        assert not model.training
        assert sum(parameter.numel() for parameter in model.parameters()) < 250_000
        assert network.multiply_adds() < 15_000_000
        packaged = resources.files("variegate.device_sim.world").joinpath(network.WEIGHTS)
        assert len(packaged.read_bytes()) < 1_000_000

    def test_logits_have_the_stated_shape_at_any_batch(self) -> None:
        images = torch.from_numpy(dataset.batch(1, 0, 3).images).float() / 255
        with torch.inference_mode():
            logits = network.load_signnet()(images)
            alone = network.load_signnet()(images[:1])
        assert logits.shape == (3, len(SIGNS))
        assert logits.dtype == torch.float32
        torch.testing.assert_close(alone, logits[:1], rtol=1e-4, atol=1e-4)

    def test_missing_weights_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(network, "WEIGHTS", "absent.safetensors")
        with pytest.raises(RefusedError) as refused:
            network.load_signnet()
        assert refused.value.refusal is Refusal.MODEL


class TestTraining:
    @pytest.fixture(autouse=True)
    def one_thread(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    def test_a_seed_fixes_the_weights(self) -> None:
        before = torch.random.get_rng_state()
        one, same, other = (train.weights_of(train.train(seed=seed, images=100)) for seed in (1, 1, 2))
        assert one == same != other
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_too_few_images_are_misuse(self) -> None:
        with pytest.raises(MisuseError, match="too few"):
            train.train(images=99)
        with pytest.raises(MisuseError):
            train.evaluate(network.SignNet(), images=0)
