"""One stage of training: the loop.

A stage's batches are a pure function of (seed, stage, step), its learning rate of the step, its dropout of (seed,
stage, step, rank). So the loop holds no hidden state: what it needs to go on is the engine's weights and a step number.
All ranks run every line here alike; what differs between backends is inside the engine, and between ranks inside
`Runtime`.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import closing

import torch

from launcher import gradient_witness, optim, schedule, stages
from launcher.backends import Engine, StepResult
from launcher.checkpoint import Best, Saved
from launcher.data.batches import TrainingBatches, Window, evaluation_batches
from launcher.distributed import running_statistics, seed_step
from launcher.errors import UserError
from launcher.evaluation import evaluate
from launcher.gradient_witness import GradientWitness
from launcher.handover import open_stage
from launcher.memory_meter import MemoryMeter
from launcher.memory_told import memory_told
from launcher.plan import StagePlan
from launcher.plan.micro_size import smallest_micro_batch
from launcher.progress import Meter, Progress
from launcher.run import Run
from launcher.stage_end import finish_stage, save
from launcher.stage_errors import diverged, refuse_diverged, stopped, untrainable

log = logging.getLogger(__name__)
MOST_SKIPPED = 40
"""fp16: from a loss scale of 2^16, so many halvings in a row leave nothing to scale."""


def train_stage(run: Run, stage: StagePlan, start: Saved, resume: Saved | None) -> Saved:
    """Train one stage from ``start``'s weights, or go on from ``resume`` inside it; return its end.

    Raises:
        TrainingFailed: loss or gradient not finite, or the proof does not hold.
        StoppedEarly, Interrupted: asked to stop; a checkpoint has been written.
    """
    memory = MemoryMeter(stage, run.runtime)
    run.tracker.building()
    engine = open_stage(run, stage, start)
    built = (f"{name.replace('_', ' ')} {value}" for name, value in engine.describe().items())
    log.info("stage %s: %s", stage.name, ", ".join(built))
    largest: dict[str, float] = {}
    before = run.agree_on_digests(stages.digests(stages.largest_values(engine.parameters(), largest)))
    position = resume.position if resume else start.position
    if resume and resume.position.ranks == run.runtime.ranks:
        engine.load(resume.engine)
    elif resume:
        engine.close()
        engine = open_stage(run, stage, resume, carry=True)
    best = position.best if stage.settings.evaluate.best else None  # without one, the last weights are exported
    progress = Progress.at(resume.position, best, memory) if resume else Progress(best=best, memory=memory)
    witness = gradient_witness.of_stage(engine.module, stage, progress.pushes, largest)
    stages.set_modes(engine.module, stage)
    require_rows_for_norms(run, stage, engine)
    run.tracker.stage_started(stage, progress.step)
    runtime, num_workers = run.runtime, run.plan.recipe.data.num_workers
    windows = TrainingBatches(
        run.splits.train, run.task, stage, runtime.rank, runtime.ranks, progress.step, run.pin_memory,
        num_workers=num_workers,
    )  # fmt: skip
    with closing(iter(windows)) as ahead:
        for window in ahead:
            with memory_told(stage, "step"):
                train_step(run, stage, engine, window, progress, witness)
            run.tracker.stepped()
            after_step(run, stage, engine, start, progress)
    end = finish_stage(run, stage, engine, start, before, progress)
    engine.close()
    return end


def require_rows_for_norms(run: Run, stage: StagePlan, engine: Engine) -> None:
    """Refuse a stage in which a BatchNorm would have to take statistics of a single row.

    Raises:
        UserError: it would.
    """
    num_rows = len(run.splits.train)
    if smallest_micro_batch(stage, num_rows) < 2 and any(True for _ in running_statistics(engine.module)):
        raise UserError(
            f"stage {stage.name}: BatchNorm trains, and with {num_rows} training rows in batches of "
            f"{stage.batch.global_size} over {stage.batch.ranks} ranks a micro-batch has less than 2 rows; "
            "choose another batch.global_size or micro_size, set data.limit, or set batch_norm: frozen"
        )


def train_step(
    run: Run, stage: StagePlan, engine: Engine, window: Window, progress: Progress, witness: GradientWitness
) -> None:
    """One optimizer step over a window of ``accumulation`` micro-batches.

    The loss is the sum over the window's samples (or tokens) of all ranks, divided by their number, however they are
    spread over micro-batches and ranks. Engines average gradients over ranks, hence the factor ``ranks``.
    """
    began = time.perf_counter()
    runtime, settings = run.runtime, stage.settings
    samples = sum(float(batch.weights.sum()) for batch in window.micro)
    size, samples, tokens, stop = runtime.sum(
        sum(batch.size for batch in window.micro),
        samples,
        float(sum(batch.tokens for batch in window.micro)),
        float(run.stop.look()),
    )
    size = max(size, 1.0)  # texts of one token predict nothing, and a window may hold no others
    if stop:
        run.stop.is_agreed = True
    seed_step(settings.seed, stage.index, progress.step, runtime.rank)
    factor = schedule.factor_at(settings.schedule, progress.step, stage.steps)
    learning_rate = optim.set_learning_rates(engine.optimizer, factor)
    loss_sum = torch.zeros((), device=runtime.device)
    for number, batch in enumerate(window.micro, start=1):
        on_device = batch.to(runtime.device)
        with engine.accumulate(last=number == len(window.micro)):
            # Nothing here may hold on to the outputs: the logits can be the largest tensor there is.
            loss = run.task.loss(run.logits(progress.memory.forward(engine, on_device.model_inputs)), on_device)
            if not loss.requires_grad:
                raise untrainable(stage)
            engine.backward(loss * (runtime.ranks / size))
            progress.memory.after_backward(engine)
        loss_sum += loss.detach()
    [loss_total] = runtime.sum(float(loss_sum))
    if not math.isfinite(loss_total):
        raise diverged(run, stage, window, progress.step + 1, f"the loss is {loss_total / size}")
    loss_scale = engine.loss_scale()
    result: StepResult = engine.step()
    progress.memory.after_step(engine)
    is_taken = result.taken and math.isfinite(result.grad_norm)
    witness.settle(
        factor, optim.clipped_share(settings.clip_grad_norm, result.grad_norm) / loss_scale, is_taken=is_taken
    )
    progress.skipped = 0 if is_taken else progress.skipped + 1
    # fp16 skips a step now and then while it looks for a loss scale; it halves the scale each time.
    if progress.skipped > (MOST_SKIPPED if engine.scales_loss else 0):
        raise diverged(run, stage, window, progress.step + 1, f"the gradient's norm is {result.grad_norm}")
    runtime.average_buffers(engine.module)
    progress.step += 1
    follow_loss(run, stage, progress, loss_total / size)
    progress.meter.add(loss_total, size, samples, tokens, time.perf_counter() - began)
    if progress.step % run.plan.recipe.tracking.log_every == 0 or progress.step == stage.steps:
        report_training(run, stage, progress, learning_rate, result.grad_norm)


def follow_loss(run: Run, stage: StagePlan, progress: Progress, loss: float) -> None:
    """Say once that the loss has run away; the stage goes on, since nothing says that it will not come back."""
    before = progress.course
    progress.course = before.after(progress.step, stage.steps, loss, run.task.random_loss)
    if progress.course.diverged_at != before.diverged_at:
        run.tracker.say(f"warning: {progress.course.warning(stage.name, run.task.random_loss)}")


def after_step(run: Run, stage: StagePlan, engine: Engine, start: Saved, progress: Progress) -> None:
    """Evaluate, save and stop, where this step says so."""
    is_last = progress.step == stage.steps
    every = stage.evaluate_every_steps
    is_best = False
    if (every and progress.step % every == 0) or (is_last and stage.evaluate_at_end):
        with memory_told(stage, "evaluation"):
            is_best = measure(run, stage, engine, progress)
    is_due = progress.step % stage.checkpoint_every_steps == 0
    if not is_last and (is_best or is_due or run.stop.is_agreed):
        saved = save(run, stage, engine, start, progress, with_engine=True, with_model=is_best)
        if run.stop.is_agreed:
            raise stopped(run, saved)


def measure(run: Run, stage: StagePlan, engine: Engine, progress: Progress) -> bool:
    """Evaluate on the validation split; whether it is the best of the run so far."""
    validation = run.splits.validation
    assert validation is not None, "the plan evaluates only where there is a validation split"
    size = stage.settings.evaluate.micro_size
    assert size is not None, "the plan leaves no size open"
    run.tracker.evaluating(progress.step)
    engine.module.eval()
    batches = evaluation_batches(
        validation, run.task, run.runtime.rank, run.runtime.ranks, size, run.pin_memory,
        num_workers=run.plan.recipe.data.num_workers,
    )  # fmt: skip
    measured = evaluate(lambda inputs: run.logits(engine.forward(inputs)), batches, run.task, run.runtime.device)
    progress.metrics = run.runtime.broadcast(measured)  # a last bit that differs must not part the ranks at `is_best`
    refuse_diverged(run, stage, progress.step, progress.metrics)
    stages.set_modes(engine.module, stage)
    run.tracker.evaluated(progress.step, progress.step / stage.steps_per_epoch, "validation", progress.metrics)
    metric = stage.settings.evaluate.best
    if metric is None:
        return False
    value, best = progress.metrics[metric], progress.best
    sign = 1.0 if run.task.best_direction[metric] == "max" else -1.0
    if best is not None and best.metric == metric and sign * value <= sign * best.value:
        return False
    name = run.run_dir.checkpoint(stage.index, stage.name, progress.step).name
    progress.best = Best(metric=metric, value=value, checkpoint=name, metrics=progress.metrics)
    return True


def report_training(run: Run, stage: StagePlan, progress: Progress, learning_rate: float, grad_norm: float) -> None:
    """Write one line of training metrics over the steps since the last."""
    meter = progress.meter
    run.tracker.training(
        step=progress.step,
        epoch=progress.step / stage.steps_per_epoch,
        loss=meter.loss / meter.size,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        samples_per_second=meter.samples / meter.seconds,
        tokens_per_second=meter.tokens / meter.seconds,
        memory_bytes=run.peak_memory_bytes(),
    )
    progress.meter = Meter()
