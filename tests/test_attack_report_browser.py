"""The report in a real browser: it loads nothing, shows something, and fits a telephone."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testbed.tools import skip_without
from tests.support import campaigns
from tests.support.browser import CHROMIUM, Page, browser
from variegate.attack.report.write import write_report

skip_without(chromium=CHROMIUM)

SHOTS = os.environ.get("VARIEGATE_SCREENSHOTS")
"""A folder to keep the screenshots in, to look at them."""
WIDTHS = (400, 1280)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hostile = "<img src=https://evil.test/x>" + "W" * 90
    made = campaigns.Made(
        fleets={"qim": 0.02, "permutation": 0.85, hostile: 0.3},
        attacks=(("hopskipjump", "art-1.20", "l2"), ("rays", "corrected", "linf")),
        images=8,
        budgets=(500,),
        overshoots=(1.0, 2.0),
    )
    folder = campaigns.make(tmp_path_factory.mktemp("campaign"), made)
    return write_report(folder, tmp_path_factory.mktemp("out") / "report").parent


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "evidence/evidence.html"])
def test_a_page_loads_nothing_shows_something_and_fits(
    name: str, dark: bool, width: int, report: Path, page: Page
) -> None:
    page.requests.clear()
    page.errors.clear()
    page.open(report / name, width, dark=dark)
    outside = [url for url in page.requests if not url.startswith("data:image/png;base64,")]
    assert outside == [(report / name).resolve().as_uri()]
    assert page.errors == []
    assert page.value("document.documentElement.scrollWidth") <= width
    shot = page.screenshot()
    if SHOTS:
        kept = f"{Path(name).stem}-{width}-{'dark' if dark else 'light'}.png"
        (Path(SHOTS) / kept).write_bytes(page.screenshot(whole=True))
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))
    assert pixels.shape[1] == width
    ground = np.median(pixels)
    assert (ground < 60) if dark else (ground > 200)
    # Text and frames: neither blank nor a solid block.
    assert 0.005 < (np.abs(pixels - ground) > 60).mean() < 0.5


def test_every_plot_is_drawn(report: Path, page: Page) -> None:
    page.open(report / "index.html", 1280)
    boxes = page.value(
        "[...document.querySelectorAll('svg.plot')].map(e => { const b = e.getBoundingClientRect();"
        "return [b.x, b.y + scrollY, b.width, b.height] })"
    )
    assert len(boxes) == 14  # seven kinds for each of two attacks
    shot = Image.open(io.BytesIO(page.screenshot(whole=True))).convert("RGB")
    red, green, blue = (np.asarray(band, np.int64) for band in shot.split())
    whole = red << 16 | green << 8 | blue
    for x, y, width, height in boxes:
        assert width > 200
        assert height > 150
        pixels = whole[int(y) : int(y + height), int(x) : int(x + width)]
        assert len(np.unique(pixels)) > 20


def test_pictures_and_tables_can_be_read_without_seeing(report: Path, page: Page) -> None:
    page.open(report / "index.html", 1280)
    assert page.value("[...document.images].every(i => i.alt && i.naturalWidth > 0)")
    assert page.value("[...document.querySelectorAll('svg.plot')].every(s => s.querySelector('title').textContent)")
    assert page.value("[...document.querySelectorAll('table')].every(t => t.caption && t.querySelector('th[scope]'))")
    assert page.value("document.documentElement.lang") == "en"
    ids = page.value("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    missing = page.value("[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length")
    assert missing == 0


def test_text_keeps_its_contrast(report: Path, page: Page) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 for text, in light and dark; 3 for lines."""
    script = """(() => {
      const probe = document.body.appendChild(document.createElement('div'));
      const rgb = name => { probe.style.color = `var(${name})`;
        return getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number) };
      const names = ['--ink', '--soft', '--warn', ...[1, 2, 3, 4, 5, 6, 7, 8].map(i => `--s${i}`)];
      const inks = Object.fromEntries(names.map(n => [n, rgb(n)]));
      return [rgb('--card'), rgb('--ground'), rgb('--warnground'), inks] })()"""
    for dark in (False, True):
        page.open(report / "index.html", 1280, dark=dark)
        card, ground, warn, inks = page.value(script)
        for name, ink in inks.items():
            wanted = 3 if name.startswith("--s") and name[3:].isdigit() else 4.5
            grounds = [card] if wanted == 3 else [card, ground, warn]
            for behind in grounds:
                assert contrast(ink, behind) >= wanted, (dark, name, behind)


def contrast(one: list[float], other: list[float]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
