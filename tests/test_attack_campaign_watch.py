"""The live table of a campaign: it stays on the screen, and a log does not grow for ever."""

from __future__ import annotations

import io
import os
import re

import pytest

from variegate.attack.campaign.runner import Row, Standing
from variegate.cli import attack_watch
from variegate.cli.attack_watch import LiveTable


class _Screen(io.StringIO):
    """A terminal as far as the table uses one: rows of a width, the cursor below the last."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__()
        self.size = os.terminal_size((columns, lines))
        self.rows: list[str] = [""]

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.split(r"(\x1b\[[0-9]+A\x1b\[J)", text):
            if up := re.match(r"\x1b\[([0-9]+)A", part):
                # The cursor stops at the top of the screen; what has left it stays.
                visible = min(int(up[1]), self.size.lines - 1, len(self.rows) - 1)
                del self.rows[len(self.rows) - 1 - visible :]
                self.rows.append("")
                continue
            for number, line in enumerate(part.split("\n")):
                whole = (self.rows.pop() if not number else "") + line
                width = self.size.columns
                self.rows += [whole[i : i + width] for i in range(0, len(whole), width)] or [""]
        return len(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def standing(count: int) -> Standing:
    return {
        (f"a-fleet-with-a-long-name-{i:02d}", f"an-attack-with-a-long-name-{i:02d}"): Row(
            units=9, done=9 if i < count // 2 else i % 9, total=90, images=i, queries=1000 * i
        )
        for i in range(count)
    }


@pytest.mark.parametrize(
    ("columns", "lines", "count"), [(40, 10, 30), (200, 50, 30), (120, 24, 1), (20, 2, 5), (1, 1, 2)]
)
def test_a_drawing_leaves_nothing_behind(
    columns: int, lines: int, count: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = _Screen(columns, lines)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(attack_watch, "_terminal_size", lambda: screen.size)
    with LiveTable() as live:
        for _ in range(5):
            clock[0] += 1
            live.show(standing(count))
            if lines > 1:
                assert len(screen.rows) <= lines
                assert "units"[: columns - 1] in screen.rows[-2]
        drawn = list(screen.rows)
    if lines > 1:
        assert screen.rows == [""]
    if count == 30:
        under_way = [row for row in drawn if row.startswith("a-fleet")]
        assert len(under_way) == (30 if lines == 50 else 6)
        if lines == 10:
            assert under_way[0].startswith("a-fleet-with-a-long-name-15")
            assert "and 24 more" in drawn


def test_a_log_grows_ever_more_slowly(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LiveTable() as live:
        lines = []
        for hours in (0.01, 1.0, 24.0):
            while clock[0] < hours * 3600:
                clock[0] += 0.5
                live.show(standing(2))
            lines.append(capsys.readouterr().err.count("\n"))
    assert 5 <= lines[0] <= 7
    assert lines[1] < 60
    assert lines[2] < 6 * 24


def test_the_size_is_that_of_the_terminal_behind_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setenv("COLUMNS", "33")
    monkeypatch.setenv("LINES", "7")
    assert attack_watch._terminal_size() == (33, 7)
    ours, theirs = os.openpty()
    with os.fdopen(ours, "wb"), os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        assert attack_watch._terminal_size() == (33, 7)  # a new one has no size
