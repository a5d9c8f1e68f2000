"""A Dask cluster that is not as it should be: workers of other software, several runs and units at once, no TLS."""

from __future__ import annotations

import collections
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import LocalCluster
from threadpoolctl import threadpool_info, threadpool_limits

from tests.support.small_campaign import environment
from variegate.attack.campaign import cluster, folder
from variegate.attack.campaign.cluster import Cluster
from variegate.attack.campaign.messages import Event, ImageDone, Job, UnitDone
from variegate.attack.campaign.prepare import Prepared
from variegate.attack.campaign.units import units
from variegate.attack.campaign.work import Bench
from variegate.cli.main import main
from variegate.keys.errors import DeviceError

FOREIGN = 'import variegate.attack.campaign.cluster as c\nc.software = lambda: \'{"numpy": "0"}\''
"""Makes a Dask worker one of other software."""
WAIT_S = 60


pytest_plugins = "tests.support.campaign_fixtures"


@pytest.fixture(scope="module")
def campaign(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("campaign") / "campaign"
    folder.create(out, prepared)
    return out


@pytest.fixture(scope="module")
def jobs(prepared: Prepared) -> list[Job]:
    return [Job(unit=unit) for unit in units(prepared.campaign)]


@pytest.fixture
def address() -> Iterator[str]:
    """Of a scheduler in this process."""
    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as made:
        yield str(made.scheduler_address)


@contextmanager
def worker(address: str, place: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Dask worker, a process of its own."""
    words = [sys.executable, "-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    words += ["--local-directory", str(place / f"worker-{time.monotonic_ns()}"), *more]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, env=environment(), stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def until(engine: Cluster, what: Callable[[], bool]) -> list[Event]:
    """Waits for something: ends of units until then."""
    ended, late = list[Event](), time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < late
        ended += [event for event in engine.wait(0.05) if not isinstance(event, ImageDone)]
    return ended


def ends(engine: Cluster) -> list[Event]:
    """Waits for all units."""
    return until(engine, lambda: not engine._given)


def test_a_late_worker_of_other_software_gets_no_unit(
    address: str, campaign: Path, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker(address, tmp_path) as good, closing(Cluster(address, campaign)) as engine:
        until(engine, lambda: len(engine._fit) == 1)
        with worker(address, tmp_path, "--preload", FOREIGN):
            until(engine, lambda: bool(engine._refusal))
            for job in jobs[:8]:
                engine.submit(job)
            assert [type(event) for event in ends(engine)] == [UnitDone] * 8
            monkeypatch.setattr(cluster, "PATIENCE_S", 1.0)
            good.kill()
            engine.submit(jobs[8])
            with pytest.raises(DeviceError, match=r"no worker that is fit: a worker has other software: .*numpy"):
                ends(engine)


def test_units_whose_workers_are_gone_are_given_to_others(
    address: str, campaign: Path, jobs: list[Job], tmp_path: Path
) -> None:
    with worker(address, tmp_path) as first, closing(Cluster(address, campaign)) as engine:
        engine.submit(jobs[0])  # before any is fit
        assert [type(event) for event in ends(engine)] == [UnitDone]
        first.send_signal(signal.SIGSTOP)
        for job in jobs[1:3]:
            engine.submit(job)
        with worker(address, tmp_path):
            assert until(engine, lambda: len(engine._fit) == 2) == []
            first.kill()
            assert {event.unit for event in ends(engine) if isinstance(event, UnitDone)} == {
                job.unit.name for job in jobs[1:3]
            }


def test_two_runs_of_one_campaign_do_not_disturb_each_other(
    address: str, campaign: Path, jobs: list[Job], tmp_path: Path
) -> None:
    with worker(address, tmp_path), closing(Cluster(address, campaign)) as one:
        with closing(Cluster(address, campaign)) as other:
            other.submit(jobs[0])
            assert [type(event) for event in ends(other)] == [UnitDone]
            assert one.wait(0.2) == []
        one.submit(jobs[1])
        assert [type(event) for event in ends(one)] == [UnitDone]


def test_tls_that_is_not_configured_is_told(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack", "resume", str(campaign), "--dask", "tls://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == (
        "variegate: TLS is not configured for tls://127.0.0.1:1\n"
        "hint: distributed.comm.tls in Dask's configuration names ca-file, client.cert and client.key\n"
    )


def blas() -> int:
    """Most threads of a BLAS of this process."""
    return max(int(library["num_threads"]) for library in threadpool_info() if library["user_api"] == "blas")


def test_a_unit_that_ends_leaves_another_its_one_thread_for_sums(
    campaign: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def events(bench: Bench, job: Job) -> Iterator[Event]:
        before = blas()
        both.wait(WAIT_S)
        if job is jobs[1]:
            threads[0].join(WAIT_S)
        seen[job.unit.name] = (before, blas())
        return iter(())

    monkeypatch.setattr(Bench, "_events", events)
    both, seen = threading.Barrier(2), dict[str, tuple[int, int]]()
    contents = {name: (campaign / name).read_bytes() for name in (folder.CONFIG, folder.IMAGES, folder.COPIES)}
    worker = SimpleNamespace(metrics={})
    runs = [cluster.Inputs(name, contents) for name in ("one", "other")]
    with threadpool_limits(2):
        if blas() != 2:
            pytest.skip("sums have one thread here")
        for run in runs:
            run.setup(worker)
        runs[0].teardown(worker)  # a run that ends restores nothing either
        bench = runs[1].bench
        assert bench is not None
        threads = [threading.Thread(target=collections.deque, args=(bench.events(job), 0)) for job in jobs[:2]]
        for thread in threads:
            thread.start()
        threads[1].join(WAIT_S)
        assert seen == {job.unit.name: (1, 1) for job in jobs[:2]}
        runs[1].teardown(worker)
        assert blas() == 2
    assert worker.metrics == {}
