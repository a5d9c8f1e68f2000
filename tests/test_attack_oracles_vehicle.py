"""A device behind a camera: time, photographs, and another buyer's car driving past."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed import bases
from variegate import export
from variegate.attack.oracle import Counted, to_points
from variegate.attack.oracles import check_oracle
from variegate.attack.oracles.local import LocalBase
from variegate.attack.oracles.vehicle import Still, VehicleOracle, driving, seen
from variegate.attack.oracles.vehicle_address import vehicle
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.device_sim.world.camera import Pose
from variegate.device_sim.world.dataset import batch
from variegate.device_sim.world.network import load_signnet
from variegate.export.intake.base import Base, from_torch
from variegate.export.rewriters import Permutation
from variegate.keys.artefact import Artefact
from variegate.keys.errors import MisuseError, RefusedError
from variegate.keys.seller import Seller

SIGNS = batch(5, 0, 24)


@pytest.fixture(scope="module")
def base() -> Base:
    return from_torch(load_signnet(), (3, 32, 32))


@pytest.fixture(scope="module", params=["uint8", "float32"])
def device(base: Base, request: Any) -> LocalBase:
    return LocalBase(base, request.param)


def shown(device: LocalBase) -> Any:
    return SIGNS.images if device.dtype == "uint8" else to_points(SIGNS.images)


def test_on_the_wire_nothing_changes_but_time(device: LocalBase) -> None:
    car = VehicleOracle(device, frame_rate=20)
    found = check_oracle(car, shown(device))
    found.require()
    assert np.array_equal(found.labels, device.labels(shown(device)))
    assert car.shown == found.queries
    assert car.seconds_beside(72_000) == 3600


def test_a_frontal_photograph_is_the_print_itself(device: LocalBase) -> None:
    car = VehicleOracle(device, stand=Still(noisy=False))
    assert np.array_equal(car.labels(shown(device)), device.labels(shown(device)))
    check_oracle(car, shown(device)).require()
    assert np.array_equal(seen(SIGNS.images, [Pose()] * 24), SIGNS.images)


def test_labels_through_a_camera_are_noisy_and_reproducible(device: LocalBase) -> None:
    stand = Still(Pose(distance_m=60, noise_sigma=25, light_gain=0.3))
    for one in (stand, driving):
        cars = [VehicleOracle(device, stand=one, seed=3) for _ in range(3)]
        frames = shown(device)
        first = np.concatenate([cars[0].labels(frames) for _ in range(4)])
        # The same queries in other calls: a photograph follows from the query's number.
        again = np.concatenate([cars[1].labels(np.concatenate([frames] * 2)) for _ in range(2)])
        assert np.array_equal(first, again)
        other = VehicleOracle(device, stand=one, seed=4)
        assert not np.array_equal(np.concatenate([other.labels(frames) for _ in range(4)]), first)
        found = check_oracle(cars[2], frames)
        assert not found.steady
        with pytest.raises(RefusedError):
            found.require()
        if one is driving:  # a network trained on such photographs still reads many of them
            assert (first[:24] == SIGNS.labels).mean() > 0.3


def test_another_buyers_car_drives_past(device: LocalBase) -> None:
    counted = Counted(device)
    car = VehicleOracle(counted)
    frontal = Pose()
    poses = [frontal, Pose(distance_m=40, noise_sigma=3), frontal]
    labels = car.replayed(shown(device), poses)
    assert labels.shape == (24, 3)
    assert labels.dtype == np.int64
    assert np.array_equal(labels[:, 0], device.labels(shown(device)))
    assert np.array_equal(labels[:, 0], labels[:, 2])
    assert counted.queries == 72
    assert car.shown == 0  # nothing was asked of the car by the attacker
    with pytest.raises(MisuseError):
        car.replayed(shown(device), [])
    with pytest.raises(RefusedError):
        car.replayed(shown(device)[:, :, :8], poses)


def test_what_cannot_be_photographed_is_misuse(tmp_path: Path) -> None:
    small = LocalBase(bases.base(tmp_path))
    with pytest.raises(MisuseError):
        VehicleOracle(small, stand=driving)
    with pytest.raises(MisuseError):
        VehicleOracle(small).replayed(bases.images(2), [Pose()])
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MisuseError):
            VehicleOracle(small, frame_rate=rate)
    with pytest.raises(MisuseError):
        VehicleOracle(small, seed=-1)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("speed=3", "no option 'speed'"),
        ("fps=3&fps=4", "no option 'fps'"),
        ("fps=fast", "fps of a vehicle is a number"),
        ("fps=0", "frame rate is a positive number"),
        ("camera=moving", "still, driving or none"),
        ("seed=-1", "still, driving or none"),
        ("camera=driving&yaw=3", "yaw is for a camera that stands still"),
        ("yaw=300", "pose: yaw_deg is 300"),
        ("light=nan", "light of a vehicle is a number"),
    ],
)
def test_addresses_of_vehicles_that_make_no_sense(device: LocalBase, query: str, words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        vehicle(device, query)


def test_an_address_says_how_a_print_is_seen(device: LocalBase) -> None:
    frames = shown(device)
    wire = vehicle(device, "camera=none&fps=20")
    assert wire.seconds_beside(20) == 1
    np.testing.assert_array_equal(wire.labels(frames), device.labels(frames))
    dark = vehicle(device, "light=0.05&seed=4")
    np.testing.assert_array_equal(
        dark.labels(frames), VehicleOracle(device, stand=Still(Pose(light_gain=0.05)), seed=4).labels(frames)
    )
    passing = vehicle(device, "camera=driving&seed=2")
    np.testing.assert_array_equal(passing.labels(frames), VehicleOracle(device, stand=driving, seed=2).labels(frames))


def test_a_simulated_vehicle_is_attacked_by_its_address(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seller = Seller.generate()
    release = export.prepare(base, rewriter=Permutation())
    with Device.create(tmp_path / "car", "car", seller.root) as made:
        (sealed,) = export.copies(release, seller, {"acme": made.identity}).values()
        flash(made, Artefact.from_bytes(sealed.to_bytes()))
    np.savez("signs.npz", x=SIGNS.images[:3], y=SIGNS.labels[:3])
    words = ["attack", "try", "vehicle:car?camera=driving&fps=10", "--images", "signs.npz", "--queries", "60"]
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["queries"] > 60
    assert "hours beside the car" in told.err
