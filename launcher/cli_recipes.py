"""The commands about recipes themselves: parse, call, print. `cli` adds them to its own.

No logic here, as there: each command's is in the module that it imports when it runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (init, recipes, schema):
        app.command()(command)


def init(
    given: Annotated[
        Path | None,
        typer.Argument(
            help="A csv, tsv, json, parquet or text file, or a folder of images or of such files.", metavar="DATA"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="A hub id, folder or torchvision:NAME; default one for the task.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="KIND", help="text-classification, image-classification or causal-lm.")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of texts.")] = None,
    text_pair: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of second texts.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of labels.")] = None,
    image: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of images or their paths.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new file; default DATA's name with .yaml.")
    ] = None,
) -> None:
    """Write a first recipe for your data, with a reason for each line.

    Looks at the columns and proposes the task, labels, lengths and stages.
    """
    from launcher.errors import UserError
    from launcher.first_recipe import writing
    from launcher.first_recipe.guessing import Asked

    if given is None:
        if not sys.stdin.isatty():
            raise UserError("init needs DATA, a file or folder: thawline init reviews.csv")
        given = Path(typer.prompt("Data (a file, or a folder of images)"))
        model = model or typer.prompt("Model (empty: one is proposed)", default="", show_default=False) or None
    asked = Asked(task=task, text=text, label=label, image=image, text_pair=text_pair)
    print("\n".join(writing.write(given, asked, model, output).lines))


def recipes(name: Annotated[str | None, typer.Argument(help="Print this one.", metavar="[NAME]")] = None) -> None:
    """List the recipes that come with thawline, or print one."""
    from launcher import shipped

    if name is not None:
        print(shipped.recipe(name).read_text(encoding="utf-8"), end="")
        return
    for file in shipped.recipes().values():
        print(f"{file}\n    {shipped.purpose(file)}")


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from launcher.recipe import reading

    print(json.dumps(reading.schema(), indent=2, ensure_ascii=False))
