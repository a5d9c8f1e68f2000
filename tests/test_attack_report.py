"""Reports: known counts give known rates; what is damaged is refused and leaves nothing; names stay text."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import campaigns
from tests.support.campaigns import OTHER, TRUE, replay, sample
from variegate.attack.report import formatting as words
from variegate.attack.report import html, replication, statistics, svg, weaknesses
from variegate.attack.report.data import open_campaign
from variegate.attack.report.manifest import verify_evidence
from variegate.attack.report.panels import MOST, panels
from variegate.attack.report.results import Results, compute
from variegate.attack.report.tables import Table
from variegate.attack.report.verdict import verdict
from variegate.attack.report.write import write_report
from variegate.keys.errors import DeviceError, MisuseError, Refusal, RefusedError

GROUP = ("qim", "hopskipjump", "corrected", "l2")
HOSTILE = "=cmd|' /C calc'!A0<script>alert(1)</script>\"&$\\frac{x}$"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = campaigns.Made(
        fleets={"qim": 0.02, "permutation": 0.85},
        attacks=(("hopskipjump", "art-1.20", "l2"), ("rays", "corrected", "linf")),
        copies=3,
        images=8,
        side=8,
        budgets=(500,),
        overshoots=(1.0, 2.0),
    )
    return campaigns.make(tmp_path_factory.mktemp("made"), small)


@pytest.fixture(scope="module")
def report(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(made, tmp_path_factory.mktemp("out") / "report").parent


def computed(folder: Path) -> Results:
    with open_campaign(folder) as campaign:
        return compute(campaign)


def known(folder: Path, **unit: str) -> Path:
    """Two attackers' samples of 10 images on three copies, with counts that the tests state."""
    samples, replays = [], []
    for image in range(10):
        samples.append(sample(image))
        own, clean_own = image != 9, image != 0
        replays.append(replay(image, 0, fooled=own, clean=clean_own))
        replays.append(replay(image, 1, fooled=image < 4, clean=image != 1, l2=0.2 + 0.1 * image))
        replays.append(replay(image, 2, fooled=image == 9, l2=0.2 + 0.1 * image))
    samples.append(sample(10, found=False, status="failed", reason="ValueError: it broke"))
    return campaigns.write(folder, samples, replays, **unit)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(hits: int, trials: int, low: float, high: float) -> None:
    found = statistics.wilson(hits, trials)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    mirrored = statistics.wilson(trials - hits, trials)
    assert mirrored.low == pytest.approx(1 - found.high)
    assert mirrored.high == pytest.approx(1 - found.low)


def test_an_interval_of_nothing_is_everything_and_impossible_counts_are_misuse() -> None:
    assert statistics.wilson(0, 0) == statistics.Interval(0, 1)
    for hits, trials in ((3, 2), (-1, 2)):
        with pytest.raises(MisuseError):
            statistics.wilson(hits, trials)
    with pytest.raises(MisuseError):
        statistics.rate([2], [1])


def test_the_bootstrap_draws_whole_images() -> None:
    """Twenty images of which half are hit by every pair: the effective number is 20, however many pairs there are."""
    trials = [50] * 20
    found = statistics.rate([50] * 10 + [0] * 10, trials, "a")
    exact = 1.96 * (0.25 / 20) ** 0.5
    assert found.clustered.high - found.clustered.low == pytest.approx(2 * exact, rel=0.15)
    assert found.wilson.high - found.wilson.low < 0.2 * (found.clustered.high - found.clustered.low)
    assert found == statistics.rate([50] * 10 + [0] * 10, trials, "a")


def test_where_the_bootstrap_has_no_width_images_count_as_trials() -> None:
    assert statistics.rate([0] * 20, [50] * 20).clustered == statistics.wilson(0, 20)
    assert statistics.rate([50] * 20, [50] * 20).clustered == statistics.wilson(20, 20)
    assert statistics.rate([1, 0, 1, 0, 0], [1, 1, 1, 1, 0]).clustered == statistics.wilson(2, 4)
    third = statistics.rate([2] * 12, [6] * 12).clustered
    assert third == statistics.wilson(4, 12)
    assert statistics.rate([2] * 11, [6] * 11).clustered.low < 1 / 3 < third.high


