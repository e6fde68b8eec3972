"""What a run leaves behind: metrics.jsonl, status.json and lines on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import EnvironmentProblem, Interrupted, StoppedEarly, TrainingFailed
from launcher.plan import RunPlan
from launcher.run_dir import RunDir
from launcher.status import read_status
from launcher.tracking import Tracker, open_tracker
from launcher.wandb_run import choose_mode, run_id

HOST = "https://api.example.org"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create()
    return made


@pytest.fixture
def plan(make_plan: Callable[..., RunPlan]) -> RunPlan:
    return make_plan()


def records(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def train(tracker: Tracker, step: int, loss: float = 0.5, **more: Any) -> None:
    values: dict[str, Any] = {
        "step": step, "epoch": step / 13, "loss": loss, "learning_rate": 1e-3, "grad_norm": 2.0,
        "samples_per_second": 100.0, "tokens_per_second": 900.0, "memory_bytes": 2**30,
    }  # fmt: skip
    tracker.training(**values | more)


def whole_run(tracker: Tracker, plan: RunPlan, first: tuple[int, int] = (0, 0)) -> None:
    """Each stage trains, evaluates and ends, from the step after ``first``."""
    with tracker:
        for stage in plan.stages[first[0] :]:
            begin = first[1] if stage.index == first[0] else 0
            tracker.stage_started(stage, begin)
            for step in range(begin + 1, stage.steps + 1):
                train(tracker, step)
            tracker.evaluating(stage.steps)
            tracker.evaluated(stage.steps, 1.0, "validation", {"accuracy": 0.75, "loss": 0.4})
            tracker.checkpointed(f"{stage.label}-step-{stage.steps:08d}", stage.steps)
            tracker.stage_finished(stage, "2 of 2 changed")
        tracker.finished("finished", "accuracy 0.75", {"accuracy": 0.75, "loss": 0.4})


def test_metrics_file(run: RunDir, plan: RunPlan) -> None:
    whole_run(open_tracker(run, plan, is_first=True), plan)
    written = records(run)
    assert [(r["stage"], r["step"]) for r in written if r["split"] == "train"] == [
        (stage.name, step) for stage in plan.stages for step in range(1, stage.steps + 1)
    ]
    assert list(written[0]) == [
        "time", "stage", "step", "epoch", "split", "loss", "learning_rate", "grad_norm", "samples_per_second",
        "tokens_per_second", "memory_bytes",
    ]  # fmt: skip
    (evaluated, _) = [r for r in written if r["split"] == "validation"]
    assert {"accuracy": 0.75, "loss": 0.4, "stage": "head"}.items() <= evaluated.items()


def test_status_file(run: RunDir, plan: RunPlan) -> None:
    tracker = open_tracker(run, plan, is_first=True)
    assert read_status(run).state == "preparing"
    with tracker:
        tracker.stage_started(plan.stages[1], 5)
        found = read_status(run)
        assert (found.state, found.stage, found.stage_index, found.stages) == ("running", "full", 1, 2)
        assert (found.step, found.steps) == (5, plan.stages[1].steps)
        train(tracker, 6)
        tracker.evaluating(6)
        assert read_status(run).state == "evaluating"
        assert read_status(run).loss == 0.5
        tracker.evaluated(6, 0.5, "validation", {"accuracy": 0.9})
        assert (read_status(run).state, read_status(run).metrics) == ("running", {"accuracy": 0.9})
        tracker.checkpointed("01-full-step-00000006", 6)
        assert read_status(run).checkpoint == "01-full-step-00000006"
        tracker.finished("finished", "all is well", {"accuracy": 0.9})
    found = read_status(run)
    assert (found.state, found.message, found.eta_s) == ("finished", "all is well", None)


def test_status_is_not_written_at_every_step(run: RunDir, plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing a file costs an fsync; a fast loop must not pay it each step."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with open_tracker(run, plan, is_first=True) as tracker:
        tracker.stage_started(plan.stages[0])
        seen = set()
        for step in range(1, 11):
            now[0] += 0.25
            train(tracker, step)
            seen.add(read_status(run).step)
        assert seen == {0, 4, 8}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (StoppedEarly("saved"), "stopped"),
        (Interrupted("saved"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (TrainingFailed("loss is nan"), "failed"),
        (RuntimeError("bug"), "failed"),
    ],
)
def test_how_it_ended(run: RunDir, plan: RunPlan, error: BaseException, state: str) -> None:
    tracker = open_tracker(run, plan, is_first=True)

    def fail() -> None:
        with tracker:
            tracker.stage_started(plan.stages[0])
            train(tracker, 3)
            raise error

    with pytest.raises(type(error)):
        fail()
    found = read_status(run)
    assert (found.state, found.step) == (state, 3)
    assert found.message == (str(error) or "KeyboardInterrupt")


def test_other_ranks_are_mute(tmp_path: Path, plan: RunPlan, capsys: pytest.CaptureFixture[str]) -> None:
    """The same calls, and nothing is written: no folder is needed even."""
    whole_run(open_tracker(RunDir(tmp_path / "absent"), plan, is_first=False), plan)
    assert not (tmp_path / "absent").exists()
    assert capsys.readouterr().out == ""


def test_values_that_are_not_finite(run: RunDir, plan: RunPlan) -> None:
    with open_tracker(run, plan, is_first=True) as tracker:
        tracker.stage_started(plan.stages[0])
        train(tracker, 1, loss=math.nan, grad_norm=math.inf, tokens_per_second=None)
    (record,) = records(run)
    assert (record["loss"], record["grad_norm"]) == ("nan", "inf")
    assert "tokens_per_second" not in record


@pytest.mark.parametrize("resumed_from", [(0, 3), (0, 13), (1, 0), (1, 7)])
def test_resume_leaves_one_record_a_step(run: RunDir, plan: RunPlan, resumed_from: tuple[int, int]) -> None:
    """Killed later than its checkpoint and resumed: the file reads as if nothing had happened."""
    whole_run(open_tracker(run, plan, is_first=True), plan)
    with run.metrics.open("a") as file:
        file.write('{"time": 1, "stage": "full", "st')  # the kill came in the middle of a line
    first = resumed_from if resumed_from != (0, 13) else (1, 0)
    whole_run(open_tracker(run, plan, is_first=True, resumed_from=resumed_from), plan, first)
    steps = [(r["stage"], r["step"], r["split"]) for r in records(run)]
    whole = [(stage.name, step, "train") for stage in plan.stages for step in range(1, stage.steps + 1)]
    whole += [(stage.name, stage.steps, "validation") for stage in plan.stages]
    assert sorted(steps) == sorted(whole)


def test_start_anew_empties_the_file(run: RunDir, plan: RunPlan) -> None:
    """Killed before the first checkpoint: what was recorded is about to happen again."""
    with open_tracker(run, plan, is_first=True) as tracker:
        tracker.stage_started(plan.stages[0])
        train(tracker, 1)
    whole_run(open_tracker(run, plan, is_first=True), plan)
    assert [r["step"] for r in records(run) if r["stage"] == "head" and r["split"] == "train"] == list(range(1, 14))


def test_plain_lines(run: RunDir, plan: RunPlan, capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(open_tracker(run, plan, is_first=True), plan)
    out = capsys.readouterr().out
    assert "stage 1 of 2: head  16 of 272 parameters train  ddp on 1 CPU rank  fp32  13 steps of 8" in out
    assert "head  step  1/13  loss 0.5000  100 samples/s" in out
    assert "head  step 13/13  loss 0.5000" in out
    assert out.count("head  step") == 3  # first, last, evaluation: those between came too fast
    assert "head  step 13  validation: accuracy 0.7500, loss 0.4000" in out
    assert "stage full done: 2 of 2 changed" in out
    assert out.endswith("accuracy 0.75\n")
    assert "\x1b" not in out


def test_bars_on_a_terminal(
    run: RunDir, plan: RunPlan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    whole_run(open_tracker(run, plan, is_first=True), plan)
    out = capsys.readouterr().out
    assert "13/13" in out
    assert "loss 0.5000" in out
    assert out.rstrip().endswith("accuracy 0.75")
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h")  # the cursor is shown again


@pytest.mark.parametrize(
    ("asked", "environment", "netrc", "mode", "why"),
    [
        ("online", {}, "", "online", "as the recipe says"),
        ("offline", {"WANDB_API_KEY": "x"}, "", "offline", "as the recipe says"),
        ("disabled", {"WANDB_API_KEY": "x"}, "", "disabled", "as the recipe says"),
        ("auto", {"WANDB_API_KEY": "x"}, "", "online", "the key of WANDB_API_KEY"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "", "offline", "as WANDB_MODE says"),
        ("auto", {}, "machine api.example.org login user password x", "online", "for api.example.org"),
        ("auto", {}, "machine elsewhere.org login user password x", "offline", "no login for api.example.org"),
        ("auto", {}, "", "offline", "no WANDB_API_KEY"),
    ],
)
def test_wandb_mode(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: Any,
    environment: dict[str, str],
    netrc: str,
    mode: str,
    why: str,
) -> None:
    (tmp_path / "netrc").write_text(netrc + "\n")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen, reason = choose_mode(asked, HOST)
    assert chosen == mode
    assert why in reason


def test_wandb_mode_that_cannot_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    with pytest.raises(EnvironmentProblem, match="WANDB_MODE='dryrun'"):
        choose_mode("auto", HOST)
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(EnvironmentProblem, match="cannot be read for a wandb key"):
        choose_mode("auto", HOST)


def test_wandb_id_is_kept(run: RunDir) -> None:
    assert run_id(run) == run_id(run) == run.wandb_id.read_text().strip()
