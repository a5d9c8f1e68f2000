"""A chip bound to what its machine booted: another boot gets nothing, and after `close_boot` nobody does."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.devices import workplace
from testbed.swtpm import PROGRAM, SoftwareTpm, software_tpm
from testbed.tools import skip_without
from variegate.device_sim.chip import Chip, made_chip, moved, open_chip
from variegate.device_sim.tpm import BOOT_PCRS, Tpm
from variegate.device_sim.tpm_chip import TpmChip, is_bound
from variegate.device_sim.tpm_secret import Action
from variegate.keys.errors import DeviceError

skip_without(swtpm=PROGRAM, tpm2_pytss=importlib.util.find_spec("tpm2_pytss"))

FACTORY, INSIDE = {"runtime": b"f" * 32}, {"runtime": b"i" * 32}


@pytest.fixture
def tpm() -> Iterator[SoftwareTpm]:
    with software_tpm() as running:
        yield running


@pytest.fixture
def folder(tpm: SoftwareTpm) -> Iterator[Path]:
    """A chip made in a factory and moved to where it is to be bound."""
    with workplace() as place:
        (place / "chip").mkdir()
        with made_chip(place / "chip", tpm.tcti, lambda: FACTORY) as made:
            made.burn_secret("identity", b"the secret")
            made.advance("boots", 7)
        moved(place / "chip", tpm.tcti, FACTORY)
        yield place / "chip"


def boots(tpm: SoftwareTpm, *, pcr: int | None = None) -> None:
    """The machine starts again; with `pcr`, something else was measured into it."""
    tpm.restart()
    if pcr is not None:
        with Tpm(tpm.tcti) as one:
            one._extend(pcr, b"x" * 32)


def inside(folder: Path) -> Chip:
    return open_chip(folder, lambda: INSIDE)


def bind(folder: Path) -> None:
    """The first boot, to its end."""
    chip = inside(folder)
    assert chip.close_boot()
    chip.close()


def secret(chip: Chip) -> bytes:
    with os.fdopen(chip.open_secret("identity"), "rb") as file:
        return file.read()


def test_the_first_boot_that_comes_to_its_end_binds(tpm: SoftwareTpm, folder: Path) -> None:
    inside(folder).close()  # a boot that gave no label binds nothing
    assert not is_bound(folder)
    boots(tpm)
    chip = inside(folder)
    booted = chip.boot
    assert booted is not None
    assert (chip.counter("boots"), secret(chip)) == (7, b"the secret")
    assert chip.close_boot()
    assert secret(chip) == b"the secret"
    chip.advance("boots", 8)
    chip.close()
    assert is_bound(folder)
    boots(tpm)
    again = inside(folder)
    assert "launch" not in json.loads((folder / "chip.json").read_text())
    assert (again.boot, again.counter("boots"), secret(again)) == (booted, 8, b"the secret")
    again.close()


def test_another_boot_gets_nothing(tpm: SoftwareTpm, folder: Path) -> None:
    bind(folder)
    for pcr in BOOT_PCRS:
        boots(tpm, pcr=pcr)
        with pytest.raises(DeviceError, match="policy"):
            inside(folder)
    boots(tpm)
    inside(folder).close()


def test_other_code_gets_nothing(tpm: SoftwareTpm, folder: Path) -> None:
    bind(folder)
    boots(tpm)
    with pytest.raises(DeviceError, match="policy"):
        open_chip(folder, lambda: FACTORY)


def test_what_was_sealed_in_the_factory_is_void(tpm: SoftwareTpm, folder: Path) -> None:
    with workplace() as place:
        shutil.copytree(folder, place / "kept")
        bind(folder)
        boots(tpm)
        for again in (lambda: FACTORY, lambda: INSIDE):
            with pytest.raises(DeviceError):
                open_chip(place / "kept", again)
    inside(folder).close()


def test_after_closing_only_this_process_has_the_secret(tpm: SoftwareTpm, folder: Path) -> None:
    chip = inside(folder)
    assert isinstance(chip, TpmChip)
    assert chip.close_boot()
    assert (secret(chip), secret(chip)) == (b"the secret", b"the secret")
    chip.advance("boots", 8)
    assert chip.reserve("budget.0", 1, 10, 10) == 10
    chip.close()
    with pytest.raises(DeviceError, match="did not unseal"):
        inside(folder)
    with pytest.raises(DeviceError, match="did not unseal"):
        chip._job(Action.STATE_KEY, chip._state).ask()
    boots(tpm)
    again = inside(folder)
    assert (again.counter("boots"), again.counter("budget.0"), secret(again)) == (8, 10, b"the secret")
    again.close()


def test_closed_for_a_rise_of_the_security_counter_too(tpm: SoftwareTpm, folder: Path) -> None:
    chip = inside(folder)
    chip.close_boot()
    with pytest.raises(DeviceError, match="did not unseal"):
        chip.advance("security", 1)
    chip.close()
    boots(tpm)
    again = inside(folder)
    again.advance("security", 1)
    assert again.counter("security") == 1
    again.close()


def test_a_chip_that_is_not_bound_stays_open(tpm: SoftwareTpm) -> None:
    with workplace() as place:
        (place / "chip").mkdir()
        with made_chip(place / "chip", tpm.tcti, lambda: FACTORY) as made:
            assert made.boot is None
            assert not made.close_boot()
        open_chip(place / "chip", lambda: FACTORY).close()


def test_a_description_with_a_damaged_launch(folder: Path) -> None:
    facts = json.loads((folder / "chip.json").read_text())
    for launch in ("", "zz", "00" * 31, 5, None):
        (folder / "chip.json").write_text(json.dumps({**facts, "launch": launch}))
        with pytest.raises(DeviceError, match="damaged"):
            inside(folder)


def test_a_chip_of_files_is_not_moved(tmp_path: Path) -> None:
    with made_chip(tmp_path, None, dict):
        pass
    with pytest.raises(DeviceError, match="of files"):
        moved(tmp_path, "device:/dev/tpmrm0", FACTORY)
