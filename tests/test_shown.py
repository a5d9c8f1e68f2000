"""What strangers wrote is shown, on terminals and in pages, and does nothing there."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import campaigns
from tests.test_registry import ROW
from variegate.attack.report.html import document, escaped
from variegate.attack.report.html import text as html_text
from variegate.attack.report.manifest import MANIFEST, SIGNATURE, files, verify_evidence
from variegate.attack.report.tables import Table
from variegate.attack.report.write import write_report
from variegate.attest.broker_store import BrokerStore
from variegate.cli.console import emit, note, table
from variegate.cli.main import main
from variegate.export.registry import Registry
from variegate.keys.errors import Refusal, RefusedError
from variegate.keys.identity import DeviceIdentity
from variegate.keys.seller import Seller
from variegate.keys.shown import printable

EVIL = "a\x1b[2Jb\x07c\rd\u202ee\x00f\x9bg\u2066h\x7fi\u2028j\x08k\udcffl"
UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
PLAIN = "a?[2Jb?c?d?e?f?g?h?i?j?k?l"


def test_only_what_is_printable_is_left() -> None:
    assert printable(EVIL) == PLAIN
    assert printable("büro, 日本, é 😀 x") == "büro, 日本, é 😀 x"
    assert printable("one\ntwo") == "one?two"
    assert printable("one\ntwo\r\n", lines=True) == "one\ntwo?\n"


def test_the_console_shows_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    note(EVIL)
    rows = table([(EVIL, 1), ("new\nline", 2)], ("name", "n"))
    emit({"it": EVIL}, False, lambda: f"{EVIL}\n{rows}")
    said = capsys.readouterr()
    assert not UNWANTED.search(said.out + said.err)
    assert said.err == f"{PLAIN}\n"
    assert said.out.splitlines() == [PLAIN, f"name{' ' * 22}  n", f"{PLAIN}  1", f"new?line{' ' * 18}  2"]
    emit({"it": EVIL}, True, str)
    out = capsys.readouterr().out
    assert not UNWANTED.search(out)
    assert json.loads(out) == {"it": EVIL}


def test_errors_show_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(tmp_path / "a\x1b[2J\x07\r\n\u202e\x9bb")
    assert main(["attack", "query", name, "SELECT 1"]) == 2
    said = capsys.readouterr().err
    assert not UNWANTED.search(said)
    assert said.splitlines()[0] == f"variegate: {tmp_path / 'a?[2J?????b'} is no campaign"


def test_registry_and_broker_list_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = EVIL.replace("\udcff", "").replace("\x00", "")
    with Registry(tmp_path / "r.sqlite") as registry:
        registry.add([replace(ROW, buyer=evil[:20], release=evil, file=evil)])
    assert main(["export", "registry", str(tmp_path / "r.sqlite")]) == 0
    assert not UNWANTED.search(capsys.readouterr().out)
    (tmp_path / "broker").mkdir()
    with BrokerStore(tmp_path / "broker" / "books.sqlite", lambda: 0, create=True) as store:
        store.allow("b", DeviceIdentity.generate("c").public)
        store.record(evil, buyer=evil, detail=evil)
    with closing(sqlite3.connect(tmp_path / "broker" / "books.sqlite")) as db:
        db.execute("UPDATE allowed SET buyer = ?", (evil,))
        db.commit()
    for words in ("list", "log"):
        assert main(["broker", words, str(tmp_path / "broker")]) == 0
        out = capsys.readouterr().out
        assert "a?[2Jb?c?d?ef?g" in out
        assert not UNWANTED.search(out)


def test_a_query_shows_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = campaigns.write_whole(tmp_path / "c", [campaigns.sample(0)], [], frame_rate=30)
    shown = r"SELECT 'a' || chr(27) || '[2J' || chr(7) || chr(13) || chr(8238) || chr(155) || 'b' AS x, [chr(27)] AS y"
    assert main(["attack", "query", str(made), shown]) == 0
    assert not UNWANTED.search(capsys.readouterr().out)


def test_a_page_and_its_tables_hold_nothing_else(tmp_path: Path) -> None:
    evil = EVIL.replace("\udcff", "")
    names = {"fleet": f"fleet {evil}", "attack": f"attack {evil}"}
    made = campaigns.write(
        tmp_path / "c",
        [campaigns.sample(0), campaigns.sample(1, found=False, status="failed", reason=f"why {evil}")],
        [campaigns.replay(0, 0, fooled=True), campaigns.replay(0, 1, fooled=True)],
        **names,
    )
    (made / "campaign.toml").write_text(f"schema = 1\nname = {json.dumps(evil)}\n".replace("\x7f", "\\u007f"))
    write_report(made, tmp_path / "report")
    written = [path for path in (tmp_path / "report").rglob("*") if path.suffix in (".html", ".csv", ".json")]
    assert len(written) > 5
    for path in written:
        found = UNWANTED.search(path.read_bytes().decode().replace("\r\n", "\n"))
        assert found is None, (path, found)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "fleet a\N{REPLACEMENT CHARACTER}[2Jb" in page


def test_pieces_of_html_hold_nothing_else() -> None:
    page = document(EVIL, [html_text(EVIL)]).decode()
    assert not UNWANTED.search(page)
    assert escaped("<b> & \u202e") == "&lt;b&gt; &amp; \N{REPLACEMENT CHARACTER}"
    csv = Table("t", "c", ("a",), ((f"\x1b{EVIL}"[:-2],), ("\t=1",))).csv().decode()
    assert not UNWANTED.search(csv.replace("\r\n", "\n"))
    assert "'?=1" in csv


def test_a_folder_without_files_is_no_signed_evidence(tmp_path: Path) -> None:
    seller = Seller.generate()
    made = files({}, seller.signer)
    for name, data in made.items():
        path = tmp_path / "report" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert {MANIFEST, SIGNATURE} == made.keys()
    for root in (seller.root, None):
        with pytest.raises(RefusedError, match="lists no files") as caught:
            verify_evidence(tmp_path / "report", root)
        assert caught.value.refusal is Refusal.EVIDENCE