def test_quantiles_take_infinite_values_for_the_largest() -> None:
    values = np.array([1.0, 2.0, 3.0, np.inf, np.inf, np.inf, np.inf, np.inf])
    assert [statistics.quantile(values, share) for share in (0.25, 0.375, 0.5)] == [2.0, 3.0, np.inf]
    assert statistics.quantile(np.array([]), 0.5) is None


def test_known_counts_give_known_rates(tmp_path: Path) -> None:
    results = computed(known(tmp_path))
    (cell,) = results.overshoot
    assert cell.keys == (*GROUP, 0, 1.0)
    # B: images 0 to 8. Copy 1 is fooled on 0 to 3, copy 2 on 9 alone, which is not in B.
    assert (cell.raw.hits, cell.raw.trials, cell.raw.images) == (4, 18, 9)
    # The attacker's copy errs on image 0, copy 1 on image 1.
    assert (cell.net.hits, cell.net.trials, cell.net.images) == (2, 15, 8)
    # Whatever the own copy says: image 9 comes back, with two pairs and a hit.
    assert (cell.shown.hits, cell.shown.trials, cell.shown.images) == (3, 17, 9)
    assert cell.net.wilson == statistics.wilson(2, 15)
    pairs = {pair.keys[6:]: pair for pair in results.pairs}
    assert (pairs[0, 1].net.hits, pairs[0, 1].net.trials) == (2, 7)
    assert (pairs[0, 2].net.hits, pairs[0, 2].net.trials) == (0, 8)
    (search,) = results.searches
    assert (search.searches, search.images, search.found, search.queries_total) == (11, 11, 10, 11_000)
    assert search.distance == (0.5, 0.5, 0.5)
    errors = {errs.copy: (errs.errors.hits, errs.errors.trials) for errs in results.errs}
    assert errors == {0: (1, 10), 1: (1, 10), 2: (0, 10)}
    assert [(e.status, e.reason, e.searches) for e in results.ended] == [
        ("failed", "ValueError: it broke", 1),
        ("found", "", 10),
    ]


def test_a_targeted_sample_fools_by_its_target_alone(tmp_path: Path) -> None:
    samples = [sample(image, target=OTHER) for image in range(2)]
    replays = [
        replay(0, 0, fooled=True, target=OTHER),
        replay(0, 1, fooled=True, target=OTHER),
        replay(0, 2, fooled=True, target=OTHER, label=OTHER + 1),
        replay(1, 0, fooled=True, target=OTHER, label=OTHER + 1),
        replay(1, 1, fooled=True, target=OTHER),
    ]
    (cell,) = computed(campaigns.write(tmp_path, samples, replays)).overshoot
    # Copy 2 errs on image 0, but not as wanted; the attacker's own copy errs so on image 1.
    assert (cell.net.hits, cell.net.trials) == (1, 2)
    assert (cell.shown.hits, cell.shown.trials) == (2, 3)


def test_bins_and_reach_of_distances(tmp_path: Path) -> None:
    results = computed(known(tmp_path))
    bins = {cell.keys[4]: (cell.net.hits, cell.net.trials) for cell in results.binned["l2"]}
    # Image i lies at 0.2 + 0.1 i. No net pairs: image 0, and image 1 on copy 1. Hits: images 2 and 3 on copy 1.
    assert bins == {0.2: (0, 0), 0.3: (1, 3), 0.5: (1, 4), 0.7: (0, 6), 1.0: (0, 2)}
    within = {reached.keys[4]: (reached.net.hits, reached.net.trials) for reached in results.within["l2"]}
    assert within[0.2] == (0, 17)
    assert within[0.5] == (2, 17)
    assert within[2.0] == (3, 17)
    shares = [reached.net.hits for reached in results.within["l2"]]
    assert shares == sorted(shares)


