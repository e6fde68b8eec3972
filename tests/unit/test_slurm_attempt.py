"""How an attempt of a SLURM job ended, and whether it is worth another: from the files that its ranks left."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher import rank_error
from launcher.errors import EnvironmentProblem, Shortage, StoppedEarly, TrainingFailed
from launcher.rank_error import RankError
from launcher.run_dir import RunDir
from launcher.slurm import attempt as slurm_attempt
from launcher.slurm.attempt import begin, end, judge, main, newest_checkpoint
from launcher.status import Status, read_status, write_status


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    say(run, "running")
    return run


def say(run: RunDir, state: str) -> None:
    now = time.time()
    write_status(run, Status(name="t", state=state, stages=1, ranks=4, hostname="n1", pid=1, started=now, updated=now))


def attempt(run: RunDir, number: int = 0) -> Path:
    folder = run.path / "slurm" / "7" / f"attempt-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def wrote(run: RunDir, rank: int, exit_code: int, secondary: bool = False, at: float = 0.0) -> None:
    error = RankError(
        time=at, rank=rank, type="E", message=f"word of {rank}", exit_code=exit_code, traceback="Trace\n",
        secondary=secondary,
    )  # fmt: skip
    run.error(rank).write_text(error.model_dump_json())


def test_the_first_real_error_is_the_jobs(run: RunDir) -> None:
    wrote(run, 0, 1, secondary=True, at=1)
    wrote(run, 2, EnvironmentProblem.exit_code, at=3)
    wrote(run, 3, TrainingFailed.exit_code, at=2)
    found = end(run, attempt(run), 3, srun_code=143)
    assert (found.exit_code, found.rank) == (4, 3)
    assert "word of 3" in found.message
    assert read_status(run).state == "failed"
    assert "word of 3" in str(read_status(run).message)
    assert not (attempt(run) / "requeue").exists()


def test_a_bug_shows_its_traceback(run: RunDir) -> None:
    wrote(run, 1, 1)
    found = judge(run, attempt(run), 1)
    assert found.exit_code == 1
    assert "Trace" in found.message


def test_a_rank_that_was_killed_is_named_by_its_silence(run: RunDir) -> None:
    for rank in (0, 1, 3):
        wrote(run, rank, 1, secondary=True)
    found = judge(run, attempt(run), 1)
    assert found.exit_code == TrainingFailed.exit_code
    assert "rank 2 ended without a word" in found.message


def test_a_rank_that_hung_is_named_and_the_job_goes_on_within_its_budget(run: RunDir) -> None:
    for number in range(2):
        begin(run, attempt(run, number), 2)
        (attempt(run, number) / "hung").write_text("rank 1 on n2 gave no sign of life")
        wrote(run, 0, 1, secondary=True)
        found = end(run, attempt(run, number), 2, srun_code=137)
        assert found.exit_code == TrainingFailed.exit_code
        assert "rank 1 on n2 gave no sign of life" in found.message
        assert (attempt(run, number) / "requeue").exists() == (number == 0)
    assert "gives up" in found.message
    assert read_status(run).state == "failed"


def test_a_real_error_comes_before_the_hang_that_follows_it(run: RunDir) -> None:
    wrote(run, 1, 4)
    (attempt(run) / "hung").write_text("rank 0 waits")
    assert "word of 1" in end(run, attempt(run), 3, srun_code=137).message
    assert not (attempt(run) / "requeue").exists()


@pytest.mark.parametrize(("second_node", "goes_on"), [(None, True), ("143 2.0 b", True), ("1 2.0 b", False)])
def test_ranks_that_fell_silent_with_their_launcher_were_lost_with_their_node(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, second_node: str | None, goes_on: bool
) -> None:
    """A rank that the kernel killed leaves a launcher that says so; a node that went off leaves none."""
    monkeypatch.setenv("THAWLINE_NODES", "2")
    begin(run, attempt(run), 3)
    for rank in (0, 1):
        wrote(run, rank, 1, secondary=True)
    (attempt(run) / "rc.0").write_text("1 1.0 a\n")
    if second_node:
        (attempt(run) / "rc.1").write_text(second_node + "\n")
    found = end(run, attempt(run), 3, srun_code=1)
    assert found.exit_code == TrainingFailed.exit_code
    assert "rank 2, 3 ended without a word" in found.message
    assert ("their node was lost" in found.message) == goes_on
    assert (attempt(run) / "requeue").exists() == goes_on


def test_a_stage_that_was_planned_anew_for_less_memory_is_worth_another(run: RunDir) -> None:
    """Whichever of the ranks that ran out of memory did it."""
    begin(run, attempt(run), 3)
    for rank in (0, 1):
        wrote(run, rank, 4, at=2.0 - rank)
    for error in rank_error.read_all(run):
        changes = {"shortage": Shortage("full", "step", 8), "goes_on": "" if error.rank else "it goes on with 6"}
        rank_error.write(run, error.model_copy(update=changes))
    assert end(run, attempt(run), 3, srun_code=4).exit_code == TrainingFailed.exit_code
    assert (attempt(run) / "requeue").exists()


def test_finished(run: RunDir) -> None:
    say(run, "finished")
    assert end(run, attempt(run), 3, srun_code=0).exit_code == 0
    assert not (attempt(run) / "requeue").exists()


def test_the_job_of_one_stage_is_done_with_its_proof(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THAWLINE_UNTIL_STAGE", "top")
    say(run, "stopped")
    arguments = ["end", str(run.path), str(attempt(run)), "--budget", "1", "--srun-code", "0"]
    assert main(arguments) == EnvironmentProblem.exit_code
    run.proof(0, "top").parent.mkdir(parents=True)
    run.proof(0, "top").write_text("{}")
    assert main(arguments) == 0
    assert "stage top is done" in capsys.readouterr().out
    assert not (attempt(run) / "requeue").exists()


def test_a_stage_is_not_done_by_another_whose_name_ends_alike(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAWLINE_UNTIL_STAGE", "head")
    run.proof(0, "warm-head").parent.mkdir(parents=True)
    run.proof(0, "warm-head").write_text("{}")
    (attempt(run) / "hung").write_text("rank 1 hangs")
    assert end(run, attempt(run), 3, srun_code=137).exit_code == TrainingFailed.exit_code
    assert (attempt(run) / "requeue").exists()


def test_what_is_left_of_an_earlier_attempt_does_not_judge_this_one(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM lost sight of a node, and its rank ended only now."""
    old, new = attempt(run, 0), attempt(run, 1)
    begin(run, new, 3)
    assert (old / "stop").exists()
    assert not (new / "stop").exists()
    monkeypatch.setenv("THAWLINE_ATTEMPT", str(old))
    rank_error.record(run, 1, ConnectionError("Connection reset by peer"))
    (new / "rc.1").write_text("")  # its node went off while it was written
    say(run, "finished")
    assert judge(run, new, 0).exit_code == 0
    say(run, "running")
    assert judge(run, new, 143).exit_code == 143
    monkeypatch.setenv("THAWLINE_ATTEMPT", str(new))
    rank_error.record(run, 1, ConnectionError("Connection reset by peer"))
    assert judge(run, new, 143).exit_code == TrainingFailed.exit_code


