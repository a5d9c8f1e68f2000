"""Pieces of HTML. Every text goes through `escaped`; nothing from a campaign is markup, or does more than be shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from variegate.attack.report.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content security policy: a browser loads nothing and runs nothing, whatever got into the page."""
_SPACES = "\n\t\N{NO-BREAK SPACE}"


class Raw(str):
    """Markup that was made here, not to be escaped again."""

    __slots__ = ()


def escaped(value: str) -> str:
    """Text that is no markup, and in which only what is printable is left: nothing turns other text round or hides."""
    return escape("".join(c if c.isprintable() or c in _SPACES else "\N{REPLACEMENT CHARACTER}" for c in value))


def text(value: object) -> Raw:
    """Escaped text, in which no number loses its sign at the end of a line; markup stays as it is."""
    if isinstance(value, Raw):
        return value
    return Raw(escaped(str(value)).replace(" %", "&nbsp;%").replace(" = ", "&nbsp;=&nbsp;"))


def document(title: str, body: Iterable[str]) -> bytes:
    """A whole page that loads nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    ).encode()


def section(key: str, title: str, *parts: str, kind: str = "") -> Raw:
    """A section with a heading."""
    label = f' class="{kind}"' if kind else ""
    return Raw(f'<section id="{key}"{label}><h2>{escaped(title)}</h2>\n' + "\n".join(parts) + "\n</section>")


def paragraph(*words: object, kind: str = "") -> Raw:
    """A paragraph."""
    label = f' class="{kind}"' if kind else ""
    return Raw(f"<p{label}>" + "".join(map(text, words)) + "</p>")


def listed(items: Iterable[object], kind: str = "") -> Raw:
    """A list."""
    return Raw(f'<ul class="plain {kind}">' + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>")


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, heads: int = 1, stacked: bool = False
) -> Raw:
    """A table that scrolls by itself where it is too wide.

    Args:
        caption: What it shows.
        columns: Headers; one that ends in "#" is of numbers, and loses the sign.
        rows: Cells.
        heads: Leading cells of a row that are its header.
        stacked: Whether each row becomes a block of its own on a narrow screen.
    """
    numeric = [name.endswith("#") for name in columns]
    names = [escaped(name.removesuffix("#")) for name in columns]
    classes = [' class="n"' if number else "" for number in numeric]
    roles = dict.fromkeys(("table", "rowgroup", "row", "columnheader", "rowheader", "cell"), "")
    if stacked:
        # Laid out as blocks, a browser forgets that it is a table.
        roles = {role: f' role="{role}"' for role in roles}
    head = "".join(
        f'<th scope="col"{roles["columnheader"]}{label}>{name}</th>' for name, label in zip(names, classes, strict=True)
    )
    lines = []
    for row in rows:
        cells = []
        for i, (cell, name, label) in enumerate(zip(row, names, classes, strict=True)):
            if i < heads:
                cells.append(f'<th scope="row"{roles["rowheader"]}>{text(cell)}</th>')
            else:
                named = f' data-name="{name}"' if stacked else ""
                cells.append(f"<td{roles['cell']}{label}{named}>{text(cell)}</td>")
        lines.append(f"<tr{roles['row']}>{''.join(cells)}</tr>")
    kind = ' class="stacked"' if stacked else ""
    group = roles["rowgroup"]
    return scroll(
        f"<table{kind}{roles['table']}><caption>{escaped(caption)}</caption><thead{group}><tr{roles['row']}>{head}</tr>"
        f"</thead><tbody{group}>{''.join(lines)}</tbody></table>",
        caption,
    )


def scroll(content: str, label: str) -> Raw:
    """A region that scrolls sideways; it can be reached by keyboard."""
    return Raw(f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(label)}">{content}</div>')


def figures(drawings: Sequence[str], most: int, tables: str) -> Raw:
    """Plots side by side, so many at most."""
    shown = "".join(f"<figure>{drawing}</figure>" for drawing in drawings[:most])
    left = len(drawings) - most
    note = paragraph(f"{left} more are in {tables}.", kind="note") if left > 0 else ""
    return Raw(f'<div class="plots">{shown}</div>{note}')
