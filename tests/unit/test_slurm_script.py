"""The sbatch script: its text for six configurations, and that no string of a user's becomes code in it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from launcher.errors import RecipeError, UserError
from launcher.recipe import reading
from launcher.recipe.slurm import Slurm, conflicts
from launcher.slurm import array, submit
from launcher.slurm.script import Job, render

GOLDEN = Path(__file__).parents[1] / "golden" / "slurm"
JOB = Job("reviews", Path("/data/reviews.yaml"), Path("/scratch/runs/reviews"), Path("/env/bin/python"))
CONFIGURATIONS: dict[str, tuple[dict[str, Any], Job]] = {
    "bare": ({}, JOB),
    "up_to_four_nodes_of_eight_gpus": (
        {"nodes": 4, "min_nodes": 2, "gpus_per_node": 8,
         "time": "2-00:00:00", "partition": "gpu", "account": "nlp", "exclusive": True},
        dataclasses.replace(JOB, until="full", node_counts=(4, 2)),
    ),
    "gres_under_accelerate": (
        {"nodes": 4, "gres": "gpu:a100:4", "launcher": "accelerate", "cpus_per_task": 32, "memory": "0"},
        JOB,
    ),
    "every_word": (
        {
            "job_name": "r-1", "qos": "long", "time": "90:00", "constraint": "a100&nvlink|h100", "nodelist": "n[1-4,7]",
            "exclude": "n9", "reservation": "spring", "comment": "Ünïcode, it's $HOME & `ls`",
            "mail_user": "a.b+c@example.org", "mail_type": ["END", "FAIL"], "dependency": "afterok:12:13?singleton",
            "signal_lead": 120, "array": ["seed=[1, 2]", "a.b=[$(x)]"], "array_limit": 1, "requeue": False,
            "requeue_budget": 7, "hang_timeout": 120,
        },
        dataclasses.replace(JOB, tasks=(("seed=1", 'a.b="$(x)"'), ("seed=2", 'a.b="$(x)"'))),
    ),
    "set_up_and_arguments": (
        {
            "ranks_per_node": 2, "container": "apptainer exec --nv /images/$(x)/t.sif",
            "container_python": "/env/a b/python", "setup": ["module load cuda/13.0", "source ~/env.sh"],
            "sbatch_arguments": ["--licenses=fs:1", "--profile=a b"], "srun_arguments": ["--mpi=none", "--x=$(y) 'z'"],
        },
        JOB,
    ),
    "paths_and_overrides": (
        {},
        Job(
            "reviews", Path("/data/my recipes/it's.yaml"), Path("/scratch/a b/$(c)`d`"), Path("/env/bin/python3"),
            ("optimizer.learning_rate=1.0e-4", 'data.columns={text: "a \'b\' $c"}'),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_golden(name: str) -> None:
    """To accept a change, look at it and write the file: its text is what people run."""
    options, job = CONFIGURATIONS[name]
    assert render(Slurm(**options), job) == (GOLDEN / f"{name}.sbatch").read_text(encoding="utf-8")


def test_no_set_up_line_is_an_option_of_sbatch() -> None:
    lines = render(Slurm(setup=["#SBATCH --output=/elsewhere"]), JOB).splitlines()
    first_command = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert first_command < lines.index("#SBATCH --output=/elsewhere")
    assert sum(line.startswith("#SBATCH") for line in lines[:first_command]) == sum(
        line.startswith("#SBATCH") for line in render(Slurm(), JOB).splitlines()
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_golden_script_is_bash(name: str) -> None:
    parsed = subprocess.run(["bash", "-n", GOLDEN / f"{name}.sbatch"], capture_output=True, text=True, check=False)
    assert (parsed.returncode, parsed.stderr) == (0, "")


def test_every_option_reaches_the_script() -> None:
    """Each key changes the text; a new one that nothing writes down fails here."""
    plain = render(Slurm(), JOB)
    seen = {key for options, _ in CONFIGURATIONS.values() for key in options}
    assert seen == set(Slurm.model_fields), "a golden file shows every key"
    for options, _ in CONFIGURATIONS.values():
        for key, value in options.items():
            if key == "array":
                assert [len(task) for task in array.tasks(value)] == [2, 2]
            elif key == "array_limit":
                assert "--array=0-0%1\n" in render(Slurm(array_limit=1), dataclasses.replace(JOB, tasks=(("seed=1",),)))
            elif key == "min_nodes":
                assert "--nodes=2-4\n" in render(Slurm(nodes=4, min_nodes=value), JOB)
            elif key != "nodes" or value != 1:
                assert render(Slurm(**{key: value}), JOB) != plain, key


# --- hostile strings --------------------------------------------------------------------------------------------------
NASTY = st.text(
    st.one_of(st.sampled_from("\n\r\0\t \"'`$(){}[]<>|&;#\\*?!~%=,:-@+\u2028\u2029\x85\x1b"), st.characters()),
    max_size=40,
)
SPITEFUL = st.sampled_from(
    [
        "x\n#SBATCH --wrap=id", "x\ntouch CANARY", '"; touch CANARY; "', "'; touch CANARY; '", "$(touch CANARY)",
        "`touch CANARY`", "x #SBATCH", "\\", "x\\", '"', "'", "{{ 7 * 7 }}", "{% raw %}", "-", "--", "a\r\nb", "%j",
        "%%", "${IFS}", "!!", "~", "*", "<(touch CANARY)", ") ; touch CANARY ; (",
    ]
)  # fmt: skip
HOSTILE = st.one_of(SPITEFUL, NASTY)
TEXTS = [
    key
    for key, field in Slurm.model_fields.items()
    if "str" in str(field.annotation) and key not in ("launcher", "mail_type", "setup", "array")
]
# Runs the part of a script in which values stand, then shows each as a program would get it.
SHOW = (
    'printf "%s\\0" "$run" "$recipe" "$python" "${overrides[@]}" "${container[@]}" "$container_python" '
    '"${srun_arguments[@]}"'
)


def head_of(script: str) -> str:
    head, _, _ = script.partition("\n# --- 3.")
    assert head != script
    return head


def run_head(script: str, folder: Path) -> list[str]:
    """What bash holds after the assignments; nothing in them may have run."""
    assert subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=False).returncode == 0
    shown = subprocess.run(
        ["bash", "-c", f"{head_of(script)}\n{SHOW}"], capture_output=True, check=True, cwd=folder, timeout=20
    )
    assert shown.stderr == b""
    assert list(folder.iterdir()) == [], "something of the user's text ran"
    return shown.stdout.decode().split("\0")[:-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(TEXTS), text=HOSTILE)
def test_a_hostile_option_is_refused_or_harmless(tmp_path: Path, key: str, text: str) -> None:
    folder = tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    value: Any = [text] if key.endswith("arguments") else text
    try:
        options = Slurm(**{key: value})
    except ValidationError:
        return
    script = render(options, JOB)
    held = run_head(script, folder)
    inside = [*options.container_words, options.container_python or str(JOB.python)]
    assert held == [str(JOB.run_dir), str(JOB.recipe), str(JOB.python), *inside, *options.srun_arguments]
    lines = script.splitlines()
    directives = [line for line in lines if line.lstrip().startswith("#SBATCH")]
    assert len(directives) == len(render(Slurm(), JOB).split("#SBATCH")) - 1 + (
        key not in ("srun_arguments", "container", "container_python")
    ) + (key == "dependency") - (key == "job_name"), "one line an option"
    assert lines.index(directives[-1]) == len(directives), "sbatch stops reading at the first line of bash"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=HOSTILE, run=HOSTILE, override=HOSTILE)
def test_a_hostile_path_or_override_is_refused_or_harmless(
    tmp_path: Path, recipe: str, run: str, override: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    job = Job("reviews", Path("/r") / f"x{recipe}", Path("/s") / f"x{run}", JOB.python, (f"a={override}",))
    try:
        script = render(Slurm(), job)
    except UserError:
        return
    assert run_head(script, folder) == [
        str(job.run_dir), str(job.recipe), str(job.python), "--set", f"a={override}", str(job.python)
    ]  # fmt: skip
    assert len([line for line in script.split("\n") if line.startswith("#SBATCH")]) == 7


def test_quoted_directives_have_no_quote_inside() -> None:
    script = render(Slurm(comment="it's $(x) #SBATCH", constraint="a&b"), JOB)
    assert '#SBATCH --comment="it\'s $(x) #SBATCH"\n' in script
    assert '#SBATCH --constraint="a&b"\n' in script


@pytest.mark.parametrize("path", ["/s/a%jb", '/s/a"b', "/s/a\\b", "/s/a\nb"])
def test_a_run_folder_that_sbatch_would_misread_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="folder"):
        render(Slurm(), Job("reviews", JOB.recipe, Path(path), JOB.python))


# --- the recipe's section and the flags -------------------------------------------------------------------------------
def recipe(folder: Path, **slurm: Any) -> Path:
    path = folder / "recipe.yaml"
    content = {
        "name": "tiny", "task": {"kind": "text-classification"}, "model": {"source": "somewhere/tiny"},
        "data": {"source": "csv", "files": "rows.csv"}, "stages": [{"name": "head", "train": ["head"], "epochs": 1}],
        "slurm": slurm,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_flags_stand_over_the_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, nodes=2, partition="slow")
    flags = {"partition": "fast", "comment": "a: {b}", "setup": ["x=1 # y"], "nodes": None}
    request = submit.Request(path, ["seed=3"], tmp_path / "run", flags)
    [text], run = submit.scripts(request), request.run
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n" in text
    assert "#SBATCH --partition=fast\n" in text
    assert '#SBATCH --comment="a: {b}"\n' in text
    assert "\nx=1 # y\n" in text
    assert "overrides=(--set seed=3)\n" in text
    assert f"run={shlex.quote(str(tmp_path / 'run'))}\n" in text
    assert not run.path.exists(), "a dry run leaves nothing"


def test_what_is_wrong_comes_at_once_with_what_is_right(tmp_path: Path) -> None:
    path = recipe(tmp_path, nodes=0, walltime="1:00", account="a b", launcher="mpirun", sbatch_arguments=["--output=x"])
    with pytest.raises(RecipeError) as wrong:
        reading.load(path)
    text = str(wrong.value)
    assert "slurm.nodes: number 0 is not allowed; it takes a whole number above 0" in text
    assert "slurm.walltime: unknown key 'walltime'; did you mean 'time'?" in text
    assert (
        "slurm.account: text 'a b' is not allowed; it takes a name of letters, digits and _ . , @ + -, or null" in text
    )
    assert "slurm.launcher: 'mpirun' is not allowed; it takes torchrun or accelerate" in text
    assert "slurm.sbatch_arguments.0: '--output=x': the script sets it" in text


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        ({"time": "5:00"}, "signal_lead", "after its first step"),
        ({"time": "0-1", "signal_lead": 3600}, "signal_lead", "longer slurm.time"),
        ({"nodes": 2, "min_nodes": 3}, "min_nodes", "more than slurm.nodes"),
        ({"gpus_per_node": 2, "gres": "gpu:2"}, "gres", "keep one"),
        ({"gpus_per_node": 2, "ranks_per_node": 3}, "ranks_per_node", "one whole GPU"),
        ({"sbatch_arguments": ["--nodes=3"]}, "sbatch_arguments.0", "slurm.nodes"),
        ({"sbatch_arguments": ["--part=x"]}, "sbatch_arguments.0", "slurm.partition"),
        ({"sbatch_arguments": ["--licenses=a", "--wra=id"]}, "sbatch_arguments.1", "relies on it"),
        ({"srun_arguments": ["--output=x"]}, "srun_arguments.0", "relies on it"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], key: str, says: str) -> None:
    ((found, message),) = conflicts(Slurm(**options))
    assert found == key
    assert says in message


def test_set_up_lines_that_are_not_bash_are_refused(tmp_path: Path) -> None:
    for line in ('echo "open', "if true; then", "cat <<END"):
        with pytest.raises(UserError, match=r"slurm\.setup is not bash"):
            submit.scripts(submit.Request(recipe(tmp_path, setup=[line])))
    submit.scripts(submit.Request(recipe(tmp_path, setup=["if true; then", "echo yes", "fi"])))


@pytest.mark.parametrize(
    ("gres", "count"), [("gpu", 1), ("gpu:4", 4), ("gpu:a100:8", 8), ("nvme:2,gpu:h100:2", 2), ("nvme:2", 0)]
)
def test_gpus_of_gres(gres: str, count: int) -> None:
    assert Slurm(gres=gres).gpus == count
    assert Slurm(gres=gres).ranks == max(count, 1)


def test_readme_names_every_part_of_the_script() -> None:
    """slurm/README.md explains the template: each numbered part, and each name that the script gives its ranks."""
    template = (Path(__file__).parents[2] / "slurm" / "job.sbatch.j2").read_text()
    page = (Path(__file__).parents[2] / "slurm" / "README.md").read_text()
    parts = re.findall(r"^# --- (\d\. .*?) -*$", template, re.MULTILINE)
    assert len(parts) == 7
    assert [part for part in parts if f"## {part[:3]}{part[3].upper()}{part[4:]}" not in page] == []
    assert [name for name in set(re.findall(r"THAWLINE_\w+|PET_\w+|SRUN_\w+", template)) if name not in page] == []
