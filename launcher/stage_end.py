"""A stage's checkpoints, and its end: saved first, judged after.

Whatever the verdict, the weights that a stage has trained are committed: what was hours of work can be looked at,
accepted, or trained again from the checkpoint before. `train` calls; all ranks must reach each function.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path

from launcher import checkpoint, optim, stages
from launcher import proof as proofs
from launcher.backends import Engine
from launcher.checkpoint import Position, Saved
from launcher.cluster import ranks_vary
from launcher.gradient_witness import Pushes
from launcher.handover import write_model, write_optimizer
from launcher.plan import StagePlan
from launcher.progress import Progress
from launcher.proof import Proof
from launcher.run import Run
from launcher.stage_errors import finite


def finish_stage(
    run: Run, stage: StagePlan, engine: Engine, start: Saved, before: dict[str, str], progress: Progress
) -> Saved:
    """Write the proof and the stage's end, then judge.

    Raises:
        TrainingFailed: a parameter is not finite, and nothing is saved; or the proof does not hold.
    """
    proof = prove(run, stage, engine, before, progress)
    if run.runtime.is_first:
        proofs.write(run.run_dir, proof)
    progress.memory.write(run.run_dir)
    saved = save(run, stage, engine, start, progress, with_engine=False, with_model=True)
    proof.raise_if_wrong(saved.folder.name, run.run_dir)
    for line in proof.warnings():
        run.tracker.say(f"warning: {line}")
    counts = proof.summary()
    run.tracker.stage_finished(
        stage,
        f"{counts['changed']} of {counts['trained']} trained parameters changed, "
        f"{counts['frozen_bit_identical']} of {counts['frozen']} frozen ones are bit-identical",
    )
    return saved


def prove(run: Run, stage: StagePlan, engine: Engine, before: dict[str, str], progress: Progress) -> Proof:
    """Look at every parameter, on all ranks."""
    largest: dict[str, float] = {}
    passing = stages.largest_values(finite(run, stage, engine.parameters()), largest)
    after = run.agree_on_digests(stages.digests(passing))
    random_loss = run.task.random_loss
    if "loss" in progress.metrics and stage.evaluate_at_end:
        progress.course = progress.course.evaluated(stage.steps, progress.metrics["loss"], random_loss)
    pushes = Pushes.together(run.runtime.gather(progress.pushes))

    def has_state() -> AbstractSet[str]:
        keys = optim.STATE_KEYS[stage.settings.optimizer.kind]
        if getattr(stage.settings.optimizer, "momentum", None) == 0.0:
            return stage.trained_names
        return {name for name, _, _ in engine.optimizer_state(keys)}

    return stages.proof(
        stage, before, after, pushes, engine.describe(),
        largest=largest, has_state=has_state, diverged=progress.course.warning(stage.name, random_loss),
    )  # fmt: skip


def save(
    run: Run, stage: StagePlan, engine: Engine, start: Saved, progress: Progress, *, with_engine: bool, with_model: bool
) -> Saved:
    """Write a checkpoint and delete those that are no longer needed."""
    is_end = progress.step == stage.steps
    pushes = Pushes.together(run.runtime.gather(progress.pushes))
    is_for_any_ranks = with_engine and ranks_vary()  # the engine's own files are for as many ranks as wrote them
    position = Position(
        stage_index=stage.index,
        stage=stage.name,
        step=progress.step,
        is_stage_end=is_end,
        ranks=run.runtime.ranks,
        best=progress.best,
        metrics=progress.metrics,
        had_gradient=sorted(pushes.had_gradient),
        slight=dict(sorted(pushes.slight.items())),
        course=progress.course,
    )

    def write_parts(folder: Path) -> None:
        if with_engine:
            engine.save(folder / "engine")
        if with_model or is_for_any_ranks:
            write_model(run, stage, engine, start, folder / "model")
        if is_for_any_ranks or (is_end and run.carries_into(stage.index + 1)):
            write_optimizer(run, stage, engine, folder / "optimizer")

    saved = checkpoint.write(run.run_dir, run.runtime, position, write_parts)
    if run.runtime.is_first:
        keep = stage.settings.checkpoint.keep
        protected = {start.folder.name, saved.folder.name} | checkpoint.bests(run.run_dir, keep)
        checkpoint.retain(run.run_dir, keep, protected)
    run.tracker.checkpointed(saved.folder.name, progress.step)
    return saved
