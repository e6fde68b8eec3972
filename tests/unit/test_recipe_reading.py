"""What a recipe file means: extends, --set, what stages take from the top, and the way back to YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher.errors import RecipeError
from launcher.recipe import SGD, AdamW, Cosine, Linear, Recipe
from launcher.recipe.data import HubData, ImageFolderData, TableData
from launcher.recipe.reading import dump, load, load_with_origins, raw, schema, to_yaml
from launcher.recipe.yaml_tree import parse

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = """\
name: base
task: {kind: text-classification}
model: {source: org/bert}
data:
  source: csv
  files: rows.csv
  columns: {text: body}
  split: {validation: 0.2, seed: 3}
optimizer: {learning_rate: 1e-3, betas: [0.8, 0.9]}
schedule: {warmup: 0.1}
stages:
  - {name: head, train: [head], epochs: 1, sharding: {strategy: ddp}}
  - {name: full, train: [all], epochs: 2, optimizer: {learning_rate: 2e-5}}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def child(base: Path, text: str) -> Path:
    path = base.with_name("child.yaml")
    path.write_text(f"extends: {base.name}\n{text}")
    return path


# --- shipped recipes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load(path)
    assert recipe.name == path.stem.replace("_", "-")
    header = path.read_text().split("\nname:")[0]
    for word in ("# Purpose ", "# Hardware ", "# Command ", "# Expected ", f"recipes/{path.name}"):
        assert word in header


def test_all_recipes_are_shipped() -> None:
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    assert names >= {
        "quickstart", "resnet50_cifar10", "resnet50_stanford_dogs", "bert_csv", "digits_resnet18",
        "fashion_mnist_resnet18", "llama8b_zero3", "llama8b_zero3_offload", "smollm2_causal",
    }  # fmt: skip


def test_offload_variant_differs_in_its_keys_alone() -> None:
    plain, offload = load(RECIPES / "llama8b_zero3.yaml"), load(RECIPES / "llama8b_zero3_offload.yaml")
    assert {stage.sharding.strategy for stage in offload.stages} == {"zero3"}
    assert {stage.sharding.offload for stage in offload.stages} == {"cpu"}
    assert (offload.model, offload.data, offload.task) == (plain.model, plain.data, plain.task)
    assert [stage.batch.global_size for stage in offload.stages] == [64, 64, 64]


# --- what stages take from the top ------------------------------------------------------------------------------------
def test_stages_take_settings_from_the_top(base: Path) -> None:
    head, full = load(base).stages
    assert head.optimizer == AdamW(learning_rate=1e-3, betas=(0.8, 0.9))
    assert full.optimizer == AdamW(learning_rate=2e-5, betas=(0.8, 0.9))
    assert head.schedule == full.schedule == Linear(warmup=0.1)
    assert (head.sharding.strategy, full.sharding.strategy) == ("ddp", "auto")


def test_another_kind_in_a_stage_replaces_the_map(base: Path) -> None:
    head, full = load(base, ["stages.full.optimizer={kind: sgd, momentum: 0.9}"]).stages
    assert head.optimizer == AdamW(learning_rate=1e-3, betas=(0.8, 0.9))
    assert full.optimizer == SGD(kind="sgd", momentum=0.9)


def test_the_same_kind_in_a_stage_merges(base: Path) -> None:
    full = load(base, ["stages.full.optimizer={kind: adamw, epsilon: 1e-6}"]).stages[1]
    assert full.optimizer == AdamW(learning_rate=1e-3, betas=(0.8, 0.9), epsilon=1e-6)


def test_null_in_a_stage_takes_a_setting_back(base: Path) -> None:
    head, full = load(base, ["clip_grad_norm=1.0", "stages.full.clip_grad_norm=null"]).stages
    assert (head.clip_grad_norm, full.clip_grad_norm) == (1.0, None)


# --- extends ----------------------------------------------------------------------------------------------------------
def test_extends_merges_maps_and_replaces_lists(base: Path) -> None:
    recipe = load(
        child(base, "name: child\ndata: {columns: {label: mood}}\nstages: [{name: a, train: [all], steps: 1}]")
    )
    assert recipe.name == "child"
    assert recipe.data.columns == {"text": "body", "label": "mood"}
    assert recipe.data.split.validation == 0.2
    assert [stage.name for stage in recipe.stages] == ["a"]
    assert recipe.stages[0].optimizer.learning_rate == 1e-3


def test_extends_with_another_kind_or_source_replaces_the_map(base: Path) -> None:
    recipe = load(child(base, "data: {source: hub, dataset: a/b}\nschedule: {kind: cosine}\noptimizer: {kind: sgd}"))
    assert recipe.data == HubData(source="hub", dataset="a/b")
    assert recipe.stages[0].schedule == Cosine(kind="cosine")
    assert recipe.stages[0].optimizer == SGD(kind="sgd")