def test_any_overshoot_counts_a_pair_once_and_b_at_each_overshoot(tmp_path: Path) -> None:
    samples = [sample(0), sample(1)]
    replays = []
    for image in range(2):
        for s, own, other in ((1.0, True, False), (2.0, image == 0, True), (3.0, False, True)):
            replays += [replay(image, 0, fooled=own, overshoot=s), replay(image, 1, fooled=other, overshoot=s)]
    results = computed(campaigns.write(tmp_path, samples, replays))
    by_s = {cell.keys[5]: (cell.net.hits, cell.net.trials, cell.shown.hits) for cell in results.overshoot}
    assert by_s == {1.0: (0, 2, 0), 2.0: (1, 1, 2), 3.0: (0, 0, 2)}
    (tries,) = results.tries
    assert (tries.net.hits, tries.net.trials, tries.shown.hits) == (1, 2, 2)
    as_found, worst = results.as_found(GROUP), results.worst(GROUP)
    assert as_found is not None
    assert worst is not None
    assert (as_found.keys[5], worst.keys[5]) == (1.0, 2.0)
    found = weaknesses.weaknesses(results, {})
    assert any(w.key == "own-copy" and "s = 3" in w.text and "0 %" in w.text for w in found)


def early(folder: Path) -> Path:
    """Samples of 10 images: taken after 200 of 1000 queries, 9 fool the other copy at s = 3; at the end 5."""
    samples = [sample(image) for image in range(10)]
    replays = []
    for image in range(10):
        for budget, s, fooled in ((0, 1.0, False), (0, 3.0, image < 5), (200, 1.0, image < 2), (200, 3.0, image < 9)):
            where: dict[str, Any] = {"budget": budget, "overshoot": s}
            replays += [replay(image, 0, fooled=True, **where), replay(image, 1, fooled=fooled, **where)]
    return campaigns.write(folder, samples, replays)


def test_the_worst_is_over_budgets_and_overshoots(tmp_path: Path) -> None:
    folder = early(tmp_path / "c")
    results = computed(folder)
    worst, end = results.worst(GROUP), results.worst_at_end(GROUP)
    assert worst is not None
    assert end is not None
    assert (worst.keys[4:], worst.net.hits) == ((200, 3.0), 9)
    assert (end.keys[4:], end.net.hits) == ((0, 3.0), 5)
    found = {w.key: w.text for w in weaknesses.weaknesses(results, {})}
    assert "after 200 queries, 90 % (9 of 10;" in found["any-overshoot"]
    page = write_report(folder, tmp_path / "out").read_text()
    summary = page[page.index('id="summary"') : page.index('id="weak"')]
    assert "9 of 10</small><small>s&nbsp;=&nbsp;3</small><small>after 200 queries</small>" in summary
    assert "5 of 10</small><small>s&nbsp;=&nbsp;3</small></td>" in summary
    verdict = page[page.index('class="plain verdict"') : page.index('class="facts"')]
    assert "qim: a sample found on one copy fools another in 0&nbsp;% of pairs (0 of 10;" in verdict
    assert "(s&nbsp;=&nbsp;1, hopskipjump, 1,000 queries, 10 samples of 10 images)." in verdict
    assert "At worst it is 90&nbsp;% (hopskipjump, s&nbsp;=&nbsp;3, after 200 queries)." in verdict
    assert "So few images allow no verdict." in verdict
    assert "<caption>s = 3, after 200 queries;" in page


def test_of_equal_rates_the_end_is_the_worst(tmp_path: Path) -> None:
    replays = [
        replay(0, victim, fooled=True, budget=budget, overshoot=s)
        for victim in (0, 1)
        for budget in (0, 50)
        for s in (1.0, 2.0)
    ]
    results = computed(campaigns.write(tmp_path, [sample(0)], replays))
    worst = results.worst(GROUP)
    assert worst is not None
    assert worst.keys[4:] == (0, 1.0)


