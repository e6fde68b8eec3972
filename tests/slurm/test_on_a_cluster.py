"""``thawline submit`` on a real SLURM of two nodes: to the end, preempted, at its time limit, cancelled, failed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import metrics, recipe, tiny_bert, weights
from sandbox_cluster import Cluster, log

STEPS = {"top": 12, "full": 30}
"""Enough that a preemption finds the run at work, some seconds after its second step."""
OPTIONS = ("--nodes", "2", "--time", "10:00", "--cpus-per-task", "4")


def stages() -> list[dict[str, Any]]:
    sharding = {"strategy": "zero2"}
    return [
        {"name": "top", "train": ["head", "layers[-1]"], "steps": STEPS["top"], "sharding": sharding},
        {"name": "full", "train": ["all"], "steps": STEPS["full"], "sharding": sharding, "optimizer_state": "carry"},
    ]


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    model = {"source": str(tiny_bert(folder / "bert")), "weights": "random"}  # with the dropout of its configuration
    wandb = {"project": "sandbox", "mode": "offline"}
    return recipe(
        folder, stages(), model=model, checkpoint={"every": "4st"}, evaluate={"every": "10st", "best": "accuracy"},
        tracking={"log_every": 1, "wandb": wandb},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped, two ranks on two nodes under torchrun."""
    run = tmp_path_factory.mktemp("whole") / "run"
    number = cluster.submit(write(run.parent / "recipe"), "--run-dir", run, *OPTIONS)
    job = cluster.end_of(number, run)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log(run)
    return run


def wait_until(condition: Callable[[], bool], run: Path, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"nothing in {timeout_s} s\n{log(run)}"
        time.sleep(0.05)


def wait_for_steps(run: Path, count: int) -> None:
    wait_until(lambda: sum(line["split"] == "train" for line in metrics(run)) >= count, run)


def status(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "status.json").read_text())
    return content


def timeless(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if not key.endswith(("_second", "_bytes", "time"))}
        for line in metrics(run)
    ]


def test_two_stages_under_zero2_to_the_end(whole: Path) -> None:
    assert status(whole)["state"] == "finished"
    plan = json.loads((whole / "plan.json").read_text())
    assert (plan["cluster"]["nodes"], plan["cluster"]["ranks_per_node"]) == (2, 1)
    proofs = {file.parent.name for file in (whole / "stages").glob("*/proof.json")}
    assert proofs == {"00-top", "01-full"}
    hosts = {file.name for file in (whole / "slurm").glob("*/attempt-0/node-*.log")}
    assert hosts == {"node-node1.log", "node-node2.log"}
    assert all("interface eth0" in file.read_text() for file in (whole / "slurm").glob("*/attempt-0/node-*.log"))


def test_preempted_it_queues_itself_again_and_ends_with_the_same_bits(
    cluster: Cluster, whole: Path, tmp_path: Path
) -> None:
    """Preemption's TERM reaches every process at any moment; the other launcher gives the same bits too."""
    run = tmp_path / "run"
    file = write(tmp_path / "recipe")
    number = cluster.submit(file, "--run-dir", run, *OPTIONS, "--launcher", "accelerate", "--partition", "low")
    wait_for_steps(run, 2)
    cluster.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    file.write_text("an edit for the next run: the queued one keeps what was planned")
    job = cluster.end_of(number, run)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), log(run)
    assert "queued again" in (run / "slurm" / f"job-{number}.log").read_text()
    expected, found = weights(whole), weights(run)
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    assert timeless(run) == timeless(whole)
    offline = {path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}
    assert offline == {(run / "wandb_id").read_text().strip()}


def test_at_the_time_limit_it_is_queued_again_and_cancelled_it_stays_cancelled(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    many = ("--set", "stages.top.steps=100000")
    number = cluster.submit(write(tmp_path / "recipe"), "--run-dir", run, *many, *OPTIONS)
    wait_for_steps(run, 2)
    # Now the limit is less than signal_lead away: SLURM itself sends the signal, within half a minute.
    cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=5")
    wait_until(lambda: cluster.job(number)["Restarts"] == "1", run)
    cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=10")
    saved = max(line["step"] for line in metrics(run) if line["split"] == "train")
    assert "got USR1" in (run / "slurm" / f"job-{number}.log").read_text()
    wait_for_steps(run, saved + 2)
    shown = cluster.thawline("status", run).stdout
    assert f"job {number} RUNNING on node[1-2], attempt 1" in shown
    assert f"job {number}" in cluster.thawline("cancel", run).stdout
    job = cluster.end_of(number, run)
    assert job["JobState"] == "CANCELLED"
    wait_until(lambda: "exit code" in (run / "slurm" / f"job-{number}.log").read_text(), run)
    assert cluster.job(number)["Restarts"] == "1"
    assert status(run)["state"] == "stopped"


def test_a_crash_is_seen_with_its_exit_code(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    wild = ("--set", "stages.top.optimizer.learning_rate=1.0e+30", "--set", "clip_grad_norm=null")
    number = cluster.submit(write(tmp_path / "recipe"), "--run-dir", run, *wild, *OPTIONS)
    job = cluster.end_of(number, run)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "4:0"), log(run)
    shown = json.loads(cluster.thawline("status", run, "--json").stdout)
    assert (shown["state"], shown["queue"]["state"], shown["queue"]["exit_code"]) == ("failed", "FAILED", 4)
    assert "lower learning rate" in (run / "slurm" / f"job-{number}.log").read_text()


def test_what_the_cluster_does_not_have_is_refused_before_it_waits_forever(cluster: Cluster, tmp_path: Path) -> None:
    file = write(tmp_path / "recipe")
    refused = cluster.thawline("submit", file, "--run-dir", tmp_path / "run", "--nodes", "9", check=False)
    assert refused.returncode == 2
    assert "SLURM refuses the job" in refused.stderr
    assert cluster.run("squeue", "--noheader").stdout == ""
