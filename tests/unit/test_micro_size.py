"""Smaller micro-batches of the same global batch, in the plan and after a rank ran out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import orphans, rank_error, worker
from launcher.costs.memory import ModelStates
from launcher.costs.peak import GIB, Activations, plan_memory
from launcher.errors import OutOfMemory, Shortage
from launcher.memory_told import memory_told
from launcher.plan import RunPlan, micro_size
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
    size = 12
    while (text := micro_size.after_out_of_memory(run, Shortage("full", "step", size), 3, "no memory")) is not None:
        told.append(text)
        head, full = RunPlan.model_validate_json(run.plan.read_text()).stages
        size = full.batch.micro_size
        assert full.batch.micro_size * full.batch.accumulation == full.batch.global_size == 12
        assert full.settings.evaluate.micro_size == 2 * full.batch.micro_size
        assert head.batch.micro_size == 12, "the other stage stays"
    assert [event["next_micro_size"] for event in micro_size.events(run)] == [6, 4, 3, 2, 1]
    assert told[0] == "stage full: rank 3 ran out of memory at micro size 12; it goes on with 6"


def test_a_plan_made_anew_remembers_what_was_too_large(make_plan: MakePlan, tmp_path: Path) -> None:
    """For other ranks, say; a line that a crash cut off is passed over."""
    plan = make_plan(batch={"global_size": 12})
    run = written(plan, tmp_path)
    assert micro_size.shrunk_as_before(run, plan) == plan
    for during, size in (("step", 12), ("step", 6), ("evaluation", 8)):
        assert micro_size.after_out_of_memory(run, Shortage("full", during, size), 0, "no memory")
    micro_size.append_event(run, {"event": "other_ranks", "before": "2", "after": "1", "checkpoint": ""})
    with run.events.open("a") as file:
        file.write('{"event": "out_of')
    head, full = micro_size.shrunk_as_before(run, plan).stages
    assert head == plan.stages[0]
    assert (full.batch.micro_size, full.batch.accumulation, full.settings.evaluate.micro_size) == (4, 3, 4)
    assert full.memory is None


def test_a_number_stays(make_plan: MakePlan, tmp_path: Path) -> None:
    run = written(make_plan(batch={"global_size": 12, "micro_size": 6}), tmp_path)
    before = run.plan.read_text()
    for during, size in (("step", 6), ("other", 0)):
        assert micro_size.after_out_of_memory(run, Shortage("full", during, size), 0, "no memory") is None
    assert run.plan.read_text() == before
    assert micro_size.events(run) == []


def test_an_evaluation_leaves_the_steps_as_they_are_and_stays_small(make_plan: MakePlan, tmp_path: Path) -> None:
    run = written(make_plan(batch={"global_size": 12}), tmp_path)
    told = micro_size.after_out_of_memory(run, Shortage("full", "evaluation", 24), 1, "no memory")
    assert told == "stage full: rank 1 ran out of memory at evaluate.micro_size 24; it goes on with 12"
    assert micro_size.after_out_of_memory(run, Shortage("full", "evaluation", 24), 0, "no memory") is None, (
        "it has been"
    )
    micro_size.after_out_of_memory(run, Shortage("full", "evaluation", 12), 0, "no memory")
    full = RunPlan.model_validate_json(run.plan.read_text()).stages[1]
    assert (full.batch.micro_size, full.settings.evaluate.micro_size) == (12, 6)
    micro_size.after_out_of_memory(run, Shortage("full", "step", 12), 0, "no memory")
    full = RunPlan.model_validate_json(run.plan.read_text()).stages[1]
    assert (full.batch.micro_size, full.settings.evaluate.micro_size) == (6, 6)
    assert [event["during"] for event in micro_size.events(run)] == ["evaluation", "evaluation", "step"]
    asked = written(make_plan(evaluate={"micro_size": 8}), tmp_path / "asked")
    assert micro_size.after_out_of_memory(asked, Shortage("full", "evaluation", 8), 0, "no memory") is None


def test_of_two_ranks_only_the_first_makes_it_smaller(make_plan: MakePlan, tmp_path: Path) -> None:
    run = written(make_plan(batch={"global_size": 12}), tmp_path)
    for rank in (2, 0):
        micro_size.after_out_of_memory(run, Shortage("full", "step", 12), rank, "no memory")
    assert [event["rank"] for event in micro_size.events(run)] == [2]
    assert RunPlan.model_validate_json(run.plan.read_text()).stages[1].batch.micro_size == 6


@pytest.mark.parametrize(
    ("rows", "sizes"), [(120, [6, 4, 3, 2]), (121, []), (122, [6, 4, 3, 2]), (123, [6, 4, 3]), (125, [6, 4, 3])]
)
def test_a_batch_norm_never_gets_a_single_row(make_plan: MakePlan, rows: int, sizes: list[int]) -> None:
    """12 rows a step; what is left over at the epoch's end is spread over as few micro-batches as hold it."""
    plan = make_plan(batch={"global_size": 12})
    stage = plan.stages[1].model_copy(update={"norm_rows": rows})
    assert micro_size.smaller(stage) == sizes
    assert micro_size.smaller(stage.model_copy(update={"norm_rows": None})) == [6, 4, 3, 2, 1]
    for size in sizes:
        assert micro_size.smallest_micro_batch(stage, rows, size) > 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes")]
)
def test_the_error_says_what_was_planned(make_plan: MakePlan, error: Exception) -> None:
    memory = plan_memory(ModelStates(parameters=3 * GIB), Activations(saved=5 * GIB), 0.0, is_gpu=False)
    stage = make_plan().stages[1].model_copy(update={"memory": memory})
    with pytest.raises(OutOfMemory) as caught, memory_told(stage, "step"):
        raise error
    text = str(caught.value)
    assert text.startswith("stage full ran out of memory at micro size 8 of a global batch of 8: ")
    assert "in the backward: activations 5.00 GiB, parameters 3.00 GiB, margin 0.83 GiB" in text
    assert "Set a smaller batch.micro_size" in text
    entry = rank_error.describe(1, caught.value)
    assert (entry.type, entry.shortage, entry.exit_code) == ("OutOfMemory", Shortage("full", "step", 8), 4)
    with pytest.raises(OutOfMemory, match="in its evaluation of 16 samples at once") as caught:  # noqa: SIM117
        with memory_told(stage, "evaluation"):
            raise error
    assert caught.value.shortage == Shortage("full", "evaluation", 16)
    with pytest.raises(OutOfMemory, match="outside of its steps and evaluations"), memory_told(stage, "other"):
        raise error


def test_other_errors_pass(make_plan: MakePlan) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_told(make_plan().stages[0], "other"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("has_launcher", [True, False])
def test_under_torchrun_the_rank_itself_plans_anew(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_launcher: bool
) -> None:
    """So that its ``--max-restarts``, SLURM's next attempt, or the same command again goes on; thawline's launcher does
    so itself."""
    run = written(make_plan(batch={"global_size": 12}), tmp_path)
    if has_launcher:
        monkeypatch.setenv(orphans.LAUNCHER_PID, "1")
    error = OutOfMemory(Shortage("full", "step", 12), "stage full ran out of memory")
    assert [worker.leave(tmp_path, rank, error) for rank in (1, 0)] == [4, 4]
    size = RunPlan.model_validate_json(run.plan.read_text()).stages[1].batch.micro_size
    first = next(entry for entry in rank_error.read_all(run) if entry.rank == 1)
    if has_launcher:
        assert (size, first.goes_on) == (12, "")
    else:
        assert size == 6
        assert first.goes_on.endswith("at micro size 12; it goes on with 6")
        assert first.message == f"stage full ran out of memory\n{first.goes_on}, when the ranks are started again"
