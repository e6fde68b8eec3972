"""What a stage measured, against what was predicted."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.costs.memory import ModelStates
from launcher.costs.peak import GIB, Activations, MemoryPlan, plan_memory
from launcher.errors import UserError
from launcher.memory_record import Measured, MemoryRecord, read_all
from launcher.run_dir import RunDir

STATES = ModelStates(parameters=GIB, gradients=GIB, step_gradients=GIB, optimizer=2 * GIB)


def planned(*, is_gpu: bool) -> MemoryPlan:
    return plan_memory(STATES, Activations(saved=GIB), 0.0, is_gpu=is_gpu)


def record(measured: Measured, *, is_gpu: bool) -> MemoryRecord:
    return MemoryRecord(
        stage="full", micro_size=4, predicted=planned(is_gpu=is_gpu), measured=measured, ranks=[measured]
    )


def test_a_gpu_compares_peaks_without_the_margins() -> None:
    found = record(Measured(allocated=4 * GIB, reserved=6 * GIB, optimizer=1), is_gpu=True).compared()
    assert found
    assert str(found) == "5.00 GiB predicted, 4.00 GiB measured (+25.0%): peak of what torch allocates on the GPU"


def test_a_cpu_rank_compares_what_was_counted() -> None:
    measured = Measured(parameters=GIB, gradients=GIB, masters=0, optimizer=GIB, resident=9 * GIB)
    found = record(measured, is_gpu=False).compared()
    assert found
    assert (found.predicted, found.measured) == (4 * GIB, 3 * GIB)
    assert found.what == "parameters, gradients, masters, optimizer"


def test_without_a_prediction_or_a_measurement_nothing_is_compared() -> None:
    assert record(Measured(resident=GIB), is_gpu=False).compared() is None
    unplanned = record(Measured(allocated=GIB), is_gpu=True).model_copy(update={"predicted": None})
    assert unplanned.compared() is None
    assert unplanned.compared(planned(is_gpu=True)), "against another plan"


def test_a_file_of_another_version_is_told(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.memory(0, "full").parent.mkdir(parents=True)
    run.memory(0, "full").write_text('{"stage": "full"}')
    with pytest.raises(UserError, match=r"memory\.json is not of this version of thawline"):
        read_all(run)
