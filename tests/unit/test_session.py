"""What `run` and `resume` decide before any rank starts. Planning itself is replaced: no model, no data."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import launcher
from launcher import data, orphans, oversubscription, proof, run_lock, session
from launcher.cluster import RANKS_VARY, Cluster
from launcher.errors import EnvironmentProblem, RecipeError, StoppedEarly, UserError
from launcher.model_copy import copy_model
from launcher.plan import RunPlan
from launcher.plan.data_facts import DataFacts
from launcher.plan.saved import read_plan
from launcher.proof import Proof
from launcher.recipe import Recipe, differences, reading
from launcher.run_dir import RunDir
from launcher.status import read_status, render, write_status

handed_on: list[DataFacts | None] = []
"""What the planner was given of the data."""

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "task": {"kind": "text-classification"},
    "model": {"source": "somewhere/tiny"},
    "data": {"source": "csv", "files": "rows.csv"},
    "batch": {"global_size": 8},
    "stages": [{"name": "head", "train": ["head"], "epochs": 1}, {"name": "full", "train": ["all"], "epochs": 2}],
}


@pytest.fixture(autouse=True)
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_plan: Callable[..., RunPlan]
) -> Iterator[list[Cluster]]:
    """A folder with a recipe; the clusters that were planned for."""
    planned: list[Cluster] = []

    def prepare(
        recipe: Recipe, recipe_dir: Path, cluster: Cluster, origins: object, found: DataFacts | None = None
    ) -> RunPlan:
        planned.append(cluster)
        assert found in (None, data.load(recipe.data, recipe.task, recipe_dir).facts())
        handed_on.append(found)
        return make_plan(recipe, cluster)

    monkeypatch.setattr(launcher, "survey", SimpleNamespace(prepare=prepare), raising=False)
    monkeypatch.setattr(run_lock, "_held", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(json.dumps(RECIPE))
    Path("rows.csv").write_text("text,label\n" + "good,a\nbad,b\n" * 8)
    yield planned
    let_go()


def let_go() -> None:
    """What the end of a process does to its locks."""
    while run_lock._held:
        run_lock._held.popitem()[1].close()


def claim(*overrides: str, run_dir: Path | None = None, ranks: int | None = None) -> session.Claim:
    """As a new launcher would: the locks of the last one are gone."""
    let_go()
    return session.claim_run(Path("recipe.yaml"), overrides, run_dir, ranks)


def open_run(*overrides: str, run_dir: Path | None = None, ranks: int | None = None) -> session.Session:
    """As ``thawline run`` does it: this process claims the run, and its first rank plans it."""
    claimed = claim(*overrides, run_dir=run_dir, ranks=ranks)
    world = str(claimed.cluster.ranks)
    environment = {"RANK": "0", "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, orphans.LAUNCHER_PID: str(os.getpid())}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        has_facts = "--data-facts" in claimed.arguments
        facts = Path(claimed.arguments[claimed.arguments.index("--data-facts") + 1]) if has_facts else None
        return session.open_run(Path("recipe.yaml"), overrides, run_dir, facts)


def finish(path: Path) -> None:
    run = RunDir(path)
    write_status(run, read_status(run).model_copy(update={"state": "finished"}))


def checkpointed(path: Path) -> None:
    """What a checkpoint of the first trained step leaves, as far as its name goes."""
    RunDir(path).checkpoint(0, "head", 1).mkdir()


@contextmanager
def another_process_at_work() -> Iterator[int]:
    """Its process id; it holds the lock of runs/tiny meanwhile."""
    program = (
        "import sys; from pathlib import Path; from launcher import run_lock; from launcher.run_dir import RunDir\n"
        "run_lock.take(RunDir('runs/tiny')); print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        yield other.pid
    finally:
        other.kill()
        other.communicate()


def test_new_run(workplace: list[Cluster]) -> None:
    opened = open_run("stages.full.epochs=3")
    run = RunDir(opened.path)
    assert (opened.path, opened.standing) == (Path("runs/tiny"), "new")
    assert RunPlan.model_validate_json(run.plan.read_text()) == opened.plan
    assert opened.plan.recipe.stages[1].epochs == 3
    assert "epochs: 3" in run.recipe.read_text()
    found = read_status(run)
    assert (found.state, found.ranks, found.launcher_pid) == ("preparing", 1, os.getpid())
    assert handed_on[-1] is not None, "what the launcher found in the data"
    assert not run.data_facts.exists()


def test_wrong_data_is_told_at_its_line_before_there_is_a_folder(workplace: list[Cluster]) -> None:
    Path("rows.csv").write_text("text,labl\ngood,a\nbad,b\n")
    with pytest.raises(RecipeError) as refused:
        claim("batch.global_size=9", ranks=2)
    assert {(problem.path, problem.line) for problem in refused.value.problems} == {
        ("batch.global_size", None),
        ("data.columns.label", 1),
    }
    assert (workplace, Path("runs").exists()) == ([], False)


def test_a_new_run_without_room_for_its_model_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(plan: RunPlan, run: RunDir) -> None:
        raise EnvironmentProblem(f"{run.path}: no room")

    monkeypatch.setattr(session.free_space, "require", refused)
    with pytest.raises(EnvironmentProblem, match="runs/tiny: no room"):
        open_run()
    assert not RunDir("runs/tiny").plan.exists()


def test_ranks_and_folder_as_asked(workplace: list[Cluster]) -> None:
    assert open_run(run_dir=Path("elsewhere"), ranks=2).path == Path("elsewhere")
    assert [cluster.ranks for cluster in workplace] == [2]


def test_a_claim_is_for_the_first_rank_to_plan(workplace: list[Cluster]) -> None:
    """Nothing is planned by the launcher; a run that could not be planned leaves no folder that was made for it."""
    claimed = claim("stages.full.epochs=3", ranks=2)
    assert (claimed.standing, claimed.cluster.ranks, workplace) == ("new", 2, [])
    assert claimed.arguments == (
        "recipe.yaml", "--run-dir", "runs/tiny", "--unplanned", "--set", "stages.full.epochs=3",
        "--data-facts", "runs/tiny/data_facts.json",
    )  # fmt: skip
    session.withdraw(claimed)
    assert not claimed.path.exists()
    assert list(claimed.path.parent.iterdir()) == []
    claimed.path.mkdir()
    session.withdraw(claim())
    assert claimed.path.is_dir()
    shutil.rmtree(claimed.path)
    held = claim()
    run = RunDir(held.path)
    run.command.parent.mkdir(exist_ok=True)
    run.command.write_text("thawline submit recipe.yaml")  # a job's, queued meanwhile
    session.withdraw(held)
    assert run.command.is_file()
    shutil.rmtree(claimed.path)
    session.withdraw(replace(claim(), is_folder_new=bool(open_run().plan)))
    assert RunDir(claimed.path).plan.is_file()


def test_under_torchrun(workplace: list[Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    opened = session.open_run(Path("recipe.yaml"))
    assert (opened.plan.cluster.nodes, opened.plan.cluster.ranks) == (2, 4)
    assert read_status(RunDir(opened.path)).launcher_pid is None


def test_unfinished_run_goes_on_with_its_plan(workplace: list[Cluster]) -> None:
    """The same recipe again: nothing is planned anew, the ranks are those it began with."""
    first = open_run(ranks=2)
    again = open_run()
    assert (again.standing, again.plan) == ("unfinished", first.plan)
    assert len(workplace) == 1
    let_go()
    claimed = session.reopen_run(first.path)
    assert (claimed.standing, claimed.cluster) == ("unfinished", first.plan.cluster)
    assert claimed.arguments == ("runs/tiny/recipe.yaml", "--run-dir", "runs/tiny")


def test_finished_run_says_so() -> None:
    finish(open_run().path)
    assert open_run().standing == "finished"
    let_go()
    assert session.reopen_run(Path("runs/tiny")).standing == "finished"


def test_another_recipe_is_refused_with_the_difference() -> None:
    checkpointed(open_run().path)
    with pytest.raises(UserError) as refused:
        open_run("batch.global_size=4", "stages.full.epochs=3", "stages.head.optimizer.learning_rate=1e-4")
    assert str(refused.value).splitlines() == [
        "runs/tiny holds a run of another recipe:",
        "  batch.global_size: 8 in the run, 4 in the recipe",
        "  stages.head.optimizer.learning_rate: 2e-05 in the run, 0.0001 in the recipe",
        "  stages.full.epochs: 2 in the run, 3 in the recipe",
        "Choose another --run-dir, or delete runs/tiny to start anew; "
        "`thawline resume runs/tiny` goes on with it as it was.",
    ]


def test_another_recipe_takes_the_folder_of_a_run_that_saved_nothing(
    workplace: list[Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    """A first try that failed in its first step: the corrected one is planned, on the ranks asked for now."""
    run = RunDir(open_run(ranks=2).path)
    run.wandb_id.write_text("other1")
    (run.checkpoints / ".writing-00-head-step-00000000").mkdir()
    (run.checkpoints / "00-head-step-00000000").mkdir()  # the model before any training, and the first step failed
    run.latest.write_text("00-head-step-00000000\n")
    opened = open_run("stages.full.epochs=3")
    assert (opened.standing, opened.plan.cluster.ranks, len(workplace)) == ("new", 1, 2)
    assert RunPlan.model_validate_json(run.plan.read_text()).recipe.stages[1].epochs == 3
    assert "epochs: 3" in run.recipe.read_text()
    assert not run.wandb_id.exists()
    assert not run.latest.exists()
    assert list(run.checkpoints.iterdir()) == []
    assert "runs/tiny held another recipe's plan and nothing trained by it: it is planned anew" in caplog.text
    assert open_run("stages.full.epochs=3").standing == "unfinished"


def test_a_job_that_starts_later_gets_the_folder_or_is_refused() -> None:
    """What `thawline submit` asks before it queues anything; where the job waits and runs is no difference."""
    run = RunDir(open_run(ranks=2).path)
    same = reading.load(Path("recipe.yaml"), ["slurm.partition=other"])
    other = reading.load(Path("recipe.yaml"), ["seed=7"])
    session.make_way(run, same, 1, 2)
    assert run.plan.is_file()
    with pytest.raises(UserError, match="was planned for 2 CPU ranks, and this job has 2 x 2 ranks"):
        session.make_way(run, same, 2, 2)
    session.make_way(run, other, 4, 4)
    assert not run.plan.is_file()
    open_run()
    checkpointed(run.path)
    with pytest.raises(UserError, match="seed: 0 in the run, 7 in the recipe"):
        session.make_way(run, other, 1, 1)
    finish(run.path)
    with pytest.raises(UserError, match="is finished"):
        session.make_way(run, same, 1, 1)


def test_other_ranks_go_on_inside_a_stage_where_the_checkpoint_is_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    run, same = RunDir(open_run(ranks=2).path), reading.load(Path("recipe.yaml"))
    checkpointed(run.path)
    newest = run.checkpoint(0, "head", 1)
    run.latest.write_text(f"{newest.name}\n")
    with pytest.raises(UserError, match=r"only 2 CPU ranks can go on from, .* no slurm\.min_nodes"):
        session.make_way(run, same, 4, 1, varies=True)
    for part in ("model", "optimizer"):
        (newest / part).mkdir()
    session.make_way(run, same, 4, 1, varies=True)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="was planned for 2 CPU ranks"):
        session.open_run(Path("recipe.yaml"))
    monkeypatch.setenv(RANKS_VARY, "yes")
    assert session.open_run(Path("recipe.yaml")).plan.cluster.nodes == 4
    assert json.loads(run.plan.read_text())["stages"][0]["batch"]["ranks"] == 4
    assert f"goes on with 4 nodes x 1 CPU rank from {newest.name}" in render(read_status(run), run)


def test_a_run_at_work_keeps_its_plan() -> None:
    """It may be about to write its first checkpoint."""
    run = RunDir(open_run().path)
    before = run.plan.read_bytes()
    let_go()
    with another_process_at_work() as pid, pytest.raises(UserError, match=f"being worked on by process {pid}"):
        open_run("stages.full.epochs=3")
    assert run.plan.read_bytes() == before


def test_the_next_attempt_of_a_job_waits_for_what_is_left_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(open_run().path)
    run_lock._held.pop(run.path.resolve()).close()
    monkeypatch.setenv("THAWLINE_ATTEMPT", "attempt-1")
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.0)
    with another_process_at_work() as pid, pytest.raises(StoppedEarly, match=f"process {pid} of an earlier attempt"):
        run_lock.take(run)
    monkeypatch.setattr(run_lock, "PATIENCE_S", 60.0)
    with another_process_at_work() as pid:
        threading.Timer(0.5, lambda: os.kill(pid, signal.SIGKILL)).start()
        run_lock.take(run)


def test_a_finished_run_of_another_recipe_is_refused_too() -> None:
    finish(open_run().path)
    with pytest.raises(UserError, match=r"stages\.full\.epochs: 2 in the run, 3 in the recipe"):
        open_run("stages.full.epochs=3")


def test_other_stages(make_recipe: Callable[..., Recipe]) -> None:
    one = make_recipe(stages=[{"name": "head", "train": ["head"], "epochs": 1}])
    assert differences.between(make_recipe(), one) == ["stages: head, full in the run, head in the recipe"]
    assert differences.between(one, one) == []


@pytest.mark.parametrize(
    ("ranks", "environment", "says"),
    [
        (3, {}, "was planned for 2 CPU ranks, and this is 3 CPU ranks"),
        (None, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "and this is 1 CPU rank"),
    ],
)
def test_other_machines(
    monkeypatch: pytest.MonkeyPatch, ranks: int | None, environment: dict[str, str], says: str
) -> None:
    open_run(ranks=2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        session.open_run(Path("recipe.yaml")) if environment else claim(ranks=ranks)


def test_gpu_run_on_a_machine_without(make_plan: Callable[..., RunPlan]) -> None:
    run = RunDir(open_run().path)
    gpu = Cluster(gpus_per_node=1, ranks_per_node=1, gpu_kind="H100", bf16=True)
    plan = RunPlan.model_validate_json(run.plan.read_text())
    run.plan.write_text(plan.model_copy(update={"cluster": gpu}).model_dump_json())
    with pytest.raises(UserError, match="was planned for 1 x H100, and this is 1 CPU rank"):
        open_run()


def test_resume_where_there_is_no_run() -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        session.reopen_run(Path("nowhere"))
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run"):
        session.reopen_run(Path("empty"))


@pytest.mark.parametrize("place", ["rows.csv", "rows.csv/run", "rows.csv/deep/run", "leads-nowhere", "n" * 300])
def test_a_run_dir_that_cannot_be_a_folder_is_the_users_mistake(place: str) -> None:
    """A file, one under a file, a link to nothing, a name too long: a line, and nothing is made."""
    Path("leads-nowhere").symlink_to("nowhere")
    before = set(Path().iterdir())
    for started in (claim, open_run):
        with pytest.raises(UserError, match=r"choose another --run-dir$") as refused:
            started(run_dir=Path(place))
        assert "\n" not in str(refused.value)
    assert set(Path().iterdir()) == before


def test_a_run_dir_that_cannot_be_written_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root anything can be written, so the system's answer is made up."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refusing(PermissionError(errno.EACCES, "Permission denied")))
        with pytest.raises(EnvironmentProblem, match=r"runs/tiny cannot be written \(Permission denied\); choose"):
            claim()
    monkeypatch.setattr("tempfile.TemporaryFile", refusing(OSError(errno.EROFS, "Read-only file system")))
    Path("runs/tiny").mkdir(parents=True)
    with pytest.raises(EnvironmentProblem, match=r"runs/tiny cannot be written \(Read-only file system\)"):
        session.claim_run(Path("recipe.yaml"))


def refusing(error: OSError) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise error

    return refuse


def test_a_run_that_starts_says_so_before_it_has_a_plan() -> None:
    """Its launcher does, until the first rank can."""
    claimed = claim()
    run = RunDir(claimed.path)
    found = read_status(run)
    assert (found.state, found.phase, found.ranks, found.stages, found.launcher_pid) == (
        "preparing", "importing", 1, 2, os.getpid()
    )  # fmt: skip
    assert "\nphase       importing" in render(found, run)
    assert "phase" not in render(found.model_copy(update={"state": "running", "phase": None}), run)
    lost = found.model_copy(update={"pid": 2**22 + 1, "launcher_pid": None, "updated": 0.0})
    assert "there is no plan yet" in render(lost, run).splitlines()[-1], "resume would find nothing to go on with"
    session.withdraw(claimed)
    assert not claimed.path.exists()


def test_too_many_ranks_are_refused_before_anything_is_made(
    workplace: list[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.host_limits, "cores", lambda: 2)
    monkeypatch.setattr(session.host_limits, "available_bytes", lambda: 24 * 2**30)
    monkeypatch.delenv(oversubscription.ALLOWED, raising=False)
    with pytest.raises(EnvironmentProblem, match=r"--ranks 64: this host has 2 cores .* at most 8, or add --overs"):
        claim(ranks=64)
    assert not Path("runs").exists()
    assert claim(ranks=8).cluster.ranks == 8
    monkeypatch.setenv(oversubscription.ALLOWED, "1")
    assert claim("batch.global_size=64", ranks=64).cluster.ranks == 64


def test_a_failed_proof_is_accepted_by_name() -> None:
    path = open_run().path
    run = RunDir(path)
    with pytest.raises(UserError, match=r"--accept heat: runs/tiny has no such stage; its stages are head, full"):
        session.reopen_run(path, accept="heat")
    with pytest.raises(UserError, match="the proof of stage head has not been made yet"):
        session.reopen_run(path, accept="head")
    failed = Proof(
        index=0, stage="head", engine={"engine": "X"}, holds=False, groups=[], moved_though_frozen=["a"],
        still_though_trained=[], unused=[], parameters=[],
    )  # fmt: skip
    proof.write(run, failed)
    session.reopen_run(path, accept="head")
    found = proof.read(run, 0, "head")
    assert found is not None
    assert found.is_accepted
    found.raise_if_wrong("x", run)
    assert proof.verdicts(run, ["head", "full"]) == ["the proof of stage head does not hold"]
    proof.write(run, failed.model_copy(update={"holds": True}))
    with pytest.raises(UserError, match="holds: there is nothing to accept"):
        session.reopen_run(path, accept="head")


def test_damaged_plan() -> None:
    RunDir(open_run().path).plan.write_text('{"recipe": 1}')
    with pytest.raises(UserError, match=r"plan.json is not a plan of this version of thawline: recipe:"):
        open_run()
    with pytest.raises(UserError, match="not a plan of this version"):  # what `evaluate` and `predict` read it with
        read_plan(RunDir("runs/tiny"))


def test_one_process_at_a_time() -> None:
    """A second thawline on the same run is refused while the first lives, and let in when it is gone."""
    run = RunDir(open_run().path)
    let_go()
    with (
        another_process_at_work() as pid,
        pytest.raises(UserError, match=f"runs/tiny is being worked on by process {pid}"),
    ):
        session.reopen_run(run.path)
    assert session.reopen_run(run.path).standing == "unfinished"


def test_copy_of_the_model() -> None:
    run = RunDir(open_run().path)
    with pytest.raises(UserError, match="has no model yet, it is preparing"):
        copy_model(run, Path("copy"))
    run.model.mkdir()
    (run.model / "config.json").write_text("{}")
    assert copy_model(run, Path("copy")) == Path("copy")
    assert Path("copy/config.json").read_text() == "{}"
    with pytest.raises(UserError, match="copy is there already"):
        copy_model(run, Path("copy"))
