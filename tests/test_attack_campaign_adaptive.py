"""Campaigns of attackers who own several copies, or who prepare: the same bytes whoever works, and true accounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_campaign import TEXT, content, write_inputs
from variegate.attack.campaign import config, folder, runner
from variegate.attack.campaign.engine import Serial
from variegate.attack.campaign.messages import ImageDone
from variegate.attack.campaign.plan import plan
from variegate.attack.campaign.prepare import Prepared, prepare
from variegate.attack.campaign.query import query
from variegate.attack.campaign.units import owned, units, victims
from variegate.attack.campaign.verify import verify
from variegate.keys.errors import RefusedError

ATTACKS = """
[[attack]]
name = "pair"
kind = "colluders"
parameters = { devices = 2 }
queries = 80
budgets = [40]
attackers = 1

[[attack]]
name = "middle"
kind = "colluders"
parameters = { devices = 2, agreement = "median", search = "cgba" }
queries = 80
attackers = 2
fleets = ["qim"]

[[attack]]
name = "partner"
kind = "partner"
queries = 700
attackers = 1
fleets = ["perm"]

[[attack]]
name = "clone"
kind = "clone"
parameters = { width = 8, attack = "pgd", epsilon = 6.0 }
queries = 400
budgets = [400]
attackers = 1
fleets = ["qim"]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_inputs(tmp_path_factory.mktemp("inputs"))
    head, tail = TEXT.split("[[attack]]", 1)[0], TEXT[TEXT.index("[replay]") :]
    path.write_text(head + ATTACKS + tail.replace("unit = 2", "unit = 3"))
    return path


@pytest.fixture(scope="module")
def prepared(file: Path) -> Prepared:
    return prepare(config.load(file), file.parent)


@pytest.fixture(scope="module")
def alone(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "campaign"
    folder.create(out, prepared)
    ended = runner.run(out, engine="serial")
    assert ended.failed == ()
    return out


def test_accounts_hold_and_samples_fool_the_copy_attacked(alone: Path, prepared: Prepared) -> None:
    report = verify(alone)
    assert report.differences == ()
    assert report.samples > 10
    rows = query(alone, "SELECT attack, count(*), count(*) FILTER (status = 'found') FROM samples GROUP BY 1").rows
    found = {name: (count, hits) for name, count, hits in rows}
    assert set(found) == {"pair", "middle", "partner", "clone"}
    assert all(hits > count / 2 for count, hits in found.values()), found
    most = query(alone, "SELECT attack, max(queries) FROM samples GROUP BY 1").rows
    assert all(asked <= prepared.campaign.attack(name).queries for name, asked in most)


def test_victims_are_no_colluders(alone: Path, prepared: Prepared) -> None:
    for unit in units(prepared.campaign):
        own = owned(prepared.campaign, unit)
        assert own[0] == unit.attacker
        assert not set(own[1:]) & set(victims(prepared.campaign, unit))
    shown = query(alone, "SELECT DISTINCT attacker, victim FROM replays WHERE attack = 'middle' ORDER BY ALL").rows
    assert shown == ((0, 0), (0, 2), (1, 0), (1, 1))


def test_processes_and_a_resumed_unit_give_the_same_bytes(alone: Path, prepared: Prepared, tmp_path: Path) -> None:
    out = tmp_path / "campaign"
    folder.create(out, prepared)

    class StopError(Exception):
        pass

    seen = 0
    whole = Serial.wait

    def stops(self: Serial, timeout_s: float) -> object:
        nonlocal seen
        events = whole(self, timeout_s)
        seen += sum(isinstance(event, ImageDone) and "clone" in event.unit for event in events)
        if seen == 2:
            raise StopError
        return events

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Serial, "wait", stops)
        with pytest.raises(StopError):
            runner.run(out, engine="serial")
    ended = runner.run(out, workers=2)
    assert (ended.done, ended.failed) == (ended.units, ())
    assert content(out) == content(alone)


def test_a_plan_counts_the_labels_of_every_device(prepared: Prepared) -> None:
    qim, perm = plan(prepared, measure_s=0.01).fleets
    assert qim.queries == 6 * (2 * 80 + 2 * 2 * 80 + 400)
    assert perm.queries == 6 * (2 * 80 + 700)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{ devices = 2 }", "{ devices = 3 }", "attack[0].parameters.devices is more than the 2 copies of perm"),
        ("queries = 700", "queries = 700\ntargeted = true", "attack[2].targeted is not for partner as it is set"),
        (
            'agreement = "median"',
            'agreement = "some"',
            "attack[1].parameters.agreement: 'some' is not one of most",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(file: Path, old: str, new: str, message: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    with pytest.raises(RefusedError) as raised:
        config.parse(text.replace(old, new).encode())
    assert message in raised.value.message
