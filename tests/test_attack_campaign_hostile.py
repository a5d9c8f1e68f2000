"""A campaign's folder that somebody changed: refused as damage, by everybody who reads it."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import onnx
import pytest

from testbed.bases import CLASSES
from tests.support.small_campaign import write_inputs
from variegate.attack.campaign import config, copies_file, folder, runner
from variegate.attack.campaign.ledger import Ledger
from variegate.attack.campaign.prepare import Prepared, prepare
from variegate.attack.campaign.query import open_results
from variegate.attack.campaign.verify import verify
from variegate.attack.report.write import write_report
from variegate.cli.main import main
from variegate.export.intake.base import load_base
from variegate.export.intake.contract import InputSpec
from variegate.export.release import make_release
from variegate.export.rewriters import Permutation, Qim
from variegate.keys.errors import MisuseError, RefusedError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    file = write_inputs(tmp_path_factory.mktemp("inputs"))
    return prepare(config.load(file), file.parent)


@pytest.fixture
def fresh(prepared: Prepared, tmp_path: Path) -> Path:
    out = tmp_path / "fresh"
    folder.create(out, prepared)
    return out


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE units SET name = '/etc/passwd' WHERE number = 2",
        "UPDATE units SET name = '../' || name WHERE number = 2",
        "UPDATE units SET name = name || x'0a' WHERE number = 2",
        "UPDATE units SET attacker = 7 WHERE number = 2",
        "UPDATE units SET images = '[1.5]' WHERE number = 2",
        f"UPDATE units SET images = '{'[' * 60_000}' WHERE number = 2",
    ],
)
def test_units_that_no_campaign_has_are_damage_to_everybody(change: str, fresh: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        db.execute(change)
        db.commit()
    for reader in (verify, open_results, lambda folder: write_report(folder, tmp_path / "report")):
        with pytest.raises(RefusedError, match="the ledger is damaged"):
            reader(fresh)


@pytest.mark.parametrize("what", ["empty", "another's tables", "no tables"])
def test_a_ledger_without_its_tables_is_damage_in_a_folder_that_is_named(
    what: str, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fresh / "ledger.sqlite").write_bytes(b"")
    if what != "empty":
        with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
            db.executescript("CREATE TABLE meta (a, b)" if what == "another's tables" else "PRAGMA user_version = 1")
    for words in (["resume"], ["verify"], ["query", "SELECT 1"]):
        assert main(["attack", words[0], str(fresh), *words[1:]]) == 1
        said = capsys.readouterr().err
        assert f"variegate: the ledger is damaged: {fresh / 'ledger.sqlite'}\n" in said
        assert "space left" not in said


@pytest.mark.parametrize("value", ["", "[]", '{"qim": 1.5}', "[" * 60_000])
def test_labels_to_choose_images_that_are_no_numbers_are_damage(value: str, fresh: Path) -> None:
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'choosing'", (value,))
        db.commit()
    with Ledger(fresh, write=False) as ledger, pytest.raises(RefusedError, match="the ledger is damaged"):
        assert ledger.choosing
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        db.execute("DELETE FROM meta WHERE key = 'choosing'")
        db.commit()
    with Ledger(fresh, write=False) as ledger:
        assert ledger.choosing == {}


@pytest.mark.parametrize(("image", "outcome"), [("0", "NULL"), ("0", "'x'"), ("'x'", "x''")])
def test_an_outcome_that_is_no_bytes_or_of_no_image_is_refused(image: str, outcome: str, fresh: Path) -> None:
    # Put there by whoever passes the table off as one that does not take it.
    made = "CREATE TABLE outcomes (unit TEXT, image ANY, sha256 TEXT, outcome ANY, PRIMARY KEY (unit, image))"
    with closing(sqlite3.connect(fresh / "ledger.sqlite")) as db:
        (own,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'outcomes'").fetchone()
        db.execute("DROP TABLE outcomes")
        db.execute(made)
        db.execute(f"INSERT INTO outcomes SELECT name, {image}, '', {outcome} FROM units LIMIT 1")
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'outcomes'", (own,))
        db.commit()
    with pytest.raises(RefusedError, match="the ledger is damaged"):
        runner.run(fresh, engine="serial")


def test_copies_are_their_owners_alone(fresh: Path) -> None:
    assert (fresh / "inputs" / "copies.cbor").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["fewer images", "another fleet"])
def test_inputs_that_do_not_fit_one_another_are_refused(what: str, prepared: Prepared, tmp_path: Path) -> None:
    one = prepared.images
    made = {
        "fewer images": replace(prepared, images=replace(one, x=one.x[:2], y=one.y[:2], index=one.index[:2])),
        "another fleet": replace(prepared, fleets=prepared.fleets[::-1]),
    }[what]
    folder.create(tmp_path / "c", made)
    with pytest.raises(RefusedError, match="are not those of its"):
        runner.run(tmp_path / "c", engine="serial")


def test_of_two_that_make_one_folder_one_is_told_that_it_is_there(prepared: Prepared, tmp_path: Path) -> None:
    for number in range(8):
        out, both = tmp_path / str(number), Barrier(2)

        def made(out: Path = out, both: Barrier = both) -> str:
            both.wait()
            try:
                folder.create(out, prepared)
            except MisuseError as error:
                return error.message
            return "made"

        with ThreadPoolExecutor(2) as pool:
            said = sorted(one.result() for one in [pool.submit(made), pool.submit(made)])
        assert said == [f"{out} is there already", "made"]
        with Ledger(out, write=False) as ledger:
            folder.read(out, ledger.meta)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_somebody_holds_is_not_waited_for_without_end(
    prepared: Prepared, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_WAIT_S", 0.1)
    with Ledger(fresh, write=True), pytest.raises(MisuseError, match="another process holds"):
        folder.create(fresh / "inner", prepared)
    assert not (fresh / "inner").exists()


def test_a_campaign_takes_the_class_names_of_its_releases(tmp_path: Path) -> None:
    file = write_inputs(tmp_path)
    with np.load(tmp_path / "images.npz") as images:
        pictures = images["x"]
    for release, letter in (("long", "x"), ("other", "y")):
        spec = InputSpec(class_names=tuple(letter * 150 + str(i) if i else letter for i in range(CLASSES)))
        base = load_base(tmp_path / "a.onnx", spec)
        make_release(release, base, Permutation(alpha=0.3), pictures).save(tmp_path / release)
    text = file.read_text().replace('bases = ["a.onnx"]', 'release = "long"')
    text = text.replace('rewriter = { kind = "permutation", alpha = 0.3 }\ndtype = "float32"\n', "")
    file.write_text(text)
    out = tmp_path / "campaign"
    prepared = prepare(config.load(file), tmp_path)
    assert prepared.campaign.data.class_names == ("x", *["x" * 100] * (CLASSES - 1))
    folder.create(out, prepared)
    assert folder.read(out).campaign == prepared.campaign
    qim = 'bases = ["a.onnx", "b.onnx"]\nrewriter = { kind = "qim", grid = [4, 4], beta = 0.5 }'
    file.write_text(text.replace(qim, 'release = "other"'))
    assert prepare(config.load(file), tmp_path).campaign.data.class_names == ()


def test_a_fleet_of_a_release_is_what_its_base_and_rewriter_would_be(tmp_path: Path) -> None:
    file = write_inputs(tmp_path)
    with np.load(tmp_path / "images.npz") as images:
        pictures = images["x"]
    base = load_base(tmp_path / "a.onnx", InputSpec())
    make_release("spring", base, Qim(grid=(4, 4), beta=0.5), pictures).save(tmp_path / "spring")
    bases = 'bases = ["a.onnx", "b.onnx"]\nrewriter = { kind = "qim", grid = [4, 4], beta = 0.5 }'
    assert bases in file.read_text()
    text = file.read_text()
    made = {}
    for name, words in (("fused", bases.replace(', "b.onnx"', "")), ("released", 'release = "spring"')):
        file.write_text(text.replace(bases, words))
        made[name] = prepare(config.load(file), tmp_path).fleets
    assert copies_file.to_bytes(made["released"]) == copies_file.to_bytes(made["fused"])
    (tmp_path / "spring" / "payload.bin").write_bytes(b"x")
    with pytest.raises(RefusedError, match=r"fleet\[0\].release is refused: payload.bin is not the one"):
        prepare(config.load(file), tmp_path)
    shutil.rmtree(tmp_path / "spring")
    with pytest.raises(RefusedError, match=r"fleet\[0\].release is refused: .* is not a release folder"):
        prepare(config.load(file), tmp_path)


def test_a_fleet_that_misreads_most_images_is_told(tmp_path: Path) -> None:
    file, told = write_inputs(tmp_path), list[str]()
    model = onnx.load(tmp_path / "a.onnx")
    turned = -onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(turned, "w"))
    onnx.save(model, tmp_path / "c.onnx")
    file.write_text(file.read_text().replace('bases = ["a.onnx"]', 'bases = ["c.onnx"]'))
    with contextlib.suppress(RefusedError):  # too few images are left
        prepare(config.load(file), tmp_path, tell=told.append)
    assert any(
        re.search(r"^fleet perm was asked for \d+ labels to choose images, and read \d+ rightly$", s) for s in told
    )
    (warning,) = [line for line in told if "as its bases want them?" in line]
    assert re.match(r"fleet perm reads \d+% of images rightly, the best fleet \d+%: are mean, std and layout", warning)