def test_searches_that_were_never_stopped_are_a_limit(tmp_path: Path) -> None:
    found = weaknesses.weaknesses(computed(known(tmp_path)), {})
    assert any("1 of 1 groups have no budget" in w.text for w in found if w.key == "limits")


def test_a_sample_read_as_the_true_class_is_not_found(tmp_path: Path) -> None:
    """Copy 0 misreads images 0 and 1. The search on image 0 ended on the true class: a right label is no success."""
    samples = [
        sample(0, label=TRUE, distance=0.1, trace_distance=[0.1, 0.1]),
        sample(1, label=OTHER + 1, distance=0.2),
        sample(2, distance=0.3),
        sample(3, label=OTHER + 1, target=OTHER),
    ]
    replays = [
        replay(
            image,
            victim,
            fooled=victim == 0 and image > 0,
            clean=image > 1,
            **({"target": OTHER} if image == 3 else {}),
        )
        for image in range(4)
        for victim in (0, 1)
    ]
    results = computed(campaigns.write(tmp_path / "c", samples, replays))
    (search,) = results.searches
    assert (search.searches, search.found, search.queries_total) == (4, 2, 4000)
    assert search.distance == (0.2, 0.3, float("inf"))
    assert [stop.own for stop in results.budget_cuts] == [2]
    assert {(e.status, bool(e.reason), e.searches) for e in results.ended} == {("found", False, 2), ("found", True, 2)}
    assert [p.distance[0] for p in results.progress if p.queries == 15] == [2.0]
    page = write_report(tmp_path / "c", tmp_path / "out").read_text()
    assert "2 of 4" in page
    assert page.count('alt="sample: image 0') == 0


def test_classes_have_their_names_where_the_campaign_knows_them(tmp_path: Path) -> None:
    names = ["stop", "yield", "ahead", "<b>left</b>"]
    folder = campaigns.write(tmp_path / "c", [sample(0)], [replay(0, 0, fooled=True), replay(0, 1, fooled=False)])
    (folder / "campaign.toml").write_text(f'name = "c"\n[data]\nclass_names = {json.dumps(names)}\n')
    page = write_report(folder, tmp_path / "out").read_text()
    assert f"class {TRUE} (&lt;b&gt;left&lt;/b&gt;)" in page
    assert f"reads {OTHER}<" in page


def test_the_verdict_rests_on_enough_images_and_is_held_against_the_control(tmp_path: Path) -> None:
    samples, replays = [], []
    for fleet, attack, images, hits in (("base", "a", 25, 25), ("qim", "a", 25, 1), ("qim", "rare", 2, 2)):
        unit: dict[str, Any] = {"fleet": fleet, "attack": attack}
        samples += [sample(image, **unit) for image in range(images)]
        replays += [replay(i, v, fooled=v == 0 or i < hits, **unit) for i in range(images) for v in (0, 1)]
    lonely: dict[str, Any] = {"fleet": "lonely"}
    folder = campaigns.write(tmp_path, [*samples, sample(0, **lonely)], [*replays, replay(0, 0, fooled=True, **lonely)])
    (folder / "campaign.toml").write_text('name = "c"\n[[fleet]]\nname = "base"\nbases = ["b.onnx"]\n')
    with open_campaign(folder) as campaign:
        lone, qim, base = verdict(campaign, compute(campaign))
    assert lone == "lonely: no sample has met another copy, so nothing is known."
    assert qim.startswith("qim: a sample found on one copy fools another in 4.0 % of pairs (1 of 25;")
    assert "; without a rewriter in 100 % (s = 1, a, 1,000 queries, 25 samples of 25 images)." in qim
    assert base.startswith("base (no rewriter): a sample found on one copy fools another in 100 % of pairs (25 of 25;")


