"""Numbers of copies: a new one is above all that its device was given, and no two exports get the same."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path

import pytest

from testbed import bases
from tests.support.registries import from_zero
from variegate.cli.main import main
from variegate.device_sim.device import Device
from variegate.device_sim.flash import flash
from variegate.export.fleet import COMPONENT_FILE, Exporter
from variegate.export.fleet_list import FleetLine, read_list
from variegate.export.registry import Registry
from variegate.export.release import make_release
from variegate.export.rewriters import Permutation
from variegate.export.sealing import Terms
from variegate.keys.envelope import open_envelope
from variegate.keys.errors import MisuseError, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.manifest import Policy
from variegate.keys.primitives import KEM_CLASSIC
from variegate.keys.seller import Seller

SELLER = Seller.generate()
TERMS = Terms(vendor="Example")
CLASS = "camera-v1"
ROUNDS = 6


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("release")
    made = make_release("spring", bases.base(place), Permutation(alpha=0.8), bases.images(64))
    made.save(place / "spring")
    return place / "spring"


def someone(epoch: int = 0, security_counter: int | None = None) -> FleetLine:
    device = DeviceIdentity.generate(CLASS, KEM_CLASSIC).public
    return FleetLine(buyer="acme", device=device, epoch=epoch, security_counter=security_counter)


def numbers(registry: Registry) -> list[tuple[int, int]]:
    return [(row.security_counter, row.sequence) for row in registry.rows()]


def reserved(registry: Registry, *wanted: tuple[str, int | None]) -> list[tuple[int, int]]:
    return [(n.security_counter, n.sequence) for n in registry.reserve(wanted)]


def unregistered(folders: list[Path], registry: Registry) -> set[str]:
    """Files in output folders that the registry does not have in just these bytes."""
    known = {(row.file, row.artefact) for row in registry.rows()}
    found = set()
    for folder in folders:
        for path in folder.iterdir():
            with path.open("rb") as file:
                if (path.name, file_digest(file, "sha256").hexdigest()) not in known:
                    found.add(path.name)
    return found


def test_the_command_line_ends_an_older_budget(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pass").write_text("a passphrase for a test")
    (tmp_path / "pass").chmod(0o600)
    monkeypatch.setenv("VARIEGATE_PASSPHRASE_FILE", "pass")
    SELLER.save(tmp_path / "seller.key", "a passphrase for a test")
    with Device.create(tmp_path / "car", CLASS, SELLER.root) as device:
        (tmp_path / "car.json").write_text(device.identity.to_json())
    (tmp_path / "fleet.csv").write_text("buyer,device,epoch\nacme,car.json,0\n")

    def export(out: str, *more: str, how: str = "copy") -> tuple[Path, str]:
        asked = ("--buyer", "acme", "--device", "car.json") if how == "copy" else ("--list", "fleet.csv")
        common = ("--seller", "seller.key", "--registry", "r.sqlite", "--out", out)
        assert main(["export", how, str(release), *common, *asked, *more]) == 0, capsys.readouterr().err
        (made,) = (path for path in Path(out).iterdir() if path.name != COMPONENT_FILE)
        return made, capsys.readouterr().err

    def flashed(*arguments: object) -> int:
        return main(["device", "flash", "car", *map(str, arguments)])

    present = time.time_ns() // 1000
    large, told = export("1", "--budget", "100000")
    assert "r.sqlite is new" in told
    small, told = export("2", "--budget", "16")
    assert "is new" not in told
    fleet, _ = export("3", "--budget", "8", how="fleet")
    envelope, _ = export("4", "--budget", "4", "--cohort", "europe", how="fleet")
    again, _ = export("5", "--budget", "2", "--cohort", "europe", how="fleet")  # its component is on the device then
    component = ("--component", "4/component.vgb")
    newest: tuple[tuple[object, ...], ...] = ((large,), (small,), (fleet,), (envelope, *component), (again,))
    for number, file in enumerate(newest):
        assert flashed(*file) == 0
        for older in newest[:number]:
            assert flashed(*older) == 1
    # An explicit counter is taken as it is: here an equal one, under which a signed permission leads back.
    capsys.readouterr()
    assert main(["export", "registry", "r.sqlite", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(0 <= row["security_counter"] - present < 60_000_000 for row in rows)
    counter = rows[-1]["security_counter"]
    free, _ = export("6", "--security-counter", str(counter), "--allow-downgrade")
    later, _ = export("7", "--security-counter", str(counter))
    latest, _ = export("8", "--security-counter", str(counter), "--budget", "3")
    for copy, status in ((free, 0), (latest, 0), (later, 1), (free, 0), (later, 1), (latest, 0)):
        assert flashed(copy) == status
    low, _ = export("9", "--security-counter", str(counter - 1))
    assert flashed(low) == 1
    assert main(["device", "status", "car", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["security_counter"] == counter
    # The registry is lost: what is sealed anew is above all that was sealed before.
    (tmp_path / "r.sqlite").unlink()
    lost, told = export("10")
    assert "r.sqlite is new; a device that holds a copy already may need --security-counter" in told
    assert flashed(lost) == 0
    assert [flashed(copy) for copy in (latest, free)] == [1, 1]
    # Where a counter beyond the time was named, the log says why, and the device's status what to give.
    far, _ = export("11", "--security-counter", str(1 << 62))
    assert flashed(far) == 0
    (tmp_path / "r.sqlite").unlink()
    late, _ = export("12")
    assert flashed(late) == 1
    with Device.open(tmp_path / "car") as device:
        assert f"confirmed {1 << 62}" in device.log()[-1]
    found, _ = export("13", "--security-counter", str((1 << 62) + 1))
    assert flashed(found) == 0


def test_of_two_registries_the_later_export_counts(release: Path, tmp_path: Path) -> None:
    """As where each release has a registry of its own beside it."""
    exporter = Exporter(release, SELLER, TERMS, tmp_path / "out")
    with Device.create(tmp_path / "car", CLASS, SELLER.root) as device:
        one = FleetLine(buyer="acme", device=device.identity, epoch=0, security_counter=None)
        copies: list[Path] = []
        for number, name in enumerate(("r1", "r2", "r1", "r2")):
            terms = replace(TERMS, policy=Policy(budget=1000 >> number))
            with Registry(tmp_path / name) as registry:
                replace(exporter, folder=tmp_path / str(number), terms=terms).fleet([one], registry)
            copies += (tmp_path / str(number)).iterdir()
        for number, copy in enumerate(copies):
            assert flash(device, copy).confirmed
            for older in copies[:number]:
                with pytest.raises(RefusedError):
                    flash(device, older)


def test_numbers_go_up_when_the_clock_goes_back(tmp_path: Path) -> None:
    times = iter((900, 900, 20, 2000))
    with Registry(tmp_path / "r", clock=lambda: next(times)) as registry:
        assert reserved(registry, ("aa", None), ("aa", None), ("bb", 3)) == [(900, 900), (900, 901), (3, 900)]
        assert [reserved(registry, ("aa", None)) for _ in range(3)] == [[(901, 902)], [(902, 903)], [(2000, 2000)]]


def test_a_copy_is_kept_while_it_is_its_devices_newest(release: Path, tmp_path: Path) -> None:
    one = someone()
    exporter = Exporter(release, SELLER, TERMS, tmp_path / "out")
    elsewhere = replace(exporter, folder=tmp_path / "elsewhere", terms=replace(TERMS, policy=Policy(budget=9)))
    with from_zero(tmp_path / "r") as registry:
        assert [e.fleet([one], registry).made for e in (exporter, exporter, elsewhere, elsewhere)] == [1, 0, 1, 0]
        # Its file is there still, whole; a device that took the other would refuse it.
        assert [e.fleet([one], registry).made for e in (exporter, exporter)] == [1, 0]
        assert exporter.fleet([replace(one, epoch=1)], registry).made == 1
        assert [exporter.fleet([one], registry).made for _ in range(2)] == [1, 0]
        assert numbers(registry) == [(i, i + 1) for i in range(5)]


def test_epochs_of_one_device_share_a_counter_and_are_made_together(release: Path, tmp_path: Path) -> None:
    one, other = someone(), someone()
    fleet = [one, replace(one, epoch=1), other]
    exporter = Exporter(release, SELLER, TERMS, tmp_path / "out")
    with from_zero(tmp_path / "r") as registry:
        assert [exporter.fleet(fleet, registry).made for _ in range(2)] == [3, 0]
        lost = next(row for row in registry.rows() if row.epoch == 1)
        (tmp_path / "out" / lost.file).unlink()
        assert [exporter.fleet(fleet, registry).made for _ in range(2)] == [2, 0]
        rows = [(r.epoch, r.security_counter, r.sequence) for r in registry.rows(ueid=one.device.ueid.hex())]
        assert rows == [(0, 0, 1), (1, 0, 2), (0, 1, 3), (1, 1, 4)]


def test_a_named_counter_is_kept_under_that_counter(release: Path, tmp_path: Path) -> None:
    one = someone(security_counter=7)
    exporter = Exporter(release, SELLER, TERMS, tmp_path / "out")
    free = replace(exporter, terms=replace(TERMS, allow_downgrade=True))
    with from_zero(tmp_path / "r") as registry:
        assert [e.fleet([one], registry).made for e in (exporter, exporter, free, free, exporter)] == [1, 0, 1, 0, 1]
        assert numbers(registry) == [(7, 1), (7, 2), (7, 3)]
        assert exporter.fleet([replace(one, security_counter=2)], registry).made == 1
        assert exporter.fleet([replace(one, security_counter=None)], registry).made == 0
        assert numbers(registry)[-1] == (2, 4)
    shared = replace(exporter, folder=tmp_path / "shared", cohort="europe")
    with from_zero(tmp_path / "other") as registry:
        replace(shared, terms=free.terms).fleet([one], registry)
        (row,) = registry.rows()
    assert open_envelope((tmp_path / "shared" / row.file).read_bytes(), SELLER.root).manifest.allow_downgrade


def test_the_highest_number_is_the_last(tmp_path: Path) -> None:
    with from_zero(tmp_path / "r") as registry:
        assert reserved(registry, ("aa", (1 << 63) - 1)) == [((1 << 63) - 1, 1)]
        with pytest.raises(MisuseError, match="highest number"):
            reserved(registry, ("bb", None), ("aa", None))
        # All or none: what was refused took nothing.
        assert reserved(registry, ("bb", None)) == [(0, 1)]


def test_a_list_without_a_counter_leaves_it_open(tmp_path: Path) -> None:
    one = someone()
    (tmp_path / "d.json").write_text(one.device.to_json())
    for text, expected in (
        ("buyer,device\nx,d.json\n", None),
        ("buyer,device,security_counter\nx,d.json,\n", None),
        ("buyer,device,security_counter\nx,d.json,0\n", 0),
    ):
        (tmp_path / "fleet.csv").write_text(text)
        assert [w.security_counter for w in read_list(tmp_path / "fleet.csv")] == [expected]


def test_a_registry_from_before_reservations_is_taken_on(tmp_path: Path) -> None:
    path = tmp_path / "r"
    from_zero(path).__exit__(None, None, None)
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript("DROP TABLE reserved; PRAGMA journal_mode = DELETE;")
    with Registry(path, read_only=True) as registry:
        assert list(registry.rows()) == []
    with from_zero(path) as registry:
        assert reserved(registry, ("aa", None), ("aa", None)) == [(0, 1), (0, 2)]
    with closing(sqlite3.connect(path)) as raw:
        for statement in ("UPDATE reserved SET sequence = 9", "DELETE FROM reserved"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                raw.execute(statement)


def test_what_cannot_be_registered_is_not_left_behind(release: Path, tmp_path: Path) -> None:
    one = someone()
    exporter = Exporter(release, SELLER, TERMS, tmp_path / "out")
    with from_zero(tmp_path / "r") as registry:
        with closing(sqlite3.connect(tmp_path / "r")) as raw:
            raw.execute("CREATE TRIGGER full BEFORE INSERT ON copies BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        with pytest.raises(RefusedError, match="disk full"):
            exporter.fleet([one], registry)
        assert list((tmp_path / "out").iterdir()) == []
        with closing(sqlite3.connect(tmp_path / "r")) as raw:
            raw.execute("DROP TRIGGER full")
        # Numbers that were taken for it are not given again.
        assert exporter.fleet([one], registry).made == 1
        assert numbers(registry) == [(1, 2)]


CHILD = """
import sys
from pathlib import Path
from tests.test_export_numbers import *
from variegate.keys.errors import VariegateError
name, release, place = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
seller = Seller.from_secret(bytes.fromhex(sys.stdin.readline()))
exporters = [Exporter(release, seller, TERMS, place / out) for out in (name, "common")]
exporters[0].release
print("ready", flush=True)
for line in sys.stdin:
    number, to = line.split()
    fleet = read_list(place / "fleet.csv")
    try:
        with from_zero(place / f"{number}.sqlite") as registry:
            print(exporters[to == "common"].fleet(fleet, registry).made, flush=True)
    except VariegateError as error:
        print(type(error).__name__, error.message, flush=True)
