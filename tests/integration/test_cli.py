"""The command as a process: exit codes, what goes to which stream, and that it starts without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import recipe

from launcher.run_dir import RunDir
from launcher.status import Status, write_status

ROOT = Path(__file__).parents[2]
HEAVY = "torch transformers datasets accelerate deepspeed wandb numpy pandas torchmetrics"


def thawline(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launcher", *arguments],
        capture_output=True, text=True, check=False, timeout=120, cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def a_run(folder: Path, state: str = "failed") -> RunDir:
    run = RunDir(folder)
    run.create()
    now = time.time()
    write_status(
        run,
        Status(name="tiny", state=state, stages=1, ranks=1, hostname="h", pid=1, started=now, updated=now, loss=0.25),
    )
    return run


def test_help_names_every_command_in_groups_and_what_comes_first() -> None:
    ended = thawline("--help")
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: thawline [OPTIONS]"), "as python -m launcher too"
    commands = (
        "run plan init resume status watch logs report predict evaluate export submit cancel doctor recipes schema"
    )
    places = {command: ended.stdout.find(f"\n  {command} ") for command in commands.split()}
    assert min(places.values()) > 0, places
    assert sorted(places, key=lambda name: places[name])[:3] == ["run", "plan", "init"]
    assert "\nOther:" not in ended.stdout, "each command is in a group"
    examples = ended.stdout.partition("\nExamples:\n")[2]
    assert "thawline run quickstart" in examples
    assert "thawline init reviews.csv" in examples
    assert "--install-completion" in ended.stdout
    assert all(len(line) <= 120 for line in ended.stdout.splitlines())
    assert "..." not in ended.stdout.partition("\nTrain:\n")[2], "no help is cut short"


def test_completion_knows_the_commands() -> None:
    shell = os.environ | {"PYTHONPATH": str(ROOT), "_THAWLINE_COMPLETE": "complete_bash", "COMP_WORDS": "thawline pre",
                          "COMP_CWORD": "1"}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "launcher"], capture_output=True, text=True, check=False, env=shell, timeout=120
    )
    assert ended.stdout.split() == ["predict"], ended.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status", "nowhere"], ["run", "nowhere.yaml"]])
def test_starts_without_torch(arguments: list[str]) -> None:
    """Whatever needs no model or data imports none of what is slow."""
    program = (
        "import sys\nfrom launcher.cli import main\n"
        f"sys.argv = ['thawline', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', *(name for name in {HEAVY!r}.split() if name in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "HEAVY"


def test_plans_without_what_no_plan_calls() -> None:
    """Of a text model whose data is out of reach; each of these would take half a second or more. Its checkpoints take
    more than there is."""
    program = (
        "import sys\nfrom launcher.cli import main\n"
        "sys.argv = ['thawline', 'plan', 'recipes/llama8b_zero3.yaml', '--gpus', '8', '--gpu-memory', '80GiB',\n"
        "    '--nodes', '16', '--set', 'model.source=meta-llama/Llama-3.1-405B', '--set', 'batch.global_size=256']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "from transformers.utils.import_utils import create_import_structure_from_path as sources\n"
        "print('TWICE', sources.cache_info().hits > 100)\n"
        "print('SLOW', *(name for name in ('datasets', 'scipy.optimize', 'deepspeed', 'wandb') if name in sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "thawline: runs/llama8b-zero3: " in ended.stderr
    assert "the checkpoints of stage full may take" in ended.stderr
    assert ended.stdout.splitlines()[-2:] == ["TWICE True", "SLOW"]


def test_version() -> None:
    from launcher import __version__

    assert thawline("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "Missing argument"),
        (["runn", "x.yaml"], "No such command"),
        (["run", "x.yaml", "--rank", "2"], "No such option"),
        (["run", "x.yaml", "--ranks", "0"], "--ranks"),
        (["plan", "x.yaml", "--nodes", "many"], "--nodes"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str) -> None:
    ended = thawline(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_users_mistakes_show_no_traceback(tmp_path: Path) -> None:
    """The message on stderr, alone, and exit code 2."""
    (tmp_path / "bad.yaml").write_text("name: bad\nstages: []\nlearning_rate: 3\n")
    for arguments in (["run", "bad.yaml"], ["plan", "bad.yaml"], ["run", "absent.yaml"], ["resume", "absent"]):
        ended = thawline(*arguments, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (2, ""), arguments
        assert ended.stderr.startswith("thawline: "), arguments
        assert "Traceback" not in ended.stderr, arguments
    assert "bad.yaml:3: learning_rate" in thawline("plan", "bad.yaml", cwd=tmp_path).stderr
    assert not (tmp_path / "runs").exists()


def test_a_mistake_that_the_first_rank_finds_is_told_once(tmp_path: Path) -> None:
    """It looks at the model, with the ranks there already: its words come whole, and no folder is left."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "a,b\nc,d\n" * 10)
    file = recipe(tmp_path, [{"name": "head", "train": ["haed"], "steps": 1}],
                  data={"source": "csv", "files": "rows.csv"})  # fmt: skip
    ended = thawline("run", str(file), "--ranks", "2", cwd=tmp_path)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert lines[0].startswith(f"thawline: {file}:"), ended.stderr
    assert "stages.head.train: pattern 'haed' matches no parameter" in lines[0]
    assert len([line for line in lines if "'haed'" in line]) == 1
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "runs").iterdir())