def test_a_control_does_not_crowd_out_the_matrices_of_others(tmp_path: Path) -> None:
    samples, replays = [], []
    for fleet, attacks in (("control", 10), ("protected", 1)):
        for number in range(attacks):
            unit: dict[str, Any] = {"fleet": fleet, "attack": f"a{number}"}
            samples.append(sample(0, **unit))
            replays += [replay(0, v, fooled=v == 0 or fleet == "control", **unit) for v in range(2)]
    page = write_report(campaigns.write(tmp_path / "c", samples, replays), tmp_path / "out").read_text()
    matrix = page[page.index('<section id="matrix"') : page.index('<section id="queries"')]
    headings = re.findall(r"<h3>(\w+), ", matrix)
    assert headings == ["control", "protected", *["control"] * 6]


def test_pictures_of_all_fleets_are_shown_and_the_worst_first(tmp_path: Path) -> None:
    samples, replays = [], []
    for fleet, attacks in (("control", 12), ("protected", 1)):
        for number in range(attacks):
            for image in range(2):
                unit: dict[str, Any] = {"fleet": fleet, "attack": f"a{number}"}
                samples.append(sample(image, **unit))
                replays += [replay(image, v, fooled=v == 0 or fleet == "control", **unit) for v in range(2)]
    with open_campaign(campaigns.write(tmp_path, samples, replays)) as campaign:
        compute(campaign)
        shown = panels(campaign)
    assert [panel.group[0] for panel in shown[:3]] == ["control", "protected", "control"]
    assert len(shown) == MOST
    assert all(panel.fooled == (panel.group[0] == "control") for panel in shown)


def test_marks_of_queries_are_unique(tmp_path: Path) -> None:
    results = computed(campaigns.write(tmp_path, [sample(0)], []))
    marks = [p.queries for p in results.progress]
    assert marks == sorted(set(marks))
    assert marks[:6] == [1, 2, 3, 5, 7, 10]
    assert marks[-1] == 1000


def test_equal_counts_have_equal_intervals(tmp_path: Path) -> None:
    results = computed(campaigns.write(tmp_path, *spread()))
    (cell,) = results.overshoot
    # All read their clean images rightly, so that raw and net count the same pairs.
    assert (cell.raw.hits, cell.raw.trials) == (cell.net.hits, cell.net.trials) == (30, 60)
    assert cell.raw.clustered == cell.net.clustered == cell.shown.clustered
    assert statistics.RESAMPLES == 10_000


def spread() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """20 images, 0 to 3 of 3 victims fooled."""
    samples = [sample(image) for image in range(20)]
    replays = [
        replay(image, victim, fooled=victim == 0 or victim <= image % 4 or image % 8 == victim)
        for image in range(20)
        for victim in range(4)
    ]
    return samples, replays


def test_the_bootstrap_hits_the_exact_interval() -> None:
    """Images with 2 or 0 of 2 pairs hit: the resampled number of hit images is binomial, 21 to 39 of 100 at 95 %."""
    found = statistics.rate([2] * 30 + [0] * 70, [2] * 100).clustered
    assert (found.low, found.high) == (0.21, 0.39)
    # More images are drawn by their kinds. Of 300, 75 to 106 are hit.
    found = statistics.rate([2] * 90 + [0] * 210, [2] * 300).clustered
    assert found.low == pytest.approx(75 / 300, abs=1 / 300)
    assert found.high == pytest.approx(106 / 300, abs=1 / 300)


def test_progress_counts_searches_without_a_sample_as_infinite(tmp_path: Path) -> None:
    samples = [sample(0), sample(1, trace_queries=[50, 400], trace_distance=[3.0, 1.0]), sample(2, found=False)]
    replays = [replay(image, victim, fooled=True) for image in (0, 1) for victim in (0, 1)]
    results = computed(campaigns.write(tmp_path, samples, replays))
    reached = {p.queries: p.distance for p in results.progress}
    inf = float("inf")
    assert reached[7] == (inf, inf, inf)
    assert reached[50] == (2.0, 3.0, inf)
    assert reached[300] == (0.5, 3.0, inf)
    assert reached[1000] == (0.5, 1.0, inf)


