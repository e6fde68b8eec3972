"""Texts of the data, as one line shows them: in so many columns, with escapes for what is not printable.

Owns the way from any text to one that neither a terminal nor a comment of YAML takes for a command. Called by what
shows rows and labels: `seen_rows`, `first_recipe`.
"""

from __future__ import annotations

from rich.cells import cell_len

TAIL_CELLS = 24


def visible(text: str, cells: int) -> str:
    """The text in at most so many columns of a terminal. What is not printable, such as a line's end, is escaped."""
    shown = _escaped(text[: 4 * cells])
    if len(text) <= 4 * cells and cell_len(shown) <= cells:
        return shown
    return _cut(shown, cells - 1) + "…"


def both_ends(text: str, cells: int) -> str:
    """As `visible`, but a text that is too long is cut in its middle: how it ends matters as much."""
    if len(text) <= 4 * cells and cell_len(shown := _escaped(text)) <= cells:
        return shown
    tail = _cut(_escaped(text[-4 * TAIL_CELLS :])[::-1], min(TAIL_CELLS, cells // 3))[::-1]
    head = _cut(_escaped(text[: 4 * cells]), cells - cell_len(tail) - 3)
    return f"{head} … {tail}"


def _escaped(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def _cut(text: str, cells: int) -> str:
    """As much of its beginning as fits."""
    width = 0
    for at, character in enumerate(text):
        width += cell_len(character)
        if width > cells:
            return text[:at]
    return text
