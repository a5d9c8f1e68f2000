"""The documentation's check finds what it is for, and the project's own documents pass it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from docs.pages import ROOT, broken_links, documents, modules_of, write_documents, write_reference


def site(root: Path, texts: dict[str, str]) -> list[str]:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    out = root / "site"
    write_documents(root, [Path(name) for name in texts], out)
    return list(broken_links(root, out))


def test_pages_link_to_one_another(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "vectors.json").write_text("{}")
    (tmp_path / "site" / "api").mkdir(parents=True)
    (tmp_path / "site" / "api" / "index.html").write_text("<p id='top'>reference</p>")
    texts = {
        "README.md": "# Start\n\n[keys](keys/), [format](keys/README.md#the-format), [far](https://example.org/x)\n",
        "keys/README.md": "## The format\n\n[back](../README.md#start) to [this](#the-format), [json](vectors.json)\n",
    }
    assert site(tmp_path, texts) == []
    assert 'href="keys/README.html#the-format"' in (tmp_path / "site" / "index.html").read_text()
    assert 'href="../index.html#start"' in (tmp_path / "site" / "keys" / "README.html").read_text()


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("[a](missing.md)", "page.html: missing.html leads nowhere"),
        ("[a](other.md#there)", "page.html: other.html#there has no such anchor"),
        ("[a](#there)", "page.html: #there has no such anchor"),
        ("![a](picture.png)", "page.html: picture.png leads nowhere"),
        ("[a](../../outside.md)", "page.html: ../../outside.html leads nowhere"),
    ],
)
def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, link: str, fault: str) -> None:
    (tmp_path / "site" / "api").mkdir(parents=True)
    (tmp_path / "site" / "api" / "index.html").touch()
    assert site(tmp_path, {"page.md": f"# Here\n\n{link}\n", "other.md": "# Here\n"}) == [fault]


def test_a_public_name_without_a_docstring_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "undocumented_module.py").write_text(
        '"""A module."""\n\n\nclass Known:\n    """A class."""\n\n    def method(self) -> None: ...\n\n'
        '    def _private(self) -> None: ...\n\n\nclass Child(Known):\n    """Another."""\n\n\ndef function(): ...\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert list(write_reference(["undocumented_module"], tmp_path / "api")) == [
            "undocumented_module.Known.method has no docstring",
            "undocumented_module.function has no docstring",
        ]
    finally:
        sys.modules.pop("undocumented_module", None)


def test_the_projects_documents_link_to_what_is_there(tmp_path: Path) -> None:
    paths = documents(ROOT)
    assert len(paths) > 20
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "index.html").touch()
    write_documents(ROOT, paths, tmp_path)
    assert list(broken_links(ROOT, tmp_path)) == []


def test_the_reference_has_every_module() -> None:
    assert {"variegate.keys", "variegate.keys.envelope", "variegate.attack.kinds"} <= set(
        modules_of(("keys", "attack"))
    )
