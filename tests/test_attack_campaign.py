"""A campaign from its file to its results: the same bytes whoever works, however often it is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.bases import CLASSES
from testbed.source import REPOSITORY, source_of
from tests.support.small_campaign import attack, command, content, environment
from variegate.attack.campaign import config, folder, runner, shards
from variegate.attack.campaign.ledger import Ledger
from variegate.attack.campaign.messages import Event, Job, UnitFailed
from variegate.attack.campaign.plan import plan
from variegate.attack.campaign.prepare import Prepared, prepare
from variegate.attack.campaign.query import open_results, query
from variegate.attack.campaign.software import difference, software, sources
from variegate.attack.campaign.units import units
from variegate.attack.campaign.verify import verify
from variegate.attack.campaign.work import Bench
from variegate.cli.attack_watch import LiveTable
from variegate.cli.main import main
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError
from variegate.keys.primitives import sha256

pytest_plugins = "tests.support.campaign_fixtures"


def test_results_have_the_schemas_that_reports_read(alone: Path, prepared: Prepared) -> None:
    x, index = prepared.images.x, prepared.images.index.tolist()
    for unit in units(prepared.campaign):
        attack_run = prepared.campaign.attack(unit.attack)
        samples = shards.from_bytes(shards.SAMPLES, folder.shard(alone, folder.SAMPLES, unit).read_bytes(), "s")
        replays = shards.from_bytes(shards.REPLAYS, folder.shard(alone, folder.REPLAYS, unit).read_bytes(), "r")
        assert [row["image"] for row in samples] == [index[i] for i in unit.images]
        for row in samples:
            assert row["queries"] <= attack_run.queries
            clean = x[index.index(row["image"])]
            if row["sample"] is not None:
                frame = np.frombuffer(row["sample"], row["dtype"]).reshape(clean.shape)
                points = frame / 255 if row["dtype"] == "uint8" else frame
                assert np.linalg.norm(points - clean / 255) == pytest.approx(row["distance"], rel=1e-5)
        own = [row for row in replays if row["victim"] == row["attacker"] and row["overshoot"] == 1]
        by_image = {row["image"]: row for row in samples}
        for row in own:
            if row["budget"] == 0:
                assert row["label"] == by_image[row["image"]]["label"]
                assert row["l2" if row["norm"] == "l2" else "linf"] == by_image[row["image"]]["distance"]
        copies = prepared.campaign.fleet(unit.fleet).copies
        kept = sum(sum(s is not None for s in (row["sample"], *row["budget_samples"])) for row in samples)
        assert len(replays) == kept * 2 * copies
    with open_results(alone) as connection:
        found = connection.execute("SELECT count(*) FILTER (status = 'found') FROM samples").fetchone()
    assert found is not None
    assert found[0] > 30


def test_on_media_that_cannot_be_written_reading_leaves_no_files(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(copied.iterdir())
    monkeypatch.setattr("os.access", lambda *_: False)
    with Ledger(copied, write=False) as book:
        assert book.entries()
        assert sorted(copied.iterdir()) == before
    # What is in a log beside it must be read, wherever it lies.
    (copied / "ledger.sqlite-wal").write_bytes(b"x")
    with Ledger(copied, write=False) as book:
        assert book.entries()


def test_targets_are_kept_and_are_what_samples_are_read_as(alone: Path) -> None:
    aimed = query(alone, "SELECT attack, target, label, true_class FROM samples WHERE status = 'found'").rows
    wanted = [row for row in aimed if row[0] == "aimed"]
    assert wanted
    assert all(target == label != true for _, target, label, true in wanted)
    assert all(target is None for attack_name, target, _, _ in aimed if attack_name != "aimed")
    lost = "FROM replays ANTI JOIN samples ON replays.image = samples.image AND replays.attack = samples.attack"
    other = query(alone, f"SELECT count(*) {lost} AND replays.target IS NOT DISTINCT FROM samples.target")
    assert other.rows == ((0,),)


def test_chosen_images_are_read_rightly_by_every_copy(alone: Path) -> None:
    wrong = query(alone, "SELECT count(*) FROM replays WHERE clean_label <> true_class")
    assert wrong.rows == ((0,),)


def test_processes_give_the_same_bytes_also_when_one_dies(alone: Path, fresh: Path) -> None:
    killed: list[int] = []

    def kill(standing: runner.Standing) -> None:
        if not killed and sum(row.done for row in standing.values()) >= 2:
            victim = multiprocessing.active_children()[0]
            assert victim.pid is not None
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    ended = runner.run(fresh, workers=2, watch=kill)
    assert killed
    assert (ended.done, ended.failed) == (ended.units, ())
    assert content(fresh) == content(alone)
    assert multiprocessing.active_children() == []


def test_a_campaign_that_is_killed_goes_on_with_other_workers(alone: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    with subprocess.Popen(
        command("run", inputs, "--out", out), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 60
        while len(list((out / "samples").glob("*.parquet"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert content(out) != content(alone)
    done = attack("resume", out, "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["done"] == facts["units"] == 22
    assert content(out) == content(alone)
    assert not list(out.rglob(".*"))


def test_outcomes_of_a_unit_under_way_are_not_lost(alone: Path, fresh: Path) -> None:
    class StopError(Exception):
        pass

    def stop(standing: runner.Standing) -> None:
        if sum(row.images for row in standing.values()) == 3:
            raise StopError

    with pytest.raises(StopError):
        runner.run(fresh, engine="serial", watch=stop)
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM outcomes").fetchone() == (1,)
    first: list[int] = []
    runner.run(fresh, engine="serial", watch=lambda s: first.append(sum(row.images for row in s.values())))
    assert first[0] == 4
    assert content(fresh) == content(alone)


class _Scripted:
    """An engine that does units in turn, and tells of each what a script makes of its events (`Engine`)."""

    def __init__(self, prepared: Prepared, script: Callable[[Sequence[Event]], Sequence[Event]]) -> None:
        self._bench, self._script, self._jobs = Bench(prepared), script, list[Job]()

    @property
    def room(self) -> int:
        return 1 - len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, timeout_s: float) -> Sequence[Event]:  # noqa: ARG002
        return self._script(list(self._bench.events(self._jobs.pop())))

    def close(self) -> None:
        self._bench.close()


def test_outcomes_that_come_together_with_a_units_last_failure_are_kept(
    alone: Path, fresh: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _Scripted(prepared, lambda events: [events[0], UnitFailed(unit=events[0].unit, reason="unplugged")])
    monkeypatch.setattr(runner, "ATTEMPTS", 1)
    monkeypatch.setattr(runner, "started", lambda *_: engine)
    ended = runner.run(fresh)
    assert len(ended.failed) == ended.units
    with Ledger(fresh, write=False) as book:
        assert set(book.counts().values()) == {1}
        assert len(book.counts()) == ended.units
    monkeypatch.undo()
    runner.run(fresh, engine="serial")
    assert content(fresh) == content(alone)


def test_outcomes_that_come_together_with_what_cannot_be_written_are_kept(
    alone: Path, fresh: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a cluster: a unit's end comes first, then outcomes of another.
    other = next(iter(Bench(prepared).events(Job(unit=units(prepared.campaign)[1]))))

    def lost(events: Sequence[Event]) -> Sequence[Event]:
        # While it runs: before, the folder would be made again.
        (fresh / "samples").rename(fresh / "away")
        return [events[-1], other]

    engine = _Scripted(prepared, lost)
    monkeypatch.setattr(runner, "started", lambda *_: engine)
    with pytest.raises((MisuseError, DeviceError), match="cannot write"):
        runner.run(fresh)
    with Ledger(fresh, write=False) as book:
        assert book.counts() == {other.unit: 1}
    monkeypatch.undo()
    (fresh / "away").rename(fresh / "samples")
    runner.run(fresh, engine="serial")
    assert content(fresh) == content(alone)


def test_a_full_disk_is_told_and_loses_nothing(alone: Path, fresh: Path) -> None:
    limit = (fresh / "ledger.sqlite").stat().st_size + 30_000

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = attack("resume", fresh, "--workers", "0", preexec_fn=full)
    assert done.returncode == 1
    assert "variegate: cannot " in done.stderr
    assert "internal error" not in done.stderr
    runner.run(fresh, engine="serial")
    assert content(fresh) == content(alone)


def test_a_folder_that_takes_no_shards_is_an_error(fresh: Path) -> None:
    shutil.rmtree(fresh / "samples")
    (fresh / "samples").write_text("")
    with pytest.raises((MisuseError, DeviceError), match="cannot write"):
        runner.run(fresh, engine="serial")


def test_a_unit_that_fails_is_tried_again_and_then_reported(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inputs.read_text().replace('images = "images.npz"', 'images = "one.npz"')
    with np.load(inputs.parent / "images.npz", allow_pickle=False) as arrays:
        one = arrays["y"] == 0
        np.savez(inputs.parent / "one.npz", x=arrays["x"][one], y=arrays["y"][one])
    path = inputs.parent / "one.toml"
    path.write_text(text)
    out = tmp_path / "one"
    done = attack("run", path, "--out", out, "--workers", "0")
    assert done.returncode == 1
    assert "attack[2].targeted has no class to aim at: all images are of one" in done.stderr
    assert not out.exists()
    monkeypatch.setattr("variegate.attack.campaign.prepare._check_aims", lambda *_: None)
    folder.create(out, prepare(config.load(path), path.parent))
    done = attack("resume", out, "--workers", "0")
    assert done.returncode == 1
    assert "unit perm.aimed.0000.00000 failed 3 times: no class is left to aim at" in done.stderr
    assert query(out, "SELECT unit, count(*) FROM failures GROUP BY ALL ORDER BY ALL").rows == tuple(
        (f"perm.aimed.0000.0000{i}", 3) for i in range(3)
    )
    assert query(out, "SELECT state, count(*) FROM units GROUP BY ALL ORDER BY ALL").rows == (
        ("done", 19),
        ("failed", 3),
    )
    assert verify(out).differences == ()
    assert attack("resume", out, "--workers", "0").returncode == 1


def test_an_interrupted_campaign_says_how_to_go_on(
    alone: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupt(_: LiveTable, standing: runner.Standing) -> None:
        if sum(row.images for row in standing.values()) >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LiveTable, "show", interrupt)
        for words in (["run", str(inputs), "--out", str(out)], ["resume", str(out)]):
            assert main(["attack", *words, "--workers", "0"]) == 130
            said = capsys.readouterr().err
            assert said.endswith(f"\nvariegate: interrupted; to continue: variegate attack resume {out}\n")
            assert "run again" not in said
    assert main(["attack", "resume", str(out), "--workers", "0"]) == 0
    assert content(out) == content(alone)


def test_two_processes_cannot_run_one_campaign(fresh: Path) -> None:
    code = (
        "import fcntl, os, sys, time; d = os.open(sys.argv[1], os.O_RDONLY);"
        "fcntl.flock(d, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, fresh], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            with pytest.raises(MisuseError, match="another process"):
                runner.run(fresh, engine="serial")
        finally:
            holder.kill()


def test_a_plan_asks_no_more_than_it_says(prepared: Prepared, alone: Path) -> None:
    made = plan(prepared, measure_s=0.01)
    by_name = {one.fleet: one for one in made.fleets}
    for fleet, sums in (
        (row[0], row[1:])
        for row in query(
            alone,
            "SELECT fleet, count(*), sum(queries), sum(clean_queries), sum(replay_queries) FROM units GROUP BY ALL",
        ).rows
    ):
        one = by_name[fleet]
        assert one.units == sums[0]
        assert sums[1] <= one.queries <= 1.2 * sums[1]
        assert one.clean_queries == sums[2]
        assert sums[3] <= one.replay_queries <= 1.2 * sums[3]
        assert one.labels_per_s is not None
        assert one.labels_per_s > 0
    perm = by_name["perm"]
    assert perm.device_hours == pytest.approx(6 * (120 + 60) / 30 / 3600)
    stored = sum(path.stat().st_size for path in alone.rglob("*.parquet"))
    assert stored < sum(one.bytes for one in made.fleets) < 4 * stored


def test_verify_asks_again_and_agrees(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(alone)
    assert main(["attack", "verify", str(alone), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["differences"], facts["done"]) == ([], 22)
    counted = query(alone, "SELECT (SELECT count(sample) FROM samples), (SELECT count(*) FROM replays)").rows[0]
    assert (facts["samples"], facts["replays"]) == counted
    few = verify(alone, sample=4)
    assert 0 < few.samples <= 4
    assert few.replays < facts["replays"]
    assert content(alone) == before


CORRUPTED = [
    ("shard", "is not what the ledger knows"),
    ("missing shard", "cannot read"),
    ("foreign shard", "is the shard of no unit"),
    ("ledger's count", "queries, and the ledger"),
    ("ledger's clean count", "queries of clean images"),
    ("ledger's unit", "does not have the campaign's units"),
    ("ledger's bytes", "the ledger is damaged"),
    ("campaign.toml", "was changed since"),
    ("inputs/images.npz", "was changed since"),
    ("inputs/copies.cbor", "was changed since"),
]


@pytest.mark.parametrize(("what", "words"), CORRUPTED)
def test_what_was_changed_is_found_and_not_resumed(
    what: str, words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = sorted((copied / "replays").glob("*.parquet"))[3]
    ledger = copied / "ledger.sqlite"
    statements = {
        "ledger's count": "UPDATE units SET queries = queries + 1 WHERE number = 2",
        "ledger's clean count": "UPDATE units SET clean_queries = 0 WHERE number = 2",
        "ledger's unit": "DELETE FROM units WHERE number = 2",
    }
    if what in statements:
        with closing(sqlite3.connect(ledger)) as db:
            db.execute(statements[what])
            db.commit()
    elif what == "foreign shard":
        shutil.copy(shard, shard.with_name("other.parquet"))
    elif what == "missing shard":
        shard.unlink()
    else:
        path = {"shard": shard, "ledger's bytes": ledger}.get(what, copied / what)
        data = bytearray(path.read_bytes())
        if what == "ledger's bytes":
            data[4096:] = os.urandom(len(data) - 4096)
        else:
            data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert main(["attack", "verify", str(copied), "--sample", "0"]) == 1
    found = capsys.readouterr()
    assert words in found.out + found.err
    assert main(["attack", "resume", str(copied), "--workers", "0"]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("what", ["lost shards", "changed shard", "not a file", "ledger's count"])
def test_damaged_units_are_done_again_when_asked_to(
    what: str, alone: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = "qim.hsj.0001.00001"
    samples, replays = (folder.shard(copied, kind, unit) for kind in (folder.SAMPLES, folder.REPLAYS))
    match what:
        case "lost shards":
            samples.unlink()
            replays.unlink()
        case "changed shard":
            replays.write_bytes(samples.read_bytes())
        case "not a file":
            samples.unlink()
            os.mkfifo(samples)
        case _:
            with closing(sqlite3.connect(copied / "ledger.sqlite")) as db:
                db.execute("UPDATE units SET queries = queries + 1 WHERE name = ?", (unit,))
                db.commit()
    command = ["attack", "resume", str(copied), "--workers", "0", "--json"]
    assert main(command) == 1
    assert "--redo-damaged" in capsys.readouterr().err
    assert main([*command, "--redo-damaged"]) == 0
    said = capsys.readouterr()
    assert f"unit {unit} is done again: " in said.err
    assert list(json.loads(said.out)["redone"]) == [unit]
    assert content(copied) == content(alone)
    ((noted, reason),) = query(copied, "SELECT * FROM failures").rows
    assert noted == unit
    assert reason.startswith("to be done again: ")
    assert main(command) == 0


def test_damage_beyond_units_is_refused_also_when_they_are_done_again(copied: Path) -> None:
    shutil.copy(next((copied / "replays").glob("*.parquet")), copied / "replays" / "other.parquet")
    with pytest.raises(RefusedError, match="is the shard of no unit"):
        runner.run(copied, engine="serial", redo_damaged=True)


Row = dict[str, Any]
FORGED: dict[str, tuple[str, Callable[[Row], Row]]] = {
    "sample": (folder.SAMPLES, lambda row: {"sample": bytes(len(row["sample"])), "label": 4 - row["label"]}),
    "distance": (folder.SAMPLES, lambda row: {"distance": row["distance"] / 2}),
    "no distance": (folder.SAMPLES, lambda _: {"distance": None}),
    "true class": (folder.SAMPLES, lambda row: {"true_class": row["true_class"] + 1}),
    "image": (folder.SAMPLES, lambda row: {"image": row["image"] + 1000}),
    "attacker": (folder.SAMPLES, lambda row: {"attacker": row["attacker"] + 1}),
    "fleet": (folder.SAMPLES, lambda row: {"fleet": row["fleet"] + "x"}),
    "profile": (folder.SAMPLES, lambda _: {"profile": "art-1.20"}),
    "norm": (folder.SAMPLES, lambda row: {"norm": {"l2": "linf", "linf": "l2"}[row["norm"]]}),
    "target": (folder.SAMPLES, lambda row: {"target": 4 if row["target"] is None else None}),
    "status": (folder.SAMPLES, lambda _: {"status": "none"}),
    "budgets": (folder.SAMPLES, lambda row: {"budgets": [at + 1 for at in row["budgets"]] or [1]}),
    "label shown": (folder.REPLAYS, lambda row: {"label": 4 - row["label"] if row["label"] != 2 else 0}),
    "true class shown": (folder.REPLAYS, lambda row: {"true_class": row["true_class"] + 1}),
    "attacker shown": (folder.REPLAYS, lambda row: {"attacker": row["attacker"] + 1}),
    "target shown": (folder.REPLAYS, lambda row: {"target": 4 if row["target"] is None else None}),
    "length shown": (folder.REPLAYS, lambda row: {"l2": row["l2"] * 2}),
}


def forged(made: Path, unit: str, which: str, change: Callable[[Row], Row]) -> None:
    """Changes a unit's rows, and the digest that the ledger has of them."""
    schema = shards.SAMPLES if which == folder.SAMPLES else shards.REPLAYS
    path = folder.shard(made, which, unit)
    rows = [row | change(row) for row in shards.from_bytes(schema, path.read_bytes(), "it")]
    data = shards.to_bytes(schema, {name: [row[name] for row in rows] for name in schema.names})
    path.write_bytes(data)
    with closing(sqlite3.connect(made / "ledger.sqlite")) as db:
        db.execute(f"UPDATE units SET {which}_sha256 = ? WHERE name = ?", (sha256(data).hex(), unit))
        db.commit()


