"""The walk through a run's stages on one rank: find where it stands, train what is left, export.

Called by `worker`; calls `train` for each stage. All ranks take the same way, decided by the first one's disk.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from launcher import (
    adapter_folder,
    checkpoint,
    data,
    distributed,
    export,
    hub_access,
    models,
    nvme,
    phases,
    proof,
    seen_rows,
    session,
    split_stages,
    tasks,
)
from launcher.checkpoint import Best, Position, Saved
from launcher.data import bad_rows, checking
from launcher.distributed import Runtime
from launcher.errors import DataError, EnvironmentProblem, FollowsFirst, UserError
from launcher.memory_told import memory_told
from launcher.models.on_disk import widened
from launcher.models.weights import named_state, write_weights
from launcher.plan import RunPlan, free_space
from launcher.run import Run
from launcher.run_dir import RunDir
from launcher.session import Session
from launcher.stage_errors import stopped
from launcher.stop import StopRequest
from launcher.tracking import open_tracker
from launcher.train import train_stage

log = logging.getLogger(__name__)


def join() -> Runtime:
    """Join the other ranks."""
    return distributed.start()


def opened_run_dir(
    runtime: Runtime, recipe: Path, overrides: list[str], run_dir: Path | None, stop: StopRequest,
    *, is_planned: bool = False, data_facts: Path | None = None,
) -> Path | None:  # fmt: skip
    """The run directory, with a plan: its own, or one that the first rank writes now.

    ``is_planned``: the launcher has looked; there is one, and this machine is right for it.
    ``data_facts``: what the launcher found in the data; see `session.open_run`.

    Returns:
        None when the run is finished and there is nothing left to do.
    """
    if is_planned:
        return run_dir

    failed: list[Exception] = []  # stays on the first rank: not every exception arrives whole

    def open_run() -> Session | int:
        try:
            with stop.at_once("stopped before there was a plan; the same command begins anew"):
                return session.open_run(recipe, overrides, run_dir, data_facts)
        except Exception as error:
            failed.append(error)
            return getattr(error, "exit_code", 1)

    opened = runtime.made_by_first(open_run)
    if isinstance(opened, int):
        raise failed[0] if failed else FollowsFirst(opened)
    return None if opened.standing == "finished" else opened.path


def walk(runtime: Runtime, run_dir: RunDir, stop: StopRequest) -> None:
    """Train all stages that are not finished, and export the model."""
    # The first rank's: it may have been written anew a moment ago, and not every node's disk shows it yet.
    plan = RunPlan.model_validate_json(runtime.broadcast(run_dir.plan.read_text() if runtime.is_first else ""))
    if plan.cluster.ranks != runtime.ranks:
        raise UserError(
            f"{run_dir.plan} was planned for {plan.cluster.ranks} ranks, and {runtime.ranks} were started; "
            f"start {plan.cluster.ranks}, or choose another --run-dir to plan anew"
        )
    if (plan.cluster.gpus_per_node > 0) != (runtime.device.type == "cuda"):
        raise EnvironmentProblem(
            f"planned for {plan.cluster}, but torch {torch.__version__} computes on {runtime.device.type} here; "
            "check the driver and that torch is a CUDA build, or hide the GPUs with CUDA_VISIBLE_DEVICES= and plan anew"
        )
    swapped = {
        stage.settings.sharding.nvme_path
        for stage in split_stages.of_this_job(plan)
        if stage.settings.sharding.offload == "nvme"
    }
    for path in swapped if runtime.local_rank == 0 else ():  # now, and not when that stage's turn has come
        shutil.rmtree(nvme.look(path, run_dir.path), ignore_errors=True)  # a killed attempt's, whatever ranks it had
    recipe, recipe_dir = plan.recipe, Path(plan.recipe_dir)
    # All ranks or none, or they might read other versions.
    if any(runtime.gather(hub_access.is_offline() or hub_access.is_lost(recipe))):
        hub_access.go_offline()
    phases.enter("reading data")
    splits = data.load(recipe.data, recipe.task, recipe_dir, plan.data.skipped)
    if found := splits.facts().differences(plan.data):
        raise UserError(
            f"the data is not what was planned: {'; '.join(found)}; "
            "restore it, or choose another --run-dir to plan anew"
        )
    phases.enter("building")
    processor = models.processor(recipe.model, recipe.task, recipe_dir)
    config = models.configuration(recipe.model, recipe.task, plan.labels, recipe_dir)
    task = tasks.bind(recipe.task, recipe.data, processor, plan.labels, config)
    if runtime.is_first:
        checkpoint.clear_unfinished(run_dir)
    damaged: list[str] = []
    saved = runtime.made_by_first(lambda: checkpoint.newest(run_dir, damaged.append))
    if saved and (broken := runtime.made_by_first(lambda: checking.damaged(splits))):
        # What broke since the run was planned is named now, and not when its turn comes.
        raise DataError(bad_rows.broken_since(broken, run_dir.going_on()))
    resumed_from = (saved.position.stage_index, saved.position.step) if saved else None
    tracker = open_tracker(run_dir, plan, runtime.is_first, resumed_from)
    run = Run(plan, run_dir, runtime, splits, task, tracker, stop)
    with tracker, _nothing_left(swapped, run):
        for line in seen_rows.told(splits, task, processor, plan):  # on every rank: all read the row, or none
            tracker.say(line)
        for line in damaged:
            tracker.say(line)
        for line in plan.warnings:
            tracker.say(f"warning: {line}")
        if plan.data.skipped:
            tracker.say(f"{len(plan.data.skipped):,} bad rows are left out; {run_dir.skipped} says which and why")
        if narrow := free_space.warning(plan, run_dir):
            tracker.say(narrow)
        require_proven(run, saved)
        last = train_stages(run, saved or first_checkpoint(run))
        # However long it takes: the export of a large model is written for longer than a collective waits.
        runtime.made_by_first(lambda: end(run, last, processor))


@contextmanager
def _nothing_left(paths: Iterable[str | None], run: Run) -> Iterator[None]:
    """Take this rank's swap files away, however the work ends."""
    try:
        yield
    finally:
        for path in paths:
            nvme.remove(nvme.swap_folder(path, run.run_dir.path), run.runtime.rank)


