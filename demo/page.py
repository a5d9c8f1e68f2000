"""The page: one HTML file with relative pictures, no scripts, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from variegate.attack import Replay
from variegate.demo.pictures import amplification, names
from variegate.demo.results import OVERSHOOTS, Attacked
from variegate.demo.tell import Chapter
from variegate.device_sim.world.signs import SIGNS

_STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1a1d21;--soft:#5b636d;--line:#dde1e6;
--bad:#b3261e;--badground:#fbe9e7;--good:#1b6e3c;--goodground:#e6f4ea;--a:#b3261e;--b:#1f5fbf;--c:#1b7f5a;--base:#7a7f87}
@media(prefers-color-scheme:dark){:root{--ground:#14171a;--card:#1d2126;--ink:#e8eaed;--soft:#a1a8b0;--line:#343a41;
--bad:#ff8a80;--badground:#3b1f1d;--good:#81d49f;--goodground:#16301f;--a:#ff8a80;--b:#8ab4f8;--c:#6fd3a8;--base:#9aa0a8}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:1rem 0 .4rem}
h2{font-size:1.2rem;margin:0 0 .4rem}
p{margin:.4rem 0}
.lead,.note{color:var(--soft)}
.note{font-size:.92rem}
section{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:1.1rem 1.2rem;margin:1rem 0}
.scroll{overflow-x:auto;margin:.6rem 0;background:linear-gradient(90deg,var(--card) 30%,transparent) local,
linear-gradient(270deg,var(--card) 30%,transparent) 100% local,linear-gradient(90deg,var(--line),transparent),
linear-gradient(270deg,var(--line),transparent) 100%;background-size:2rem 100%,2rem 100%,.8rem 100%,.8rem 100%;
background-repeat:no-repeat}
.headline{font-size:1.15rem;font-weight:600;border-left:.25rem solid var(--b);padding-left:.8rem;margin:1rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.93rem;width:100%}
th,td{text-align:left;padding:.34rem .9rem .34rem 0;border-bottom:1px solid var(--line);white-space:nowrap;
vertical-align:bottom}
th{color:var(--soft);font-weight:600;white-space:normal;line-height:1.25}
@media(max-width:40rem){section{padding:.9rem}td{white-space:normal}th,td{padding-right:.6rem}table{font-size:.85rem}}
td.n,th.n{text-align:right}
.signs{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem;margin:.8rem 0}
.sign{border:1px solid var(--line);border-radius:.6rem;padding:.8rem;min-width:0;display:flex;flex-direction:column}
.sign h3{font-size:1rem;margin:0 0 .5rem}
.three{display:grid;grid-template-columns:repeat(3,1fr);gap:.4rem}
figure{margin:0;min-width:0}
figcaption{font-size:.78rem;color:var(--soft);margin-top:.15rem}
.three img{width:100%;height:auto;display:block;border-radius:.35rem;image-rendering:pixelated}
.cars{display:grid;grid-template-columns:repeat(3,1fr);gap:.4rem;margin-top:.6rem}
.car{border-radius:.4rem;padding:.4rem;font-size:.82rem;line-height:1.3;text-align:center;min-width:0;overflow-wrap:anywhere}
.car img{width:2.6rem;height:2.6rem;display:block;margin:.2rem auto}
.right{background:var(--goodground);color:var(--good)}.wrong{background:var(--badground);color:var(--bad)}
.chart{max-width:46rem;width:100%;height:auto;display:block;margin:.5rem 0}
.chart text{fill:var(--soft);font:12px system-ui,sans-serif}
.chart .grid{stroke:var(--line)}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.88rem;padding:0;margin:.3rem 0;list-style:none}
.key i{display:inline-block;width:1.4rem;border-top:.6rem solid;vertical-align:middle;margin-right:.4rem}
footer{color:var(--soft);font-size:.88rem}
"""

_LEFT, _TOP, _WIDTH, _HEIGHT = 44, 22, 620, 190


def page(
    chapters: Sequence[Chapter],
    attacked: Sequence[Attacked],
    curves: Mapping[str, Replay],
    headline: str,
    made_with: str,
) -> str:
    """The whole page.

    Args:
        chapters: In order.
        attacked: The samples found on car A.
        curves: Who is fooled at which overshoot.
        headline: The result in two sentences.
        made_with: The command line, for the foot.
    """
    parts = []
    for chapter in chapters:
        between = ""
        if chapter.key == "read":
            between = _signs(attacked)
        elif chapter.key == "curves":
            between = _chart(curves)
        parts.append(_section(chapter, between))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Variegate: three buyers, three cars</title><style>{_STYLE}</style></head>\n<body><main>\n"
        "<h1>Three buyers, three cars, one attacker</h1>\n"
        '<p class="lead">Every buyer gets a different sealed copy of one network. An attacker shows samples of her '
        "own car to the others, and the seller finds the copy on which they were made.</p>\n"
        f'<p class="headline">{escape(headline)}</p>\n'
        + "\n".join(parts)
        + f"\n<footer><p>Made with <code>{escape(made_with)}</code>. Keys are new in every run, so figures vary.</p>"
        "</footer>\n</main></body></html>\n"
    )


