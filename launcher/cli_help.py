"""What ``thawline --help`` shows: the commands in groups, those of a first hour first, and examples.

Owns the order and the examples. Refuses to know what a command does: its own docstring says it. Called by `cli`.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

GROUPS: dict[str, tuple[str, ...]] = {
    "Train": ("run", "plan", "init", "resume", "recipes", "schema"),
    "Watch a run": ("status", "watch", "logs", "report"),
    "Use a model": ("predict", "evaluate", "export"),
    "On a cluster": ("submit", "cancel"),
    "This machine": ("doctor", "bench"),
}
EXAMPLES = """\
  thawline run quickstart       # a recipe that comes with thawline: 3 minutes, no GPU
  thawline init reviews.csv     # writes reviews.yaml, a first recipe for your data
  thawline plan reviews.yaml    # what it would do: stages, memory, time
  thawline run reviews.yaml --set stages.full.epochs=3
  thawline status runs/reviews
  thawline predict runs/reviews new.csv -o answers.csv
"""


class GroupedCommands(TyperGroup):
    """The commands by `GROUPS`; one that no group names comes last, so that none is hidden."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the groups."""
        named = [name for names in GROUPS.values() for name in names if name in self.commands]
        return [*named, *(name for name in self.commands if name not in named)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each group, then the examples."""
        others = tuple(name for name in self.commands if not any(name in names for names in GROUPS.values()))
        width = max(map(len, self.commands))
        for title, names in {**GROUPS, "Other": others}.items():
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - width - 6))
                for name in names
                if (command := self.get_command(ctx, name)) is not None and not command.hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        with formatter.section("Examples"):
            formatter.write(EXAMPLES)