def test_an_iterate_that_moves_away_is_the_distance_so_far(tmp_path: Path) -> None:
    samples = [sample(0, profile="art-1.20", trace_queries=[50, 400], trace_distance=[1.0, 3.0], distance=3.0)]
    results = computed(campaigns.write(tmp_path, samples, []))
    reached = {p.queries: p.distance[1] for p in results.progress}
    assert (reached[7], reached[50], reached[1000]) == (float("inf"), 1.0, 3.0)


def test_a_report_has_all_its_files_and_says_how_many(report: Path) -> None:
    digests = json.loads((report / "digests.json").read_text())
    assert digests["format"] == "variegate/1/attack-report"
    assert {f"samples/{i:04}.parquet" for i in range(12)} < digests["shards"].keys()
    assert {f"tables/{name}.csv" for name in ("searches", "replication_overshoot", "ended")} < set(digests["files"])
    page = (report / "index.html").read_text()
    for part in ("What weakens the claim", "Replication against overshoot", "Attacker by victim"):
        assert part in page
    assert page.count("<svg") >= 16
    assert page.count("data:image/png;base64,") >= 12
    assert not re.search(r"<script|\son\w+=|javascript:", page)
    assert verify_evidence(report, None).files == len(digests["files"]) + 4


def test_the_same_campaign_gives_the_same_bytes(made: Path, report: Path, tmp_path: Path) -> None:
    again = write_report(made, tmp_path / "again").parent
    first = {path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()}
    second = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert first == second


def test_json_and_csv_hold_the_same_rows(report: Path) -> None:
    for path in (report / "tables").glob("*.json"):
        table = json.loads(path.read_text())
        rows = list(csv.reader(io.StringIO(path.with_suffix(".csv").read_bytes().decode(), newline="")))
        assert rows[0] == table["columns"]
        assert len(rows) == len(table["rows"]) + 1
        texts = [["" if value is None else str(value) for value in row] for row in table["rows"]]
        assert rows[1:] == texts


def test_names_cannot_be_markup_formulas_or_mathematics(tmp_path: Path) -> None:
    folder = known(tmp_path / "c", fleet=HOSTILE, attack="+1</title></svg><img src=http://evil.test/x>", profile="\t@x")
    page = write_report(folder, tmp_path / "out").read_text()
    seen = _Tags()
    seen.feed(page)
    assert "script" not in seen.tags
    assert "img" in seen.tags
    assert all(value is None or value.startswith(("data:image/png;base64,", "#")) for value in seen.loaded)
    rows = csv.DictReader((tmp_path / "out/tables/searches.csv").read_text().splitlines())
    (row,) = rows
    assert row["fleet"] == f"'{HOSTILE}"
    assert row["attack"].startswith("'+1")
    assert row["profile"] == "'?@x"
    evidence = (tmp_path / "out/evidence/evidence.html").read_text()
    assert "<script" not in evidence
    assert "&lt;script&gt;" in evidence


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}]


def test_what_a_font_lacks_is_replaced_in_figures() -> None:
    assert svg.shown("a\N{CJK UNIFIED IDEOGRAPH-6F22}\nb") == "a\ufffd\ufffdb"
    assert len(svg.shown("x" * 500)) == 60


def test_cells_of_a_table_are_written_as_they_can_be_read() -> None:
    table = Table("t", "c", ("a", "b"), (("-1", -1.5), ("x", float("inf")), ("=1", None)))
    assert table.csv() == b"a,b\r\n'-1,-1.5\r\nx,inf\r\n'=1,\r\n"
    assert json.loads(table.json())["rows"] == [["-1", -1.5], ["x", "inf"], ["=1", None]]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.034, "3.4 %"), (0.5, "50 %"), (0.9996, "100.0 %"), (0.98, "98 %"), (1.0, "100 %")],
)
def test_shares_in_words(share: float, text: str) -> None:
    assert words.percent(share) == text


def test_an_empty_campaign_says_so(tmp_path: Path) -> None:
    folder = campaigns.write(tmp_path / "c", [], [])
    page = write_report(folder, tmp_path / "out").read_text()
    assert "No search has been recorded" in page
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "campaign.toml").write_text("")
    assert "No search has been recorded" in write_report(bare, tmp_path / "bare-out").read_text()


