"""Adapters: which layers get them, their first values, and that merging them is what peft does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import constants
from torch import nn

from launcher import models
from launcher.errors import UserError
from launcher.models import adapters
from launcher.models.parameter_names import named_parameters
from launcher.models.weights import load_weights, named_state, read_weights, write_weights
from launcher.recipe import CausalLM, ImageClassification, Lora, Model, Task, TextClassification

TEXT = TextClassification(kind="text-classification")
IMAGE = ImageClassification(kind="image-classification")
CAUSAL = CausalLM(kind="causal-lm")
LABELS = ["bad", "good"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = transformers.BertConfig(**SIZES, **WORDS)
GPT2 = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, **WORDS)
VIT = transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)


def tiny(folder: Path, config: transformers.PreTrainedConfig = BERT, **lora: object) -> Model:
    config.save_pretrained(folder)
    return Model.model_validate({"source": str(folder), "weights": "random", "lora": {"rank": 2, "alpha": 6, **lora}})


def adapted(model: Model, task: Task = TEXT) -> set[str]:
    """The layers that get adapters, by the model's facts."""
    found = models.facts(model, task, None if task is CAUSAL else 2, Path())
    names = [parameter.name for parameter in found.parameters if parameter.is_adapter]
    layers = {name.partition(".lora_")[0] for name in names}
    assert set(names) == {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    return layers


ATTENTION = "bert.encoder.layer.{}.attention.self."


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("auto", {ATTENTION.format(index) + name for index in (0, 1) for name in ("query", "value")}),
        (["query"], {ATTENTION.format(index) + "query" for index in (0, 1)}),
        (["self.key"], {ATTENTION.format(index) + "key" for index in (0, 1)}),
        (["*.1.attention.self.*"], {ATTENTION.format(1) + name for name in ("query", "key", "value")}),
        (["*.0.intermediate.*", "bert.pooler.dense"], {"bert.encoder.layer.0.intermediate.dense", "bert.pooler.dense"}),
    ],
)
def test_targets_are_ends_of_names_or_globs(targets: object, expected: set[str], tmp_path: Path) -> None:
    assert adapted(tiny(tmp_path, targets=targets)) == expected


@pytest.mark.parametrize(
    ("config", "task", "targets", "message"),
    [
        (BERT, TEXT, ["q_proj"], r"model\.lora\.targets: 'q_proj' names no linear layer of BertForSeq"),
        (BERT, TEXT, ["LayerNorm"], "'LayerNorm' names no linear layer.* end with: query, key, value, dense$"),
        (BERT, TEXT, ["classifier"], "names classifier, which is of the head: train: .head. trains it whole"),
        (VIT, IMAGE, "auto", "auto: peft has no default for vit .ViTForImageClassification.; name some of its linear"),
        (GPT2, CAUSAL, ["lm_head"], "names lm_head, which is of the head"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_say_what_there_is(
    config: transformers.PreTrainedConfig, task: Task, targets: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        models.facts(tiny(tmp_path, config, targets=targets), task, None if task is CAUSAL else 2, Path())


def test_a_default_of_peft_may_be_a_regular_expression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert any(isinstance(names, str) for names in defaults.values()), "Gemma 4's is one"
    monkeypatch.setitem(defaults, "bert", r".*\.1\..*\.(query|key)")
    assert adapted(tiny(tmp_path)) == {ATTENTION.format(1) + name for name in ("query", "key")}


def test_first_values_are_a_function_of_the_seed_and_change_nothing(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    before = torch.random.get_rng_state()
    first, again, other = (models.materialise(model, TEXT, LABELS, seed, tmp_path).eval() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    of_first, of_again, of_other = (dict(named_parameters(module)) for module in (first, again, other))
    for name, value in of_first.items():
        assert torch.equal(value, of_again[name]), name
        if ".lora_A." in name:
            assert not torch.equal(value, of_other[name])
            assert 0 < value.abs().max() <= 1 / value.shape[1] ** 0.5, "Kaiming's uniform with a = sqrt(5)"
        assert ".lora_B." not in name or not value.any()
    bare = models.materialise(model.model_copy(update={"lora": None}), TEXT, LABELS, 3, tmp_path).eval()
    for name, value in bare.named_parameters():
        assert torch.equal(value, of_first[name]), "the base starts as it would without adapters"
    ids = torch.arange(8)[None]
    torch.testing.assert_close(first(input_ids=ids).logits, bare(input_ids=ids).logits)


def filled(build: Callable[[], nn.Module]) -> nn.Module:
    """The module with other values, so that adapters do something."""
    module = build().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(named_parameters(module)):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) / 4)
    return module


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize(("config", "task"), [(BERT, TEXT), (GPT2, CAUSAL)], ids=["linear", "conv1d"])
def test_merged_it_is_what_peft_merges(config: transformers.PreTrainedConfig, task: Task, tmp_path: Path) -> None:
    """Names, bits and logits; through a folder of weights, as a run does it."""
    labels = LABELS if task is TEXT else None
    model = tiny(tmp_path, config)
    facts = models.facts(model, task, labels and 2, tmp_path)
    ours = filled(lambda: models.materialise(model, task, labels, 0, tmp_path))
    write_weights(named_state(ours), tmp_path / "weights")
    skeleton = models.skeleton(model, task, labels, tmp_path).eval()
    load_weights(skeleton, tmp_path / "weights")
    logits = skeleton(input_ids=torch.arange(8)[None]).logits
    found = dict(adapters.merged_state(skeleton))

    bare = models.materialise(model.model_copy(update={"lora": None}), task, labels, 0, tmp_path).eval()
    chosen = LoraConfig(
        r=2, lora_alpha=6, target_modules=list(facts.lora_targets or ()), fan_in_fan_out=config is GPT2
    )  # fmt: skip
    peft = get_peft_model(bare, chosen)
    saved = read_weights(tmp_path / "weights")
    with torch.no_grad():
        for name, parameter in named_parameters(peft.base_model.model):
            parameter.copy_(saved[name])
    merged = dict(peft.merge_and_unload().named_parameters())
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], value) for name, value in merged.items())
    assert any(not torch.equal(found[name], saved[name]) for name in found)
    torch.testing.assert_close(peft.base_model.model(input_ids=torch.arange(8)[None]).logits, logits)


def test_only_models_of_transformers_have_adapters(tmp_path: Path) -> None:
    model = Model(source="torchvision:resnet18", weights="random", lora=Lora())
    with pytest.raises(UserError, match=r"model\.lora: adapters are for models of transformers"):
        models.facts(model, IMAGE, 2, tmp_path)
