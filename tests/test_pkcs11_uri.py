"""URIs of keys in an HSM: read strictly, and no PIN ever on a command line or in a message."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from variegate.keys import uri
from variegate.keys.errors import MisuseError, RefusedError
from variegate.keys.pkcs11_uri import MAX_LABEL_BYTES, Pkcs11Uri

GOOD = "pkcs11:token=seller;object=acme?module-path=/usr/lib/m.so"


def never() -> str:
    pytest.fail("the PIN was asked for")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (GOOD, Pkcs11Uri("seller", "acme", Path("/usr/lib/m.so"))),
        (
            "PKCS11:object=acme;token=seller?module-path=/usr/lib/m.so",
            Pkcs11Uri("seller", "acme", Path("/usr/lib/m.so")),
        ),
        (
            "pkcs11:token=The%20Software%20PKCS%2311;object=B%C3%BCcher&S%3b;serial=ab01?module-path=/a%20b/m.so",
            Pkcs11Uri("The Software PKCS#11", "Bücher&S;", Path("/a b/m.so"), serial="ab01"),
        ),
        (
            GOOD + "&pin-source=file:/run/pin",
            Pkcs11Uri("seller", "acme", Path("/usr/lib/m.so"), None, Path("/run/pin")),
        ),
        (GOOD + "&pin-source=/run/a%26b", Pkcs11Uri("seller", "acme", Path("/usr/lib/m.so"), None, Path("/run/a&b"))),
        (GOOD + "&pin-source=file:///run/p", Pkcs11Uri("seller", "acme", Path("/usr/lib/m.so"), None, Path("/run/p"))),
    ],
)
def test_what_a_uri_means(text: str, meant: Pkcs11Uri) -> None:
    assert Pkcs11Uri.parse(text) == meant
    assert Pkcs11Uri.parse(str(meant)) == meant


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pkcs11:", "lacks token"),
        ("pkcs11:token=seller?module-path=/m.so", "lacks object"),
        ("pkcs11:token=seller;object=acme", "lacks module-path"),
        ("pkcs11:token=;object=acme?module-path=/m.so", "lacks token"),
        ("pkcs11:token=a;token=b;object=acme?module-path=/m.so", "token is in the pkcs11: URI twice"),
        (GOOD + "&module-path=/other.so", "module-path is in the pkcs11: URI twice"),
        ("pkcs11:token=a;object=b;type=private?module-path=/m.so", "not known here: type"),
        ("pkcs11:token=a;object=b;slot-id=0?module-path=/m.so", "not known here"),
        (GOOD + "&module-name=m", "not known here: module-name"),
        ("pkcs11:token=a;object=b;module-path=/m.so", "not known here: module-path"),
        ("pkcs11:token=a;object=b;?module-path=/m.so", "not known here: one"),
        ("pkcs11:token=a;object?module-path=/m.so", "object in a pkcs11: URI is not encoded"),
        ("pkcs11:token=a;object=%4?module-path=/m.so", "not encoded"),
        ("pkcs11:token=a;object=a b?module-path=/m.so", "not encoded"),
        ("pkcs11:token=a;object=a/b?module-path=/m.so", "not encoded"),
        ("pkcs11:token=a;object=ü?module-path=/m.so", "not encoded"),
        ("pkcs11:token=a;object=%ff?module-path=/m.so", "not UTF-8"),
        ("pkcs11:token=a;object=%00?module-path=/m.so", "not UTF-8"),
        ("pkcs11:token=a;object=%0a?module-path=/m.so", "printable"),
        (f"pkcs11:token=a;object={'x' * (MAX_LABEL_BYTES + 1)}?module-path=/m.so", "printable"),
        ("pkcs11:token=a;object=b;serial=?module-path=/m.so", "serial"),
        ("pkcs11:token=a;object=b?module-path=m.so", "absolute"),
        (GOOD + "&pin-source=pin", "absolute"),
        (GOOD + "&pin-source=file:pin", "absolute"),
        (GOOD + "&pin-source=%7C/bin/pin", "program"),
        (GOOD + "&pin-source=|/bin/pin", "program"),
        (GOOD + "#fragment", "not encoded"),
        (GOOD + "x" * 4096, "at most"),
    ],
)
def test_uris_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        uri.open_seller(text, never)


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "&pin-value=SECRET99",
        "pkcs11:token=a;object=b;pin-value=SECRET99?module-path=/m.so",
        GOOD + "&pin=SECRET99",
        GOOD + "&SECRET99",
        GOOD + "&SECRET99=1",
        GOOD + "&pin-source=SECRET99",
        "pkcs11:token=SECRET99;object=%?module-path=/m.so",
    ],
)
def test_no_message_says_what_may_be_a_pin(text: str) -> None:
    with pytest.raises(MisuseError) as caught:
        uri.open_seller(text, never)
    assert "SECRET99" not in caught.value.message + (caught.value.hint or "")
    if "pin-value" in text:
        assert "command line" in caught.value.message
        assert "pin-source" in (caught.value.hint or "")


@given(st.text(max_size=MAX_LABEL_BYTES), st.text(max_size=MAX_LABEL_BYTES), st.text(max_size=20))
def test_every_uri_is_written_as_it_is_read(token: str, label: str, path: str) -> None:
    try:
        meant = Pkcs11Uri.parse(str(Pkcs11Uri(token, label, Path("/m" + path), pin_source=Path("/p" + path))))
    except (MisuseError, UnicodeEncodeError):
        return
    assert (meant.token, meant.label, meant.module) == (token, label, Path("/m" + path))
    assert Pkcs11Uri.parse(str(meant)) == meant


@given(st.text(max_size=60))
def test_any_text_is_a_uri_or_misuse(text: str) -> None:
    for uri_text in (text, "pkcs11:" + text, GOOD + text):
        with contextlib.suppress(MisuseError):
            Pkcs11Uri.parse(uri_text)


def test_a_pin_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pkcs11", reason="python-pkcs11 not installed")
    file = tmp_path / "pin"
    file.write_text("SECRET99")
    file.chmod(0o644)
    with pytest.raises(RefusedError, match="can reach it"):
        uri.open_seller(f"{GOOD}&pin-source=file:{file}", never)
    file.chmod(0o600)
    with pytest.raises(MisuseError, match="no PKCS#11 module"):
        uri.open_seller(f"{GOOD}&pin-source=file:{file}", never)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RefusedError, match="ASCII") as caught:
        uri.open_seller(f"{GOOD}&pin-source=file:{file}", never)
    assert caught.value.__context__ is None
