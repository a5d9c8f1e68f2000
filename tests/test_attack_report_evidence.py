"""Evidence for assessors: factors and sums, effort, the assessor's file, and a manifest that shows every change."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import campaigns
from tests.support.campaigns import replay, sample
from tests.support.small_campaign import write_inputs
from variegate.attack.campaign import config, images, runner
from variegate.attack.campaign import folder as campaign_folder
from variegate.attack.campaign.prepare import prepare
from variegate.attack.report import attack_potential
from variegate.attack.report.assessment import DEFAULTS, Assessment, parse
from variegate.attack.report.atlas import techniques
from variegate.attack.report.attack_potential import SCALES, elapsed, rate
from variegate.attack.report.data import open_campaign
from variegate.attack.report.effort import Effort, efforts
from variegate.attack.report.manifest import MANIFEST, SIGNATURE, verify_evidence
from variegate.attack.report.results import compute
from variegate.attack.report.weaknesses import CHOSEN, NO_LEDGER
from variegate.attack.report.write import write_report
from variegate.cli.main import main
from variegate.keys.errors import MisuseError, Refusal, RefusedError
from variegate.keys.seller import Seller

SELLER = Seller.generate()
PASSPHRASE = "a long passphrase for tests"


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("campaign"))


def small(folder: Path) -> Path:
    """40 images, each found with 1000 queries; 10 of the 40 samples fool the other copy."""
    samples = [sample(image) for image in range(40)]
    replays = [replay(image, 0, fooled=True) for image in range(40)]
    replays += [replay(image, 1, fooled=image < 10) for image in range(40)]
    return campaigns.write_whole(folder, samples, replays, frame_rate=10.0)


@pytest.fixture(scope="module")
def signed(campaign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(campaign, tmp_path_factory.mktemp("signed") / "report", signer=SELLER.signer).parent


@pytest.fixture
def copied(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "report"))


def effort_of(folder: Path) -> Effort:
    with open_campaign(folder) as loaded:
        (effort,) = efforts(compute(loaded), loaded.config)
    return effort


def test_effort_is_queries_over_rates_and_the_frame_rate(campaign: Path) -> None:
    effort = effort_of(campaign)
    assert (effort.own, effort.own_budget, effort.rate.hertz, effort.rate.stated) == (1000, 0, 10, True)
    assert effort.rate.hours(36_000) == 1
    assert effort.once is not None
    assert effort.once.mean is not None
    assert effort.once.mean.mean == 4000
    assert effort.once.least.least == pytest.approx(1000 / effort.once.least.shown.wilson.high)
    assert 1000 < effort.once.least.least < 4000
    # One overshoot alone was shown.
    assert effort.every is not None
    assert effort.every.least.least == effort.once.least.least


def test_without_a_hit_only_a_bound_is_given(tmp_path: Path) -> None:
    samples = [sample(image) for image in range(20)]
    replays = [replay(image, victim, fooled=victim == 0) for image in range(20) for victim in range(3)]
    effort = effort_of(campaigns.write(tmp_path, samples, replays))
    assert effort.once is not None
    assert effort.once.mean is None
    # 40 pairs of 20 images, none hit: the interval by image is the wider.
    assert effort.once.least.least == pytest.approx(1000 / 0.16112515805281938)
    assert (effort.rate.hertz, effort.rate.stated) == (30, False)


def test_without_replays_there_is_no_way_to_another_copy(tmp_path: Path) -> None:
    effort = effort_of(campaigns.write(tmp_path, [sample(0), sample(1, found=False)], []))
    assert (effort.own, effort.once, effort.every) == (2000, None, None)


def stopping(folder: Path) -> Path:
    """20 images and 1000 queries each, of which one search ends after 100 and one has its first sample after 200.

    Taken after 200 queries a sample fools the other copy always, at the end never.
    """
    samples = [sample(image, queries=100 if image == 0 else 1000) for image in range(20)]
    replays = []
    for image in range(20):
        for budget in (0, 200):
            if (image, budget) == (1, 200):
                continue
            replays += [
                replay(image, 0, fooled=True, budget=budget),
                replay(image, 1, fooled=budget == 200, budget=budget),
            ]
    return campaigns.write(folder, samples, replays)


def test_the_cheapest_budget_is_rated(tmp_path: Path) -> None:
    folder = stopping(tmp_path / "c")
    effort = effort_of(folder)
    each = (100 + 19 * 200) / 19
    assert (effort.own, effort.own_budget) == (each, 200)
    assert effort.once is not None
    assert effort.once.mean is not None
    assert (effort.once.mean.budget, effort.once.mean.overshoot, effort.once.mean.mean) == (200, 1.0, each)
    assert (effort.once.least.budget, effort.once.least.least) == (200, each)
    out = write_report(folder, tmp_path / "out").parent
    document = json.loads((out / "evidence/evidence.json").read_text())
    hours = {path["path"]: path["query_hours"] for path in document["paths"]}
    assert hours == dict.fromkeys(("own", "other", "other_every"), each / 30 / 3600)
    (entry,) = document["effort"]
    assert entry["own"] == {"queries": each, "hours": each / 30 / 3600, "budget": 200, "distance": 0.5}
    assert (entry["other"]["least"]["budget"], entry["other"]["least"]["queries"]) == (200, each)
    assert "after 200 queries" in (out / "evidence/evidence.html").read_text()


def test_frames_that_an_assessor_calls_other_pictures_are_no_successes(tmp_path: Path) -> None:
    """After 10 queries all frames fool and are far; at the end half of them lie near."""
    samples = [sample(image, distance=0.5 if image < 5 else 3.0) for image in range(10)]
    replays = []
    for image in range(10):
        for budget, away in ((10, 9.0), (0, 0.5 if image < 5 else 3.0)):
            where: dict[str, Any] = {"budget": budget, "l2": away, "linf": away / 10}
            replays += [replay(image, victim, fooled=True, **where) for victim in range(2)]
    folder = campaigns.write(tmp_path / "c", samples, replays)
    wanted = {"": (10, 10.0, 9.0), "max_l2 = 1.0": (0, 2000.0, 0.5), "max_linf = 0.1": (0, 2000.0, 0.5)}
    for number, (bound, (budget, queries, away)) in enumerate(wanted.items()):
        out = write_report(folder, tmp_path / str(number), assessment=parse(f"schema = 1\n{bound}".encode())).parent
        document = json.loads((out / "evidence/evidence.json").read_text())
        (entry,) = document["effort"]
        assert (entry["own"]["budget"], entry["own"]["queries"]) == (budget, queries)
        mean = entry["other"]["mean"]
        assert (mean["budget"], mean["queries"], mean["distance"]) == (budget, queries, 9.0 if not bound else away)
        said = any("count as none" in line for line in document["limits"])
        assert said == bool(bound)
        # The report itself leaves nothing out.
        assert ((out / "index.html").read_bytes(), bound) == ((tmp_path / "0" / "index.html").read_bytes(), bound)


def test_a_victim_that_is_fooled_counts_whatever_the_own_copy_says(tmp_path: Path) -> None:
    """At s = 2 one frame of ten still fools its own copy, and all fool the other; at s = 1 the first half does."""
    replays = []
    for image in range(10):
        for s, own, other in ((1.0, True, image < 5), (2.0, image == 9, True)):
            replays += [replay(image, 0, fooled=own, overshoot=s), replay(image, 1, fooled=other, overshoot=s)]
    effort = effort_of(campaigns.write(tmp_path, [sample(image) for image in range(10)], replays))
    assert effort.once is not None
    assert effort.once.mean is not None
    # |B and C| / |B| is 1 of 1 at s = 2, and rests on one image; nine more were fooled.
    assert (effort.once.mean.overshoot, effort.once.mean.shown.hits, effort.once.mean.mean) == (2.0, 10, 1000)


def test_who_shows_every_overshoot_needs_fewer_samples(tmp_path: Path) -> None:
    """Images 0 to 3 fool at s = 1, images 4 to 7 at s = 2, none at both."""
    replays = []
    for image in range(10):
        for s, hit in ((1.0, image < 4), (2.0, 4 <= image < 8)):
            replays += [replay(image, 0, fooled=True, overshoot=s), replay(image, 1, fooled=hit, overshoot=s)]
    effort = effort_of(campaigns.write(tmp_path, [sample(image) for image in range(10)], replays))
    assert effort.once is not None
    assert effort.every is not None
    assert effort.once.mean is not None
    assert effort.every.mean is not None
    assert (effort.once.mean.mean, effort.every.mean.mean) == (2500, 1250)
    assert effort.every.mean.overshoot is None


@pytest.mark.parametrize(
    ("levels", "total", "feasibility"),
    [
        (("1 day", "layman", "public", "unlimited", "standard"), 0, "high"),
        (("1 month", "proficient", "restricted", "easy", "standard"), 11, "high"),
        (("1 week", "expert", "restricted", "moderate", "standard"), 14, "medium"),
        (("1 day", "expert", "restricted", "difficult", "standard"), 19, "medium"),
        (("6 months", "proficient", "public", "unlimited", "standard"), 20, "low"),
        (("6 months", "proficient", "public", "moderate", "standard"), 24, "low"),
        (("more than 6 months", "expert", "public", "unlimited", "standard"), 25, "very low"),
        (
            ("more than 6 months", "multiple experts", "strictly confidential", "difficult", "multiple bespoke"),
            57,
            "very low",
        ),
    ],
)
def test_sums_are_rated_as_the_standard_has_it(levels: tuple[str, ...], total: int, feasibility: str) -> None:
    rating = rate(dict(zip(SCALES, levels, strict=True)))
    assert (rating.total, rating.feasibility) == (total, feasibility)


@pytest.mark.parametrize(
    ("days", "level"),
    [
        (0, "1 day"),
        (1, "1 day"),
        (1.01, "1 week"),
        (7, "1 week"),
        (30, "1 month"),
        (31, "6 months"),
        (183, "more than 6 months"),
    ],
)
def test_elapsed_time_has_levels(days: float, level: str) -> None:
    assert elapsed(days) == level


def test_evidence_marks_what_is_measured_and_what_is_judged(signed: Path) -> None:
    document = json.loads((signed / "evidence/evidence.json").read_text())
    own, other, every = document["paths"]
    assert (own["path"], other["path"], every["path"]) == ("own", "other", "other_every")
    assert own["query_hours"] == pytest.approx(1000 / 36_000)
    assert own["factors"]["elapsed_time"] == {"level": "1 day", "value": 0, "basis": "measured"}
    assert {own["factors"][factor]["basis"] for factor in DEFAULTS} == {"default"}
    assert own["total"] == sum(factor["value"] for factor in own["factors"].values()) == 3
    (effort,) = document["effort"]
    assert (effort["frame_rate_hz"], effort["frame_rate_basis"]) == (10, "campaign")
    assert effort["other"]["mean"]["fooled_net"]["hits"] == 10
    assert effort["other"]["mean"]["fooled_net"]["trials"] == 40
    assert [tag["id"] for tag in document["mitre_atlas"]] == [
        "AML.T0015", "AML.T0040", "AML.T0042", "AML.T0043", "AML.T0043.001",
    ]  # fmt: skip
    assert document["attack_potential"]["scales"]["elapsed_time"]["1 month"] == 4


def test_an_assessors_file_changes_the_rating(campaign: Path, tmp_path: Path) -> None:
    text = """
    schema = 1
    assessor = "Jane <b>Doe</b>"
    hours_per_day = 0.01
    preparation_days = 20
    [specialist_expertise]
    level = "expert"
    reason = "<i>tooling</i> had to be written"
    [window_of_opportunity]
    level = "moderate"
    """
    out = write_report(campaign, tmp_path / "out", assessment=parse(text.encode())).parent
    own = json.loads((out / "evidence/evidence.json").read_text())["paths"][0]
    # 1000 queries at 10 frames/s are 0.0278 h, 2.8 days at 0.01 hours a day.
    assert own["days"] == pytest.approx(20 + 1000 / 36_000 / 0.01)
    assert own["factors"]["elapsed_time"]["level"] == "1 month"
    assert own["factors"]["specialist_expertise"] == {"level": "expert", "value": 6, "basis": "assessor"}
    assert own["factors"]["equipment"]["basis"] == "default"
    assert (own["total"], own["feasibility"]) == (14, "medium")
    page = (out / "evidence/evidence.html").read_text()
    assert "Jane &lt;b&gt;Doe" in page
    assert "<i>" not in page


@pytest.mark.parametrize(
    "text",
    [
        "",
        "schema = 2",
        "schema = 1\nunknown = 1",
        "schema = 1\nassessor = 3",
        "schema = 1\nhours_per_day = 0",
        "schema = 1\nhours_per_day = 25",
        "schema = 1\npreparation_days = nan",
        "schema = 1\npreparation_days = true",
        "schema = 1\nequipment = 1",
        '[equipment]\nlevel = "standard"',
        'schema = 1\n[equipment]\nlevel = "laser"',
        'schema = 1\n[equipment]\nlevel = "standard"\nvalue = 0',
        "schema = 1\n[equipment]\nlevel = [1]",
        "schema = 1\n[elapsed_time]\nlevel = '1 day'",
        "schema = ",
        "schema = 1\npreparation_days = 1" + "0" * 400,
        "schema = 1\npreparation_days = 1" + "0" * 5000,
        "schema = " + "[" * 60_000,
        "schema = 1\nassessor = '" + "x" * 70_000 + "'",
    ],
)
def test_a_wrong_assessment_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse(text.encode())


def test_an_assessment_without_judgements_is_the_defaults() -> None:
    assert parse(b"schema = 1") == Assessment()
    assert all(judgement.level in SCALES[factor] for factor, judgement in DEFAULTS.items())
    assert set(attack_potential.SCALES) - set(DEFAULTS) == {"elapsed_time"}


def test_a_signed_report_verifies_and_names_the_root(signed: Path) -> None:
    found = verify_evidence(signed, SELLER.root)
    assert found.signed
    assert found.fingerprint == SELLER.root.fingerprint.hex()
    assert found.files == len([path for path in signed.rglob("*") if path.is_file()]) - 2
    assert "not signed" not in (signed / "evidence/evidence.html").read_text()


def test_an_unsigned_report_says_so_and_is_refused_where_a_signature_is_wanted(campaign: Path, tmp_path: Path) -> None:
    out = write_report(campaign, tmp_path / "out").parent
    assert "not signed: nobody vouches" in (out / "evidence/evidence.html").read_text()
    assert not json.loads((out / MANIFEST).read_text())["signed"]
    assert not verify_evidence(out, None).signed
    with pytest.raises(RefusedError) as caught:
        verify_evidence(out, SELLER.root)
    assert caught.value.refusal is Refusal.SIGNATURE


def test_another_root_is_refused(signed: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        verify_evidence(signed, Seller.generate().root)
    assert caught.value.refusal is Refusal.SIGNATURE


def spoil(kind: str, report: Path) -> None:
    table, manifest = report / "tables/searches.csv", report / MANIFEST
    match kind:
        case "changed":
            table.write_bytes(table.read_bytes().replace(b"1000", b"9999"))
        case "removed":
            table.unlink()
        case "added":
            (report / "tables/more.csv").write_text("a")
        case "linked":
            table.rename(report.parent / "elsewhere.csv")
            table.symlink_to(report.parent / "elsewhere.csv")
        case "linked folder":
            (report / "tables").rename(report.parent / "tables")
            (report / "tables").symlink_to(report.parent / "tables")
        case "pipe":
            os.mkfifo(report / "tables/pipe")
        case "manifest":
            document = json.loads(manifest.read_text())
            document["files"].pop("tables/searches.csv")
            table.unlink()
            manifest.write_text(json.dumps(document))
        case "signature":
            data = bytearray((report / SIGNATURE).read_bytes())
            data[-1] ^= 1
            (report / SIGNATURE).write_bytes(data)
        case "no signature":
            (report / SIGNATURE).unlink()


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        ("changed", Refusal.EVIDENCE),
        ("removed", Refusal.EVIDENCE),
        ("added", Refusal.EVIDENCE),
        ("linked", Refusal.EVIDENCE),
        ("linked folder", Refusal.EVIDENCE),
        ("pipe", Refusal.EVIDENCE),
        ("manifest", Refusal.SIGNATURE),
        ("no signature", Refusal.SIGNATURE),
    ],
)
def test_what_was_changed_is_found(kind: str, refusal: Refusal, copied: Path) -> None:
    spoil(kind, copied)
    with pytest.raises(RefusedError) as caught:
        verify_evidence(copied, SELLER.root)
    assert caught.value.refusal is refusal


def test_a_spoilt_signature_is_refused(copied: Path) -> None:
    spoil("signature", copied)
    with pytest.raises(RefusedError):
        verify_evidence(copied, SELLER.root)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"format": "variegate/1/attack-evidence"}',
        '{"format": "variegate/1/attack-evidence", "files": {"a": 1}}',
    ],
)
def test_a_damaged_manifest_is_refused(text: str, copied: Path) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(RefusedError) as caught:
        verify_evidence(copied, None)
    assert caught.value.refusal is Refusal.MALFORMED


def test_commands_write_sign_and_verify(campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)
    key, root, out = tmp_path / "seller.key", tmp_path / "seller.root", tmp_path / "report"
    SELLER.save(key, PASSPHRASE)
    assert main(["keys", "root", str(key), "--out", str(root), "--passphrase-file", str(secret)]) == 0
    (tmp_path / "tara.toml").write_text('schema = 1\nassessor = "Lab"\n')
    wanted = ["--sign", str(key), "--passphrase-file", str(secret), "--assessment", str(tmp_path / "tara.toml")]
    assert main(["attack", "report", str(campaign), "--out", str(out), *wanted]) == 0
    capsys.readouterr()
    assert main(["attack", "evidence", "verify", str(out), "--root", str(root), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["signed"]
    assert said["fingerprint"] == SELLER.root.fingerprint.hex()
    spoil("changed", out)
    assert main(["attack", "evidence", "verify", str(out), "--root", str(root)]) == 1
    assert "tables/searches.csv was changed" in capsys.readouterr().err
    assert main(["attack", "evidence", "verify", str(tmp_path), "--root", str(root)]) == 2
    assert main(["attack", "report", str(tmp_path)]) == 2


def test_a_wrong_key_leaves_no_report(campaign: Path, tmp_path: Path) -> None:
    (tmp_path / "x.key").write_text("no key")
    assert (
        main(["attack", "report", str(campaign), "--out", str(tmp_path / "out"), "--sign", str(tmp_path / "x.key")])
        == 1
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of the engine, half of it done."""
    folder = tmp_path_factory.mktemp("real")
    file = write_inputs(folder)
    out = folder / "campaign"
    campaign_folder.create(out, prepare(config.load(file), folder))
    runner.run(out, engine="serial")
    return out


