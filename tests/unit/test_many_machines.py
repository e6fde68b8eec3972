"""Runs on other machines, without any: the commands for them, arrays, stages as jobs, logs, the doctor."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import doctor, rank_error, run_logs, ssh_nodes, worker
from launcher.errors import UserError
from launcher.rank_process import RankProcess
from launcher.run_dir import RunDir
from launcher.slurm import array as slurm_array
from launcher.slurm import attempt as slurm_attempt
from launcher.slurm import queue, submit
from launcher.slurm import status as slurm_status
from launcher.slurm.queue import QueueState
from launcher.slurm.submit import Request
from launcher.status import Status, write_status

ROOT = Path(__file__).parents[2]


def recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "a recipe.yaml"
    stages = [{"name": name, "train": ["head"], "epochs": 1} for name in ("head", "full")]
    content = {
        "name": "tiny", "task": {"kind": "text-classification"}, "model": {"source": "somewhere/tiny"},
        "data": {"source": "csv", "files": "rows.csv"}, "stages": stages,
    } | changes  # fmt: skip
    path.write_text(json.dumps(content))
    return path


# --- ssh --------------------------------------------------------------------------------------------------------------
def test_each_machine_has_its_command(tmp_path: Path) -> None:
    """What a shell there makes of it is what the worker's parser takes."""
    overrides = ("seed=3", "data.columns={text: \"a 'b' $c\"}")
    asked = ssh_nodes.asked("me@a1,b-2", recipe(tmp_path), overrides, tmp_path / "a run", 4)
    for number, command in enumerate(ssh_nodes.commands(asked, tmp_path / "attempt")):
        change, _, rest = command.partition(" && exec ")
        assert shlex.split(change) == ["cd", str(Path.cwd())]
        words = shlex.split(rest)
        assert {"--nnodes=2", "--nproc-per-node=4", f"--node-rank={number}", "--master-addr=a1"} <= set(words)
        assert {"THAWLINE_EXPECTED_RANKS=8", "THAWLINE_EXPECTED_GPUS=0"} <= set(words)
        given = worker.parse(words[words.index("launcher.worker") + 1 :])
        assert (given.run_dir, tuple(given.overrides)) == (tmp_path / "a run", overrides)


@pytest.mark.parametrize("hosts", ["", "a,,b", "-oProxyCommand=id,b", "a b", "a;id", "a,a", "$(id)"])
def test_a_host_that_is_none_is_refused(tmp_path: Path, hosts: str) -> None:
    with pytest.raises(UserError, match="--nodes"):
        ssh_nodes.asked(hosts, recipe(tmp_path), (), tmp_path / "run", 1)


# --- arrays -----------------------------------------------------------------------------------------------------------
def test_an_array_is_every_combination() -> None:
    assert slurm_array.tasks([]) == []
    assert slurm_array.tasks(["seed=[1, 2]", "optimizer.learning_rate=[1e-4, x y]"]) == [
        ("seed=1", "optimizer.learning_rate=0.0001"), ("seed=1", 'optimizer.learning_rate="x y"'),
        ("seed=2", "optimizer.learning_rate=0.0001"), ("seed=2", 'optimizer.learning_rate="x y"'),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["seed", "seed=1", "=[1]", "seed=[]", "seed=[1", "seed={a: 1}"])
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"KEY=\[VALUE, VALUE\]"):
        slurm_array.tasks([text])


def test_too_many_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="1001 tasks"):
        slurm_array.tasks([f"seed={list(range(1001))}"])


def test_an_arrays_script_has_a_case_for_each_task(tmp_path: Path) -> None:
    flags = {"array": ["seed=[1, 2]"], "array_limit": 1}
    [script] = submit.scripts(Request(recipe(tmp_path), (), tmp_path / "run", flags))
    assert "#SBATCH --array=0-1%1\n" in script
    assert "  1) overrides+=(--set seed=2) ;;\n" in script
    with pytest.raises(UserError, match="do not go together"):
        submit.scripts(Request(recipe(tmp_path), (), tmp_path / "run", flags, split_stages=True))


