"""The names of a run's files, and that none is ever seen half written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.run_dir import RunDir, parse_checkpoint, write_atomic


def test_names_that_users_rely_on() -> None:
    run = RunDir("runs/x")
    named = (
        run.recipe, run.plan, run.status, run.metrics, run.log(3), run.checkpoint(1, "full", 250), run.latest,
        run.proof(0, "head"), run.model, run.report, run.error(0),
    )  # fmt: skip
    assert [str(path.relative_to("runs/x")) for path in named] == [
        "recipe.yaml", "plan.json", "status.json", "metrics.jsonl", "logs/rank-3.log",
        "checkpoints/01-full-step-00000250", "LATEST", "stages/00-head/proof.json", "model", "report.html",
        "logs/rank-0.error.json",
    ]  # fmt: skip


@given(st.integers(0, 99), st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,63}\Z"), st.integers(0, 10**9))
def test_checkpoint_names_are_read_back(index: int, stage: str, step: int) -> None:
    name = parse_checkpoint(RunDir("r").checkpoint(index, stage, step).name)
    assert name is not None
    assert (name.stage_index, name.stage, name.step) == (index, stage, step)


def test_checkpoints_sort_by_age() -> None:
    run = RunDir("r")
    in_order = [
        run.checkpoint(0, "z", 9),
        run.checkpoint(0, "z", 10),
        run.checkpoint(1, "a", 0),
        run.checkpoint(10, "b", 1),
    ]
    parsed = [parse_checkpoint(path.name) for path in in_order]
    assert sorted(name for name in parsed if name) == parsed


@pytest.mark.parametrize("name", [".tmp-00-head-step-00000001", "00-head", "00-head-step-1", "head-step-00000001"])
def test_other_folders_are_no_checkpoints(name: str) -> None:
    assert parse_checkpoint(name) is None


def test_write_atomic_replaces(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_atomic(file, "old, and longer")
    write_atomic(file, b"new")
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["status.json"]


def test_write_atomic_that_fails_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the old content stays, and nothing lies about."""
    file = tmp_path / "status.json"
    write_atomic(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["status.json"]


def test_create_twice(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "deep" / "run")
    run.create()
    run.create()
    assert run.logs.is_dir()
    assert run.checkpoints.is_dir()
    assert not run.model.exists()