@pytest.mark.parametrize("name", FORGED)
def test_a_shard_forged_together_with_its_digest_is_found(name: str, copied: Path) -> None:
    unit = "qim.hsj.0001.00001"
    forged(copied, unit, *FORGED[name])
    assert runner.run(copied, engine="serial").failed == ()  # digests agree, so it is not seen
    found = verify(copied).differences
    assert found
    assert all(unit in line for line in found)


def test_targets_forged_in_both_shards_are_found_by_asking(copied: Path) -> None:
    unit = "perm.aimed.0000.00000"
    for which in (folder.SAMPLES, folder.REPLAYS):
        forged(copied, unit, which, lambda row: {"target": (row["target"] + 1) % CLASSES})
    assert any("is aimed at" in line for line in verify(copied).differences)
    assert verify(copied, sample=0).differences == ()


def test_what_follows_from_the_inputs_is_compared_where_no_copy_is_asked(copied: Path) -> None:
    unit = "qim.hsj.0001.00001"
    forged(copied, unit, *FORGED["true class shown"])
    assert verify(copied, sample=0).differences == (f"{unit}: true_class of the replays is not that of the samples",)


def test_a_changed_outcome_under_way_is_refused_or_asked_again(alone: Path, fresh: Path) -> None:
    runner_stops = {"n": 0}

    def stop(standing: runner.Standing) -> None:
        runner_stops["n"] += 1
        if sum(row.images for row in standing.values()) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(fresh, engine="serial", watch=stop)
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        db.execute("UPDATE outcomes SET outcome = zeroblob(40)")
        db.commit()
    with pytest.raises(RefusedError, match="was changed") as caught:
        runner.run(fresh, engine="serial")
    assert caught.value.refusal is Refusal.MALFORMED
    assert len(runner.run(fresh, engine="serial", redo_damaged=True).redone) == 1
    assert content(fresh) == content(alone)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY samples TO 'x.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 42 AS a) TO '{}'",
        "WITH x AS (COPY (SELECT 42 AS a) TO '{}') SELECT * FROM x",
        "SELECT * FROM read_parquet('{}')",
        "WITH x AS (DELETE FROM samples RETURNING *) SELECT * FROM x",
        "SELECT 1; SELECT 2",
        "DROP VIEW samples",
        "SET enable_external_access = true",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
        "SELECT nothing",
        "not SQL",
        "",
    ],
)
def test_a_query_only_reads_results(statement: str, alone: Path) -> None:
    before = content(alone)
    with pytest.raises(MisuseError):
        query(alone, statement.format(next((alone / "samples").glob("*.parquet"))))
    assert content(alone) == before


