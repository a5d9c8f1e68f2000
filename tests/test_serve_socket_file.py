"""The label socket's file: its mode is its own, and no link that is planted meanwhile is followed."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from variegate.keys.errors import MisuseError
from variegate.serve.socket_port import bound_socket


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_it_has_the_mode_asked_for_and_goes_in_the_end(tmp_path: Path, mode: int, umask: int) -> None:
    path = tmp_path / "labels"
    before = os.umask(umask)
    try:
        with bound_socket(path, mode):
            assert stat.S_IMODE(path.lstat().st_mode) == mode
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert not path.exists()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("planted", ["link", "dangling link", "file"])
def test_what_is_put_in_its_place_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """Who may write to the folder swaps the file right after it was bound."""
    path, victim = tmp_path / "labels", tmp_path / "victim"
    if planted != "dangling link":
        victim.write_text("secret")
        victim.chmod(0o600)

    class Raced(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            path.unlink()
            path.hardlink_to(victim) if planted == "file" else path.symlink_to(victim)

    monkeypatch.setattr(socket, "socket", Raced)
    with pytest.raises(MisuseError, match="labels was replaced"), bound_socket(path, 0o666):
        pytest.fail("served there")
    if planted != "dangling link":
        assert stat.S_IMODE(victim.stat().st_mode) == 0o600
        assert victim.read_text() == "secret"


def test_a_link_put_there_later_is_not_followed_in_the_end(tmp_path: Path) -> None:
    path, other = tmp_path / "labels", tmp_path / "other"
    with bound_socket(path, 0o600):
        path.rename(other)
        path.symlink_to(other)
    assert path.is_symlink()
    assert other.exists()
