"""Matplotlib figures as SVG that lives inside a page: no outside reference, no date, ids of its own, colours by CSS.

Figures are drawn in marker colours; each becomes a CSS variable of the page, so that one drawing serves light, dark and
print. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from variegate.attack.report.html import escaped

INK, SOFT, LINE = "#010101", "#020202", "#030303"
"""Text and axes; secondary text; grid."""
SERIES = tuple(f"#04040{i}" for i in range(1, 9))
"""Up to eight series."""
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line"} | {c: f"--s{i}" for i, c in enumerate(SERIES, 1)}
_STYLE: Any = {
    "svg.hashsalt": "variegate",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "path.simplify": False,
}
_PROLOGUE = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->\s*", re.DOTALL)
_SHEET = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>\s*", re.DOTALL)
"""Would hold for the whole page; the page's own sheet has it."""
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'url\(#([^)"]*)\)|href="#([^"]*)"')
_MAX_TEXT = 60


def figure(width: float = 4.4, height: float = 3.1) -> Figure:
    """An empty figure in the page's style; sizes in inches of 72 units."""
    with matplotlib.rc_context(_STYLE):
        drawing = Figure(figsize=(width, height))
    # Fixed margins: measuring them takes as long as drawing.
    drawing.subplots_adjust(left=0.205, right=0.965, bottom=0.18, top=0.88)
    return drawing


def style() -> matplotlib.RcParams:
    """The style, for `matplotlib.rc_context`, in which axes are made and filled."""
    return matplotlib.RcParams(_STYLE)


def render(drawing: Figure, number: int, title: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        drawing: Made by `figure`, filled within `style`.
        number: Of the figure in the page; makes ids differ.
        title: What it shows, for those who do not see it.
    """
    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        drawing.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    for unwanted in (_PROLOGUE, _METADATA, _COMMENT, _SHEET):
        text = unwanted.sub("", text)
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    needed = {a or b for a, b in _REFERENCE.findall(text)}
    text = _ID.sub(lambda m: f' id="f{number}-{m[1]}"' if m[1] in needed else "", text)
    text = _REFERENCE.sub(
        lambda m: f"url(#f{number}-{m[1]})" if m[1] is not None else f'href="#f{number}-{m[2]}"', text
    )
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height|version|xmlns(:xlink)?)="[^"]*"', "", head)
    return f'{head} role="img" class="plot"><title>{escaped(title)}</title>{rest.rstrip()}'


def shown(text: str) -> str:
    """A text as figures can show it: on one line, short, in characters that the font has."""
    letters = _letters()
    visible = "".join(c if ord(c) in letters and c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return visible if len(visible) <= _MAX_TEXT else visible[: _MAX_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"


_known: list[set[int]] = []


def _letters() -> set[int]:
    if not _known:
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        _known.append(set(FT2Font(str(path)).get_charmap()))
    return _known[0]
