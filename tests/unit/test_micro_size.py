"""Smaller micro-batches of the same global batch, in the plan and after a rank ran out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import micro_size, rank_error, walk
from launcher.errors import OutOfMemory
from launcher.memory import ModelStates
from launcher.memory_peak import GIB, Activations, plan_memory
from launcher.plan import RunPlan
from launcher.run_dir import RunDir

MakePlan = Callable[..., RunPlan]


def written(plan: RunPlan, folder: Path) -> RunDir:
    run = RunDir(folder)
    run.create()
    run.plan.write_text(plan.model_dump_json())
    return run


def test_each_time_the_next_smaller_until_there_is_none(make_plan: MakePlan, tmp_path: Path) -> None:
    run = written(make_plan(batch={"global_size": 12}), tmp_path)
    told = []
    while (text := micro_size.after_out_of_memory(run, "full", 3, "no memory")) is not None:
        told.append(text)
        head, full = RunPlan.model_validate_json(run.plan.read_text()).stages
        assert full.batch.micro_size * full.batch.accumulation == full.batch.global_size == 12
        assert full.settings.evaluate.micro_size == 2 * full.batch.micro_size
        assert head.batch.micro_size == 12, "the other stage stays"
    assert [event["next_micro_size"] for event in micro_size.events(run)] == [6, 4, 3, 2, 1]
    assert told[0] == "stage full: rank 3 ran out of memory at micro size 12; it goes on with 6"


def test_a_number_stays(make_plan: MakePlan, tmp_path: Path) -> None:
    run = written(make_plan(batch={"global_size": 12, "micro_size": 6}), tmp_path)
    before = run.plan.read_text()
    assert micro_size.after_out_of_memory(run, "full", 0, "no memory") is None
    assert run.plan.read_text() == before
    assert micro_size.events(run) == []


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes")]
)
def test_the_error_says_what_was_planned(make_plan: MakePlan, error: Exception) -> None:
    memory = plan_memory(ModelStates(parameters=3 * GIB), Activations(saved=5 * GIB), 0.0, is_gpu=False)
    stage = make_plan().stages[1].model_copy(update={"memory": memory})
    with pytest.raises(OutOfMemory) as caught, walk.memory_told(stage):
        raise error
    text = str(caught.value)
    assert text.startswith("stage full ran out of memory at micro size 8 of a global batch of 8: ")
    assert "in the backward: activations 5.00 GiB, parameters 3.00 GiB, margin 0.83 GiB" in text
    assert "Set a smaller batch.micro_size" in text
    entry = rank_error.describe(1, caught.value)
    assert (entry.type, entry.stage, entry.exit_code) == ("OutOfMemory", "full", 4)


def test_other_errors_pass(make_plan: MakePlan) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), walk.memory_told(make_plan().stages[0]):
        raise RuntimeError("shapes differ")