def first_checkpoint(run: Run) -> Saved:
    """Write the model as it is before any training; one rank does, and need not hold the whole of it in memory."""
    plan, first_stage = run.plan, run.plan.stages[0]
    recipe = plan.recipe
    position = Position(stage_index=0, stage=first_stage.name, step=0, is_stage_end=False, ranks=run.runtime.ranks)

    made: list[nn.Module] = []
    scratch = run.run_dir.checkpoints / f"{checkpoint.TEMPORARY}first-weights"

    def make() -> None:
        scratch.mkdir(exist_ok=True)
        model, task = plan.model, recipe.task
        made.append(models.materialise(model, task, plan.labels, recipe.seed, run.recipe_dir, scratch=scratch))

    def write(folder: Path) -> None:
        write_weights(((name, widened(tensor)) for name, tensor in named_state(made.pop())), folder / "model")
        shutil.rmtree(scratch, ignore_errors=True)  # `clear_unfinished` takes what an NFS still holds

    # Apart from the writing, since its weights may take long to come; and both by a rank for which the others wait as
    # long as it takes: a model of 400B parameters is read and written for hours.
    run.runtime.made_by_first(make)

    def write_parts(folder: Path) -> None:
        run.runtime.made_by_first(lambda: write(folder))

    return checkpoint.write(run.run_dir, run.runtime, position, write_parts)


def require_proven(run: Run, saved: Saved | None) -> None:
    """Do not build on a stage whose proof does not hold, whoever starts the ranks again; see `Proof.raise_if_wrong`.

    Raises:
        TrainingFailed: as at the stage's end, unless the user has accepted it since.
    """
    if saved is None or not saved.position.is_stage_end:
        return
    at = saved.position
    found = proof.read(run.run_dir, at.stage_index, at.stage) if run.runtime.is_first else None
    found = run.runtime.broadcast(found)
    if found is not None:
        found.raise_if_wrong(saved.folder.name, run.run_dir)
        if not found.holds:
            run.tracker.say(f"warning: {found.warnings()[0]}")


