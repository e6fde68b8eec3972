"""``thawline submit`` on a real SLURM of three nodes: to the end, stopped, through hangs and lost nodes, failed."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from running import metrics, recipe, tiny_bert, weights
from sandbox_cluster import SANDBOX, Cluster, log

import launcher

STEPS = {"top": 4, "full": 16}
DDP = ("--set", "stages.top.sharding.strategy=ddp", "--set", "stages.full.sharding.strategy=ddp")
RARE = ("--set", "evaluate.every=end", "--set", "checkpoint.every=1ep")
OPTIONS = ("--nodes", "2", "--time", "10:00", "--cpus-per-task", "4")


def stages() -> list[dict[str, Any]]:
    sharding = {"strategy": "zero2"}
    return [
        {"name": "top", "train": ["head", "layers[-1]"], "steps": STEPS["top"], "sharding": sharding},
        {"name": "full", "train": ["all"], "steps": STEPS["full"], "sharding": sharding, "optimizer_state": "carry"},
    ]


def write(folder: Path, wandb: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    model = {"source": str(tiny_bert(folder / "bert")), "weights": "random"}  # with the dropout of its configuration
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
        time.sleep(0.2)  # scontrol, asked more often, would take the processors from the ranks


def wait_for_steps(run: Path, count: int) -> None:
    wait_until(lambda: sum(line["split"] == "train" for line in metrics(run)) >= count, run)


def ask_to_stop(cluster: Cluster, number: str, run: Path) -> None:
    """Before the ranks are there to hear it, so that they stop after their first step."""
    wait_until(lambda: "head " in log(run), run)
    cluster.run("scancel", "--batch", "--signal=USR1", number)


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
    assert {file.name for file in (whole / "slurm").glob("*/attempt-0/rank-*.log")} == {"rank-0.log", "rank-1.log"}
    assert all("interface eth0" in file.read_text() for file in (whole / "slurm").glob("*/attempt-0/node-*.log"))


@dataclass
class Troubled:
    """A run that goes through one trouble after the other, each of which ends an attempt."""

    cluster: Cluster
    folder: Path
    number: str

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def attempt(self, number: int) -> Path:
        return self.run / "slurm" / self.number / f"attempt-{number}"

    def log(self) -> str:
        return (self.run / "slurm" / f"job-{self.number}.log").read_text()

    def at_work(self, attempt: int) -> None:
        """Wait until that attempt has done a step of the second stage."""

        def steps() -> int:
            return sum(line["stage"] == "full" and line["split"] == "train" for line in metrics(self.run))

        log = self.attempt(attempt) / "rank-1.log"
        wait_until(lambda: log.is_file() and "stage full: engine " in log.read_text(), self.run)
        before = steps()  # what followed the checkpoint that it went on from is cut off by now
        wait_until(lambda: steps() > before, self.run)

    def queued_again(self, times: int) -> None:
        wait_until(lambda: self.cluster.job(self.number)["Restarts"] == str(times), self.run)

    def runs_on(self, nodes: str) -> None:
        wait_until(lambda: self.cluster.job(self.number)["JobState"] == "RUNNING", self.run)
        assert self.cluster.job(self.number)["NodeList"] == nodes


@pytest.fixture(scope="module")
def troubled(cluster: Cluster, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Troubled:
    """The same recipe as `whole`, whose operators are built by then, under the other launcher."""
    folder = tmp_path_factory.mktemp("troubled")
    for node in cluster.NODES:
        cluster.slow_down(node)
    number = cluster.submit(
        write(folder / "recipe", {"project": "sandbox", "mode": "offline"}),
        "--run-dir", folder / "run", "--nodes", "2", "--cpus-per-task", "4",
        "--launcher", "accelerate", "--partition", "low", "--hang-timeout", "30",
        "--time", "6:00", "--signal-lead", "325", "--requeue-budget", "9",
    )  # fmt: skip
    return Troubled(cluster, folder, number)


def test_at_the_time_limit_and_when_preempted_it_saves_and_is_queued_again(troubled: Troubled) -> None:
    """The limit is 35 s further than the lead, and SLURM, which looks every 30 s, may ask 30 s early: while the ranks
    start."""
    cluster, number = troubled.cluster, troubled.number
    troubled.queued_again(1)
    cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=40")
    assert "got USR1" in troubled.log()
    (troubled.folder / "recipe" / "recipe.yaml").write_text("an edit for the next run: this one keeps its plan")
    troubled.at_work(1)
    shown = cluster.thawline("status", troubled.run).stdout
    assert f"job {number} RUNNING on node[1-2], attempt 1" in shown
    cluster.run("sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true")
    troubled.queued_again(2)
    wait_until(lambda: all((troubled.attempt(which) / "stop").exists() for which in (0, 1)), troubled.run)
    wait_until(lambda: troubled.log().count("queued again") == 2, troubled.run)


@pytest.mark.timeout(900)
def test_a_hung_rank_is_survived_and_so_is_maintenance(troubled: Troubled) -> None:
    """An administrator drains a node and queues the job again: its ranks are told, save, and go on on the spare."""
    cluster, run = troubled.cluster, troubled.run
    troubled.at_work(2)
    beat = json.loads((troubled.attempt(2) / "beats" / "rank-1").read_text())
    cluster.on("node2", "kill", "-STOP", str(beat["pid"]))
    troubled.queued_again(3)
    named = f"rank 1 on node2 (process {beat['pid']}) gave no sign of life for 30 s"
    assert named in troubled.log()
    assert named in status(run)["message"]

    troubled.at_work(3)
    cluster.run("scontrol", "update", "NodeName=node2", "State=DRAIN", "Reason=new memory")
    cluster.run("scontrol", "requeue", troubled.number)
    troubled.queued_again(4)
    troubled.runs_on("node[1,3]")
    assert "got TERM" in troubled.log()
    began = troubled.attempt(4) / "began"
    wait_until(began.is_file, run)
    assert began.read_text() != (troubled.attempt(3) / "began").read_text(), "it saved in time"
    cluster.run("scontrol", "update", "NodeName=node2", "State=RESUME")


@pytest.mark.timeout(900)  # SLURM waits before it believes that a node is gone
def test_a_lost_node_and_a_cut_link_are_survived_with_the_same_bits(troubled: Troubled, whole: Path) -> None:
    cluster, run = troubled.cluster, troubled.run
    troubled.at_work(4)
    cluster.node("kill", "node3")
    troubled.queued_again(5)
    troubled.runs_on("node[1-2]")
    # Earlier, SLURM might use the node again, and tell it once more what it could not tell it then: to kill this step.
    cluster.node("boot", "node3")

    troubled.at_work(5)
    cluster.node("cut", "node2")  # its rank lives on
    troubled.queued_again(6)
    troubled.runs_on("node[1,3]")
    cluster.node("kill", "node2")
    cluster.node("boot", "node2")
    for node in cluster.NODES:
        cluster.slow_down(node, undo=True)

    job = cluster.end_of(troubled.number, run)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "6"), log(run)
    expected, found = weights(whole), weights(run)
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    assert timeless(run) == timeless(whole)
    offline = {path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}
    assert offline == {(run / "wandb_id").read_text().strip()}


def test_without_a_spare_fewer_nodes_go_on_and_cancelled_it_stays_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    """A link is cut, so that the other rank lives on. The steps that both worlds took are the same steps; somebody
    watches all the while."""
    run = tmp_path / "run"
    rare = ("--set", "checkpoint.every=16st", "--set", "model.dropout=0.0")
    many = ("--set", "stages.top.steps=20", "--set", "stages.full.steps=100000")
    cluster.run("scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=no spare")
    cluster.slow_down("node2")
    try:
        number = cluster.submit(
            write(tmp_path / "recipe"), "--run-dir", run, "--nodes", "2", "--min-nodes", "1",
            "--launcher", "accelerate", *rare, *many,
        )  # fmt: skip
        watcher = cluster.start(sys.executable, "-m", "launcher", "watch", run, path=tmp_path)
        wait_for_steps(run, 13)  # the first evaluation, after step 10, is the best so far, and saved
        before = {line["step"]: line for line in metrics(run) if line["split"] == "train"}
        cluster.node("cut", "node2")
        cluster.say_down("node2")
        wait_until(lambda: cluster.job(number)["Restarts"] == "1", run)
        wait_until((run / "stages" / "00-top" / "proof.json").is_file, run)
        wait_for_steps(run, 22)
        assert f"job {number}" in cluster.thawline("cancel", run).stdout
        job = cluster.end_of(number, run)
        watched, _ = watcher.communicate(timeout=120)
    finally:
        cluster.node("kill", "node2")
        cluster.node("boot", "node2")
        cluster.make_ready()
    assert job["JobState"] == "CANCELLED"
    wait_until(lambda: "exit code" in (run / "slurm" / f"job-{number}.log").read_text(), run)
    assert cluster.job(number)["Restarts"] == "1"
    assert status(run)["state"] == "stopped"

    plan = json.loads((run / "plan.json").read_text())
    assert [stage["batch"] for stage in plan["stages"]] == [
        {"global_size": 8, "micro_size": 2, "accumulation": 4, "ranks": 1} for _ in range(2)
    ]
    shown = cluster.thawline("status", run).stdout
    assert "planned for 2 nodes x 1 CPU rank, goes on with 1 CPU rank from 00-top-step-00000010" in shown
    after = {line["step"]: line for line in metrics(run) if (line["stage"], line["split"]) == ("top", "train")}
    again = [step for step in before if step > 10]
    assert len(again) >= 3
    for step in again:
        assert after[step]["learning_rate"] == before[step]["learning_rate"]
        for name in ("loss", "grad_norm"):
            assert after[step][name] != before[step - 1][name], "it moves"
            assert after[step][name] == pytest.approx(before[step][name], rel=1e-3), (step, name)
    assert json.loads((run / "stages" / "00-top" / "proof.json").read_text())["holds"]

    assert watcher.returncode == 0, watched
    for line in (f"job {number} RUNNING on node[1-2], attempt 0", f"job {number} RUNNING on node1, attempt 1"):
        assert f"queue       {line}" in watched
    assert "stage       top, 1 of 2" in watched
    assert f"job {number} CANCELLED" in watched.splitlines()[-1]


def test_a_node_that_is_not_fit_is_named_and_the_job_ends_before_its_ranks_begin(
    cluster: Cluster, tmp_path: Path
) -> None:
    """One node has another release of thawline, and not the disk that the others share."""
    run, other = tmp_path / "run", tmp_path / "__init__.py"
    ours = Path(launcher.__file__)
    other.write_text(ours.read_text().replace(f'"{launcher.__version__}"', '"0.0.7"'))
    run.mkdir()
    cluster.on("node2", "mount", "--bind", other, ours)
    cluster.on("node2", "mount", "-t", "tmpfs", "tmpfs", run)
    try:
        number = cluster.submit(write(tmp_path / "recipe"), "--run-dir", run, *OPTIONS)
        job = cluster.end_of(number, run)
    finally:
        cluster.on("node2", "umount", ours, run)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "3:0"), log(run)
    said = (run / "slurm" / f"job-{number}.log").read_text()
    assert f"node2: thawline 0.0.7, and {launcher.__version__} elsewhere" in said
    assert "node2: the run's folder is not shared" in said
    assert "node1: " not in said
    assert not list((run / "slurm" / number / "attempt-0").glob("node-*.log")), "no rank was started"


def test_the_doctor_looks_at_every_node_of_an_allocation(cluster: Cluster, tmp_path: Path) -> None:
    said = tmp_path / "said"
    wrapped = f"{sys.executable} -m launcher doctor"
    number = cluster.run(
        "sbatch", "--parsable", "--nodes=3", f"--chdir={tmp_path}", f"--output={said}", f"--wrap={wrapped}"
    ).stdout.strip()
    job = cluster.end_of(number, tmp_path)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), said.read_text()
    assert "ok    nodes       3 nodes alike: thawline" in said.read_text()
    assert "ok    rendezvous  1 ranks met" in said.read_text()
    assert list(tmp_path.iterdir()) == [said], "it cleans up"


def test_over_ssh_a_run_stops_with_a_checkpoint_and_says_how_to_go_on(cluster: Cluster, tmp_path: Path) -> None:
    """A stand-in for ssh brings the command to the node; all else is real."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(
        '#!/bin/bash\nwhile [[ $1 == -* ]]; do [ "$1" = -o ] && shift; shift; done\n'
        f'host=$1; shift\nexec bash {SANDBOX}/node.sh exec "$host" bash -c "$*"\n'
    )
    ssh.chmod(0o755)
    run = tmp_path / "run"
    asked = ["run", write(tmp_path / "recipe"), "--run-dir", run, "--nodes", "node1,node2", "--ranks", "1", *DDP]
    printed = cluster.thawline(*asked).stdout.splitlines()
    assert printed[::2] == ["# node1", "# node2"]
    assert "--node-rank=1 --master-addr=node1" in printed[3]
    many = ("--set", "stages.top.steps=100000")
    with cluster.start(sys.executable, "-m", "launcher", *asked, *many, "--ssh", path=ssh.parent) as process:
        wait_for_steps(run, 2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert "node1: stage 1 of 2: top" in output
    assert "saved as 00-top-step-" in output
    assert "--nodes node1,node2 --ranks 1" in output.splitlines()[-1]
    assert status(run)["state"] == "stopped"
    refused = cluster.thawline("resume", run, check=False)
    assert refused.returncode == 2
    assert "go on with it there: thawline run " in refused.stderr


def test_an_arrays_task_is_queued_again_alone(cluster: Cluster, tmp_path: Path) -> None:
    """A run for each value, in what stands for a container; the one that is stopped by a signal goes on, and the other
    has nothing of it."""
    run = tmp_path / "an array"
    file = write(tmp_path / "recipe")
    few = (*RARE, "--set", "stages.full.steps=2", *DDP)
    container = tmp_path / "container"
    container.write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/entered\nshift 2\nexec "$@"\n')
    container.chmod(0o755)
    flags = ("--array", "stages.top.steps=[2, 4]", "--container", f"{container} exec image.sif")
    number = cluster.submit(file, "--run-dir", run, *few, *flags)
    ask_to_stop(cluster, f"{number}_1", run / "task-1")
    ends = [cluster.end_of(f"{number}_{task}", run / f"task-{task}") for task in (0, 1)]
    assert [(job["JobState"], job["Restarts"]) for job in ends] == [("COMPLETED", "0"), ("COMPLETED", "1")]
    plans = [json.loads((run / f"task-{task}" / "plan.json").read_text()) for task in (0, 1)]
    assert [plan["stages"][0]["steps"] for plan in plans] == [2, 4]
    shown = cluster.thawline("status", run).stdout.splitlines()
    assert [line.partition(",")[0] for line in shown] == [
        "task-0  stages.top.steps=2: finished", "task-1  stages.top.steps=4: finished"
    ]  # fmt: skip
    assert "queued again" in cluster.thawline("logs", run / "task-1").stdout
    entered = [line.split()[:6] for line in (tmp_path / "entered").read_text().splitlines()]
    python = ["exec", "image.sif", sys.executable, "-m"]
    assert sorted(entered) == sorted([[*python, "launcher.slurm.preflight", "node"],
                                      [*python, "torch.distributed.run", "--nnodes=1"]] * 3)  # fmt: skip


def test_each_stage_is_a_job_on_machines_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    """The first is stopped while its nodes are looked at, by a TERM to all of it as a preemption sends, and queued
    again: the second must go on waiting, and not count a 75 as failed."""
    run = tmp_path / "run"
    file = write(tmp_path / "recipe")
    few = (*RARE, "--set", "stages.top.steps=4", "--set", "stages.full.steps=2")
    machines = ("--set", "stages.full.slurm.nodes=2", *DDP)
    refused = cluster.thawline("submit", file, "--run-dir", run, *few, *machines, check=False)
    assert (refused.returncode, "--split-stages" in refused.stderr) == (2, True)
    last = cluster.submit(file, "--run-dir", run, *few, *machines, "--split-stages")
    first, second = (run / "slurm" / "job_id").read_text().split()
    assert second == last
    wait_until(lambda: "head " in log(run), run)
    cluster.run("scancel", "--full", "--signal=TERM", first)
    wait_until(lambda: cluster.job(first)["Restarts"] == "1", run)
    assert cluster.job(second)["JobState"] == "PENDING"
    shown = cluster.thawline("status", run).stdout
    assert f"job {second} PENDING (Dependency)" in shown
    assert "thawline submit" not in shown, "it goes on by itself"
    job = cluster.end_of(second, run)
    assert "stopped on request before anything new was saved" in log(run)
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), log(run)
    assert [cluster.job(each)["NumNodes"] for each in (first, second)] == ["1", "2"]
    plan = json.loads((run / "plan.json").read_text())
    assert [stage["batch"]["ranks"] for stage in plan["stages"]] == [1, 2]
    assert {file.parent.name for file in (run / "stages").glob("*/proof.json")} == {"00-top", "01-full"}
    assert status(run)["state"] == "finished"