def _section(chapter: Chapter, between: str) -> str:
    text = f"<p>{escape(chapter.text)}</p>" if chapter.text else ""
    note = f'<p class="note">{escape(chapter.note)}</p>' if chapter.note else ""
    return f"<section><h2>{escape(chapter.title)}</h2>{text}{between}{_table(chapter)}{note}</section>"


def _table(chapter: Chapter) -> str:
    if not chapter.rows:
        return ""
    numeric = [all(isinstance(row[i], int) for row in chapter.rows) for i in range(len(chapter.header))]
    right = [' class="n"' if n else "" for n in numeric]
    head = "".join(f"<th{r}>{escape(name)}</th>" for r, name in zip(right, chapter.header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{r}>{escape(str(cell))}</td>" for r, cell in zip(right, row, strict=True)) + "</tr>"
        for row in chapter.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _signs(attacked: Sequence[Attacked]) -> str:
    cards = []
    for i, a in enumerate(attacked, 1):
        if a.sample is None:
            continue
        factor = amplification(a.clean, a.sample)
        picture = names(i)
        shown = SIGNS[a.truth].name
        figures = "".join(
            f'<figure><img src="{picture[key]}" alt="{escape(f"{key}: {shown}")}">'
            f"<figcaption>{caption}</figcaption></figure>"
            for key, caption in (
                ("clean", "clean"),
                ("adversarial", "shown"),
                ("difference", f"change x {factor}"),
            )
        )
        cars = "".join(_car(name, label, a.truth) for name, label in a.read.items() if name != "base")
        cards.append(
            f'<div class="sign"><h3>{i}. {escape(shown)}</h3><div class="three">{figures}</div>'
            f'<div class="cars">{cars}</div></div>'
        )
    return f'<div class="signs">{"".join(cards)}</div>'


def _car(name: str, label: int, truth: int) -> str:
    verdict = "right" if label == truth else "wrong"
    what = escape(SIGNS[label].name)
    return f'<div class="car {verdict}">car {name} reads<img src="reads-{label:02}.png" alt="">{what}</div>'


def _chart(curves: Mapping[str, Replay]) -> str:
    """Signs that fool each reader at each overshoot: bars side by side, none behind another, as inline SVG."""
    series = [
        (f"car {name}", name.lower(), curves["with"].samples, counts) for name, counts in curves["with"].fooled.items()
    ]
    series += [
        ("any car, without Variegate", "base", curves["without"].samples, counts)
        for name, counts in curves["without"].fooled.items()
        if name == "base"
    ]
    if any(samples == 0 for _, _, samples, _ in series):
        return ""
    marks = []
    for share in (0, 50, 100):
        y = _y(share / 100)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{share} %</text>')
    marks += [
        f'<text x="{_LEFT + _WIDTH * (place + 0.5) / len(OVERSHOOTS):.1f}" y="{_TOP + _HEIGHT + 18}" '
        f'text-anchor="middle">s = {s:g}</text>'
        for place, s in enumerate(OVERSHOOTS)
    ]
    step = _WIDTH / len(OVERSHOOTS)
    wide = step / (len(series) + 1)
    for at, (_, colour, samples, counts) in enumerate(series):
        for place, count in enumerate(counts):
            x, y = _LEFT + step * place + wide * (at + 0.5), _y(count / samples)
            marks.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide - 2:.1f}" height="{_TOP + _HEIGHT - y:.1f}" '
                f'fill="var(--{colour})"/>'
                f'<text x="{x + wide / 2 - 1:.1f}" y="{y - 3}" text-anchor="middle">{count}</text>'
            )
    keys = "".join(
        f'<li><i style="border-color:var(--{colour})"></i>{escape(title)}</li>' for title, colour, _, _ in series
    )
    size = f"0 0 {_LEFT + _WIDTH + 16} {_TOP + _HEIGHT + 28}"
    label = "Signs that fool each car over overshoot; the table below has the numbers"
    return (
        f'<svg class="chart" viewBox="{size}" role="img" aria-label="{label}">{"".join(marks)}</svg>'
        f'<ul class="key">{keys}</ul>'
    )


def _y(share: float) -> float:
    return round(_TOP + _HEIGHT * (1 - share), 1)