def test_a_controller_that_does_not_answer_ends_no_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(state: str) -> QueueState:
        return QueueState(job="7", state=state, reason="None", nodes="", attempt=0, exit_code=0)

    answers = iter([None, job("PENDING"), None, job("COMPLETED")])
    monkeypatch.setattr(queue, "ask", lambda number: next(answers))
    monkeypatch.setattr(queue, "jobs_of", lambda run: ["7"])
    monkeypatch.setattr(queue, "ASK_EVERY_S", (0.0, 0.0))
    monkeypatch.setattr(queue, "is_forgotten", lambda number: False)
    monkeypatch.setattr(slurm_status, "FOLLOW_EVERY_S", 0.0)
    run = RunDir(tmp_path / "run")
    run.create()
    assert list(slurm_status.follow(run)) == [str(job("PENDING")), str(job("COMPLETED"))]
    monkeypatch.setattr(queue, "ask", lambda number: None)
    monkeypatch.setattr(queue, "is_forgotten", lambda number: True)
    with pytest.raises(UserError, match="never began, and SLURM knows nothing of its job"):
        list(slurm_status.follow(run))


def test_a_controller_that_does_not_answer_ends_no_watch_of_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    slurm_array.write(run, [("seed=1",), ("seed=2",)])
    answers = {"7_0": iter([None, "RUNNING", None, "COMPLETED"]), "7_1": iter(["PENDING", None, "FAILED", "FAILED"])}

    def ask(number: str) -> QueueState | None:
        state = next(answers[number])
        return state and QueueState(job=number, state=state, reason="None", nodes="", attempt=0, exit_code=0)

    monkeypatch.setattr(queue, "ask", ask)
    monkeypatch.setattr(queue, "jobs_of", lambda task: [task.path.name.replace("task-", "7_")])
    monkeypatch.setattr(queue, "ASK_EVERY_S", (0.0, 0.0))
    monkeypatch.setattr(queue, "is_forgotten", lambda number: False)
    monkeypatch.setattr(slurm_status, "ARRAY_EVERY_S", 0.0)
    monkeypatch.setattr(slurm_status.time, "sleep", lambda seconds: None)
    shown = [re.findall(r"begun|[A-Z]{6,}", text) for text in slurm_status.follow(run)]
    assert shown == [["begun", "PENDING"], ["RUNNING", "PENDING"], ["RUNNING", "FAILED"], ["COMPLETED", "FAILED"]]