def test_ranks_that_all_end_well_without_finishing_are_no_success(run: RunDir) -> None:
    assert judge(run, attempt(run), 0).exit_code == EnvironmentProblem.exit_code


def test_stopped_ranks_are_worth_another_attempt(run: RunDir) -> None:
    for rank in range(4):
        wrote(run, rank, StoppedEarly.exit_code)
    assert end(run, attempt(run), 3, srun_code=0).exit_code == 75
    assert (attempt(run) / "requeue").exists()
    assert read_status(run).state == "stopped"


def test_stopped_before_the_ranks_could_hear_it(run: RunDir) -> None:
    (attempt(run) / "stop").touch()
    assert judge(run, attempt(run), 143).exit_code == 75


@pytest.mark.parametrize(
    ("codes", "srun_code", "expected"),
    [
        (["143 1.0 a", "3 2.0 b", "1 3.0 c"], 143, 3),
        (["137 1.0 a", "0 2.0 b"], 137, 137),
        (["143 1.0 a", "127 2.0 b"], 143, 3),
        ([], 9, 9),
    ],
)
def test_launchers_that_failed_before_any_rank_spoke(
    run: RunDir, codes: list[str], srun_code: int, expected: int
) -> None:
    for number, line in enumerate(codes):
        (attempt(run) / f"rc.{number}").write_text(line + "\n")
    assert judge(run, attempt(run), srun_code).exit_code == expected


def test_gives_up_after_attempts_that_saved_nothing_new(run: RunDir) -> None:
    run.latest.write_text("00-top-step-00000004\n")
    for number in range(3):
        begin(run, attempt(run, number), 3)
        wrote(run, 0, StoppedEarly.exit_code)
        found = end(run, attempt(run, number), 3, srun_code=0)
        assert found.exit_code == 75
        assert (attempt(run, number) / "requeue").exists() == (number < 2)
    assert "gives up" in found.message
    with pytest.raises(StoppedEarly, match="3 attempts in a row saved nothing new"):
        begin(run, attempt(run, 3), 3)


def test_a_new_checkpoint_gives_the_whole_budget_back(run: RunDir) -> None:
    for number in range(12):  # past 9, where names no longer sort as numbers do
        begin(run, attempt(run, number), 2)
        if number % 2:
            run.latest.write_text(f"00-top-step-{number:08d}\n")
        wrote(run, 0, StoppedEarly.exit_code)
        end(run, attempt(run, number), 2, srun_code=0)
        assert (attempt(run, number) / "requeue").exists(), number


def test_begin_forgets_the_last_attempts_errors(run: RunDir) -> None:
    wrote(run, 0, 4)
    begin(run, attempt(run), 3)
    assert rank_error.read_all(run) == []
    assert newest_checkpoint(run) == (attempt(run) / "began").read_text() == ""


def test_the_command_ends_with_the_jobs_code(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["begin", str(run.path), str(attempt(run)), "--budget", "1"]) == 0
    wrote(run, 0, 4)
    assert main(["end", str(run.path), str(attempt(run)), "--budget", "1", "--srun-code", "1"]) == 4
    assert "word of 0" in capsys.readouterr().out
    assert slurm_attempt.first_code(attempt(run)) is None