def test_a_crash_on_three_nodes_is_seen_with_its_exit_code(cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    three = ("--set", "batch.global_size=12", "--nodes", "3", "--time", "10:00")
    wild = ("--set", "stages.top.optimizer.learning_rate=1.0e+30", "--set", "clip_grad_norm=null", *DDP)
    number = cluster.submit(write(tmp_path / "recipe"), "--run-dir", run, *wild, *three)
    job = cluster.end_of(number, run)
    assert (job["JobState"], job["ExitCode"], job["NumNodes"]) == ("FAILED", "4:0", "3"), log(run)
    shown = json.loads(cluster.thawline("status", run, "--json").stdout)
    assert (shown["state"], shown["queue"]["state"], shown["queue"]["exit_code"]) == ("failed", "FAILED", 4)
    assert "lower learning rate" in (run / "slurm" / f"job-{number}.log").read_text()


def test_what_the_cluster_does_not_have_is_refused_before_it_waits_forever(cluster: Cluster, tmp_path: Path) -> None:
    file = write(tmp_path / "recipe")
    refused = cluster.thawline("submit", file, "--run-dir", tmp_path / "run", "--nodes", "4", check=False)
    assert refused.returncode == 2
    assert "SLURM refuses the job" in refused.stderr
    assert "  main: 3 nodes of 8 CPUs, 4000 MiB, gres gpu:2, features (null), for up to 1:00:00\n" in refused.stderr
    assert cluster.run("squeue", "--noheader").stdout == ""