def test_a_campaign_of_the_engine_is_reported(real: Path, tmp_path: Path) -> None:
    out = write_report(real, tmp_path / "out").parent
    page = (out / "index.html").read_text()
    assert "22 of 22" in page
    assert 'alt="clean: image' in page
    document = json.loads((out / "evidence/evidence.json").read_text())
    rates = {effort["fleet"]: (effort["frame_rate_hz"], effort["frame_rate_basis"]) for effort in document["effort"]}
    assert rates == {"qim": (30, "assumed"), "perm": (30, "campaign")}
    with open_campaign(real) as loaded:
        assert len(loaded.shards) == 44
        asked = loaded.rows("SELECT sum(queries) FROM samples")
    assert asked[0][0] == sum(search["queries_total"] for search in _rows(out / "tables/searches.json"))


def _rows(path: Path) -> list[dict[str, int]]:
    table = json.loads(path.read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_techniques_follow_from_kinds_and_devices() -> None:
    plain = {tag.id for tag in techniques(["hopskipjump"], ["device:a"], replayed=False)}
    more = {tag.id for tag in techniques(["clone"], ["vehicle:a?camera=driving"], replayed=True)} - plain
    assert more == {"AML.T0015", "AML.T0024.002", "AML.T0041", "AML.T0043.002"}


@pytest.mark.parametrize("kind", ["missing", "changed", "configuration", "unit", "unit of another", "digest"])
def test_what_the_ledger_does_not_have_is_refused(kind: str, real: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "c"))
    shards = sorted((folder / "samples").glob("*.parquet"))
    if kind == "missing":
        shards[0].unlink()
    elif kind == "changed":
        shutil.copy(shards[1], shards[0])
    elif kind == "unit":
        in_ledger(folder, "DELETE FROM units WHERE number = 3")
    elif kind == "unit of another":
        in_ledger(folder, "UPDATE units SET images = '[0, 2]' WHERE number = 3")
    elif kind == "digest":
        in_ledger(folder, "DELETE FROM meta WHERE key = 'campaign.toml'")
    else:
        text = (folder / "campaign.toml").read_text()
        (folder / "campaign.toml").write_text(text.replace("seed = 11", "seed = 12"))
    with pytest.raises(RefusedError) as caught:
        write_report(folder, tmp_path / "out")
    assert caught.value.refusal is Refusal.MALFORMED
    assert not (tmp_path / "out").exists()