def test_extends_is_relative_to_its_file_and_chains(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "deep" / "middle.yaml").write_text("extends: ../base.yaml\nseed: 1\nprecision: fp32\n")
    (tmp_path / "top.yaml").write_text("extends: deep/middle.yaml\nseed: 2\n")
    recipe = load(tmp_path / "top.yaml")
    assert (recipe.name, recipe.seed, recipe.precision) == ("base", 2, "fp32")


# --- overrides --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["full", "1"])
def test_set_in_a_stage_by_name_and_position(base: Path, stage: str) -> None:
    assert [one.epochs for one in load(base, [f"stages.{stage}.epochs=7"]).stages] == [1, 7]


def test_set_reads_values_as_yaml(base: Path) -> None:
    sets = ["optimizer.betas=[0.5, 0.6]", "optimizer.epsilon=2e-7", "model.revision='1.0'", "data.limit=null", "seed=4"]
    recipe = load(base, sets)
    assert recipe.optimizer == AdamW(learning_rate=1e-3, betas=(0.5, 0.6), epsilon=2e-7)
    assert (recipe.model.revision, recipe.data.limit, recipe.stages[1].seed) == ("1.0", None, 4)


def test_set_makes_the_maps_on_its_way(base: Path) -> None:
    recipe = load(base, ["tracking.wandb.project=demo", "stages.head.optimizer.learning_rate=3e-3"])
    assert recipe.tracking.wandb is not None
    assert recipe.tracking.wandb.project == "demo"
    assert recipe.stages[0].optimizer == AdamW(learning_rate=3e-3, betas=(0.8, 0.9))


def test_set_of_a_map_replaces_it(base: Path) -> None:
    assert load(base, ["data.split={seed: 9}"]).data.split.validation == 0.1


@pytest.mark.parametrize("sets", [("source=imagefolder", "files=images"), ("files=images", "source=imagefolder")])
def test_set_of_another_source_keeps_only_what_was_set(base: Path, sets: tuple[str, str]) -> None:
    with pytest.raises(RecipeError, match="imagefolder holds images"):
        load(base, [f"data.{one}" for one in sets])
    recipe = load(base, ["task.kind=image-classification", *(f"data.{one}" for one in sets)])
    assert recipe.data == ImageFolderData(source="imagefolder", files="images")


def test_set_a_stage_whose_name_has_dots(base: Path) -> None:
    base.write_text(BASE.replace("name: full", "name: v1.full"))
    assert load(base, ["stages.v1.full.epochs=9"]).stages[1].epochs == 9


def test_the_last_set_holds(base: Path) -> None:
    assert load(base, ["seed=1", "seed=2"]).seed == 2


# --- YAML -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5), ("1E3", 1000.0), (".5", 0.5), ("-1", -1), ("010", 10), ("true", True), ("no", "no"),
        ("on", "on"), ("1:30", "1:30"), ("2024-01-02", "2024-01-02"), ("~", None), ("0x1f", "0x1f"), ("1_000", "1_000"),
        ("'2e-5'", "2e-5"), ("e5", "e5"), ("[1, a]", [1, "a"]), ("{a: {b: 1.5}}", {"a": {"b": 1.5}}),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    tree, problems = parse(text, "f")
    assert tree is not None
    assert not problems
    assert tree.plain() == value
    assert type(tree.plain()) is type(value)


def test_anchors_cannot_nest_without_end() -> None:
    text = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
    _, problems = parse(text, "deep.yaml")
    assert problems
    assert all("more than 50 maps and lists" in problem.message for problem in problems)


def test_anchors_and_merge_keys() -> None:
    tree, problems = parse("a: &a {x: 1, y: 2}\nb: *a\nc:\n  <<: *a\n  y: 3\n", "f")
    assert tree is not None
    assert not problems
    assert tree.plain() == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"y": 3, "x": 1}}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TRICKY = st.sampled_from(
    ["no", "1e-5", "2e5", "1", ".5", ".inf", "null", "~", "", "<<", "2024-01-02", "0x1", "a: b", "- a"]
)


@given(PLAIN | TRICKY)
@example({"a\x85b": "\x85"})
@settings(deadline=None)
def test_yaml_of_any_value_reads_back(value: Any) -> None:
    tree, problems = parse(to_yaml(value), "f")
    assert not problems
    assert tree is not None
    assert tree.plain() == value


