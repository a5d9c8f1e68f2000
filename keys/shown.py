"""Makes foreign text safe for a terminal: it cannot move the cursor, ring, hide or reverse other text."""

from __future__ import annotations


def printable(text: str, *, lines: bool = False) -> str:
    """Text with a question mark for each character that is not printable.

    These are Unicode's categories Other and Separator except the ASCII space. They include the first characters of
    escape sequences, and the marks that reverse text.

    Args:
        text: Any text.
        lines: Whether ends of lines stay.
    """
    return "".join(c if c.isprintable() or (lines and c == "\n") else "?" for c in text)
