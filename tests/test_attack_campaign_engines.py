"""Who does a campaign's units: a Dask cluster that loses a worker, processes that die, and fleets of real devices."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from testbed.artefacts import CLASSES, frames
from testbed.devices import workplace
from testbed.serving import device_with, serving
from tests.support.small_campaign import command, content, environment, write_inputs
from variegate.attack.campaign import config, folder, runner
from variegate.attack.campaign.copies import Copy, open_device_oracle
from variegate.attack.campaign.engine import Serial
from variegate.attack.campaign.ledger import Ledger
from variegate.attack.campaign.messages import Event, ImageDone, Job, UnitDone, UnitFailed
from variegate.attack.campaign.plan import plan
from variegate.attack.campaign.prepare import Prepared, prepare
from variegate.attack.campaign.processes import Processes
from variegate.attack.campaign.query import query
from variegate.attack.campaign.units import units
from variegate.attack.campaign.verify import verify
from variegate.cli.main import main
from variegate.keys.envelope import SealedKeys
from variegate.keys.errors import DeviceError, MisuseError
from variegate.keys.manifest import Policy

DEVICES = """
schema = 1
name = "devices"
seed = 3
data = { images = "frames.npz", count = 3, choose = "first" }

[[fleet]]
name = "cars"
devices = [ADDRESSES]
frame_rate = 10

[[attack]]
name = "hsj"
kind = "hopskipjump"
queries = 40

[replay]
overshoots = [1.0]

[run]
unit = 2
workers = 2
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    file = write_inputs(tmp_path_factory.mktemp("inputs"))
    return prepare(config.load(file), file.parent)


