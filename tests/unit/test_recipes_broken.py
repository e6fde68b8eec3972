"""Broken recipes: each is refused with the line, the dotted path and what to do, all problems at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.errors import Problem, RecipeError
from launcher.recipe.reading import load, to_yaml
from launcher.recipe.yaml_tree import parse

GOOD = """\
name: good
task: {kind: text-classification}
model:
  source: org/bert
data:
  source: csv
  files: rows.csv
  columns: {text: text, label: label}
batch: {global_size: 32}
optimizer: {learning_rate: 1e-3}
evaluate: {best: accuracy}
stages:
  - name: head
    train: [head]
    epochs: 1
  - name: full
    train: [all]
    epochs: 2
"""


@dataclass(frozen=True)
class Broken:
    """One edit of GOOD (a regex, or all of it when empty) and the one problem it must give."""

    old: str
    new: str
    line: int | None
    path: str
    says: tuple[str, ...]
    sets: tuple[str, ...] = ()


BROKEN = {
    # unknown keys, at each level
    "key at the top": Broken("batch:", "btach:", 9, "btach", ("unknown key 'btach'", "did you mean 'batch'?")),
    "key of a map": Broken("  source: org/bert", "  source: x\n  wieghts: random", 5, "model.wieghts", ("'weights'?",)),
    "key of a map in a map": Broken(
        "  source: org/bert", "  source: x\n  head: {int: zeros}", 5, "model.head.int", ("did you mean 'init'?",)
    ),
    "key of a stage": Broken("    epochs: 2", "    epoch: 2\n    steps: 3", 18, "stages.full.epoch", ("'epochs'?",)),
    "key of a stage's map": Broken(
        "    epochs: 2", "    epochs: 2\n    sharding: {stratgy: zero3}", 19, "stages.full.sharding.stratgy",
        ("did you mean 'strategy'? It takes strategy, offload and nvme_path",),
    ),
    "key of another kind": Broken(
        "learning_rate: 1e-3", "momentum: 0.9", 10, "optimizer.momentum",
        ("unknown key 'momentum' of kind adamw", "it is one of kind sgd"),
    ),
    "key of another source": Broken(
        "  files: rows.csv", "  files: rows.csv\n  dataset: a/b", 8, "data.dataset", ("one of source hub",)
    ),
    "key of another place": Broken(
        "batch:", "learning_rate: 1e-3\nbatch:", 9, "learning_rate", ("did you mean 'optimizer.learning_rate'?",)
    ),
    "key that others call so": Broken("learning_rate:", "lr:", 10, "optimizer.lr", ("did you mean 'learning_rate'?",)),
    "key of a stage at the top": Broken(
        "batch:", "epochs: 3\nbatch:", 9, "epochs", ("did you mean 'stages.NAME.epochs'?",)
    ),
    "split of files": Broken(
        "files: rows.csv", "files: {train: a.csv, valid: b.csv}", 7, "data.files.valid", ("'validation'?",)
    ),
    "key of a list's map": Broken(
        "batch:", "tracking: {wandb: {project: p, tag: [a]}}\nbatch:", 9, "tracking.wandb.tag", ("'tags'?",)
    ),
    # wrong types
    "text for a number": Broken(
        "learning_rate: 1e-3", "learning_rate: '1e-3'", 10, "optimizer.learning_rate",
        ("text '1e-3'", "take the quotes off", "a number above 0"),
    ),
    "number for text": Broken("name: good", "name: 2024", 1, "name", ("number 2024", "put it in quotes")),
    "share for a whole number": Broken("epochs: 2", "epochs: 1.5", 18, "stages.full.epochs", ("number 1.5", "whole")),
    "true for a number": Broken("epochs: 2", "epochs: true", 18, "stages.full.epochs", ("true is not allowed",)),
    "text for a list": Broken("train: .all.", "train: all", 17, "stages.full.train", ("text 'all'", "write [all]")),
    "list for a map": Broken("batch: .*", "batch: [32]", 9, "batch", ("a list of 1", "global_size and micro_size")),
    "text for a map of a kind": Broken(
        "optimizer: .*", "optimizer: sgd", 10, "optimizer", ("text 'sgd'", "write {kind: sgd}")
    ),
    "map for a list": Broken(
        r"stages:(.|\n)*", "stages:\n  full: {train: [all]}", 12, "stages", ("a map with full", "begin each entry")
    ),
    "word for true or false": Broken(
        "learning_rate: 1e-3", "kind: sgd, momentum: 0.9, nesterov: yes", 10, "optimizer.nesterov",
        ("text 'yes'", "write true"),
    ),
    "number in a list of text": Broken(
        "text-classification}", "text-classification, labels: [a, 0]}", 2, "task.labels.1", ("number 0", "in quotes")
    ),
    "nothing for a map": Broken("batch: .*", "batch:", 9, "batch", ("null is not allowed",)),
    # wrong values
    "kind of task": Broken(
        "text-classification", "text-clasification", 2, "task.kind",
        ("'text-clasification'", "did you mean 'text-classification'? It takes", "causal-lm"),
    ),
    "task to come": Broken(
        "text-classification", "token-classification", 2, "task.kind",
        ("'token-classification' is not built yet; built: text-classification, image-classification and causal-lm",),
    ),
    "source to come": Broken("source: csv", "source: audiofolder", 6, "data.source", ("not built yet; built: csv",)),
    "schedule to come": Broken("batch:", "schedule: {kind: plateau}\nbatch:", 9, "schedule.kind", ("not built yet",)),
    "strategy to come": Broken(
        "batch:", "sharding: {strategy: fsdp}\nbatch:", 9, "sharding.strategy",
        ("not built yet; built: auto, ddp, zero1, zero2 and zero3",),
    ),
    "path of no disk": Broken(
        "batch:", "sharding: {strategy: zero3, offload: nvme, nvme_path: scratch}\nbatch:", 9, "sharding.nvme_path",
        ("'scratch' is not absolute", "$SLURM_TMPDIR"),
    ),
    "kind of optimizer": Broken("learning_rate: 1e-3", "kind: adamv", 10, "optimizer.kind", ("did you mean 'adam",)),
    "kind of schedule": Broken("batch:", "schedule: {kind: cosin}\nbatch:", 9, "schedule.kind", ("'cosine'?",)),
    "source": Broken("source: csv", "source: cvs", 6, "data.source", ("did you mean 'csv'?", "imagefolder")),
    "precision": Broken("batch:", "precision: bf61\nbatch:", 9, "precision", ("'bf61'", "'bf16'?", "fp32")),
    "interval": Broken("best: accuracy", "every: 1 epoch", 11, "evaluate.every", ("'1 epoch'", "1ep or 200st")),
    "interval of nothing": Broken("best: accuracy", "every: 0st", 11, "evaluate.every", ("'0st'", "1ep or 200st")),
    "negative rate": Broken(
        "learning_rate: 1e-3", "learning_rate: -1e-3", 10, "optimizer.learning_rate", ("number -0.001", "above 0")
    ),
    "rate that is none": Broken(
        "learning_rate: 1e-3", "learning_rate: .nan", 10, "optimizer.learning_rate", ("nan is not allowed",)
    ),
    "rate without end": Broken(
        "learning_rate: 1e-3", "learning_rate: .inf", 10, "optimizer.learning_rate", ("inf is not allowed",)
    ),
    "three betas": Broken("learning_rate: 1e-3", "betas: [0.9, 0.99, 0.9]", 10, "optimizer.betas", ("a list of 2",)),
    "beta of one": Broken("learning_rate: 1e-3", "betas: [0.9, 1]", 10, "optimizer.betas.1", ("number 1", "below 1")),
    "zero3 with nothing to train": Broken(
        r"train: \[all\]", "train: []\n    sharding: {strategy: zero3}", 17, "stages.full.train",
        ("an empty list", "not empty"),
    ),
    "no stages": Broken(r"stages:(.|\n)*", "stages: []", 12, "stages", ("an empty list",)),
    "name": Broken("name: good", "name: Good Name", 1, "name", ("'Good Name'", "a-z 0-9")),
    "empty source": Broken("org/bert", "''", 4, "model.source", ("text ''", "not empty")),
    # what is missing
    "no model": Broken("model:\n  source: org/bert\n", "", 1, "model", ("is missing", "a map with source")),
    "no files": Broken("  files: rows.csv\n", "", 5, "data.files", ("is missing", "a list")),
    "no kind": Broken("{kind: text-classification}", "{labels: [a, b]}", 2, "task.kind", ("is missing", "causal-lm")),
    "no train": Broken(r"    train: \[all\]\n", "", 16, "stages.full.train", ("is missing",)),
    "no name of a stage": Broken(
        "  - name: full\n    train", "  - train", 16, "stages.1.name", ("is missing", "a-z 0-9")
    ),
    # YAML
    "key twice": Broken(
        "    epochs: 2", "    epochs: 2\n    epochs: 3", 19, "stages.full.epochs",
        ("'epochs' is written 2 times in lines 18 and 19; keep one",),
    ),
    "tab": Broken("  source: org/bert", "\tsource: org/bert", 4, "", ("a tab", "spaces")),
    "bracket": Broken(r"\[all\]", "[all", 18, "", ("not valid YAML",)),
    "empty file": Broken("", "# nothing\n", 1, "", ("is empty", "name, task, model, data and stages")),
    "list": Broken("", "- name: good\n", 1, "", ("is not a map",)),
    "two documents": Broken("model:", "---\nmodel:", 3, "", ("not valid YAML", "single document")),
    "tag": Broken("org/bert", "!!python/object:os.system x", 4, "model.source", ("tag !!python/object",)),
    "key that is no text": Broken("{text: text,", "{1: text,", 8, "data.columns", ("key 1 is not text", "quotes")),
    "anchor in itself": Broken(r"\[head\]", "&a [*a]", 14, "stages.head.train.0", ("an anchor that contains itself",)),
    # rules
    "names of stages": Broken("name: full", "name: head", 16, "stages.1.name", ("'head' is already", "stage 0")),
    "epochs and steps": Broken(
        "epochs: 2", "epochs: 2\n    steps: 5", 19, "stages.full.steps", ("both steps: 5 and epochs: 2", "null")
    ),
    "neither epochs nor steps": Broken("    epochs: 2\n", "", 16, "stages.full", ("neither epochs nor steps",)),
    "global size": Broken(
        "global_size: 32", "global_size: 32, micro_size: 12", 9, "batch.micro_size",
        ("12 does not divide batch.global_size 32", "did you mean 8?"),
    ),
    "offload without zero": Broken(
        "batch:", "sharding: {offload: cpu}\nbatch:", 9, "sharding.offload", ("zero1, zero2 or zero3", "auto, which")
    ),
    "offload under a stage's ddp": Broken(
        "epochs: 2\n", "epochs: 2\n    sharding: {strategy: ddp, offload: cpu}\n", 19,
        "stages.full.sharding.offload", ("'cpu' needs zero1", "is ddp"),
    ),
    "nesterov": Broken("learning_rate: 1e-3", "kind: sgd, nesterov: true", 10, "optimizer.nesterov", ("momentum",)),
    "column": Broken(
        "{text: text,", "{txet: text,", 8, "data.columns.txet", ("no column 'txet'; did you mean 'text'?",)
    ),
    "labels twice": Broken(
        "text-classification}", "text-classification, labels: [a, b, a]}", 2, "task.labels.2",
        ("'a' is already number 0",),
    ),
    "one label": Broken("text-classification}", "text-classification, labels: [a]}", 2, "task.labels", ("at least 2",)),
    "metric": Broken("accuracy", "acuracy", 11, "evaluate.best", ("did you mean 'accuracy'?", "precision")),
    "metric of another task": Broken("accuracy", "perplexity", 11, "evaluate.best", ("not a metric of text-class",)),
    "two metrics": Broken(
        "epochs: 2", "epochs: 2\n    evaluate: {best: f1}", 19, "stages.full.evaluate.best", ("'f1' differs from 'acc",)
    ),
    "best without evaluation": Broken(
        "best: accuracy", "best: accuracy, every: never", 11, "evaluate.best", ("never in every stage",)
    ),
    "best without validation rows": Broken(
        "  files: rows.csv", "  files: rows.csv\n  split: {validation: 0}", 12, "evaluate.best", ("validation is 0",)
    ),
    "stratify without a split": Broken(
        "  files: rows.csv", "  files: {train: a, validation: b}\n  split: {stratify: label}", 8,
        "data.split.stratify", ("yours names them",),
    ),
    "files without train": Broken("files: rows.csv", "files: {test: a}", 7, "data.files", ("no train", "test")),
    "carry in the first stage": Broken(
        r"train: \[head\]", "train: [head]\n    optimizer_state: carry", 15, "stages.head.optimizer_state", ("first",)
    ),
    "carry to another optimizer": Broken(
        "epochs: 2", "epochs: 2\n    optimizer_state: carry\n    optimizer: {kind: sgd}", 19,
        "stages.full.optimizer_state", ("head trains with adamw, full with sgd",),
    ),
    "weights": Broken(
        "org/bert", "org/bert\n  weights: pretraind", 5, "model.weights", ("did you mean 'pretrained'?",)
    ),
    "revision of a package": Broken("org/bert", "package:a/b\n  revision: v1", 5, "model.revision", ("of the hub",)),
    "torchvision for texts": Broken("org/bert", "torchvision:resnet18", 4, "model.source", ("classifies images",)),
    "texts without labels": Broken("source: csv", "source: text", 6, "data.source", ("no labels",)),
    "encoding of parquet": Broken("source: csv", "source: parquet\n  encoding: utf-8", 7, "data.encoding", ("binary",)),
    # extends
    "a seed that no generator takes": Broken("name: good", f"seed: {10**22}\nname: good", 1, "seed", ("above 9",)),
    "2,000 brackets": Broken(
        "name: good", "seed: " + "[" * 2000 + "]" * 2000 + "\nname: good", 1, "", ("more than 50 maps and lists",)
    ),
    "no such base": Broken("name: good", "extends: bsae.yaml\nname: good", 1, "extends", ("did you mean", "base.yaml")),
    "extends itself": Broken("name: good", "extends: recipe.yaml\nname: good", 1, "extends", ("in a circle",)),
    "extends a list": Broken("name: good", "extends: [a]\nname: good", 1, "extends", ("takes one path",)),
    # --set
    "set an unknown key": Broken(
        "x^", "", None, "optimizer.learning_rat", ("did you mean 'learning_rate'?",), ("optimizer.learning_rat=1",)
    ),
    "set an unknown stage": Broken(
        "x^", "", None, "stages.ful.epochs", ("no stage 'ful'; the stages are head (0), full (1)",),
        ("stages.ful.epochs=1",),
    ),
    "set inside text": Broken("x^", "", None, "name.first", ("name is 'good'",), ("name.first=a",)),
    "set inside a list": Broken("x^", "", None, "stages.full.train.0", ("set it whole",), ("stages.full.train.0=a",)),
    "set nothing": Broken("x^", "", None, "", ("'seed'", "KEY.KEY=VALUE"), ("seed",)),
    "set a bracket": Broken("x^", "", None, "task.labels", ("'[a'", "not valid YAML"), ("task.labels=[a",)),
    "set a wrong value": Broken("x^", "", None, "seed", ("number -1", "from 0"), ("seed=-1",)),
    "set a stage by another digit": Broken(
        "x^", "", None, "stages.².epochs", ("no stage '²'",), ("stages.².epochs=2",)
    ),
    "set a stage far away": Broken(
        "x^", "", None, f"stages.{'9' * 5000}.epochs", ("no stage",), (f"stages.{'9' * 5000}.epochs=2",)
    ),
    "set a number beyond 64 bits": Broken(
        "x^", "", None, "seed", ("it is above 9223372036854775807; it takes a whole number from 0",), (f"seed={2**63}",)
    ),
    "set an interval beyond 64 bits": Broken(
        "x^", "", None, "checkpoint.every", ("999...' is not allowed; it takes text such as 1ep",),
        (f"checkpoint.every={'9' * 5000}st",),
    ),
    "set brackets without end": Broken("x^", "", None, "seed", ("more than 50 maps",), ("seed=" + "[" * 2000,)),
    "set extends": Broken("x^", "", None, "extends", ("write it in the file",), ("extends=base.yaml",)),
    "set steps beside epochs": Broken("x^", "", None, "stages.full.steps", ("both",), ("stages.1.steps=4",)),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken_recipe(broken: Broken, tmp_path: Path) -> None:
    text = re.sub(broken.old, lambda _: broken.new, GOOD, count=1) if broken.old else broken.new
    assert broken.sets or text != GOOD
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    (tmp_path / "base.yaml").write_text(GOOD)
    with pytest.raises(RecipeError) as raised:
        load(path, broken.sets)
    (problem,) = raised.value.problems
    assert (problem.path, problem.line) == (broken.path, broken.line), str(problem)
    assert problem.file == ("--set" if broken.sets else str(path))
    for words in broken.says:
        assert words in problem.message
    assert not re.search("pydantic|Input should|union_tag|type=", problem.message)


def test_a_long_value_is_quoted_in_part(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"seed: {'9' * 5000}\n{GOOD}")
    with pytest.raises(RecipeError) as raised:
        load(tmp_path / "recipe.yaml", (f"batch.global_size={'9' * 4000}",))
    assert [problem.path for problem in raised.value.problems] == ["seed", "batch.global_size"]
    assert all("999..." in problem.message and len(problem.message) < 200 for problem in raised.value.problems)


def test_good_recipe(tmp_path: Path) -> None:
    """What the table breaks is whole."""
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    assert [stage.name for stage in load(path).stages] == ["head", "full"]


IMAGES = """\
name: images
task: {kind: image-classification}
model: {source: "torchvision:resnet18"}
data: {source: imagefolder, files: images}
stages:
  - {name: full, train: [all], epochs: 1}
