"""Models and data of the hub through the real `huggingface_hub`, `transformers` and `datasets`, from `hub_stand_in`.

Two repositories with two revisions each. One process runs a training on two ranks and then meets every refusal;
another, after the hub has gone, lives on what the first left in the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import transformers
from hub_stand_in import Hub, Repo, served
from running import ROOT, recipe, tiny_bert, weights
from safetensors.torch import load

from launcher.run_dir import RunDir

MODEL, DATASET = "someone/tiny", "someone/some-rows"
COMMANDS = """
import contextlib, io, json, sys
from launcher.cli import main
ended = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["thawline", *arguments]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    ended.append([code, out.getvalue(), err.getvalue()])
print("ENDED", json.dumps(ended))
"""
"""Several thawline commands in one process: the libraries are imported once."""
STAGES: list[dict[str, Any]] = [{"name": "head", "train": ["head"], "steps": 2}]
REFUSALS = {
    "no such model": (
        "model.source=someone/absent",
        "--set: model.source: 'someone/absent': the hub has no such model",
    ),
    "gated model": (
        "model.source=someone/closed",
        "--set: model.source: 'someone/closed' is gated: accept its terms at",
    ),
    "no such revision": (
        "model.revision=v9",
        f"--set: model.revision: 'v9': {MODEL} has no such branch, tag or commit",
    ),
    "no such dataset": (
        "data.dataset=someone/absent",
        "--set: data.dataset: 'someone/absent': the hub has no such dat",
    ),
    "gated dataset": (
        "data.dataset=someone/closed",
        "--set: data.dataset: 'someone/closed' is gated: accept its terms",
    ),
    "no such revision of data": (
        "data.revision=v9",
        f"--set: data.revision: 'v9': {DATASET} has no such branch, tag or",
    ),
}
"""What is asked for -> the beginning of what is said."""
NOT_CACHED = {
    "model": ("model.source=someone/other", "model.source: 'someone/other': the hub cannot be reached and its cache"),
    "revision": ("data.revision=main", "has no copy of revision main; go online once to fill it"),
}


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class World:
    """The hub, and everything that was done with it."""

    hub: Hub
    run: Path
    offline: Path
    online_commands: dict[str, Ended]
    offline_commands: dict[str, Ended]


def bert(folder: Path, seed: int, **sizes: int) -> dict[str, bytes]:
    """The files of a small BERT with random weights and MiniLM's tokenizer."""
    tiny_bert(folder)
    config = transformers.BertConfig.from_pretrained(folder, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows(train: int) -> dict[str, bytes]:
    """A dataset of csv files, twice ``train`` rows to train on."""

    def csv(count: int) -> bytes:
        lines = (f"{word} text number {index},{word}" for index in range(count) for word in ("good", "bad"))
        return "\n".join(["text,label", *lines, ""]).encode()

    return {"README.md": b"---\nlicense: mit\n---\n", "train.csv": csv(train), "validation.csv": csv(4)}


def thawline(commands: dict[str, list[str | Path]], **environment: str | Path) -> dict[str, Ended]:
    """Run each command in the same process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {name: str(value) for name, value in environment.items()} | {"HF_HUB_DISABLE_TELEMETRY": "1"}
    arguments = json.dumps([[str(part) for part in command] for command in commands.values()])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, arguments], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    ended = json.loads(done.stdout.rpartition("ENDED ")[2])
    return {name: Ended(*each) for name, each in zip(commands, ended, strict=True)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("hub")
    file = recipe(
        folder, STAGES, model={"source": MODEL, "revision": "v1", "dropout": 0.0},
        data={"source": "hub", "dataset": DATASET, "revision": "v1", "max_length": 8},
    )  # fmt: skip
    main, first = bert(folder / "main", 0, num_hidden_layers=3), bert(folder / "first", 1)
    models = {MODEL: Repo({"main": main, "v1": first}), "someone/closed": Repo({"v1": main}, is_gated=True)}
    datasets = {
        DATASET: Repo({"main": rows(12), "v1": rows(20)}),
        "someone/closed": Repo({"v1": rows(4)}, is_gated=True),
    }
    home = folder / "home"
    commands: dict[str, list[str | Path]] = {"run": ["run", file, "--ranks", "2", "--run-dir", folder / "run"]}
    for name, (change, _) in REFUSALS.items():
        commands[name] = ["run", file, "--run-dir", folder / "none", "--set", change]
    commands["plan"] = ["plan", file, "--json", "--set", "model.revision=null"]
    with served(models, datasets) as hub:
        online = thawline(commands, HF_ENDPOINT=hub.endpoint, HF_HOME=home)
    commands = {
        name: ["run", file, "--run-dir", folder / "none", "--set", change] for name, (change, _) in NOT_CACHED.items()
    }
    commands["run"] = ["run", file, "--ranks", "1", "--run-dir", folder / "offline"]
    offline = thawline(commands, HF_ENDPOINT=hub.endpoint, HF_HOME=home)
    return World(hub, folder / "run", folder / "offline", online, offline)


def test_a_run_trains_on_the_revisions_it_names(world: World) -> None:
    ended = world.online_commands["run"]
    assert ended.code == 0, ended.err
    served_bytes = world.hub.models[MODEL].files("v1")["model.safetensors"]
    exported = weights(world.run)
    for name, tensor in load(served_bytes).items():  # frozen, so the export still has its bits
        assert torch.equal(exported[f"bert.{name}"], tensor), name
    plan = json.loads(RunDir(world.run).plan.read_text())
    assert (plan["data"]["train_rows"], plan["data"]["validation_rows"]) == (40, 8)


def test_two_ranks_and_all_that_follows_fetch_every_file_once(world: World) -> None:
    downloads = world.hub.downloads()
    of_run = {name.rpartition("/")[2] for name in downloads if f"@{world.hub.models[MODEL].commit('v1')}/" in name}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= of_run
    assert set(downloads.values()) == {1}, downloads


def test_a_plan_asks_for_no_weights(world: World) -> None:
    ended = world.online_commands["plan"]
    assert ended.code == 0, ended.err
    parameters = json.loads(ended.out)["stages"][0]["parameters"]
    assert parameters["frozen"] > sum(tensor.numel() for tensor in weights(world.run).values())  # a layer more
    fetched = [name for name, count in world.hub.downloads().items() if name.endswith("model.safetensors") and count]
    assert [name.partition("@")[2].partition("/")[0] for name in fetched] == [world.hub.models[MODEL].commit("v1")]


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_refuses_is_said(world: World, name: str) -> None:
    ended, (_, says) = world.online_commands[name], REFUSALS[name]
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_without_the_hub_the_cache_gives_the_same_run(world: World) -> None:
    """On one rank instead of two, so the head that learned is the same but for rounding."""
    ended = world.offline_commands["run"]
    assert ended.code == 0, ended.err
    found, expected = weights(world.offline), weights(world.run)
    head = {name for name in expected if name.startswith("classifier.")}
    assert len(head) == 2
    assert all(torch.equal(found[name], expected[name]) for name in expected.keys() - head)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-7) for name in head)


@pytest.mark.parametrize("name", NOT_CACHED)
def test_what_is_not_in_the_cache_is_said(world: World, name: str) -> None:
    ended, (_, says) = world.offline_commands[name], NOT_CACHED[name]
    assert ended.code == 3
    assert says in ended.err
    first = next(iter(world.offline_commands.values()))
    assert f"the hub, {world.hub.endpoint}, cannot be reached (" in first.err


LOAD = """
import json, sys
from pathlib import Path
from pydantic import TypeAdapter
from launcher.data import load
from launcher.errors import DataError
from launcher.recipe import TextClassification
from launcher.recipe.data import Data
said = []
for name in ("mixed", "alike"):
    data = {"source": "hub", "dataset": f"someone/{name}", "split": {"validation": 0}}
    try:
        splits = load(TypeAdapter(Data).validate_python(data), TextClassification(kind="text-classification"), Path())
        said.append([[row["text"], splits.labels[row["label"]]] for row in splits.train])
    except DataError as error:
        said.append(str(error))
print("SAID", json.dumps(said))
"""


def test_files_that_number_classes_otherwise_are_refused_online_and_from_the_cache(tmp_path: Path) -> None:
    """`datasets` reads the ids of all files by the names of the first."""

    def parquet(*names: str) -> bytes:
        features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = pa.table({"text": list(names), "label": range(len(names))})
        file = pa.BufferOutputStream()
        pyarrow.parquet.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), file
        )
        return bytes(file.getvalue())

    first, other = "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"
    datasets = {
        "someone/mixed": Repo({"main": {first: parquet("neg", "pos"), other: parquet("pos", "neg")}}),
        "someone/alike": Repo({"main": {first: parquet("neg", "pos"), other: parquet("neg", "pos")}}),
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    with served({}, datasets) as hub:
        for change in ({"HF_ENDPOINT": hub.endpoint}, {"HF_HUB_OFFLINE": "1"}):
            done = subprocess.run(
                [sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
                env=env | change,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            mixed, alike = json.loads(done.stdout.rpartition("SAID ")[2])
            assert f"{other} numbers the classes of 'label' 0 = pos, 1 = neg, and the dataset 0 = neg" in mixed
            assert alike == [["neg", "neg"], ["pos", "pos"]] * 2
