"""A run's checkpoints against what is free where its folder is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher.costs.disk import DiskPlan
from launcher.costs.peak import GIB
from launcher.errors import EnvironmentProblem
from launcher.plan import RunPlan, free_space
from launcher.run_dir import RunDir


@pytest.fixture
def plan(make_plan: Callable[..., RunPlan]) -> RunPlan:
    """A model of 4 GiB whose second stage may keep 40 GiB at once."""
    plan = make_plan()
    stages = [
        stage.model_copy(
            update={"disk": DiskPlan(checkpoint_bytes=8 * GIB, model_bytes=4 * GIB, most_bytes=most * GIB)}
        )
        for stage, most in zip(plan.stages, (20, 40), strict=True)
    ]
    return plan.model_copy(update={"stages": stages})


def with_free(monkeypatch: pytest.MonkeyPatch, gib: float) -> list[Path]:
    asked: list[Path] = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=int(gib * GIB))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


def test_what_may_not_find_room_is_said_with_what_to_do(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "not" / "there" / "yet")
    asked = with_free(monkeypatch, 39.5)
    stage = plan.stages[1]
    huge = DiskPlan(checkpoint_bytes=4542 * GIB, model_bytes=1512 * GIB, most_bytes=25725 * GIB)
    larger = plan.model_copy(update={"stages": [stage.model_copy(update={"disk": huge})]})
    assert "may take 25,725 GiB (each 4,542 GiB, and" in str(free_space.warning(larger, run))
    told = free_space.warning(plan, run)
    assert told == (
        f"{run.path}: 39.5 GiB are free there on this machine, and the checkpoints of stage full may take 40 GiB (each "
        "8 GiB, and checkpoint.keep is 2); make room, lower checkpoint.keep, or choose another --run-dir"
    )
    assert asked == 2 * [tmp_path], "the nearest folder that is there"
    with_free(monkeypatch, 40)
    assert free_space.warning(plan, run) is None


def test_what_the_run_has_written_is_not_needed_again(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    with_free(monkeypatch, 40 - 1 / 1024)
    assert free_space.warning(plan, run)
    folder = run.checkpoint(0, "head", 0) / "model"
    folder.mkdir(parents=True)
    with (folder / "weights").open("wb") as file:
        file.truncate(2**20)
    assert free_space.warning(plan, run) is None


def test_a_run_that_cannot_end_is_refused(plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 8)
    free_space.require(plan, RunDir(tmp_path))
    with_free(monkeypatch, 7.9)
    with pytest.raises(EnvironmentProblem, match=r"7\.9 GiB are free there, and the model .* takes 8 GiB; make room"):
        free_space.require(plan, RunDir(tmp_path))


def test_an_unknown_size_is_no_verdict(
    make_plan: Callable[..., RunPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 0)
    free_space.require(make_plan(), RunDir(tmp_path))
    assert free_space.warning(make_plan(), RunDir(tmp_path)) is None