def test_pictures_that_were_changed_are_not_shown_nor_signed(real: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "c"))
    path = folder / "inputs" / "images.npz"
    known = images.from_bytes(path.read_bytes())
    path.write_bytes(images.to_bytes(replace(known, x=255 - known.x)))
    with pytest.raises(RefusedError, match="was changed since") as caught:
        write_report(folder, tmp_path / "out", signer=SELLER.signer)
    assert caught.value.refusal is Refusal.MALFORMED
    assert not (tmp_path / "out").exists()
    path.unlink()  # may be left out of what is handed on
    document = json.loads((write_report(folder, tmp_path / "out").parent / "digests.json").read_text())
    assert list(document["inputs"]) == ["inputs/images.npz"]


def test_a_signed_report_is_replaced_by_a_signed_one_alone(real: Path, tmp_path: Path) -> None:
    out = write_report(real, tmp_path / "out", signer=SELLER.signer).parent
    with pytest.raises(MisuseError, match="is signed, and this report would not be"):
        write_report(real, out)
    assert verify_evidence(out, SELLER.root).signed
    write_report(real, out, signer=SELLER.signer)
    assert verify_evidence(out, SELLER.root).signed


def test_what_was_not_looked_at_stands_on_the_assessors_page(real: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "c"))
    in_ledger(folder, "UPDATE units SET state = 'waiting' WHERE fleet = 'perm'")
    out = write_report(folder, tmp_path / "out").parent
    page = (out / "evidence/evidence.html").read_text()
    assert "Units of work: 13 done, 9 waiting." in page
    assert "is not finished" in page
    assert CHOSEN in page
    assert CHOSEN in (out / "index.html").read_text()


