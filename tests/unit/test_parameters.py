"""Patterns, depths and groups, on made-up facts: no model is built."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import RecipeError
from launcher.plan import update_size
from launcher.plan.parameters import ModelFacts, ParameterFacts, PatternError, depths, groups, select
from launcher.recipe import Stage

NUM_LAYERS = 4
LAYER_NAMES = [
    f"bert.layer.{index}.{name}"
    for index in range(NUM_LAYERS)
    for name in ("attention.query.weight", "attention.query.bias", "norm.weight")
]
NAMES = [
    "bert.embeddings.word.weight",
    *LAYER_NAMES,
    "bert.pooler.weight",
    "classifier.weight",
    "classifier.bias",
]
BERT = ModelFacts(
    parameters=tuple(
        ParameterFacts(name, (8, 4), "float32", True)
        if name.endswith("weight") and "norm" not in name
        else ParameterFacts(name, (8,), "float32", False)
        for name in NAMES
    ),
    layers=tuple((f"bert.layer.{index}.",) for index in range(NUM_LAYERS)),
    head=("classifier.",),
    config={"architecture": "TinyBert"},
)
TIED = ModelFacts(
    parameters=tuple(
        ParameterFacts(name, (8, 4), "float32", True) for name in ("embed.weight", "layer.0.weight", "norm.weight")
    ),
    layers=(("layer.0.",),),
    head=("embed.weight",),
)
ADAPTED = replace(
    BERT,
    parameters=tuple(
        own
        for parameter in BERT.parameters
        for own in (
            (parameter, replace(parameter, name=f"{parameter.name[:-6]}lora_A.weight", is_adapter=True))
            if parameter.name.endswith("query.weight")
            else (parameter,)
        )
    ),
)
SHAPELESS = ModelFacts(
    parameters=BERT.parameters, layers=(), head=("classifier.",), config={"architecture": "Shapeless"}
)


def stage(train: list[str], **settings: object) -> Stage:
    return Stage.model_validate({"name": "tune", "train": train, "epochs": 1, **settings})


def layer(*indices: int) -> tuple[str, ...]:
    return tuple(name for name in LAYER_NAMES if int(name.split(".")[2]) in indices)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("all", tuple(NAMES)),
        ("head", ("classifier.weight", "classifier.bias")),
        ("backbone", tuple(NAMES[:-2])),
        ("layers[0]", layer(0)),
        ("layers[-1]", layer(3)),
        ("layers[-2:]", layer(2, 3)),
        ("layers[:1]", layer(0)),
        ("layers[1:3]", layer(1, 2)),
        ("layers[:]", layer(0, 1, 2, 3)),
        ("layers[2:99]", layer(2, 3)),
        ("bert.pooler", ("bert.pooler.weight",)),
        ("bert.pooler.", ("bert.pooler.weight",)),
        ("bert.pooler.*", ("bert.pooler.weight",)),
        ("bert.pooler.weight", ("bert.pooler.weight",)),
        ("bert.layer.[12]", layer(1, 2)),
        ("*.query.bias", tuple(name for name in LAYER_NAMES if name.endswith("query.bias"))),
        ("*.attention", tuple(name for name in LAYER_NAMES if "attention" in name)),
        (r"re:^bert\.layer\.[01]\.norm", ("bert.layer.0.norm.weight", "bert.layer.1.norm.weight")),
        ("re:pool", ("bert.pooler.weight",)),
    ],
)
def test_a_pattern_names_these_in_model_order(pattern: str, expected: tuple[str, ...]) -> None:
    assert select([pattern], BERT) == expected


@pytest.mark.parametrize("pattern", ["head", "backbone", "layers[-2:]", "bert.pooler", "*.query.bias"])
def test_what_names_the_model_s_own_parameters_leaves_adapters_out(pattern: str) -> None:
    assert select([pattern], ADAPTED) == select([pattern], BERT)


def test_lora_names_the_adapters_and_so_do_globs_and_all() -> None:
    names = tuple(f"bert.layer.{index}.attention.query.lora_A.weight" for index in range(NUM_LAYERS))
    assert select(["lora"], ADAPTED) == select(["*.lora_A.*"], ADAPTED) == names
    assert select(["re:layer\\.2.*lora"], ADAPTED) == names[2:3]
    assert set(select(["all"], ADAPTED)) == {*NAMES, *names}
    assert depths(ADAPTED)[names[2]] == depths(ADAPTED)["bert.layer.2.norm.weight"]
    with pytest.raises(PatternError, match="'lora' matches no parameter"):
        select(["lora"], BERT)


def test_patterns_add_up_once_and_in_model_order() -> None:
    assert select(["head", "layers[3]", "*.layer.3.*"], BERT) == (*layer(3), "classifier.weight", "classifier.bias")


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("classifer", "classifier"),
        ("heads", "head"),
        ("Backbone", "backbone"),
        ("layer.3", "bert.layer.3"),
        ("pooler", "bert.pooler"),
        ("bert.layer.9.*", "bert.layer.3"),
        ("bert.embedding.word", "bert.embeddings.word"),
        ("layers[a]", "layers[-2:]"),
        ("layers", "layers[0]"),
        ("layers[]", "layers[0]"),
    ],
)
def test_a_pattern_that_matches_nothing_names_near_ones(pattern: str, near: str) -> None:
    with pytest.raises(PatternError) as raised:
        select([pattern], BERT)
    assert raised.value.pattern == pattern
    assert near in raised.value.near
    assert repr(pattern) in str(raised.value)
    assert near in str(raised.value)


@pytest.mark.parametrize("pattern", ["layers[4]", "layers[-5]", "layers[4:]", "layers[3:1]"])
def test_a_layer_out_of_range_says_how_many_there_are(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"TinyBert has 4, layers\[0\] to layers\[3\]"):
        select([pattern], BERT)


def test_layers_of_a_model_without_blocks_name_the_architecture() -> None:
    with pytest.raises(PatternError, match="Shapeless has no blocks"):
        select(["layers[-1]"], SHAPELESS)
    assert select(["head"], SHAPELESS) == ("classifier.weight", "classifier.bias")


def test_a_broken_regular_expression_is_a_users_mistake() -> None:
    with pytest.raises(PatternError, match="not a regular expression"):
        select(["re:("], BERT)
    with pytest.raises(PatternError, match="is empty and would name every parameter; write all"):
        select(["re:"], BERT)


def test_tied_embeddings_are_the_head() -> None:
    assert select(["head"], TIED) == ("embed.weight",)
    assert select(["backbone"], TIED) == ("layer.0.weight", "norm.weight")
    assert depths(TIED)["embed.weight"] == ("head", 0)


def test_depth_counts_from_the_head_down() -> None:
    found = depths(BERT)
    assert found["classifier.weight"] == ("head", 0)
    assert found["bert.pooler.weight"] == ("other", 0)
    assert [found[layer(index)[0]] for index in range(4)] == [(f"layers[{index}]", 4 - index) for index in range(4)]
    assert found["bert.embeddings.word.weight"] == ("embeddings", 5)


def test_without_decay_a_stage_has_two_groups_split_by_weight_decay() -> None:
    optimizer = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
    decayed, spared = groups(stage(["head", "layers[3]"], optimizer=optimizer), BERT)
    assert (decayed.pattern, decayed.learning_rate, decayed.weight_decay) == ("head, layers[3]", 1e-3, 0.1)
    assert decayed.names == ("bert.layer.3.attention.query.weight", "classifier.weight")
    assert decayed.num_elements == 64
    assert (spared.pattern, spared.learning_rate, spared.weight_decay) == ("head, layers[3]", 1e-3, 0.0)
    assert spared.names == ("bert.layer.3.attention.query.bias", "bert.layer.3.norm.weight", "classifier.bias")


def test_layer_decay_is_over_the_full_depth_whatever_is_frozen() -> None:
    optimizer = {"kind": "adamw", "learning_rate": 1.0, "weight_decay": 0.0}
    rates = {g.pattern: g.learning_rate for g in groups(stage(["all"], optimizer=optimizer, layer_decay=0.5), BERT)}
    assert rates == {
        "embeddings": 0.5**5,
        "layers[0]": 0.5**4,
        "layers[1]": 0.5**3,
        "layers[2]": 0.5**2,
        "layers[3]": 0.5,
        "other": 1.0,
        "head": 1.0,
    }
    some = {
        g.pattern: g.learning_rate
        for g in groups(stage(["head", "layers[1]"], optimizer=optimizer, layer_decay=0.5), BERT)
    }
    assert some == {"layers[1]": 0.5**3, "head": 1.0}


def test_a_learning_rate_of_its_own_replaces_the_base_before_the_decay_and_the_last_holds() -> None:
    found = groups(
        stage(
            ["all"],
            optimizer={"kind": "sgd", "learning_rate": 1.0},
            layer_decay=0.5,
            learning_rates={"layers[:]": 8.0, "layers[3]": 16.0},
        ),
        BERT,
    )
    rate = {name: (group.pattern, group.learning_rate) for group in found for name in group.names}
    assert rate["bert.layer.3.norm.weight"] == ("layers[3]", 8.0)
    assert rate["bert.layer.0.norm.weight"] == ("layers[:]", 0.5)
    assert rate["classifier.weight"] == ("head", 1.0)


def test_all_wrong_patterns_of_a_stage_come_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        groups(stage(["classifer", "layers[9]", "head"], learning_rates={"nothing": 1.0}), BERT)
    assert [problem.path for problem in raised.value.problems] == [
        "stages.tune.train",
        "stages.tune.train",
        "stages.tune.learning_rates",
    ]


def test_a_learning_rate_for_frozen_parameters_only_is_refused() -> None:
    with pytest.raises(RecipeError, match="names frozen parameters only"):
        groups(stage(["head"], learning_rates={"layers[0]": 1.0}), BERT)


def test_layer_decay_without_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="Shapeless has no blocks"):
        groups(stage(["head"], layer_decay=0.9), SHAPELESS)


@given(
    train=st.lists(
        st.sampled_from(["head", "all", "backbone", "layers[-2:]", "layers[0]", "*.bias", "re:norm"]), min_size=1
    ),
    layer_decay=st.none() | st.floats(0.1, 1.0),
)
def test_groups_part_the_selected_parameters(train: list[str], layer_decay: float | None) -> None:
    found = groups(stage(train, layer_decay=layer_decay), BERT)
    names = [name for group in found for name in group.names]
    assert sorted(names) == sorted(select(train, BERT))
    assert len(names) == len(set(names))
    keys = [(group.pattern, group.learning_rate, group.weight_decay) for group in found]
    assert len(keys) == len(set(keys))
    for group in found:
        spared = {p.name for p in BERT.parameters if not p.decays}
        assert (group.weight_decay == 0.0) == spared.issuperset(group.names)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layer_decay": 0.9}, None),
        ({"layer_decay": 0.02}, "3 norm weights may not move at rates of 3.2e-12 to 8e-09: "),
        (
            {"optimizer": {"kind": "adam", "learning_rate": 1e-9}},
            "4 norm weights may not move at a learning rate of 1e-09",
        ),
        ({"optimizer": {"kind": "sgd", "learning_rate": 1e-9}}, "4 norm weights may not move"),  # clipped to norm 1
        ({"optimizer": {"kind": "sgd", "learning_rate": 1e-9}, "clip_grad_norm": None}, None),  # who knows
        ({"optimizer": {"kind": "sgd", "learning_rate": 1e-9, "momentum": 0.99}}, None),
    ],
)
def test_the_plan_foresees_norm_weights_that_rounding_keeps_still(
    settings: dict[str, object], says: str | None
) -> None:
    tuned = stage(["all"], **{"clip_grad_norm": 1.0} | settings)
    found = update_size.warnings(tuned, groups(tuned, BERT), BERT)
    assert len(found) == (says is not None)
    if says:
        assert found[0].startswith(f"stage tune: {says}")
        assert ("raise layer_decay" in found[0]) == ("layer_decay" in settings)
    head = stage(["head"], layer_decay=0.02)
    assert update_size.warnings(head, groups(head, BERT), BERT) == []
