"""Seconds of a run's steps from its metrics, beside the plan's, in the words of ``status`` and ``plan --compare``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.costs.step_time import StepTime
from launcher.errors import UserError
from launcher.plan import RunPlan, measured_time, memory_table
from launcher.run_dir import RunDir
from launcher.slurm import status as slurm_status
from launcher.status import new_status, render, write_status

MakePlan = Callable[..., RunPlan]


def record(time: float, step: int, rate: float = 10.0, split: str = "train", stage: str = "head") -> dict[str, Any]:
    return {"time": time, "stage": stage, "step": step, "split": split, "samples_per_second": rate}


@pytest.fixture
def plan(make_plan: MakePlan) -> RunPlan:
    """Two stages of 8 samples a step, estimated at 0.1 s; an epoch has 100 rows, so its 13th step has 4."""
    plan = make_plan()
    time = StepTime(seconds=0.1, compute=0.1, recomputation=0, communication=0, optimizer=0, offload=0, assumptions=[])
    return plan.model_copy(update={"stages": [stage.model_copy(update={"time": time}) for stage in plan.stages]})


@pytest.fixture
def run(plan: RunPlan, tmp_path: Path) -> RunDir:
    """Its first stage took 0.2 s a step but for one, and of the second the line is being written."""
    run = RunDir(tmp_path / "run")
    run.create()
    run.plan.write_text(plan.model_dump_json())
    lines = [record(1, 1, 4.0), record(2, 2, 40.0), record(3, 3, 40.0), record(4, 3, split="validation")]
    run.metrics.write_text("\n".join(map(json.dumps, lines)) + '\n{"stage": "full", "sp')
    write_status(run, new_status(run, "tiny", 2, 1, None))
    return run


def test_goodput_counts_each_step_once(plan: RunPlan) -> None:
    smooth = [record(108, 10), record(116, 20), record(126, 20, split="validation")]
    assert measured_time.goodput([smooth[0]], plan) == (8, 8)
    stood_still = [record(108, 10), record(1020, 12)]
    assert measured_time.goodput(stood_still, plan) == pytest.approx((8 + 1.6, 920))
    assert measured_time.goodput(smooth, plan) == pytest.approx((15.6, 26)), "100 rows in 13 steps, then 7 of 8"
    assert measured_time.goodput([record(1, 1, split="validation")], plan) is None


def test_the_last_step_of_an_epoch_has_what_is_left(plan: RunPlan) -> None:
    [stage] = plan.stages[:1]
    assert [measured_time.samples_after(stage, 100, step) for step in (0, 12, 13, 14, 26)] == [0, 96, 100, 108, 200]


def test_a_step_of_a_run_beside_its_estimate(run: RunDir) -> None:
    [found] = measured_time.of_run(run)
    assert (found.stage, found.estimated, found.measured) == ("head", 0.1, 0.2)
    assert f"{'time':<12}head: 0.1 s a step estimated, 0.2 s measured (-50%)" in slurm_status.as_text(run).splitlines()
    assert slurm_status.as_json(run)["step_time"] == {"head": {"estimated": 0.1, "measured": 0.2}}


def test_before_a_plan_or_a_step_there_is_no_time(run: RunDir) -> None:
    run.metrics.unlink()
    assert measured_time.of_run(run) == []
    run.plan.unlink()
    assert "time " not in render(new_status(run, "tiny", 2, 1, None), run)


def test_another_plan_is_compared_for_its_own_batch(make_plan: MakePlan, plan: RunPlan, run: RunDir) -> None:
    """A step of twice as many samples takes twice the measured time."""
    stages = [
        stage.model_copy(update={"batch": stage.batch.model_copy(update={"global_size": 16})}) for stage in plan.stages
    ]
    console = Console(width=160)
    with console.capture() as shown:
        console.print(memory_table.compared(plan.model_copy(update={"stages": stages}), run.path))
    assert [line.split() for line in shown.get().splitlines()[3:4]] == [["head", "8", "0.1", "0.4", "-75%"]]
    with pytest.raises(UserError, match=r"no stage of this recipe's names \(head\)"):
        memory_table.compared(make_plan(), run.path)
