"""A campaign's ledger, shards and folders that somebody changed, or that grew too large to be read again."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_campaign import content
from variegate.attack.campaign import config, data, folder, runner, shards
from variegate.attack.campaign.ledger import Ledger
from variegate.attack.campaign.prepare import Prepared, prepare
from variegate.attack.campaign.query import open_results, query
from variegate.attack.campaign.verify import verify
from variegate.attack.report.write import write_report
from variegate.cli.main import main
from variegate.keys.errors import MisuseError, Refusal, RefusedError

pytest_plugins = "tests.support.campaign_fixtures"


def changed(made: Path, script: str) -> None:
    with closing(sqlite3.connect(made / "ledger.sqlite")) as db:
        db.executescript(script)


def resumed(made: Path) -> runner.Ended:
    return runner.run(made, engine="serial")


def redone(made: Path) -> runner.Ended:
    return runner.run(made, engine="serial", redo_damaged=True)


@pytest.fixture
def reported(tmp_path: Path) -> Callable[[Path], object]:
    return lambda made: write_report(made, tmp_path / "report")


@pytest.mark.parametrize(
    "script",
    [
        # With another query in it, this view would never end.
        "ALTER TABLE units RENAME TO u; CREATE VIEW units AS SELECT * FROM u",
        "DROP TABLE outcomes; CREATE TABLE outcomes (unit, image); INSERT INTO outcomes VALUES (NULL, 1)",
        "CREATE TRIGGER t AFTER INSERT ON failures BEGIN DELETE FROM units; END",
        "CREATE INDEX i ON units (fleet)",
        "CREATE TABLE more (a)",
    ],
)
def test_tables_that_are_not_those_of_a_ledger_are_damage_to_everybody(
    script: str, copied: Path, reported: Callable[[Path], object]
) -> None:
    changed(copied, script)
    before = (copied / "ledger.sqlite").read_bytes()
    for reader in (verify, open_results, reported, resumed, redone):
        with pytest.raises(RefusedError, match="the ledger is damaged") as caught:
            reader(copied)
        assert caught.value.refusal is Refusal.MALFORMED
    assert (copied / "ledger.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE units SET images = CAST(x'5bff5d' AS TEXT) WHERE number = 2",
        "UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE key = 'software'",
        "INSERT INTO failures (unit, reason) VALUES ('a', CAST(x'ff' AS TEXT))",
    ],
)
def test_text_that_is_no_text_is_damage_and_no_full_disk(
    script: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(copied, script)
    readers = [["query", str(copied), "SELECT 1"]]
    if "failures" not in script:
        readers += [["verify", str(copied), "--sample", "0"], ["resume", str(copied), "--workers", "0"]]
    for words in readers:
        assert main(["attack", *words]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"variegate: the ledger is damaged: {copied / 'ledger.sqlite'}\n")
        assert "space left" not in said


@pytest.mark.parametrize("what", ["fleet", "attack", "copy", "images"])
def test_a_unit_that_is_none_of_the_campaigns_is_refused(
    what: str, copied: Path, reported: Callable[[Path], object]
) -> None:
    old, lost = "qim.hsj.0001.00001", "qim.hsj.0000.00000"
    new = {"fleet": "zzz.hsj.0001.00001", "attack": "qim.zzz.0001.00001", "copy": "qim.hsj.0007.00001"}.get(what, old)
    fleet, attack, attacker, _ = new.split(".")
    images = ", images = '[998, 999]'" if what == "images" else ""
    changed(
        copied,
        f"UPDATE units SET name = '{new}', fleet = '{fleet}', attack = '{attack}', attacker = {int(attacker)} {images}"
        f" WHERE name = '{old}'",
    )
    for kind in (folder.SAMPLES, folder.REPLAYS):
        folder.shard(copied, kind, old).rename(folder.shard(copied, kind, new))
    # Another one's loss is not mended first.
    folder.shard(copied, folder.SAMPLES, lost).unlink()
    for reader in (verify, resumed, redone):
        with pytest.raises(RefusedError, match=f"does not have the campaign's units: {new} is none") as caught:
            reader(copied)
        assert caught.value.refusal is Refusal.MALFORMED
    with pytest.raises(RefusedError, match="does not have the units of its"):
        reported(copied)
    with Ledger(copied, write=False) as ledger:
        assert {entry.state for entry in ledger.entries()} == {"done"}


def test_a_shard_that_could_not_be_read_again_fails_its_unit(
    alone: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {path.stem: path.stat().st_size for path in (alone / "samples").glob("*.parquet")}
    largest = {path.stem: max(path.stat().st_size, sizes[path.stem]) for path in (alone / "replays").glob("*.parquet")}
    limit = sorted(largest.values())[len(largest) // 2]
    too_large = {unit for unit, size in largest.items() if size > limit}
    with monkeypatch.context() as patch:
        patch.setattr(folder, "MAX_SHARD_BYTES", limit)
        ended = resumed(fresh)
        assert {unit for unit, _ in ended.failed} == too_large
        assert all("a smaller [run] unit" in reason for _, reason in ended.failed)
        assert ended.done == ended.units - len(too_large) > 0
        assert {path.stem for kind in ("samples", "replays") for path in (fresh / kind).iterdir()} == (
            set(largest) - too_large
        )
        assert verify(fresh, sample=0).differences == ()
        assert {unit for unit, _ in resumed(fresh).failed} == too_large
    assert resumed(fresh).failed == ()
    assert content(fresh) == content(alone)


def test_inputs_may_be_more_than_a_users_file(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = inputs.with_name("big.toml")
    file.write_text(inputs.read_text().replace("count = 6", 'count = 180\nchoose = "random"'))
    size = (inputs.parent / "images.npz").stat().st_size
    monkeypatch.setattr(data, "MAX_BYTES", size)
    folder.create(tmp_path / "c", prepare(config.load(file), inputs.parent))
    assert (tmp_path / "c" / "inputs" / "images.npz").stat().st_size > size
    assert len(folder.read(tmp_path / "c").images) == 180


@pytest.mark.parametrize("name", ["images", "copies"])
def test_inputs_that_could_not_be_read_again_are_not_made(
    name: str, fresh: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {path.stem: path.stat().st_size for path in (fresh / "inputs").iterdir()}
    monkeypatch.setattr(folder, "MAX_INPUT_BYTES", sizes[name] - 1)
    with pytest.raises(RefusedError, match="can be read again") as caught:
        folder.create(fresh.with_name("c"), prepared)
    assert caught.value.refusal is Refusal.TOO_LARGE
    assert [path.name for path in fresh.parent.iterdir()] == ["fresh"]


@pytest.mark.parametrize("schema", [shards.SAMPLES, shards.REPLAYS])
def test_a_shard_whose_text_is_no_text_is_refused(schema: pa.Schema) -> None:
    wrong = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    columns = {field.name: pa.nulls(1, field.type) for field in schema}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**columns, "norm": wrong}, schema=schema), sink, store_schema=False)
    for read in (shards.read, shards.from_bytes):
        with pytest.raises(RefusedError, match="it is no Parquet file") as caught:
            read(schema, bytes(sink.getvalue()), "it")
        assert caught.value.refusal is Refusal.MALFORMED


def test_a_folder_of_shards_that_is_lost_is_made_again(alone: Path, copied: Path, fresh: Path) -> None:
    shutil.rmtree(copied / "samples")
    with pytest.raises(RefusedError, match="cannot read"):
        resumed(copied)
    assert len(redone(copied).redone) == 22
    assert content(copied) == content(alone)
    for kind in (folder.SAMPLES, folder.REPLAYS):
        (fresh / kind).rmdir()
    resumed(fresh)
    assert content(fresh) == content(alone)


@pytest.mark.parametrize("what", ["link", "file"])
def test_a_lost_folder_is_not_made_through_links_and_nothing_is_given_up(what: str, copied: Path) -> None:
    shutil.rmtree(copied / "replays")
    if what == "link":
        (copied / "replays").symlink_to(copied.with_name("elsewhere"))
    else:
        (copied / "replays").write_text("")
    with pytest.raises(MisuseError, match=r"cannot write shards in .*/replays: file exists") as caught:
        redone(copied)
    assert caught.value.hint == "shards need a folder there that you may write in"
    assert not copied.with_name("elsewhere").exists()
    with Ledger(copied, write=False) as ledger:
        assert {entry.state for entry in ledger.entries()} == {"done"}
        assert ledger.failures() == []


def test_units_that_are_only_missing_are_listed_beside_all_else(copied: Path) -> None:
    changed(copied, "DELETE FROM units WHERE name = 'qim.hsj.0001.00001'")
    found = verify(copied, sample=0).differences
    assert found[0] == "the ledger does not have the campaign's units"
    assert len(found) == 3
    assert query(copied, "SELECT count(*) FROM units").rows == ((21,),)
