"""All documents and the reference of the packages as pages that are read offline: `make docs`.

    python docs/pages.py [FOLDER]

Links that lead nowhere, anchors that no page has and public names without a docstring are listed, and end it with
status 1.
"""

from __future__ import annotations

import argparse
import html
import importlib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import markdown2
import pdoc.doc
import pdoc.render

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("keys", "runtime", "attest", "isolation", "serve", "device_sim"),
    *("export", "attack", "forensics", "cli", "demo"),
)
_EXTRAS = ["tables", "fenced-code-blocks", "header-ids", "cuddled-lists", "strike"]
_FAR = ("http:", "https:", "mailto:")
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 62rem; }
nav { font-size: 14px; border-bottom: 1px solid var(--line); padding-bottom: .6rem; margin-bottom: 1.5rem; }
nav a { margin-right: .8rem; white-space: nowrap; display: inline-block; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; } code { font-size: .9em; }
table { border-collapse: collapse; display: block; overflow-x: auto; } td, th { border: 1px solid var(--line);
padding: .3rem .6rem; text-align: left; vertical-align: top; }
"""


def documents(root: Path) -> list[Path]:
    """The project's Markdown files, from the root; no repository is needed."""
    folders = (*PACKAGES, "benchmarks", "assurance", "docs", "examples")
    paths = [*root.glob("*.md"), *(path for folder in folders for path in (root / folder).rglob("*.md"))]
    return sorted(path.relative_to(root) for path in paths)


def write_documents(root: Path, paths: Iterable[Path], out: Path) -> None:
    """Writes a page for each document, with links to the other pages in place of those to Markdown."""
    paths = list(paths)
    for path in paths:
        text = (root / path).read_text("utf-8")
        body = markdown2.markdown(text, extras=_EXTRAS)
        page = out / _page(path)
        page.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(path.parts) - 1)
        links = "".join(f'<a href="{up}{_page(other)}">{html.escape(_title(other))}</a>' for other in paths)
        linked = re.sub(r'href="([^"]+)"', partial(_retargeted, root, path), body)
        page.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(_title(path))}</title><style>{_STYLE}</style>"
            f'<nav>{links}<a href="{up}api/index.html">Reference</a></nav><main>{linked}</main></html>\n',
            "utf-8",
        )


def _page(path: Path) -> str:
    return path.with_suffix(".html").as_posix() if path != Path("README.md") else "index.html"


def _title(path: Path) -> str:
    return path.parent.as_posix() if path.name == "README.md" and path.parent != Path() else path.stem


def _retargeted(root: Path, path: Path, match: re.Match[str]) -> str:
    return f'href="{_target(root, path, match[1])}"'


def _target(root: Path, path: Path, link: str) -> str:
    """Where a page's link leads: to the page of a document, or of a folder's; others stay."""
    place, hash_, anchor = link.partition("#")
    if not place or link.startswith(_FAR):
        return link
    there = root / path.parent / place
    if there.is_dir() and (there / "README.md").is_file():
        place = f"{place.rstrip('/')}/README.md"
    if not place.endswith(".md"):
        return link
    at = (root / path.parent / place).resolve()
    name = "index.html" if at == root / "README.md" else PurePosixPath(place).with_suffix(".html").name
    return (PurePosixPath(place).parent / name).as_posix() + hash_ + anchor


class _Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name == "id":
                self.anchors.add(value)
            elif value and name in ("href", "src") and (tag, value[:5]) != ("link", "data:"):
                self.links.add(value)


def broken_links(root: Path, out: Path) -> Iterator[str]:
    """Links of the site to what is neither in it nor in the project, and anchors that their page does not have."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(out.rglob("*.html"))}
    for path, page in pages.items():
        for link in sorted(page.links):
            place, _, anchor = unquote(link).partition("#")
            if link.startswith((*_FAR, "data:")):
                continue
            at = path if not place else (path.parent / place).resolve()
            if not at.exists() and not (at.is_relative_to(out) and (root / at.relative_to(out)).exists()):
                yield f"{path.relative_to(out)}: {link} leads nowhere"
            # The reference links to what is inherited from private classes, which have no place on it.
            elif anchor and at in pages and anchor not in pages[at].anchors and not anchor.startswith("_"):
                yield f"{path.relative_to(out)}: {link} has no such anchor"


def write_reference(names: Iterable[str], out: Path) -> Iterator[str]:
    """Writes the reference of modules.

    Yields:
        Modules, classes, functions and methods without a docstring of their own or of what they override. Attributes
        are described by their class.
    """
    for name in names:
        package = importlib.import_module(name)
        for face in getattr(package, "__all__", ()):
            setattr(package, face, getattr(package, face))  # faces are imported when they are asked for
    modules = {name: pdoc.doc.Module.from_name(name) for name in names}
    pdoc.render.configure(docformat="google", footer_text="Variegate")
    for name, module in modules.items():
        page = out / f"{name.replace('.', '/')}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(pdoc.render.html_module(module, modules), "utf-8")
        yield from (f"{one.fullname} has no docstring" for one in _public(module) if not one.docstring)
    (out / "index.html").write_text(pdoc.render.html_index(modules), "utf-8")
    (out / "search.js").write_text(pdoc.render.search_index(modules), "utf-8")


def _public(namespace: pdoc.doc.Namespace[Any]) -> Iterator[pdoc.doc.Doc[Any]]:
    yield namespace
    for member in namespace.own_members:
        lambda_ = getattr(member.obj, "__name__", "") == "<lambda>"  # an attribute's default
        if member.name.startswith("_") or member.is_inherited or lambda_:
            continue
        if isinstance(member, pdoc.doc.Namespace):
            yield from _public(member)
        elif isinstance(member, pdoc.doc.Function):
            yield member


def modules_of(packages: Iterable[str]) -> list[str]:
    """Names of all modules of packages that are no private ones."""
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    parts = [("variegate", *file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts if p[-1] != "__main__"]


def main() -> int:
    """Builds the site and tells what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "docs", help="(default: build/docs)")
    out: Path = parser.parse_args().folder.resolve()
    paths = documents(ROOT)
    write_documents(ROOT, paths, out)
    warnings.filterwarnings("ignore", module="pdoc.doc_types")  # annotations that are imported for checkers alone
    faults = [*write_reference(modules_of(PACKAGES), out / "api"), *broken_links(ROOT, out)]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(list(out.rglob('*.html')))} pages in {out}; {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
