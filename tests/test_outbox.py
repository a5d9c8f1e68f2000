"""The folder that copies are handed out from, and the private one within it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.somebody import as_somebody_else, needs_root
from variegate.export.outbox import give_names, making, prepare_folder, write_all
from variegate.keys.errors import MisuseError


def private(out: Path) -> Path:
    return next(out.glob(".making-*"))


def test_sweeping_removes_no_more_than_what_was_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").write_text("mine")
    out = tmp_path / "out"
    prepare_folder(out)
    with making(out):
        left = private(out).rename(out / ".making-left")
        (out / ".making-link").symlink_to(home)
        (out / ".making-file").write_bytes(b"")
        (out / ".making-empty").mkdir()
        (left / "link").symlink_to(home / "file")
        prepare_folder(out)  # as another export to this folder does
        assert (left / "link").is_symlink()
        assert not (out / ".making-empty").exists()
    assert list(left.iterdir()) == []
    (left / ".made").touch()
    (left / "link").symlink_to(home / "file")
    prepare_folder(out)
    assert not left.exists()
    assert (home / "file").read_text() == "mine"


def test_files_get_their_names_last(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "real")  # a user's own link
    out, real = tmp_path / "out", tmp_path / "real"
    real.mkdir()
    prepare_folder(out)
    with making(out) as held:
        assert private(real).stat().st_mode & 0o777 == 0o700
        write_all(held, [("a", b"1"), ("b", b"2")])
        with pytest.raises(MisuseError, match="cannot write to"):
            write_all(held, [("a", b"3")])
        assert list(real.iterdir()) == [private(real)]
        give_names(held, ["a"])
        assert (real / "a").read_bytes() == b"1"
        assert (real / "a").stat().st_mode & 0o777 == 0o644
    assert list(real.iterdir()) == [real / "a"]


@needs_root
@pytest.mark.parametrize("written", [False, True])
def test_an_export_writes_nowhere_but_in_its_folder(tmp_path: Path, written: bool) -> None:
    """Whoever may write the output folder moves the private one away and puts a link there."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    out.chmod(0o777)
    elsewhere.mkdir()
    with making(out) as held:
        if written:
            write_all(held, [("acme.vgc", b"copy")])
            (elsewhere / "acme.vgc").write_bytes(b"mine")
        path = private(out)

        def swap() -> None:
            Path(path.name).rename("moved")
            Path(path.name).symlink_to(elsewhere)

        as_somebody_else(out, swap)
        with pytest.raises(MisuseError):
            give_names(held, ["acme.vgc"]) if written else write_all(held, [("acme.vgc", b"copy")])
    assert [p.read_bytes() for p in elsewhere.iterdir()] == [b"mine"] * written
    assert list((out / "moved").iterdir()) == []


@needs_root
def test_nobody_else_has_a_folder_swept_by_a_name(tmp_path: Path) -> None:
    ours = tmp_path / "out" / "reports"
    ours.mkdir(parents=True)
    (ours / "one").write_bytes(b"kept")
    ours.parent.chmod(0o777)
    as_somebody_else(ours.parent, lambda: Path("reports").rename(".making-x"))
    prepare_folder(ours.parent)
    assert (ours.parent / ".making-x" / "one").read_bytes() == b"kept"
