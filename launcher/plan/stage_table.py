"""A table with a row a stage that stays readable on a narrow terminal.

Owns the choice of layout: where the rows do not fit the width, stages become columns, as many side by side as fit.
Called by `table` and `memory_table`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


class StageTable:
    """Rows of cells under names; the first cell of each is its stage's name.

    A name that has no value in any row is left out where stages are columns.
    """

    def __init__(self, names: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]) -> None:
        self._names, self._rows, self._left = names, rows, left

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if _fits(wide := self._wide(), console, options):
            yield wide
            return
        start = 0
        while start < len(self._rows):
            end = len(self._rows)
            while end > start + 1 and not _fits(self._turned(start, end), console, options):
                end -= 1
            yield self._turned(start, end)
            start = end

    def _wide(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in self._names:
            table.add_column(name, justify="left" if name in self._left else "right")
        for row in self._rows:
            table.add_row(*map(Text, row))
        return table

    def _turned(self, start: int, end: int) -> Table:
        shown = self._rows[start:end]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(Text(self._names[0]))
        for row in shown:
            table.add_column(Text(row[0]), overflow="fold")
        for place, name in enumerate(self._names[1:], start=1):
            if any(row[place] for row in self._rows):
                table.add_row(Text(name), *(Text(row[place]) for row in shown))
        return table


def _fits(table: Table, console: Console, options: ConsoleOptions) -> bool:
    unbounded = options.update(max_width=100_000, width=100_000)
    return Measurement.get(console, unbounded, table).maximum <= options.max_width
