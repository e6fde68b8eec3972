"""Tells the world how a run goes: ``metrics.jsonl``, ``status.json``, wandb, and the terminal.

Owns the moments that are told and what is said at each. `walk` opens a tracker, the loop calls it and does not ask
which rank it is on: the first one's speaks, the others' are mute. Nothing here changes what is computed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from launcher import orphans, phases
from launcher.console import metrics_text, open_console
from launcher.errors import Interrupted, StoppedEarly
from launcher.metrics_file import MetricsFile, cut_back
from launcher.plan import RunPlan, StagePlan
from launcher.run_dir import RunDir
from launcher.status import State, new_status, write_status
from launcher.stop import ATTEMPT
from launcher.wandb_run import WandbRun

STATUS_EVERY_S = 1.0


def open_tracker(
    run_dir: RunDir, plan: RunPlan, is_first: bool, resumed_from: tuple[int, int] | None = None
) -> Tracker:
    """A tracker for this rank. ``resumed_from`` is the checkpoint's (stage index, step); None for a run from its start.

    Raises: EnvironmentProblem when wandb was asked for and cannot start.
    """
    return SpeakingTracker(run_dir, plan, resumed_from) if is_first else Tracker()


class Tracker:
    """What every rank but the first holds: the same methods, and silence. A context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything; an error that passes becomes the run's last state."""

    def say(self, text: str) -> None:
        """A line for the person who watches."""

    def building(self) -> None:
        """The model of a stage is being made."""

    def stage_started(self, stage: StagePlan, step: int = 0) -> None:
        """``step`` optimizer steps of it are done already."""

    def stepped(self) -> None:
        """An optimizer step is done."""

    def training(
        self,
        step: int,
        epoch: float,
        loss: float,
        learning_rate: float,
        grad_norm: float | None,
        samples_per_second: float,
        tokens_per_second: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Means since the last call; ``step`` and ``epoch`` are the stage's, and done."""

    def evaluating(self, step: int) -> None:
        """An evaluation begins."""

    def evaluated(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        """It has ended; ``metrics`` includes the loss."""

    def checkpointed(self, name: str, step: int) -> None:
        """A checkpoint folder of that name is committed."""

    def stage_finished(self, stage: StagePlan, summary: str = "") -> None:
        """``summary`` is the proof's, in a line."""

    def finished(self, state: State, message: str, metrics: Mapping[str, float] | None = None) -> None:
        """The run's last word."""


class SpeakingTracker(Tracker):
    """The first rank's."""

    def __init__(self, run_dir: RunDir, plan: RunPlan, resumed_from: tuple[int, int] | None) -> None:
        self._run_dir, self._plan = run_dir, plan
        self._stage = plan.stages[0]
        self._pace = _Pace(0, 0)
        self._console = open_console(has_log=orphans.launcher_pid() is not None or ATTEMPT in os.environ)
        self._wandb = self._open_wandb()
        self._status = new_status(
            run_dir, plan.recipe.name, len(plan.stages), plan.cluster.ranks, orphans.launcher_pid(), phases.current()
        )
        self._written = 0.0
        self._tell(force=True)
        cut_back(run_dir, [stage.name for stage in plan.stages], resumed_from)
        self._metrics = MetricsFile(run_dir)
        if resumed_from is not None and resumed_from != (0, 0):
            index, step = resumed_from
            self.say(f"resumed after step {step} of stage {plan.stages[index].name}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._console.stage_finished()
        if error is not None:
            message = str(error) or type(error).__name__
            self._tell(force=True, state=_state_after(error), phase=None, message=message, eta_s=None)
        self._metrics.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)

    def say(self, text: str) -> None:
        self._console.say(text)

    def building(self) -> None:
        phases.enter("building")
        self._tell(force=True, phase="building")

    def stage_started(self, stage: StagePlan, step: int = 0) -> None:
        self._stage, self._pace = stage, _Pace(step, stage.steps)
        settings = stage.settings
        self.say(
            f"stage {stage.index + 1} of {len(self._plan.stages)}: {stage.name}  {stage.trainable:,} of "
            f"{stage.trainable + stage.frozen:,} parameters train  {settings.sharding.strategy} on "
            f"{self._plan.cluster}  {settings.precision}  {stage.steps:,} steps of {stage.batch.global_size}"
        )
        for line in stage.warnings:
            self.say(f"warning: {line}")
        self._console.stage_started(stage.name, step, stage.steps)
        phases.enter("first step")
        place = {"stage": stage.name, "stage_index": stage.index, "steps": stage.steps, "step": step}
        self._tell(
            force=True, state="running", phase="first step", eta_s=None, epoch=step / stage.steps_per_epoch, **place
        )

    def stepped(self) -> None:
        if self._status.phase is None:
            return
        if done := phases.end():
            self.say(done)
        self._tell(force=True, phase=None)

    def training(
        self,
        step: int,
        epoch: float,
        loss: float,
        learning_rate: float,
        grad_norm: float | None,
        samples_per_second: float,
        tokens_per_second: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        values: dict[str, Any] = {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "samples_per_second": samples_per_second,
            "tokens_per_second": tokens_per_second,
            "memory_bytes": memory_bytes,
        }
        self._record("train", step, epoch, values)
        eta_s = self._pace.eta_s(step)
        self._console.trained(step, loss, samples_per_second, eta_s)
        shown = {name: value for name, value in values.items() if name != "grad_norm"}
        self._tell(state="running", step=step, epoch=epoch, eta_s=eta_s, **shown)

    def evaluating(self, step: int) -> None:
        self._tell(force=True, state="evaluating", step=step)

    def evaluated(self, step: int, epoch: float, split: str, metrics: Mapping[str, float]) -> None:
        self._record(split, step, epoch, metrics)
        self.say(f"{self._stage.name}  step {step}  {split}: {metrics_text(metrics)}")
        self._tell(force=True, state="running", step=step, epoch=epoch, metrics=dict(metrics))

    def checkpointed(self, name: str, step: int) -> None:
        self._tell(force=True, checkpoint=name, step=step)

    def stage_finished(self, stage: StagePlan, summary: str = "") -> None:
        self._console.stage_finished()
        self.say(f"stage {stage.name} done" + (f": {summary}" if summary else ""))
        self._tell(force=True, step=stage.steps, eta_s=None)

    def finished(self, state: State, message: str, metrics: Mapping[str, float] | None = None) -> None:
        self._console.stage_finished()
        self.say(message)
        changes = {"metrics": dict(metrics)} if metrics else {}
        self._tell(force=True, state=state, phase=None, message=message, eta_s=None, **changes)
        if self._wandb is not None:
            self._wandb.summarise(
                {"state": state} | {f"final/{name}": value for name, value in (metrics or {}).items()}
            )

    def _open_wandb(self) -> WandbRun | None:
        settings = self._plan.recipe.tracking.wandb
        if settings is None:
            return None
        config = {
            "recipe": self._plan.recipe.model_dump(mode="json"),
            "cluster": self._plan.cluster.model_dump(mode="json"),
        }
        run = WandbRun(self._run_dir, self._plan.recipe.name, settings, config)
        self.say(run.choice)
        return run

    def _record(self, split: str, step: int, epoch: float, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        place = {"time": time.time(), "stage": self._stage.name, "step": step, "epoch": epoch, "split": split}
        self._metrics.write(place | known)
        if self._wandb is not None:
            earlier = sum(stage.steps for stage in self._plan.stages[: self._stage.index])
            self._wandb.log(split, earlier + step, known | {"epoch": epoch, "stage": self._stage.index})

    def _tell(self, *, force: bool = False, **changes: Any) -> None:
        """Change the status; write it when ``force``, else when the last was written a second ago."""
        now = time.time()
        self._status = self._status.model_copy(update=changes | {"updated": now})
        if force or now - self._written >= STATUS_EVERY_S:
            write_status(self._run_dir, self._status)
            self._written = now


class _Pace:
    """Seconds a step takes, from the steps of this stage that this process saw."""

    def __init__(self, step: int, steps: int) -> None:
        self._first, self._steps, self._began = step, steps, time.monotonic()

    def eta_s(self, step: int) -> float | None:
        done = step - self._first
        return (time.monotonic() - self._began) / done * (self._steps - step) if done > 0 else None


def _state_after(error: BaseException) -> State:
    if isinstance(error, StoppedEarly):
        return "stopped"
    return "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
