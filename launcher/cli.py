"""The commands: parse, call, print.

No logic here. What a command does is in the module it names; each is imported when its command runs, so that
``thawline --help`` starts at once and without torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher import cli_cluster
from launcher.errors import ThawlineError

app = typer.Typer(
    name="thawline",
    help="Fine-tune in stages: each thaws its own layers, under its own sharding, over all the ranks there are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)

bench = typer.Typer(help="Measure a part of thawline against its peers, here and now.", no_args_is_help=True)
app.add_typer(bench, name="bench")
cli_cluster.add_to(app)

Recipe = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")]
Run = Annotated[Path, typer.Argument(help="The run's folder.", metavar="RUN")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Change a value of the recipe, such as stages.full.epochs=2."),
]
Ranks = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine; default one a GPU, or one on the CPU.")
]
Oversubscribe = Annotated[
    bool, typer.Option("--oversubscribe", help="Start CPU ranks that this host's cores or memory cannot hold.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="Default runs/NAME.")] = None,
    ranks: Ranks = None,
    nodes: Annotated[str | None, typer.Option(metavar="A,B", help="Print what each of these hosts must run.")] = None,
    ssh: Annotated[bool, typer.Option("--ssh", help="With --nodes: run it there.")] = False,
    oversubscribe: Oversubscribe = False,
) -> None:
    """Train all stages of a recipe on this machine; go on where an unfinished run of it stands."""
    if nodes is not None or ssh:
        return cli_cluster.run_on_nodes(nodes or "", recipe, overrides or (), run_dir, ranks, ssh=ssh)
    from launcher import launch, oversubscription, session

    if oversubscribe:
        oversubscription.allow()
    launch.train(session.claim_run(recipe, overrides or (), run_dir, ranks), print)


@app.command()
def resume(
    run: Run,
    accept: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Go on with this stage's weights though its proof fails.")
    ] = None,
    oversubscribe: Oversubscribe = False,
) -> None:
    """Go on with a run from its newest checkpoint that verifies."""
    from launcher import launch, oversubscription, session

    if oversubscribe:
        oversubscription.allow()
    launch.train(session.reopen_run(run, accept=accept), print)


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each; default this machine's.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="Of each GPU, such as 80GiB.")] = None,
    gpu_kind: Annotated[str | None, typer.Option(help="Such as H100 or A100-40GB; its memory is known.")] = None,
    host_memory: Annotated[str | None, typer.Option(help="Of each machine, such as 1TiB.")] = None,
    node_disk: Annotated[str | None, typer.Option(help="Free on each machine's own, such as 2TB.")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes on each machine, when it has no GPU.")] = None,
    model_config: Annotated[Path | None, typer.Option(help="A config.json to take instead of the model's own.")] = None,
    explain: Annotated[str | None, typer.Option(metavar="STAGE", help="What takes this stage's memory.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it, under each strategy.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="RUN", help="Its memory and time beside the plan's.")] = None,
    oversubscribe: Oversubscribe = False,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do: stages, parameters, learning rates, steps, batches, memory. Downloads no weights.

    Ends with code 3 if a stage does not fit the GPUs. Times are estimates, under the assumptions that are told.
    """
    from launcher import cluster, data_survey, host_limits, hub_access, oversubscription, session
    from launcher.errors import EnvironmentProblem, UserError
    from launcher.light_imports import light_imports
    from launcher.plan import free_space, memory_table, plan_json, table
    from launcher.recipe import reading
    from launcher.run_dir import RunDir

    if compare and (as_json or explain or plot or any((gpus, gpu_memory, gpu_kind, host_memory, node_disk, ranks))):
        raise UserError("--compare shows the plan for the cluster of that run, as a table: leave out the other options")
    checked, origins = reading.load_with_origins(recipe, overrides or ())
    if compare:
        from launcher.plan.saved import read_plan
        from launcher.run_dir import RunDir

        machines = read_plan(RunDir(compare)).cluster
    else:
        machines = cluster.described(nodes, gpus, gpu_memory, host_memory, ranks, gpu_kind, node_disk)
    is_here = compare is None and nodes == 1 and gpus is None and host_memory is None
    if oversubscribe:
        oversubscription.allow()
    if is_here:
        oversubscription.require_room(machines, host_limits.available_bytes(), f"--ranks {ranks}")
    recipe_dir = recipe.resolve().parent
    data_facts = data_survey.look(checked, recipe_dir, machines.ranks, origins)
    hub_access.stay_offline_if_unreachable(checked)
    with light_imports():
        from launcher import survey  # takes seconds to import: mistakes that need no model are told before

    with survey.foresee(checked, recipe_dir, machines, origins, model_config, data_facts) as seen:
        for assumption in seen.assumptions:
            print(f"thawline: assumed, without the hub: {assumption}", file=sys.stderr)
        if narrow := free_space.warning(seen.plan, RunDir(session.RUNS / checked.name)):
            print(f"thawline: {narrow}", file=sys.stderr)
        for warning in (*seen.plan.warnings, *(line for stage in seen.plan.stages for line in stage.warnings)):
            print(f"thawline: warning: {warning}", file=sys.stderr)
        if as_json:
            _print(plan_json(seen.plan))
        elif compare:
            _print(memory_table.compared(seen.plan, compare))
        else:
            _print(memory_table.explained(seen.plan, explain) if explain else table.tables(seen.plan))
        if plot:
            seen.draw(plot)
        if missing := seen.shortage():
            raise EnvironmentProblem(missing)
        if is_here:
            oversubscription.require_memory(seen.plan)