def test_the_status_of_an_array_is_that_of_its_tasks(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    slurm_array.write(run, [("seed=1",), ("seed=2", "a=b")])
    say(slurm_array.task_run(run, 0), "finished")
    text = "task-0  seed=1: finished\ntask-1  seed=2 a=b: not begun"
    assert (slurm_status.as_text(run), list(slurm_status.follow(run))) == (text, [text])


# --- fewer nodes ------------------------------------------------------------------------------------------------------
def test_counts_of_nodes_that_can_share_the_batch_stand_in_the_script(tmp_path: Path) -> None:
    path = recipe(tmp_path, batch={"global_size": 8}, slurm={"nodes": 4, "min_nodes": 2})
    [script] = submit.scripts(Request(path))
    assert "#SBATCH --nodes=2-4\n" in script
    assert "--ntasks-per-node=1\n" not in script, "SLURM would give the fewest"
    assert "\nnode_counts=(4 2)\n" in script, "three ranks cannot share 8 samples"
    for nodes, fewest, key in ((4, 3, "min_nodes"), (3, 2, "nodes"), (3, None, "nodes")):
        with pytest.raises(UserError, match=rf"slurm\.{key}: 3 x 1 ranks .*8 does not divide"):
            submit.scripts(Request(path, (), None, {"nodes": nodes, "min_nodes": fewest or nodes}))


def test_ranks_that_fell_silent_on_a_machine_that_answers_were_killed(tmp_path: Path) -> None:
    """Over ssh too: a machine whose ssh ends with 255, or that ends nothing, is lost; another's rank was killed."""
    run = RunDir(tmp_path)
    say(run, "running")
    rank_error.record(run, 0, ConnectionError("Connection reset by peer"))
    (tmp_path / "rc.0").write_text("1 1.0 a\n")
    assert "their node was lost" in slurm_attempt.judge(run, tmp_path, 1, nodes=2).message
    (tmp_path / "rc.1").write_text("1 1.0 b\n")
    assert "rank 1 ended without a word, most likely killed" in slurm_attempt.judge(run, tmp_path, 1, nodes=2).message


# --- one job a stage --------------------------------------------------------------------------------------------------
def test_each_stage_has_its_script_with_its_machines(tmp_path: Path) -> None:
    stages = [{"name": "head", "train": ["head"], "epochs": 1},
              {"name": "full", "train": ["all"], "epochs": 1, "slurm": {"nodes": 2, "gpus_per_node": 8}}]  # fmt: skip
    path = recipe(tmp_path, stages=stages, slurm={"gpus_per_node": 1, "partition": "p", "dependency": "afterok:5"})
    with pytest.raises(UserError, match="--split-stages"):
        submit.scripts(Request(path, (), tmp_path / "run"))
    head, full = submit.scripts(Request(path, (), tmp_path / "run", split_stages=True))
    for line in ("--job-name=tiny.head", "--nodes=1", "--gpus-per-node=1", "--partition=p", "--dependency=afterok:5"):
        assert f"#SBATCH {line}\n" in head
    for line in ("--job-name=tiny.full", "--nodes=2", "--gpus-per-node=8", "--partition=p",
                 "--dependency=afterok:JOB_OF_head", "--kill-on-invalid-dep=yes"):  # fmt: skip
        assert f"#SBATCH {line}\n" in full
    assert "export THAWLINE_UNTIL_STAGE=head\n" in head
    own = ("stages.full.slurm.dependency=afterany:9",)
    _, full = submit.scripts(Request(path, own, tmp_path / "run", split_stages=True))
    assert "#SBATCH --dependency=afterok:JOB_OF_head,afterany:9\n" in full


# --- what to type next ------------------------------------------------------------------------------------------------
def test_the_command_that_submitted_can_be_typed_again(tmp_path: Path) -> None:
    """Its words, given to the same command, ask for the same."""
    flags: dict[str, object] = {
        "nodes": 2, "comment": "it's $x", "exclusive": True, "requeue": False, "setup": ["a b", "-c"],
        "srun_arguments": ["--mpi=none"], "qos": None,
    }  # fmt: skip
    request = Request(recipe(tmp_path), ("name=other",), tmp_path / "a run", flags)
    words = shlex.split(submit.as_command(request))
    assert words[:2] == ["thawline", "submit"]
    again = subprocess.run(
        [sys.executable, "-m", "launcher", *words[1:], "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert again.stdout == submit.scripts(request)[0]


def test_resume_names_the_command_for_the_machines_that_it_needs(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a run")
    assert run.going_on() == f"thawline resume '{run.path}'"
    run.create()
    run.command.write_text("thawline submit x --nodes 2\n")
    assert run.going_on() == "thawline submit x --nodes 2"


# --- logs -------------------------------------------------------------------------------------------------------------
def say(run: RunDir, state: Any) -> None:
    run.create()
    now = time.time()
    write_status(run, Status(name="t", state=state, stages=1, ranks=2, hostname="n1", pid=1, started=now, updated=now))


def test_logs_of_a_launch_and_of_a_job(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match="does not exist"):
        list(run_logs.read(run))
    say(run, "finished")
    with pytest.raises(UserError, match="no log yet"):
        list(run_logs.read(run))
    run.log(0).write_text("zero\n")
    run.log(1).write_text("one\n")
    assert (list(run_logs.read(run)), list(run_logs.read(run, 1))) == (["zero\n"], ["one\n"])
    with pytest.raises(UserError, match="its ranks are 0 to 1"):
        list(run_logs.read(run, 2))
    for number in (0, 9, 10):
        attempt = run.path / "slurm" / "7" / f"attempt-{number}"
        attempt.mkdir(parents=True)
        (attempt / "node-b.log").write_text(f"b: node 0 of 2\nattempt {number}\n")
        (attempt / "node-a.log").write_text("a: node 1 of 2\n")
        (attempt / "rank-1.log").write_text(f"one of {number}\n")
    (run.path / "slurm" / "job_id").write_text("7\n")
    (run.path / "slurm" / "job-7.log").write_text("the job\n")
    text = "".join(run_logs.read(run))
    assert text.index("the job\n") < text.index("attempt 10\n")
    assert "a: node 1" not in text
    assert list(run_logs.read(run, 1)) == ["one of 10\n"]


def test_logs_show_the_newest_launch_and_on_request_all(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    say(run, "finished")
    command = [
        sys.executable,
        "-c",
        "import sys; print('said', file=sys.stderr); print('== no launch', file=sys.stderr)",
    ]
    for _ in range(2):
        process = RankProcess.start(command, 1, {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}, run)
        process.process.wait()
    whole = run.log(1).read_text()
    assert whole.count("said") == 2
    [newest] = run_logs.read(run, 1)
    assert newest == whole[len(whole) // 2 :]
    assert "".join(run_logs.read(run, 1, is_all=True)) == whole
    assert "".join(run_logs.follow(run, 1)).endswith(f"<==\n{newest}")
    assert "".join(run_logs.follow(run, 1, is_all=True)).endswith(f"<==\n{whole}")


def test_logs_of_all_attempts_of_a_job(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    say(run, "finished")
    for number in (0, 1):
        attempt = run.path / "slurm" / "7" / f"attempt-{number}"
        attempt.mkdir(parents=True)
        (attempt / "node-b.log").write_text(f"b: node 0 of 1\nattempt {number}\n")
        (attempt / "rank-1.log").write_text(f"one of {number}\n")
    (run.path / "slurm" / "job_id").write_text("7\n")
    (run.path / "slurm" / "job-7.log").write_text("the job\n")
    text = "".join(run_logs.read(run, is_all=True))
    assert text.index("the job") < text.index("attempt 0") < text.index("attempt 1")
    assert "attempt 0" not in "".join(run_logs.read(run))
    ranks = "".join(run_logs.read(run, 1, is_all=True))
    assert ranks.index("one of 0") < ranks.index("one of 1")


def test_logs_over_ssh_and_of_an_array(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "over ssh")
    say(run, "finished")
    attempt = run.path / "nodes" / "attempt-0"
    attempt.mkdir(parents=True)
    (attempt / "rank-0.log").write_text("zero there\n")
    (attempt / "rank-1.log").write_text("one there\n")
    assert (list(run_logs.read(run)), list(run_logs.read(run, 1))) == (["zero there\n"], ["one there\n"])
    with pytest.raises(UserError, match="its ranks are 0 to 1"):
        list(run_logs.read(run, 2))
    array = RunDir(tmp_path / "an array")
    array.create()
    slurm_array.write(array, [("seed=1",), ("seed=2",)])
    for logs in (run_logs.read, run_logs.follow):
        with pytest.raises(UserError, match=r"thawline logs '.*/an array/task-0'"):
            list(logs(array))


def test_following_a_log_shows_what_comes_and_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_logs, "FOLLOW_EVERY_S", 0.01)
    run = RunDir(tmp_path)
    say(run, "running")
    run.log(0).write_text("first\n")
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(run_logs.follow(run)))
    reader.start()
    deadline = time.monotonic() + 60
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    with run.log(0).open("a") as log:
        log.write("second\n")
    say(run, "finished")
    reader.join(60)
    assert not reader.is_alive()
    assert "".join(seen) == f"==> {run.log(0)} <==\nfirst\nsecond\n"


# --- the doctor -------------------------------------------------------------------------------------------------------
def test_the_doctor_lets_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    found = {finding.name: finding for finding in doctor.examine(2)}
    assert [name for name, finding in found.items() if not finding.is_well] == []
    assert found["rendezvous"].text.startswith("2 ranks met in ")
    assert "torch " in found["versions"].text


def test_the_doctor_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = doctor._compilers()
    assert (finding.is_well, "no-such-compiler (apt-get install g++)" in str(finding)) == (False, True)
    monkeypatch.setattr(doctor, "_rendezvous", lambda machine: doctor.Finding("rendezvous", "well"))
    monkeypatch.setattr(doctor.preflight, "LEAST_MEMORY_BYTES", 2**60)
    failed = [finding for finding in doctor.examine(1) if not finding.is_well]
    assert ["memory are free" in failed[0].text, failed[1].name] == [True, "compilers"]


# --- Kubernetes -------------------------------------------------------------------------------------------------------
def test_what_the_page_on_kubernetes_starts_is_the_worker() -> None:
    blocks = (ROOT / "docs" / "kubernetes.md").read_text().split("```yml\n")[1:]
    runtime, job = (yaml.safe_load(block.partition("```")[0]) for block in blocks)
    assert job["spec"]["runtimeRef"] == {"name": runtime["metadata"]["name"], "kind": runtime["kind"]}
    trainer = job["spec"]["trainer"]
    assert (trainer["command"], trainer["args"][:2]) == (["torchrun"], ["-m", "launcher.worker"])
    given = worker.parse(trainer["args"][2:])
    assert given.run_dir == Path("/shared/runs/reviews")
    ranks = trainer["numNodes"] * trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    assert {"name": "THAWLINE_EXPECTED_RANKS", "value": str(ranks)} in trainer["env"]
