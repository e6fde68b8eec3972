"""What a rank does differently in a SLURM job: the stop file, the size of its world, its exit code; and submitting."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import stop
from launcher.cluster import EXPECTED_GPUS, EXPECTED_RANKS
from launcher.distributed import _check_expected
from launcher.errors import EnvironmentProblem, UserError
from launcher.recipe.slurm import Slurm
from launcher.run_dir import RunDir
from launcher.slurm import queue
from launcher.slurm import submit as slurm_submit
from launcher.slurm.script import Job, render
from launcher.stop import StopRequest


def test_a_stop_file_is_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "LOOK_EVERY_S", 0.0)
    request = StopRequest(file=tmp_path / "stop")
    assert not request.look()
    (tmp_path / "stop").touch()
    assert request.look()
    (tmp_path / "stop").unlink()
    assert request.look(), "what was asked stays asked"
    assert not StopRequest().look()


def test_the_file_is_looked_for_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    request = StopRequest(file=tmp_path / "stop")
    assert not request.look()
    (tmp_path / "stop").touch()
    now[0] += 0.9
    assert not request.look()
    now[0] += 0.2
    assert request.look()


def test_a_world_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPECTED_RANKS, "4")
    monkeypatch.setenv(EXPECTED_GPUS, "0")
    _check_expected(4, on_gpu=False)
    with pytest.raises(EnvironmentProblem, match=r"2 ranks met on .*, and the job asked for 4"):
        _check_expected(2, on_gpu=False)
    monkeypatch.setenv(EXPECTED_GPUS, "2")
    _check_expected(4, on_gpu=True)
    with pytest.raises(EnvironmentProblem, match="asked for 2 GPUs"):
        _check_expected(4, on_gpu=False)


def recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    content = {
        "name": "tiny", "task": {"kind": "text-classification"}, "model": {"source": "somewhere/tiny"},
        "data": {"source": "csv", "files": "rows.csv"}, "stages": [{"name": "head", "train": ["head"], "epochs": 1}],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def command(*arguments: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PATH": path} if path else {})
    return subprocess.run(
        [sys.executable, "-m", "launcher", "submit", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


def stand_in(folder: Path, text: str) -> str:
    """A PATH on which sbatch is a script of our own."""
    folder.mkdir()
    file = folder / "sbatch"
    file.write_text(f'#!/bin/sh\necho "$@" >>{folder}/asked\n{text}\n')
    file.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_without_sbatch_it_is_the_environments_problem(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = command(recipe(tmp_path), "--run-dir", tmp_path / "run", path=str(tmp_path / "bin"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "sbatch is not on PATH" in done.stderr
    assert not (tmp_path / "run").exists()


def test_dry_run_prints_the_script_and_asks_nobody(tmp_path: Path) -> None:
    path = stand_in(tmp_path / "bin", "exit 1")
    done = command(recipe(tmp_path), "--run-dir", tmp_path / "run", "--dry-run", "--nodes", "4", path=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=tiny\n#SBATCH --nodes=4\n")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "bin" / "asked").exists()


def test_submit_asks_whether_it_could_start_then_submits(tmp_path: Path) -> None:
    path = stand_in(tmp_path / "bin", 'case "$1" in --parsable) echo "417;east";; esac')
    run = tmp_path / "run"
    done = command(recipe(tmp_path), "--run-dir", run, path=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "417"
    asked = (tmp_path / "bin" / "asked").read_text().splitlines()
    assert asked == [f"--test-only {run}/slurm/job.sbatch", f"--parsable {run}/slurm/job.sbatch"]
    assert (run / "slurm" / "417" / "job.sbatch").read_text() == (run / "slurm" / "job.sbatch").read_text()
    assert (run / "slurm" / "job_id").read_text() == "417\n"


def test_the_shells_variables_for_sbatch_do_not_overrule_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", f"env | grep ^SBATCH_ | sort >{tmp_path}/seen; echo 5"))
    for name in ("PARTITION", "ACCOUNT", "NO_REQUEUE", "OUTPUT"):
        monkeypatch.setenv(f"SBATCH_{name}", "theirs")
    slurm_submit.submit(slurm_submit.Request(recipe(tmp_path), (), tmp_path / "run", {"partition": "fast"}))
    assert (tmp_path / "seen").read_text() == "SBATCH_ACCOUNT=theirs\n", "what the recipe leaves open"


@pytest.mark.parametrize(
    ("state", "is_over"), [("REQUEUE_HOLD", False), ("STAGE_OUT", False), ("NODE_FAIL", True), ("TIMEOUT", True)]
)
def test_a_job_is_over_only_in_a_state_that_is_final(state: str, is_over: bool) -> None:
    found = queue.parse("7", f"JobId=7 JobState={state} Reason=None")
    assert found is not None
    assert found.is_over is is_over


@pytest.mark.parametrize(
    ("answer", "is_forgotten"),
    [("echo JobId=7", False), ("echo 'Invalid job id specified' >&2; exit 1", True),
     ("echo 'Unable to contact slurm controller' >&2; exit 1", False)],
)  # fmt: skip
def test_a_job_is_forgotten_only_where_slurm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, is_forgotten: bool
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert queue.is_forgotten("7") is is_forgotten


def test_a_run_has_one_job_at_a_time(tmp_path: Path) -> None:
    path = stand_in(tmp_path / "bin", "echo 5")
    run = tmp_path / "run"
    assert command(recipe(tmp_path), "--run-dir", run, path=path).returncode == 0
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text("#!/bin/sh\necho JobId=5 JobState=PENDING Reason=Priority\n")
    scontrol.chmod(0o755)
    again = command(recipe(tmp_path), "--run-dir", run, path=path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "has a job already: job 5 PENDING (Priority)" in again.stderr
    scontrol.write_text("#!/bin/sh\necho JobId=5 JobState=COMPLETED Reason=None\n")
    assert command(recipe(tmp_path), "--run-dir", run, path=path).returncode == 0


def test_stages_before_one_that_is_refused_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 'case "$*" in *full*) [ "$1" = --test-only ] || { echo "no such account" >&2; exit 1; };; *) echo 5; esac'
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", refused))
    (tmp_path / "bin" / "scancel").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/cancelled\n')
    (tmp_path / "bin" / "scancel").chmod(0o755)
    both = "stages=[{name: head, train: [head], epochs: 1}, {name: full, train: [all], epochs: 1}]"
    request = slurm_submit.Request(recipe(tmp_path), [both], tmp_path / "run", split_stages=True)
    with pytest.raises(UserError, match=r"(?s)no such account.*sacctmgr.*job 5 of the stages before is cancelled"):
        slurm_submit.submit(request)
    assert (tmp_path / "cancelled").read_text() == "5\n"


def test_a_follower_asks_less_and_less_while_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job_id").write_text("5\n")
    asked: list[float] = []
    now = [0.0]

    def ask(job: str) -> queue.QueueState:
        asked.append(now[0])
        state = "PENDING" if now[0] < 3 else "RUNNING"
        return queue.QueueState(job=job, state=state, reason="None", nodes="", attempt=0, exit_code=0)

    monkeypatch.setattr(queue, "ask", ask)
    monkeypatch.setattr(queue.time, "monotonic", lambda: now[0])
    follower = queue.Follower(RunDir(tmp_path))
    for second in range(200):
        now[0] = float(second)
        follower.look("running" if second < 150 else "stopped")
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert pauses == [2, 4, 2, 4, 8, 16, 32, 60, 22, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("said", "code"), [("Requested node configuration is not available", 2), ("Unable to contact slurm controller", 3)]
)
def test_a_refusal_is_told_in_slurms_words(tmp_path: Path, said: str, code: int) -> None:
    path = stand_in(tmp_path / "bin", f"echo 'sbatch: error: {said}' >&2; exit 1")
    done = command(recipe(tmp_path), "--run-dir", tmp_path / "run", path=path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert len((tmp_path / "bin" / "asked").read_text().splitlines()) == 1, "nothing was submitted"


def test_wrong_flags_are_refused_with_what_is_right(tmp_path: Path) -> None:
    done = command(recipe(tmp_path), "--dry-run", "--launcher", "mpirun", "--time", "soon")
    assert done.returncode == 2
    assert "slurm.launcher: 'mpirun' is not allowed; it takes torchrun or accelerate" in done.stderr
    assert "slurm.time" in done.stderr
    assert "4:00:00" in done.stderr
    done = command(recipe(tmp_path), "--dry-run", "--partion", "gpu")
    assert done.returncode == 2
    assert "--partition" in done.stderr


def test_a_flag_for_every_key() -> None:
    shown = command("--help").stdout
    flags = {"--" + key.replace("_", "-").removesuffix("s" if key.endswith("arguments") else "") for key in
             Slurm.model_fields}  # fmt: skip
    assert [flag for flag in flags if f"{flag} " not in shown and f"{flag}\n" not in shown] == []


def test_what_scontrol_says_of_a_job(tmp_path: Path) -> None:
    line = "JobId=4 JobName=a b JobState=PENDING Reason=Resources Restarts=2 ExitCode=0:0 NodeList=(null)"
    queued = queue.parse("4", line)
    assert str(queued) == "job 4 PENDING (Resources), attempt 2"
    ended = queue.parse("4", "JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=4:0 NodeList=n[1-2]")
    assert str(ended) == "job 4 FAILED (NonZeroExitCode) on n[1-2], attempt 0, exit code 4"
    assert queue.parse("4", "") is None
    assert queue.look(RunDir(tmp_path)) is None, "a run that was not submitted"
    with pytest.raises(UserError, match="was not submitted"):
        queue.cancel(RunDir(tmp_path))


def test_a_job_that_slurm_has_forgotten_is_looked_up_in_its_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt of a job that was queued again has a line; the last is the job's."""
    stand_in(tmp_path / "bin", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    lines = "REQUEUED|0:0|n[1-2]\nCANCELLED by 0|0:15|n[1-2]\n"
    for name, text in (("scontrol", "exit 1"), ("sacct", f"printf '{lines}'")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    assert str(queue.ask("4")) == "job 4 CANCELLED on n[1-2], attempt 1, exit code 0"
    (tmp_path / "bin" / "sacct").write_text("#!/bin/sh\necho accounting storage is disabled >&2; exit 1\n")
    assert queue.ask("4") is None


def test_flags_are_written_as_set_writes_them() -> None:
    flags = {"comment": 'a: "b" #c', "nodes": 2, "exclusive": False, "setup": ["x"], "qos": None, "mail_type": []}
    assert slurm_submit.as_overrides(flags) == [
        'slurm.comment="a: \\"b\\" #c"', "slurm.nodes=2", "slurm.exclusive=false", 'slurm.setup=["x"]'
    ]  # fmt: skip
    with pytest.raises(UserError):
        slurm_submit.scripts(slurm_submit.Request(Path("nowhere.yaml")))


# --- the script itself, with stand-ins for SLURM and python -----------------------------------------------------------
SAYS = {
    "scontrol": 'case $1 in show) echo "$HOSTS" ;; requeue) echo "requeue $2" >>"$CALLS"; kill -TERM $PPID ;; esac',
    "squeue": "echo RUNNING",
    "srun": 'echo "srun $*" >>"$CALLS"; case "$*" in *"$TERM_AT"*) kill -TERM $PPID; exit 143 ;; esac',
    "python": 'echo "$*" >>"$CALLS"; case "$*" in *" end "*) touch "$5/requeue"; exit 75 ;; *"$TERM_AT"*) '
    "kill -TERM $PPID; exit 143 ;; esac",
}


def run_script(
    folder: Path,
    *hosts: str,
    term_at: str = "never",
    counts: tuple[int, ...] = (),
    setup: tuple[str, ...] = (),
    squeue: str = SAYS["squeue"],
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the job's script to its end; what it called comes back beside. ``term_at``: what a TERM ends."""
    (folder / "bin").mkdir()
    for name, text in (SAYS | {"squeue": squeue}).items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    job = Job("tiny", folder / "recipe.yaml", folder / "run", folder / "bin" / "python", node_counts=counts)
    (folder / "job").write_text(render(Slurm(hang_timeout=None, setup=list(setup)), job))
    facts = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_NNODES": str(len(hosts))}
    ours = {"HOSTS": "\n".join(hosts), "CALLS": str(folder / "calls"), "TERM_AT": term_at}
    path = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", 'MAIN=$$ exec bash "$0"', folder / "job"], capture_output=True, text=True, check=False,
        timeout=60, env=os.environ | facts | ours | path,
    )  # fmt: skip
    return done, (folder / "calls").read_text()


@pytest.mark.parametrize("moment", ["slurm.attempt begin", "slurm.preflight lead", "node_task"])
def test_a_term_that_comes_early_stops_the_job_as_a_later_one_does(tmp_path: Path, moment: str) -> None:
    done, calls = run_script(tmp_path, "n1", term_at=moment)
    assert done.returncode == 75, done.stdout + done.stderr
    assert (tmp_path / "run" / "slurm" / "7" / "attempt-0" / "stop").exists()
    # What bash's `wait` says of a child that ended while a trap ran is not always the child's own code.
    assert "--srun-code 143" in calls or (moment == "node_task" and "--srun-code 0" not in calls)
    assert calls.endswith("requeue 7\n")
    assert ("srun --nodes=1" in calls) == (moment == "node_task")


def test_a_signal_during_the_set_up_lines_stops_the_job_as_a_later_one_does(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, "n1", setup=("kill -USR1 $$", "THAWLINE_UNTIL_STAGE=x run=/elsewhere"))
    assert done.returncode == 75, done.stdout + done.stderr
    assert (tmp_path / "run" / "slurm" / "7" / "attempt-0" / "stop").exists()
    assert calls.endswith("requeue 7\n")


def test_a_job_that_is_cancelled_while_the_queue_answers_is_not_queued_again(tmp_path: Path) -> None:
    answer = '[ -e "$CALLS.asked" ] && echo COMPLETING && exit; touch "$CALLS.asked"; kill -TERM "$MAIN"; echo RUNNING'
    done, calls = run_script(tmp_path, "n1", squeue=answer)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "not queued again by this script: the job is COMPLETING" in done.stdout
    assert "requeue 7" not in calls


@pytest.mark.parametrize(("counts", "used"), [((), 3), ((4, 3, 2), 3), ((4, 2), 2)])
def test_the_most_nodes_that_can_share_the_batch_are_used(tmp_path: Path, counts: tuple[int, ...], used: int) -> None:
    _, calls = run_script(tmp_path, "n1", "n2", "n3", counts=counts)
    hosts = ["n1", "n2", "n3"][:used]
    assert f"attempt-0 {' '.join(hosts)} --port" in calls
    assert f"srun --nodes={used} --ntasks={used} --nodelist={','.join(hosts)} " in calls