@app.command()
def init(
    given: Annotated[
        Path | None,
        typer.Argument(help="A csv, tsv, json, parquet or text file, or a folder of images.", metavar="DATA"),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="ID", help="A hub id, folder or torchvision:NAME.")] = None,
    task: Annotated[str | None, typer.Option(metavar="KIND", help="Default what the columns look like.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of texts.")] = None,
    text_pair: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of second texts.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of labels.")] = None,
    image: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of images or their paths.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default NAME.yaml.")] = None,
) -> None:
    """Write a first recipe for your data: task, labels, lengths and stages, each explained."""
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


@app.command()
def status(run: Run, as_json: AsJson = False) -> None:
    """Say where a run stands: from its files, and from SLURM's queue when it was submitted."""
    from launcher.run_dir import RunDir
    from launcher.slurm import status as slurm_status

    _print(slurm_status.as_json(RunDir(run)) if as_json else slurm_status.as_text(RunDir(run)))


@app.command()
def watch(run: Run) -> None:
    """Show where a run stands until it ends: from its files, and from SLURM's queue when it was submitted."""
    from launcher.run_dir import RunDir
    from launcher.slurm import status as slurm_status

    for text in slurm_status.follow(RunDir(run)):
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")  # clear the screen
        print(text, flush=True)


@app.command()
def report(run: Run) -> None:
    """Write a run on one page, RUN/report.html: curves, stages, memory and time beside the plan's, goodput."""
    from launcher import report
    from launcher.run_dir import RunDir

    print(report.write(RunDir(run)))


@app.command()
def evaluate(run: Run, split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation") -> None:
    """Measure a run's exported model on a split of its data."""
    from launcher import inference
    from launcher.run_dir import RunDir

    _print(inference.evaluate(RunDir(run), split))


@app.command()
def predict(
    run: Run,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Texts, or files of them (.txt: one a line; csv, tsv, json, parquet); images, folders of images, or "
            "tables of their paths.",
            metavar="INPUT…",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .jsonl, .json, .csv or .tsv; else stdout.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="jsonl, json, csv or tsv; default as FILE ends.")
    ] = None,
) -> None:
    """Predict with a run's exported model; each answer beside the columns of its input's file.

    A column of the file whose name the answer uses too, such as label, goes by input_label.
    """
    from launcher import prediction_output
    from launcher.run_dir import RunDir

    written_as = prediction_output.form_of(output, form, inputs)
    from launcher import inference

    found = inference.predict(RunDir(run), inputs)
    prediction_output.write(found.answers, found.columns, output, written_as)


@app.command()
def export(run: Run, folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")]) -> None:
    """Copy a finished run's model to a folder that transformers' from_pretrained loads."""
    from launcher.run_dir import RunDir
    from launcher.session import copy_model

    print(copy_model(RunDir(run), folder))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from launcher.recipe import reading

    _print(reading.schema())


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one.", metavar="[NAME]")] = None) -> None:
    """List the recipes that come with thawline."""
    from launcher import shipped

    if name is not None:
        print(shipped.recipe(name).read_text(encoding="utf-8"), end="")
        return
    for file in shipped.recipes().values():
        print(f"{file}\n    {shipped.purpose(file)}")


@bench.callback()
def benches() -> None:
    """Measure a part of thawline against its peers, here and now."""


@bench.command()
def adamw(
    sets: Annotated[str, typer.Option(help="Of a (one tensor of 50M), b (BERT base), c (5,000 small ones).")] = "abc",
    races: Annotated[str, typer.Option(help="Of step, clip, bf16, compiled.")] = "step,clip,bf16",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 15,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw them into this file.")] = None,
) -> None:
    """The AdamW step against torch's, DeepSpeed's, apex's and bitsandbytes', and against the memory."""
    from thawline_kernels.bench import report

    report(sets, races.split(","), repeats, device, json, png)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Options that stand before a command."""
    if version:
        from launcher import __version__

        print(__version__)
        raise typer.Exit


def _print(what: object) -> None:
    """Text as it is, a map as JSON, tables as wide as the terminal or $COLUMNS, else 160 columns."""
    if isinstance(what, str):
        print(what)
    elif isinstance(what, dict):
        import json

        print(json.dumps(what, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(width=None if has_width else 160, highlight=False).print(what)


def main() -> None:
    """The command ``thawline``: an error that is not a bug shows its message alone, and ends with its exit code."""
    try:
        app()
    except ThawlineError as error:
        print(f"thawline: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