# --- out again --------------------------------------------------------------------------------------------------------
def test_raw_is_what_was_written_in_one_map(base: Path) -> None:
    plain = raw(child(base, "seed: 5\n"), ["stages.full.epochs=3"])
    assert "extends" not in plain
    assert plain["seed"] == 5
    assert plain["stages"][1] == {"name": "full", "train": ["all"], "epochs": 3, "optimizer": {"learning_rate": 2e-5}}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_raw_and_dump_of_shipped_recipes_load_the_same(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    for text in (to_yaml(raw(path)), dump(recipe)):
        (tmp_path / "again.yaml").write_text(text)
        assert load(tmp_path / "again.yaml") == recipe
        assert yaml.safe_load(text)["name"] == recipe.name


word = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
rate = st.floats(1e-9, 10, allow_nan=False)
share = st.floats(0, 0.99)
optimizers = st.one_of(
    st.fixed_dictionaries({}, optional={"learning_rate": rate}),
    st.builds(lambda betas: {"kind": "adamw", "betas": betas}, st.lists(share, min_size=2, max_size=2)),
    st.fixed_dictionaries({"kind": st.just("sgd"), "momentum": share}, optional={"learning_rate": rate}),
    st.fixed_dictionaries({"kind": st.just("adam")}, optional={"epsilon": rate, "weight_decay": share}),
)
stage_settings = {
    "optimizer": optimizers,
    "schedule": st.sampled_from([{"warmup": 0.1}, {"kind": "cosine", "end": 0.5}, {"kind": "exponential"}]),
    "clip_grad_norm": st.none() | rate,
    "seed": st.integers(0, 2**62),
    "precision": st.sampled_from(["auto", "bf16"]),
    "batch": st.fixed_dictionaries(
        {}, optional={"global_size": st.just(24), "micro_size": st.sampled_from([4, "auto"])}
    ),
    "evaluate": st.fixed_dictionaries({}, optional={"every": st.sampled_from(["2ep", "end"]), "best": st.just("f1")}),
}
stages = st.lists(
    st.fixed_dictionaries(
        {"train": st.lists(word, min_size=1, max_size=3)},
        optional={
            **stage_settings,
            "learning_rates": st.dictionaries(word, rate, max_size=2),
            "layer_decay": st.just(0.5),
        },
    ),
    min_size=1,
    max_size=3,
)
recipes = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True),
        "task": st.fixed_dictionaries(
            {"kind": st.just("text-classification")}, optional={"labels": st.lists(word, min_size=2, unique=True)}
        ),
        "model": st.fixed_dictionaries({"source": st.just("org/model")}, optional={"revision": word}),
        "data": st.fixed_dictionaries({"source": st.just("csv"), "files": word | st.lists(word)}),
        "stages": stages,
    },
    optional=stage_settings,
)


@given(recipes)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_dumped_recipe_loads_equal(tmp_path: Path, plain: dict[str, Any]) -> None:
    for index, stage in enumerate(plain["stages"]):
        stage |= {"name": f"s{index}", "steps": 1}
    (tmp_path / "one.yaml").write_text(to_yaml(plain), encoding="utf-8")
    recipe = load(tmp_path / "one.yaml")
    (tmp_path / "two.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(tmp_path / "two.yaml") == recipe


def test_dump_of_a_recipe_made_in_python(tmp_path: Path) -> None:
    """The stages' own defaults hold against the settings at the top, also on the way back."""
    plain = yaml.safe_load(BASE.replace("1e-3", "0.001").replace("2e-5", "0.00002")) | {"optimizer": SGD(kind="sgd")}
    plain["schedule"]["kind"] = "linear"
    plain["stages"][1]["optimizer"] = AdamW()
    recipe = Recipe.model_validate(plain)
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(tmp_path / "again.yaml") == recipe


def test_origins_say_where_a_key_is(base: Path) -> None:
    """What the model or the data contradicts is reported like everything else."""
    path = child(base, "seed: 5\n")
    origins = load_with_origins(path, ["data.limit=3"])[1]
    problem = origins.problem("stages.full.train.0", "matches no parameter")
    assert str(problem) == f"{base}:13: stages.full.train.0: matches no parameter"
    assert origins.problem("stages.full.optimizer.betas", "x").path == "optimizer.betas"
    assert origins.problem("data.columns.label", "x").line == 7
    assert (origins.problem("seed", "x").file, origins.problem("seed", "x").line) == (str(path), 2)
    assert str(origins.problem("data.limit", "x")) == "--set: data.limit: x"


def test_encodings_and_defaults_of_tables(base: Path) -> None:
    data = load(base).data
    assert isinstance(data, TableData)
    assert (data.encoding, data.max_length) == ("utf-8", 512)


# --- schema -----------------------------------------------------------------------------------------------------------
def test_schema_is_json_and_describes_every_key_with_a_docstring() -> None:
    whole = json.loads(json.dumps(schema()))
    assert whole["properties"]["extends"]["type"] == "string"
    assert "layers[-2:]" in whole["$defs"]["Stage"]["properties"]["train"]["description"]
    assert whole["$defs"]["Stage"]["properties"]["clip_grad_norm"]["description"]
    assert {"required": ["extends"]} in whole["anyOf"]
    assert not whole["$defs"]["SGD"].get("required"), "a stage's map may leave its kind out"
