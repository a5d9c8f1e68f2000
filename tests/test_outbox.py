"""The folder that copies are handed out from, and the private one within it."""

from __future__ import annotations

from pathlib import Path

import pytest

from variegate.export.outbox import give_names, making, prepare_folder, write_all
from variegate.keys.errors import MisuseError


def test_sweeping_removes_no_more_than_what_was_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").write_text("mine")
    out = tmp_path / "out"
    prepare_folder(out)
    (out / ".making-link").symlink_to(home)
    (out / ".making-file").write_bytes(b"")
    (out / ".making-left").mkdir()
    (out / ".making-left" / "link").symlink_to(home / "file")
    with making(out) as held:
        assert held.stat().st_mode & 0o777 == 0o700
        (held / "mine").touch()
        prepare_folder(out)  # as another export to this folder does
        assert (held / "mine").exists()
        assert not (out / ".making-left").exists()
    assert not held.exists()
    assert (home / "file").read_text() == "mine"


def test_files_get_their_names_last(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    with making(tmp_path) as held:
        write_all(held, [("a", b"1"), ("b", b"2")])
        with pytest.raises(MisuseError, match="cannot write to"):
            write_all(held, [("a", b"3")])
        assert list(tmp_path.iterdir()) == [held]
        give_names(held, ["a"])
        assert (tmp_path / "a").read_bytes() == b"1"
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