def test_status(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    text = thawline("status", str(run.path)).stdout
    assert "state       failed" in text
    assert f"thawline resume {run.path}" in text
    plain = json.loads(thawline("status", str(run.path), "--json").stdout)
    assert plain | json.loads(run.status.read_text()) == plain
    assert plain["lost"] is False


def test_watch_ends_with_the_run(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "finished")
    ended = thawline("watch", str(run.path))
    assert ended.returncode == 0
    assert "state       finished" in ended.stdout


def test_interrupted_watch(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "running")
    command = [sys.executable, "-m", "launcher", "watch", str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_schema_is_json() -> None:
    schema = json.loads(thawline("schema").stdout)
    assert {"name", "task", "model", "data", "stages"} <= set(schema["properties"])


def test_shipped_recipes() -> None:
    """Each is listed with its file and purpose, and can be printed."""
    listed = thawline("recipes").stdout.splitlines()
    files = [Path(line) for line in listed[::2]]
    assert "quickstart" in [file.stem for file in files]
    assert all(file.is_file() for file in files)
    assert all(line.strip() for line in listed[1::2])
    assert thawline("recipes", "quickstart").stdout == files[[f.stem for f in files].index("quickstart")].read_text()
    ended = thawline("recipes", "quickstar")
    assert ended.returncode == 2
    assert "did you mean quickstart?" in ended.stderr


def test_a_shipped_recipe_goes_by_its_name_and_from_elsewhere_says_so(tmp_path: Path) -> None:
    """Never in place of a file of the user's own."""
    for command in ("run", "plan"):
        ended = thawline(command, "recipes/quickstart.yaml", cwd=tmp_path)
        assert ended.returncode == 2
        assert "`thawline recipes quickstart > quickstart.yaml`" in ended.stderr
        assert "`thawline run quickstart`" in ended.stderr
    by_name = thawline("submit", "quickstart", "--dry-run", cwd=tmp_path)
    assert by_name.returncode == 0, by_name.stderr
    assert "recipes/quickstart.yaml" in by_name.stdout
    (tmp_path / "quickstart.yaml").write_text("mine")
    ended = thawline("run", "quickstart", cwd=tmp_path)
    assert ended.returncode == 2
    assert "'quickstart' is quickstart.yaml here, or the recipe that comes with thawline" in ended.stderr
    (tmp_path / "other.yaml").write_text("mine")
    assert "did you mean 'other.yaml'?" in thawline("run", "other", cwd=tmp_path).stderr
    assert "did you mean quickstart?" in thawline("run", "quickstar", cwd=tmp_path).stderr


def test_init_without_data_says_what_it_needs(tmp_path: Path) -> None:
    ended = thawline("init", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "thawline init reviews.csv" in ended.stderr


def test_recipes_of_no_such_name() -> None:
    ended = thawline("recipes", "quickstar")
    assert ended.returncode == 2
    assert "did you mean quickstart?" in ended.stderr