"""


@contextmanager
def exporting(name: str, release: Path, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that exports the fleet each time it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, name, str(release), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as child:
        assert child.stdin is not None
        child.stdin.write(SELLER.to_secret().hex() + "\n")
        child.stdin.flush()
        yield child
        child.stdin.close()


@pytest.mark.parametrize("to", ["own", "common"])
@pytest.mark.parametrize("counter", ["", "3"], ids=["raised", "named"])
def test_two_exports_at_once_both_succeed(release: Path, tmp_path: Path, to: str, counter: str) -> None:
    """To two folders or to one, with a registry that is new to both; every file is in it afterwards."""
    lines = ["buyer,device,security_counter"]
    for i in range(5):
        (tmp_path / f"{i}.json").write_text(someone().device.to_json())
        lines.append(f"buyer {i},{i}.json,{counter}")
    (tmp_path / "fleet.csv").write_text("\n".join(lines) + "\n")
    with ExitStack() as stack:
        children = [stack.enter_context(exporting(name, release, tmp_path)) for name in ("a", "b")]

        def answers() -> list[str]:
            return [child.stdout.readline().strip() for child in children if child.stdout is not None]

        assert answers() == ["ready", "ready"]
        for number in range(ROUNDS):
            for child in children:
                assert child.stdin is not None
                child.stdin.write(f"{number} {to}\n")
                child.stdin.flush()
            made = answers()
            # In one folder the second may come when the first is done, and find all there.
            assert all(one in ({"5", "0"} if to == "common" else {"5"}) for one in made), made
            with Registry(tmp_path / f"{number}.sqlite") as registry:
                rows = list(registry.rows())
                folders = [tmp_path / "common"] if to == "common" else [tmp_path / "a", tmp_path / "b"]
                assert unregistered(folders, registry) == set()
            assert len(rows) == len({(row.ueid, row.sequence) for row in rows}) == sum(map(int, made))
            counters = {(row.ueid, row.security_counter) for row in rows}
            assert len(counters) == (5 if counter else len(rows))
            for folder in folders:
                for path in folder.iterdir():
                    path.unlink()
