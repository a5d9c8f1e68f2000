"""Fixtures of a small campaign, made and run; a module takes them with `pytest_plugins`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.small_campaign import write_inputs
from variegate.attack.campaign import config, folder, runner
from variegate.attack.campaign.prepare import Prepared, prepare


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def prepared(inputs: Path) -> Prepared:
    return prepare(config.load(inputs), inputs.parent)


@pytest.fixture(scope="module")
def alone(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run in this process, undisturbed; tests copy it before they change it."""
    out = tmp_path_factory.mktemp("alone") / "campaign"
    folder.create(out, prepared)
    ended = runner.run(out, engine="serial")
    assert (ended.done, ended.failed) == (ended.units, ())
    return out


@pytest.fixture
def fresh(prepared: Prepared, tmp_path: Path) -> Path:
    out = tmp_path / "fresh"
    folder.create(out, prepared)
    return out


@pytest.fixture
def copied(alone: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(alone, tmp_path / "copied"))
