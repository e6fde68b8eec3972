"""Curves through wandb's real client, offline, in a process of its own in which every warning is an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.plan import RunPlan
from launcher.run_dir import RunDir

PROGRAM = """
import sys
from launcher.plan import RunPlan
from launcher.run_dir import RunDir
from launcher.tracking import open_tracker
run = RunDir(sys.argv[1])
plan = RunPlan.model_validate_json(run.plan.read_text())
first = int(sys.argv[2])
with open_tracker(run, plan, True, (0, first) if first else None) as tracker:
    tracker.stage_started(plan.stages[0], first)
    for step in range(first + 1, first + 3):
        tracker.training(step, step / 13, float("nan") if step == 1 else 0.5, 1e-3, 2.0, 100.0)
    tracker.evaluated(step, 1.0, "validation", {"accuracy": 0.75})
    tracker.finished("finished", "the end", {"accuracy": 0.75})
"""


@pytest.fixture
def start(
    tmp_path: Path, make_plan: Callable[..., RunPlan], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    run = RunDir(tmp_path / "run")
    run.create()

    def start_with(mode: str, first: int = 0) -> subprocess.CompletedProcess[str]:
        plan = make_plan(tracking={"wandb": {"project": "demo", "mode": mode, "tags": ["a"]}})
        run.plan.write_text(plan.model_dump_json())
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, str(run.path), str(first)],
            capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
        )  # fmt: skip

    return start_with


def test_offline_and_resumed(tmp_path: Path, start: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The run's folder holds wandb's; a resume is the same run; wandb itself says nothing."""
    run = RunDir(tmp_path / "run")
    for first in (0, 2):
        ended = start("auto", first)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith("wandb: offline, as there is no WANDB_API_KEY and no login for ")
        assert [line[:6] for line in ended.stdout.splitlines() if "wandb" in line] == ["wandb:"]
    identity = run.wandb_id.read_text().strip()
    folders = sorted(run.wandb.glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == [identity, identity]
    for folder in folders:
        (transaction_log,) = folder.glob("*.wandb")
        content = transaction_log.read_bytes()
        assert b"validation/accuracy" in content
        assert b"optimizer_step" in content
    assert not (tmp_path / "wandb").exists()


def test_online_without_a_key_is_an_error(start: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    ended = start("online")
    assert ended.returncode == 1
    assert "EnvironmentProblem: wandb could not start in mode online (tracking.wandb.mode: online)" in ended.stderr
    assert "--set tracking.wandb.mode=offline" in ended.stderr


def test_no_wandb_unless_asked(tmp_path: Path, make_plan: Callable[..., RunPlan]) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    run.plan.write_text(make_plan().model_dump_json())
    program = PROGRAM + "assert 'wandb' not in sys.modules\nassert 'torch' not in sys.modules\n"
    command = [sys.executable, "-W", "error", "-c", program, str(run.path), "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not run.wandb.exists()


GONE = """
import logging, os, signal, subprocess, sys, time
from pathlib import Path
from launcher.recipe import Wandb
from launcher.run_dir import RunDir
from launcher.wandb_run import WandbRun
logging.basicConfig(level=logging.WARNING, format="%(message)s")
run = WandbRun(RunDir(sys.argv[1]), "tiny", Wandb(project="demo", mode="offline"), {})
run.log("train", 1, {"loss": 1.0})
(child,) = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
os.kill(child, signal.SIGTERM)
if sys.argv[2] == "noticed":
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
run.log("train", 2, {"loss": 1.0})
run.summarise({"state": "stopped"})
run.finish(1)
print("still here", flush=True)
os._exit(75)
"""


@pytest.mark.parametrize("moment", ["noticed", "at once"])
def test_a_signal_to_every_process_ends_wandbs_and_not_the_run(tmp_path: Path, moment: str) -> None:
    """SLURM's TERM reaches wandb's own process too, while the ranks still have to save and say that they stopped."""
    run = RunDir(tmp_path / "run")
    run.create()
    ended = subprocess.run(
        [sys.executable, "-c", GONE, str(run.path), moment],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (75, "still here\n"), ended.stderr
    assert ended.stderr.count("wandb's own process is gone") == 1
    assert "metrics.jsonl" in ended.stderr
