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

from launcher import cli_cluster, cli_help, cli_models, cli_recipes, shipped
from launcher.errors import ThawlineError

app = typer.Typer(
    name="thawline",
    help="Fine-tune in stages: each thaws its own layers, under its own sharding, over all the ranks there are.",
    no_args_is_help=True,
    cls=cli_help.GroupedCommands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)

bench = typer.Typer(help="Measure a part of thawline against its peers.", no_args_is_help=True)
app.add_typer(bench, name="bench")
for others in (cli_cluster, cli_models, cli_recipes):
    others.add_to(app)

Recipe = Annotated[
    Path, typer.Argument(help="The recipe: a YAML file, or the name of one that comes with thawline.", metavar="RECIPE")
]
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
    """Train all stages of a recipe, or continue its unfinished run."""
    recipe = shipped.located(recipe)
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
    """Continue a run from its newest checkpoint that verifies."""
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
    """Show what a run would do, and what memory and time it takes.

    Stages, parameters, learning rates, steps, batches, memory. Downloads no weights. Ends with code 3 if a stage does
    not fit the GPUs. Times are estimates, under the assumptions that are told.
    """
    from launcher import cluster, data_survey, host_limits, hub_access, oversubscription, session
    from launcher.errors import EnvironmentProblem, UserError
    from launcher.light_imports import light_imports
    from launcher.plan import free_space, memory_table, plan_json, table
    from launcher.recipe import reading
    from launcher.run_dir import RunDir

    if compare and (as_json or explain or plot or any((gpus, gpu_memory, gpu_kind, host_memory, node_disk, ranks))):
        raise UserError("--compare shows the plan for the cluster of that run, as a table: leave out the other options")
    recipe = shipped.located(recipe)
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
def status(run: Run, as_json: AsJson = False) -> None:
    """Show where a run stands.

    From its files, and from SLURM's queue when it was submitted.
    """
    from launcher.run_dir import RunDir
    from launcher.slurm import status as slurm_status

    _print(slurm_status.as_json(RunDir(run)) if as_json else slurm_status.as_text(RunDir(run)))


@app.command()
def watch(run: Run) -> None:
    """Show where a run stands until it ends.

    From its files, and from SLURM's queue when it was submitted.
    """
    from launcher.run_dir import RunDir
    from launcher.slurm import status as slurm_status

    for text in slurm_status.follow(RunDir(run)):
        if sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")  # clear the screen
        print(text, flush=True)


@app.command()
def report(run: Run) -> None:
    """Write RUN/report.html: curves, stages, memory, time, goodput.

    Memory and time stand beside the plan's.
    """
    from launcher import report
    from launcher.run_dir import RunDir

    print(report.write(RunDir(run)))


@bench.callback()
def benches() -> None:
    """Measure a part of thawline against its peers."""


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
        app(prog_name="thawline")  # as ``python -m launcher`` too
    except ThawlineError as error:
        print(f"thawline: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