"""
TEXT = """\
name: text
task: {kind: causal-lm}
model: {source: org/gpt}
data: {source: text, files: a.txt}
stages:
  - {name: full, train: [all], epochs: 1}
"""


@pytest.mark.parametrize(
    ("text", "sets", "path", "says"),
    [
        (IMAGES, ("data.max_length=3",), "data.max_length", "in tokens"),
        (IMAGES, ("model.gguf_file=a.gguf",), "model.gguf_file", "no GGUF files"),
        (IMAGES, ("model.revision=main",), "model.revision", "for models of the hub"),
        (IMAGES, ("data.columns={text: caption}",), "data.columns.text", "it takes image or label"),
        (IMAGES, ("data.encoding=latin-1",), "data.encoding", "one of source csv"),
        (IMAGES, ("task.kind=causal-lm", "model.source=org/gpt"), "data.source", "imagefolder holds images"),
        (TEXT, ("model.head.init=zeros",), "model.head.init", "keeps the model's own"),
        (TEXT, ("evaluate.best=accuracy",), "evaluate.best", "it takes loss or perplexity"),
        (TEXT, ("evaluate={every: never, micro_size: 3}",), "evaluate.micro_size", "never used"),
        (TEXT, ("task.image_size=3",), "task.image_size", "one of kind image-classification"),
    ],
)
def test_keys_that_nothing_would_read(text: str, sets: tuple[str, ...], path: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as raised:
        load(tmp_path / "recipe.yaml", sets)
    (problem,) = raised.value.problems
    assert problem.path == path
    assert says in problem.message


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """Duplicate keys, wrong types, rules and overrides together, in the order of the lines."""
    path = tmp_path / "recipe.yaml"
    text = GOOD.replace("learning_rate: 1e-3", "learning_rate: -1").replace("accuracy", "acuracy")
    path.write_text(
        text.replace("    epochs: 2", "    epochs: 2\n    epochs: 3\n    step: 3\n    seed: x") + "seed: 1\nseed: 2\n"
    )
    with pytest.raises(RecipeError) as raised:
        load(path, ["batch.micro_size=5", "stages.nobody.epochs=1"])
    assert [(problem.path, problem.line) for problem in raised.value.problems] == [
        ("optimizer.learning_rate", 10),
        ("evaluate.best", 11),
        ("stages.full.epochs", 19),
        ("stages.full.step", 20),
        ("stages.full.seed", 21),
        ("seed", 23),
        ("stages.nobody.epochs", None),
        ("batch.micro_size", None),
    ]
    assert str(raised.value).splitlines()[0].startswith(f"{path}:10: optimizer.learning_rate: number -1")


def test_a_default_of_several_stages_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("batch: {global_size: 32}", "batch: {global_size: 0}\nclip_grad_norm: yes"))
    with pytest.raises(RecipeError) as raised:
        load(path)
    assert [(problem.path, problem.line) for problem in raised.value.problems] == [
        ("batch.global_size", 9),
        ("clip_grad_norm", 10),
    ]


def test_problems_of_a_base_are_reported_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("learning_rate: 1e-3", "learning_rate: 0\n  "))
    (tmp_path / "recipe.yaml").write_text("extends: base.yaml\nevaluate: {bst: f1}\n")
    with pytest.raises(RecipeError) as raised:
        load(tmp_path / "recipe.yaml")
    assert [(problem.file, problem.line) for problem in raised.value.problems] == [
        (str(tmp_path / "base.yaml"), 10),
        (str(tmp_path / "recipe.yaml"), 2),
    ]


def test_circle_of_three(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nextends: {base}.yaml\n")
    with pytest.raises(RecipeError, match=r"c\.yaml:2: extends: .*a\.yaml -> b\.yaml -> c\.yaml -> a\.yaml"):
        load(tmp_path / "a.yaml")


def test_missing_recipe_names_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    with pytest.raises(
        RecipeError, match=r"recipee\.yaml' cannot be read: no such file.*did you mean '.*recipe\.yaml'"
    ):
        load(tmp_path / "recipee.yaml")


def test_recipe_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"name: a\n# caf\xe9\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:2: byte 13 is not UTF-8"):
        load(tmp_path / "recipe.yaml")


JUNK = st.recursive(
    st.sampled_from([None, True, 0, -1, 2.5, float("nan"), "", "x", "all", "1ep", "cpu", "adamw", "csv"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["kind", "source", "name", "train", "files", "str", "0", "csv", "betas", "a.b"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
KEYS = ["name", "task", "model", "data", "stages", "optimizer", "schedule", "batch", "sharding", "evaluate", "tracking"]


@given(
    st.dictionaries(st.sampled_from([*KEYS, "extra"]), JUNK, max_size=4), st.dictionaries(st.sampled_from(KEYS), JUNK)
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_junk_is_refused_in_words(tmp_path: Path, at_the_top: dict[str, Any], in_the_stage: dict[str, Any]) -> None:
    """Whatever stands in a recipe, it is a recipe or has problems of its own; nothing else is raised."""
    tree, _ = parse(GOOD, "good")
    assert tree is not None
    plain = tree.plain() | at_the_top
    if isinstance(plain["stages"], list) and plain["stages"] and isinstance(plain["stages"][0], dict):
        plain["stages"][0] |= in_the_stage
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(plain))
    problems: list[Problem] | None = None
    try:
        load(path)
    except RecipeError as error:
        problems = error.problems
    assert problems != []
    assert all(problem.line and problem.message for problem in problems or [])
    assert len(set(problems or [])) == len(problems or [])
