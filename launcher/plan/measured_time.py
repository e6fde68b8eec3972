"""What a run's optimizer steps really took, beside what their plan estimated: from ``metrics.jsonl``.

Owns the reading of that file, a stage's seconds a step, and goodput. Pure from a run's files; imports no torch. Called
by `status`, `report` and ``thawline plan --compare``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict

from launcher.errors import UserError
from launcher.plan.run_plan import RunPlan, StagePlan
from launcher.plan.saved import read_plan
from launcher.run_dir import RunDir

Record = Mapping[str, Any]


class Timed(BaseModel):
    """Seconds of an optimizer step of one stage, twice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    estimated: float
    """By the plan's cost model: see `costs.step_time`."""
    measured: float
    """See `step_seconds`."""

    @property
    def error(self) -> float:
        """Above 0: more was estimated than it took."""
        return self.estimated / self.measured - 1

    def __str__(self) -> str:
        return f"{self.estimated:.3g} s a step estimated, {self.measured:.3g} s measured ({self.error:+.0%})"


def read(run: RunDir) -> list[Record]:
    """The lines of ``metrics.jsonl``; none where there is no file yet."""
    if not run.metrics.is_file():
        return []
    found: list[Record] = []
    for line in run.metrics.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the last one, of a run that is being written
            continue
    return found


def of_run(run: RunDir) -> list[Timed]:
    """Of each stage that has steps behind it and an estimate; none before there is a plan."""
    if not run.plan.is_file() or not (records := read(run)):
        return []
    try:
        return timed(read_plan(run), records)
    except UserError:  # another version's: where the run stands is told all the same
        return []


def timed(plan: RunPlan, records: Sequence[Record]) -> list[Timed]:
    """A plan's estimates against the records of a run of stages of the same names."""
    return [
        Timed(stage=stage.name, estimated=stage.time.seconds, measured=seconds)
        for stage in plan.stages
        if stage.time and (seconds := step_seconds(records, stage))
    ]


def step_seconds(records: Sequence[Record], stage: StagePlan) -> float | None:
    """Measured seconds of an optimizer step over the stage's global batch: the median over its records, without
    evaluations, checkpoints and waiting for data. None: it has none."""
    rates = [one["samples_per_second"] for one in records if one["stage"] == stage.name and one["split"] == "train"]
    return stage.batch.global_size / median(rates) if rates else None


def goodput(records: Sequence[Record], plan: RunPlan) -> tuple[float, float] | None:
    """(seconds of the optimizer steps that count, seconds from the first of them to the last record). None: no steps.

    A step's seconds are its samples over the samples a second of its record; what was done again after a resume is in
    the second number alone, and so are evaluations, checkpoints, waiting and starting again.
    """
    stages = {stage.name: stage for stage in plan.stages}
    useful, began = 0.0, None
    for name, of_stage in groupby((one for one in records if one["split"] == "train"), key=lambda one: one["stage"]):
        before = 0
        for one in of_stage:
            samples = samples_after(stages[name], plan.data.train_rows, one["step"])
            seconds = (samples - before) / one["samples_per_second"]
            useful, before = useful + seconds, samples
            began = one["time"] - seconds if began is None else began
    return (useful, max(useful, records[-1]["time"] - began)) if began is not None else None


def samples_after(stage: StagePlan, train_rows: int, step: int) -> int:
    """Rows that a stage has seen after so many steps; the last step of an epoch has what is left of it."""
    epochs, rest = divmod(step, stage.steps_per_epoch)
    return epochs * train_rows + min(rest * stage.batch.global_size, train_rows)