def test_queries_from_the_command_line(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT status, sample, distance, budgets FROM samples ORDER BY image LIMIT 1"
    assert main(["attack", "query", str(alone), sql, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"status", "sample", "distance", "budgets"}
    assert main(["attack", "query", str(alone), sql]) == 0
    assert "status" in capsys.readouterr().out


def test_queries_lose_no_column_and_structures_are_json(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(sql: str) -> object:
        assert main(["attack", "query", str(alone), sql, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert asked("SELECT 1 a, 2 a, 3 a_2, 4 a") == [{"a": 1, "a_3": 2, "a_2": 3, "a_4": 4}]
    assert asked("SELECT {'x': [1, NULL], 'y': {'z': 'inf'::DOUBLE}} s, map([1], [true]) m") == [
        {"s": {"x": [1, None], "y": {"z": "inf"}}, "m": {"1": True}}
    ]
    assert main(["attack", "query", str(alone), "SELECT {'x': ['a', NULL], 'y': true} s, 1 a, 2 a"]) == 0
    assert capsys.readouterr().out == 's                              a  a\n{"x": ["a", null], "y": true}  1  2\n'


def test_control_characters_in_results_do_not_reach_a_terminal(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clear = "chr(27) || '[2J' || chr(10) || 'x'"
    assert main(["attack", "query", str(alone), f"SELECT {clear} AS \"a\x1b\", ['{chr(155)}'] b"]) == 0
    assert capsys.readouterr().out == 'a?      b\n?[2J?x  ["?"]\n'
    assert main(["attack", "query", str(alone), f"SELECT CAST({clear} AS INTEGER)"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("what", ["changed", "lost", "pipe", "folder"])
def test_queries_do_not_answer_from_shards_that_the_ledger_does_not_know(
    what: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((copied / "samples").glob("qim.hsj.*.parquet"))[:2]
    if what == "changed":
        first.write_bytes(second.read_bytes())
    else:
        first.unlink()
    if what == "pipe":
        os.mkfifo(first)
    elif what == "folder":
        first.mkdir()
    assert main(["attack", "query", str(copied), "SELECT count(*) FROM samples"]) == 1
    said = capsys.readouterr()
    assert first.name in said.err
    assert "--redo-damaged" in said.err
    assert said.out == ""


def test_what_is_no_campaign_is_misuse(tmp_path: Path, inputs: Path) -> None:
    for verb in (["resume"], ["verify"], ["query"], ["report"]):
        more = ["SELECT 1"] if verb == ["query"] else []
        assert main(["attack", *verb, str(tmp_path), *more]) == 2
    (tmp_path / "there").mkdir()
    for out in ("there", "missing/there", "with[glob]"):
        assert main(["attack", "run", str(inputs), "--out", str(tmp_path / out)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_a_folder_that_cannot_be_made_is_told_before_work_is_spent(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody makes files there, root included.
    assert main(["attack", "run", str(inputs), "--out", "/proc/campaign"]) == 2
    (line, hint) = capsys.readouterr().err.splitlines()
    assert line.startswith("variegate: cannot make /proc/campaign: ")
    assert hint == "hint: name a folder that you may write in"


def test_all_source_that_searches_and_replays_counts_as_software() -> None:
    modules = ("driver", "kinds", "adaptive.clone", "campaign.replay", "oracles.vehicle")
    needed = {file for module in modules for file in source_of(f"variegate.attack.{module}")}
    counted = {str(path.relative_to(REPOSITORY)) for path in sources()}
    assert {file for file in needed if file.startswith("attack/") and not file.endswith("__init__.py")} - {
        "attack/oracles/address.py", "attack/oracles/check.py", "attack/oracles/patience.py", "attack/trial.py",
        *(f"attack/oracles/{way}.py" for way in ("http", "http_line", "oip", "port", "socket")),
    } <= counted  # fmt: skip
    assert {"attack/overshoot.py", "export/intake/probe.py"} <= counted


def test_other_software_does_not_go_on_unasked(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert difference(software(), software()) == ""
    assert difference("not JSON", software()) == "unknown"
    assert difference('{"\\u001b[31mred": 1}', "{}") == "unknown"
    assert difference("[" * 100_000, software()) == "unknown"
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        db.execute("UPDATE meta SET value = replace(value, '\"numpy\": \"', '\"numpy\": \"0.') WHERE key = 'software'")
        db.commit()
    assert main(["attack", "resume", str(fresh), "--workers", "0"]) == 2
    assert "begun with other software: numpy" in capsys.readouterr().err
    assert main(["attack", "resume", str(fresh), "--workers", "0", "--any-software"]) == 0


def test_a_mixture_of_software_is_told_to_whoever_reads_results(
    fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        db.execute("UPDATE meta SET value = replace(value, '\"numpy\": \"', '\"numpy\": \"0.') WHERE key = 'software'")
        db.commit()
    for _ in range(2):  # nothing is left the second time, and nothing is noted twice
        assert main(["attack", "resume", str(fresh), "--workers", "0", "--any-software"]) == 0
    capsys.readouterr()
    assert main(["attack", "verify", str(fresh), "--sample", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mixed"] == "numpy"
    assert main(["attack", "report", str(fresh), "--out", str(tmp_path / "report")]) == 0
    words = "Results are a mixture: more than one software made them (numpy)."
    assert words in (tmp_path / "report" / "index.html").read_text()
    assert words in (tmp_path / "report" / "evidence" / "evidence.json").read_text()
    first, second = json.loads((tmp_path / "report" / "digests.json").read_text())["software"]
    assert json.loads(first)["numpy"] == "0." + json.loads(second)["numpy"]
    assert second == software()