def test_samples_without_replays_say_so(tmp_path: Path) -> None:
    folder = campaigns.write(tmp_path / "c", [sample(0)], [])
    assert "nothing is known of replication" in write_report(folder, tmp_path / "out").read_text()


def damaged(kind: str, folder: Path) -> None:
    samples, replays = folder / "samples/unit.parquet", folder / "replays/unit.parquet"
    match kind:
        case "no Parquet":
            samples.write_bytes(b"hello")
        case "cut":
            samples.write_bytes(samples.read_bytes()[:-20])
        case "no samples":
            samples.unlink()
        case "columns":
            shutil.copy(replays, samples)
        case "no TOML":
            (folder / "campaign.toml").write_text("= =")
        case "nested TOML":
            (folder / "campaign.toml").write_text(f"a = {'[' * 100_000}")
        case "endless number":
            (folder / "campaign.toml").write_text(f"a = 1{'0' * 5000}")
        case "ledger":
            (folder / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + bytes(200))
        case _:
            rows = {
                "twice": ([sample(0), sample(0)], [replay(0, 0, fooled=True)]),
                "replayed twice": ([sample(0)], [replay(0, 0, fooled=True)] * 2),
                "no own answer": ([sample(0)], [replay(0, 1, fooled=True)]),
                "not a number": ([sample(0)], [replay(0, 0, fooled=True, l2=float("nan"))]),
                "negative": ([sample(0)], [replay(0, 0, fooled=True, linf=-1.0)]),
                "no label": ([sample(0)], [replay(0, 0, fooled=True, label=None)]),
                "no class": ([sample(0, true_class=None)], []),
                "two classes": (
                    [sample(0)],
                    [replay(0, 0, fooled=True), replay(0, 0, fooled=True, overshoot=2.0, true_class=4)],
                ),
                "own class aimed at": ([sample(0, target=TRUE)], []),
                "two targets": ([sample(0, target=OTHER)], [replay(0, 0, fooled=True, target=OTHER + 1)]),
                "a target lost": ([sample(0, target=OTHER)], [replay(0, 0, fooled=True)]),
                "uneven trace": ([sample(0, trace_queries=[1])], []),
                "gap in a trace": ([sample(0, trace_queries=[1, None])], []),
                "trace back in time": ([sample(0, trace_queries=[100, 10])], []),
                "no number in a trace": ([sample(0, trace_distance=[1.0, float("nan")])], []),
            }[kind]
            campaigns.write(folder, *rows)


@pytest.mark.parametrize(
    "kind",
    [
        "no Parquet", "cut", "no samples", "columns", "no TOML", "nested TOML", "endless number", "ledger", "twice",
        "replayed twice", "no own answer", "not a number", "negative", "no label", "no class", "two classes",
        "own class aimed at", "two targets", "a target lost", "uneven trace", "gap in a trace", "trace back in time",
        "no number in a trace",
    ],
)  # fmt: skip
def test_a_damaged_campaign_is_refused_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    folder = known(tmp_path / "c")
    damaged(kind, folder)
    with pytest.raises(RefusedError) as caught:
        write_report(folder, tmp_path / "out")
    assert caught.value.refusal is Refusal.MALFORMED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_what_is_no_campaign_or_no_place_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(MisuseError):
        write_report(tmp_path / "nowhere", tmp_path / "out")
    folder = known(tmp_path / "c")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    for out in (tmp_path / "full", tmp_path / "no" / "where", tmp_path / "full" / "mine.txt"):
        with pytest.raises(MisuseError):
            write_report(folder, out)
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("name", [".", "..", "../here", "tables/.."])
def test_the_folder_one_works_in_is_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = known(tmp_path / "c")
    (tmp_path / "here" / "tables").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(MisuseError, match="the folder you work in") as caught:
        write_report(folder, Path(name))
    assert caught.value.hint is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "here"]


