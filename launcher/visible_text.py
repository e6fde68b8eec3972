"""Texts of the data, as one line shows them: in so many columns, with escapes for what is not printable.

Owns the way from any text to one that neither a terminal nor a comment of YAML takes for a command. Called by what
shows rows and labels: `seen_rows`, `first_recipe`.
"""

from __future__ import annotations

from rich.cells import cell_len


def visible(text: str, cells: int) -> str:
    """The text in at most so many columns of a terminal. What is not printable, such as a line's end, is escaped."""
    shown, width = "", 0
    for character in text[: 4 * cells]:
        one = character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        shown, width = shown + one, width + cell_len(one)
        if width > cells:
            break
    else:
        if len(text) <= 4 * cells:
            return shown
    while shown and cell_len(shown) > cells - 1:
        shown = shown[:-1]
    return shown + "…"
