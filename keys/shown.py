"""Makes foreign text safe for a terminal: it cannot move the cursor, ring, hide or reverse other text."""

from __future__ import annotations


def printable(text: str, *, lines: bool = False) -> str:
    """Text with a question mark for each character that is not printable.

    Those are Unicode's categories Other and Separator but the ASCII space: escape sequences begin with one, and the
    marks that turn text round are among them.

    Args:
        text: Any text.
        lines: Whether ends of lines stay.
    """
    return "".join(c if c.isprintable() or (lines and c == "\n") else "?" for c in text)