def train_stages(run: Run, saved: Saved) -> Saved:
    """Train from where ``saved`` stands to the end of the last stage, or of the last that is this job's."""
    for stage in split_stages.of_this_job(run.plan):
        position = saved.position
        if stage.index < position.stage_index or (stage.index == position.stage_index and position.is_stage_end):
            continue
        is_inside = position.stage_index == stage.index and position.step > 0
        start = saved
        if is_inside:
            found = run.runtime.broadcast(
                checkpoint.stage_start(run.run_dir, stage.index) if run.runtime.is_first else None
            )
            if found is None:
                raise UserError(
                    f"{saved.folder} stands inside stage {stage.name}, and the checkpoint that stage started from is "
                    f"gone or damaged; without it nothing proves what stayed frozen. Delete {saved.folder.name} to go "
                    "on from an older one"
                )
            start = found
            if position.ranks != run.runtime.ranks and not saved.is_for_any_ranks:
                raise UserError(
                    f"{saved.folder.name} was written by {position.ranks} ranks, and {run.runtime.ranks} were started; "
                    f"resume with {position.ranks} (under slurm.min_nodes it would be for any number)"
                )
        with memory_told(stage, "other"):
            saved = train_stage(run, stage, start, saved if is_inside else None)
        if run.stop.is_agreed and stage is not run.plan.stages[-1]:
            raise stopped(run, saved)
    return saved


def end(run: Run, last: Saved, processor: object) -> None:
    """Finish the run, or say what is left to another job."""
    at = last.position
    if at.is_stage_end and at.stage == run.plan.stages[-1].name:
        finish(run, last, processor)
    else:
        where = f"stage {at.stage} is done" if at.is_stage_end else f"stage {at.stage} stands at step {at.step}"
        run.tracker.finished("stopped", f"{where}; what follows is another job's")


def finish(run: Run, last: Saved, processor: object) -> None:
    """Export the best (or last) model and say how it compares."""
    source, best = chosen(run.run_dir, last)
    if last.position.best and not best:
        run.tracker.say(f"the best checkpoint, {last.position.best.checkpoint}, is damaged: the last is exported")
    metrics = best.metrics if best else last.position.metrics
    written = run.run_dir.recipe.read_text(encoding="utf-8")
    export.export(run.plan, source / "model", run.run_dir.model, processor, metrics, best, written)
    has_adapters = run.plan.model.lora is not None
    if has_adapters and (why := adapter_folder.write(run.plan, source / "model", run.run_dir.adapter)):
        run.tracker.say(f"there is no adapter/, and model/ has them merged: {why}")
    run.tracker.finished("finished", summary(run, metrics, best), metrics)


def chosen(run_dir: RunDir, last: Saved) -> tuple[Path, Best | None]:
    """The checkpoint to export and the evaluation that chose it: the best one if it still verifies, else the last."""
    best = last.position.best
    if best is None or checkpoint.verify(run_dir.checkpoints / best.checkpoint):
        return last.folder, None
    return run_dir.checkpoints / best.checkpoint, best


def summary(run: Run, metrics: dict[str, float], best: Best | None) -> str:
    """The run's last line: its metric against the majority class, where the model is, and what casts doubt on it."""
    parts = []
    name = best.metric if best else next((n for n in ("accuracy", "perplexity", "loss") if n in metrics), None)
    if name is not None:
        parts.append(f"{name} {metrics[name]:.4f}" + (f" of {best.checkpoint}" if best else ""))
    majority, accuracy = run.plan.data.majority, metrics.get("accuracy")
    if accuracy is not None and majority is not None:
        named = "" if name == "accuracy" else f"accuracy {accuracy:.4f}, "
        parts.append(f"{named}majority class {majority:.4f} ({accuracy - majority:+.4f})")
    parts.append(f"model: {run.run_dir.model}")
    found = proof.verdicts(run.run_dir, [stage.name for stage in run.plan.stages])
    return "; ".join([*parts, *(f"warning: {line}" for line in found)])
