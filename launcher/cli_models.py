"""The commands about the model of a run: parse, call, print. `cli` adds them to its own.

No logic here, as there: each command's is in the module that it imports when it runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")]


def add_to(app: typer.Typer) -> None:
    """Make the commands part of the app."""
    for command in (evaluate, predict, export):
        app.command()(command)


def evaluate(run: Run, split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation") -> None:
    """Measure a run's exported model on a split of its data."""
    from launcher import inference
    from launcher.run_dir import RunDir

    print(json.dumps(inference.evaluate(RunDir(run), split), indent=2, ensure_ascii=False))


def predict(
    run: Run,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Texts, or files of them (.txt: one a line; csv, tsv, json, parquet, arrow); images, folders of "
            "images, or tables of their paths.",
            metavar="INPUT…",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .jsonl, .json, .csv or .tsv; else stdout.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="jsonl, json, csv or tsv; default FILE's suffix.")
    ] = None,
) -> None:
    """Let a run's exported model answer new inputs.

    Each answer stands beside its input's own columns. A column that is called as part of the answer is, such as label,
    goes by input_label.
    """
    from launcher import prediction_output
    from launcher.run_dir import RunDir

    written_as = prediction_output.form_of(output, form, inputs)
    from launcher import inference

    found = inference.predict(RunDir(run), inputs)
    prediction_output.write(found.answers, found.columns, output, written_as)


def export(run: Run, folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")]) -> None:
    """Copy a run's model to a folder that from_pretrained loads."""
    from launcher.model_copy import copy_model
    from launcher.run_dir import RunDir

    print(copy_model(RunDir(run), folder))