@pytest.fixture(scope="module")
def alone(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "campaign"
    folder.create(out, prepared)
    runner.run(out, engine="serial")
    return out


@contextmanager
def cluster(place: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and workers, each a process of its own: address and workers."""
    file = place / "scheduler.json"
    with ExitStack() as stack:

        def started(*arguments: str) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(words, env=environment(), stdout=quiet, stderr=quiet)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        started("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        until = time.monotonic() + 60
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < until
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        yield (
            address,
            [
                started("worker", address, "--nthreads", "1", "--no-nanny", "--local-directory", str(place / str(i)))
                for i in range(workers)
            ],
        )


def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(prepared: Prepared, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "dask"
    folder.create(out, prepared)
    with cluster(tmp_path, workers=2) as (address, workers):
        run = command("resume", out, "--dask", address, "--json")
        with subprocess.Popen(run, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            until = time.monotonic() + 60
            while len(list((out / "samples").glob("*.parquet"))) < 2:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.002)
            workers[0].send_signal(signal.SIGKILL)
            stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()
        facts = json.loads(stdout)
        assert facts["done"] == facts["units"] == 22
        assert content(out) == content(alone)
        assert workers[1].poll() is None


def test_a_scheduler_that_is_not_there_is_told(prepared: Prepared, tmp_path: Path) -> None:
    out = tmp_path / "dask"
    folder.create(out, prepared)
    code = (
        "import sys, variegate.attack.campaign.cluster as c; from variegate.cli.main import main; c._CONNECT_S = 0.5;"
        "sys.exit(main(['attack', 'resume', sys.argv[1], '--dask', 'tcp://127.0.0.1:1']))"
    )
    done = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "variegate: no Dask scheduler answers at tcp://127.0.0.1:1\n"


@pytest.mark.parametrize(("sent", "told"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 1, "signal 35")])
def test_a_worker_that_dies_hands_its_unit_back(sent: int, told: str, prepared: Prepared, alone: Path) -> None:
    engine = Processes(1, alone)
    try:
        unit = units(prepared.campaign)[0]
        assert engine.room == 2
        engine.submit(Job(unit=unit))
        seen: list[Event] = []
        while not seen:
            seen += engine.wait(5)
        first = engine.pids
        os.kill(engine.pids[0], sent)
        while not isinstance(seen[-1], UnitFailed | UnitDone):
            seen += engine.wait(5)
        assert seen[-1] == UnitFailed(unit=unit.name, reason=f"the worker died ({told})")
        assert engine.pids != first
        known = {event.image: event.outcome for event in seen if isinstance(event, ImageDone)}
        engine.submit(Job(unit=unit, known=known))
        again: list[Event] = []
        while not again or not isinstance(again[-1], UnitDone):
            again += engine.wait(5)
        assert {event.image for event in again if isinstance(event, ImageDone)} == set(unit.images) - set(known)
        assert isinstance(again[-1], UnitDone)
        assert again[-1].samples == folder.shard(alone, folder.SAMPLES, unit).read_bytes()
    finally:
        engine.close()


def test_what_a_worker_told_before_it_died_is_not_lost_when_none_can_be_had(
    prepared: Prepared, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Processes(1, alone)
    try:
        engine.submit(Job(unit=units(prepared.campaign)[0]))
        worker = engine._workers[0]
        assert worker.pipe.poll(60)
        worker.process.kill()
        worker.process.join()

        def none() -> None:
            raise DeviceError("a worker does not start")

        monkeypatch.setattr(engine, "_start", none)
        assert isinstance(engine.wait(5)[0], ImageDone)
        with pytest.raises(DeviceError, match="does not start"):
            engine.wait(5)
    finally:
        engine.close()


def test_workers_that_never_start_are_given_up(prepared: Prepared, tmp_path: Path) -> None:
    engine = Processes(1, tmp_path)  # no campaign there
    try:
        with pytest.raises(DeviceError, match="workers die"):
            collections.deque(iter(lambda: engine.wait(5), None), maxlen=0)
    finally:
        engine.close()


def test_an_address_without_a_scheme_is_no_engine(prepared: Prepared, tmp_path: Path) -> None:
    folder.create(tmp_path / "c", prepared)
    with pytest.raises(MisuseError, match="no engine"):
        runner.run(tmp_path / "c", workers=0, engine="localhost:8786")
    with pytest.raises(MisuseError, match="0 to 1024 workers"):
        runner.run(tmp_path / "c", workers=1025)


def test_a_copy_keeps_no_memory_of_the_batches_it_has_seen(prepared: Prepared) -> None:
    options = Copy(prepared.fleets[0], 0)._session.get_session_options()
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)


def test_a_serial_engine_takes_one_job_at_a_time(prepared: Prepared) -> None:
    engine = Serial(prepared)
    try:
        assert engine.wait(0) == ()
        assert engine.room == 1
        engine.submit(Job(unit=units(prepared.campaign)[0]))
        assert engine.room == 0
        events: list[Event] = []
        while engine.room == 0:
            events += engine.wait(0)
        assert [type(event) for event in events] == [ImageDone, ImageDone, UnitDone]
    finally:
        engine.close()


def test_real_devices_are_attacked_and_replayed_on(tmp_path: Path) -> None:
    with workplace() as place, ExitStack() as stack:
        ports = [stack.enter_context(device_with(place / name)).boot() for name in ("one", "two")]
        first = stack.enter_context(serving(ports[0], socket=place / "labels"))
        assert first.address is not None
        shown = frames(30)
        labels = ports[0].classify_batch(shown)
        assert len(set(labels.tolist())) > 1
        np.savez(tmp_path / "frames.npz", x=shown, y=labels)
        file = tmp_path / "devices.toml"
        addresses = f'"socket:{place / "labels"}", "http://127.0.0.1:PORT"'
        with serving(ports[1]) as second:
            assert second.address is not None
            text = DEVICES.replace("ADDRESSES", addresses).replace("PORT", str(second.address[1]))
            file.write_text(text)
            made = prepare(config.load(file), tmp_path)
            assert (made.fleets[0].classes, made.fleets[0].dtype) == (CLASSES, "uint8")
            for name, workers in (("a", 0), ("b", 2)):
                folder.create(tmp_path / name, made)
                assert runner.run(tmp_path / name, workers=workers).failed == ()
            assert content(tmp_path / "a") == content(tmp_path / "b")
            assert verify(tmp_path / "a", opened=open_device_oracle).differences == ()
            folder.create(tmp_path / "c", made)
            port = second.address[1]
        # What needs no device is told all the same.
        shard = max((tmp_path / "b" / "samples").glob("*.parquet"))
        shard.write_bytes(shard.read_bytes()[:-1])
        found = verify(tmp_path / "b", opened=open_device_oracle).differences
        assert sum("fleet cars is asked no more" in line for line in found) == 1
        assert any(f"{shard.name} is not what the ledger knows" in line for line in found)
        ended = runner.run(tmp_path / "c", workers=0)
        assert [unit for unit, _ in ended.failed] == [f"cars.hsj.{a:04d}.{i:05d}" for a in range(2) for i in range(2)]
        assert {count for (count,) in query(tmp_path / "c", "SELECT count(*) FROM failures GROUP BY unit").rows} == {3}
        with serving(ports[1], port=port):
            assert runner.run(tmp_path / "c", workers=0).failed == ()
        assert content(tmp_path / "c") == content(tmp_path / "a")


def test_devices_are_asked_for_few_labels_to_choose_images_and_all_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = SealedKeys(bytes(32), bytes(32))
    with workplace() as place, ExitStack() as stack:
        ports = [stack.enter_context(device_with(place / name, keys=keys)).boot() for name in ("one", "two")]
        for port, name in zip(ports, ("a", "b"), strict=True):
            stack.enter_context(serving(port, socket=place / name))
        labels = ports[0].classify_batch(frames(30))
        labels[::2] += 1
        np.savez(tmp_path / "frames.npz", x=frames(30), y=labels % CLASSES)
        before = [port.status().answered for port in ports]
        file = tmp_path / "devices.toml"
        addresses = f'"socket:{place / "a"}", "socket:{place / "b"}"'
        file.write_text(DEVICES.replace("ADDRESSES", addresses).replace('"first"', '"right-by-all"'))
        planned = plan(prepare(config.load(file), tmp_path, choose=False))
        assert [port.status().answered for port in ports] == before
        assert planned.fleets[0].choosing_queries == 60
        assert main(["attack", "run", str(file), "--out", str(tmp_path / "out"), "--workers", "0", "--json"]) == 0
        said = capsys.readouterr()
        facts = json.loads(said.out)
        asked = [port.status().answered - old for port, old in zip(ports, before, strict=True)]
        counted = sum(facts[key] for key in ("queries", "clean_queries", "replay_queries", "choosing_queries"))
        assert counted == sum(asked)
        # Three rightly read of each device, and those that the first misread before there were as many.
        assert 2 * 3 <= facts["choosing_queries"] < 2 * 12
        assert f"fleet cars was asked for {facts['choosing_queries']} labels to choose images" in said.err
        with Ledger(tmp_path / "out", write=False) as ledger:
            assert ledger.choosing == {"cars": facts["choosing_queries"]}


@pytest.mark.parametrize("which", [0, 1])
def test_a_device_that_is_not_there_is_named(which: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workplace() as place, device_with(place / "one") as device, ExitStack() as stack:
        port = device.boot()
        np.savez(tmp_path / "frames.npz", x=frames(30), y=port.classify_batch(frames(30)))
        stack.enter_context(serving(port, socket=place / "a"))
        addresses = [f'"socket:{place / "b"}"', f'"socket:{place / "a"}"'][:: 1 - 2 * which]
        file = tmp_path / "devices.toml"
        file.write_text(DEVICES.replace("ADDRESSES", ", ".join(addresses)).replace('"first"', '"right-by-all"'))
        assert main(["attack", "run", str(file), "--out", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err
    assert f"variegate: campaign: fleet[0].devices[{which}]: " in said
    assert ("was asked for 3 labels" in said) == bool(which)
    assert not (tmp_path / "out").exists()


def test_a_spent_device_fails_its_units_and_leaves_no_image_half_attacked(tmp_path: Path) -> None:
    with workplace() as place:
        with device_with(place / "one", policy=Policy(budget=100)) as device, serving(device.boot(), port=0) as service:
            assert service.address is not None
            np.savez(tmp_path / "frames.npz", x=frames(30), y=np.zeros(30, np.int64))
            file = tmp_path / "devices.toml"
            file.write_text(DEVICES.replace("ADDRESSES", f'"http://127.0.0.1:{service.address[1]}"'))
            made = prepare(config.load(file), tmp_path)
            folder.create(tmp_path / "out", made)
            ended = runner.run(tmp_path / "out", workers=0)
        assert ended.failed
        assert all("budget" in reason for _, reason in ended.failed)
        assert ended.queries <= 100
        with Ledger(tmp_path / "out", write=False) as ledger:
            assert all(b"budget is spent" not in o for u, _ in ended.failed for o in ledger.outcomes(u).values())
            assert ledger.outcomes(ended.failed[-1][0]) == {}


def test_device_folders_open_in_one_process_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workplace() as place:
        with device_with(place / "one") as device:
            np.savez(tmp_path / "frames.npz", x=frames(30), y=device.boot().classify_batch(frames(30)))
        file = tmp_path / "devices.toml"
        file.write_text(DEVICES.replace("ADDRESSES", f'"device:{place / "one" / "device"}"'))
        made = prepare(config.load(file), tmp_path)
        planned = plan(made).fleets[0]
        assert planned.device_hours == pytest.approx(3 * 40 / 10 / 3600)
        assert planned.labels_per_s == 10
        assert planned.core_hours == pytest.approx((3 * 40 + 6 + 3) / 10 / 3600)
        file.write_text(file.read_text().replace("frame_rate = 10", ""))
        for words in (["plan", str(file)], ["run", str(file), "--out", str(tmp_path / "none")]):
            assert main(["attack", *words]) == 2
            assert "only one process" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
        file.write_text(file.read_text().replace("workers = 2", "workers = 1"))
        assert main(["attack", "plan", str(file), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["hours"], facts["choose"]) == (None, "first")
        assert [facts["fleets"][0][key] for key in ("labels_per_s", "core_hours", "device_hours")] == [None] * 3
        assert main(["attack", "plan", str(file)]) == 0
        text = capsys.readouterr().out
        assert text.count("not known") == 3
        assert "hours with 1 worker not known" in text
        assert "rightly" not in text
        folder.create(tmp_path / "out", made)
        with pytest.raises(MisuseError, match="only one process"):
            runner.run(tmp_path / "out")
        assert runner.run(tmp_path / "out", workers=1).failed == ()