def in_ledger(folder: Path, change: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        assert db.execute(change).rowcount


def test_units_left_out_of_a_ledger_are_not_signed_away(real: Path, tmp_path: Path) -> None:
    """Whoever deletes the units that went badly must not get the rest signed as the campaign."""
    folder = Path(shutil.copytree(real, tmp_path / "c"))
    in_ledger(folder, "DELETE FROM units WHERE fleet = 'perm'")
    for kind in ("samples", "replays"):
        for path in (folder / kind).glob("perm.*"):
            path.unlink()
    with pytest.raises(RefusedError, match="does not have the units") as caught:
        write_report(folder, tmp_path / "out", signer=SELLER.signer)
    assert caught.value.refusal is Refusal.MALFORMED
    assert not (tmp_path / "out").exists()


def test_without_a_ledger_a_report_warns_and_is_not_signed(real: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "c"))
    (folder / "ledger.sqlite").unlink()
    with pytest.raises(MisuseError, match="no ledger"):
        write_report(folder, tmp_path / "out", signer=SELLER.signer)
    assert not (tmp_path / "out").exists()
    out = write_report(folder, tmp_path / "out").parent
    for name in ("index.html", "evidence/evidence.html"):
        page = (out / name).read_text()
        assert NO_LEDGER in page[: page.index("</header>")]
    document = json.loads((out / "evidence/evidence.json").read_text())
    assert document["has_ledger"] is False
    assert document["weaknesses"][0] == {"key": "limits", "text": NO_LEDGER}


def test_with_a_ledger_nothing_warns(signed: Path) -> None:
    document = json.loads((signed / "evidence/evidence.json").read_text())
    assert document["has_ledger"] is True
    assert NO_LEDGER not in (signed / "index.html").read_text()


def test_shards_of_units_that_are_not_done_are_left_out(real: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "c"))
    in_ledger(folder, "UPDATE units SET state = 'waiting' WHERE fleet = 'perm'")
    with open_campaign(folder) as loaded:
        assert loaded.rows("SELECT DISTINCT fleet FROM samples") == [("qim",)]
    out = write_report(folder, tmp_path / "out")
    assert "is not finished" in out.read_text()


def test_no_campaign_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(MisuseError):
        verify_evidence(tmp_path, None)