def test_a_place_to_mount_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = known(tmp_path / "c")
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "volume")
    with pytest.raises(MisuseError, match="mounted there"):
        write_report(folder, tmp_path / "volume")


def test_a_report_may_be_named_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = known(tmp_path / "c")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in ("../here/a", "b/../a", "a"):
        (tmp_path / "here" / "b").mkdir(exist_ok=True)
        write_report(folder, Path(out))
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["a", "b"]
    assert (tmp_path / "here/a/index.html").is_file()


def test_what_is_shown_as_found_is_at_the_overshoot_nearest_1(tmp_path: Path) -> None:
    """At s = 0.5 no frame fools the other copy, at s = 1 all do, at s = 2 half."""
    replays = []
    for image in range(4):
        for s, other in ((0.5, False), (1.0, True), (2.0, image < 2)):
            where: dict[str, Any] = {"overshoot": s, "l2": s}
            replays += [replay(image, 0, fooled=True, **where), replay(image, 1, fooled=other, **where)]
    with open_campaign(campaigns.write(tmp_path, [sample(image) for image in range(4)], replays)) as campaign:
        results = compute(campaign)
        found = results.as_found(GROUP)
        assert found is not None
        assert (found.keys[5], found.net.hits) == (1.0, 4)
        assert [(panel.fooled, panel.victims) for panel in panels(campaign)] == [(1, 1)] * 2
        (stop,) = results.budget_cuts
        assert (stop.distances, stop.distance) == ({0.5: 0.5, 1.0: 1.0, 2.0: 2.0}, 1.0)


def test_an_earlier_report_is_replaced_whole(tmp_path: Path) -> None:
    folder = known(tmp_path / "c")
    out = write_report(folder, tmp_path / "out").parent
    before = (out / "index.html").stat().st_ino
    write_report(folder, out)
    assert (out / "index.html").stat().st_ino != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "out"]


def test_another_campaigns_report_is_not_replaced(tmp_path: Path) -> None:
    one, other = known(tmp_path / "one"), known(tmp_path / "other")
    config = other / "campaign.toml"
    config.write_text(config.read_text() + "# of another\n")
    out = write_report(one, tmp_path / "out").parent
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(MisuseError, match="another campaign"):
        write_report(other, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["stray.txt", "index.html", "evidence/notes.txt"])
def test_a_report_that_somebody_worked_on_is_not_replaced(name: str, tmp_path: Path) -> None:
    folder = known(tmp_path / "c")
    out = write_report(folder, tmp_path / "out").parent
    (out / name).write_text("precious")
    with pytest.raises(MisuseError, match="changed since"):
        write_report(folder, out)
    assert (out / name).read_text() == "precious"


def test_a_full_disk_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = known(tmp_path / "c")
    out = write_report(folder, tmp_path / "out").parent
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DeviceError):
        write_report(folder, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "out"]


def test_a_path_with_a_pattern_is_only_a_path(tmp_path: Path) -> None:
    folder = known(tmp_path / "a[b]*c")
    assert computed(folder).searches[0].searches == 11


def test_figures_load_nothing_and_have_ids_of_their_own(report: Path) -> None:
    page = (report / "index.html").read_text()
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "Content-Security-Policy" in page
    assert html.POLICY.startswith("default-src 'none'")
    for address in re.findall(r"https?://[^\s\"'<)]+", page):
        assert address.startswith("http://www.w3.org/"), address
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "#0404" not in page
    assert "mathdefault" not in page


def test_pairs_are_one_row_for_each_victim(made: Path) -> None:
    with open_campaign(made) as campaign:
        replication.prepare(campaign)
        ((pairs, distinct),) = campaign.rows(
            "SELECT count(*), count(DISTINCT (fleet, attack, attacker, image, budget, overshoot, victim)) FROM pairs"
        )
        ((rows,),) = campaign.rows("SELECT count(*) FROM replays WHERE victim <> attacker")
    assert pairs == distinct == rows
