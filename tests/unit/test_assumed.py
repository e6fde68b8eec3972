"""Planning where the hub cannot be reached: the shipped sizes are right, and whatever is assumed is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from launcher import survey
from launcher.cluster import Cluster
from launcher.costs.peak import GIB
from launcher.errors import UserError
from launcher.plan import assumed
from launcher.recipe import reading

PARAMETERS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "google/gemma-2-9b": 9_241_705_984,
    "openai-community/gpt2": 124_439_808,
    "google/vit-large-patch16-224": 304_326_632,
    "microsoft/resnet-50": 25_557_032,
}
"""As the safetensors headers of the models on the hub sum up; ViT-L and ResNet-50 as torchvision lists them."""
IMAGES = ("google/vit-large-patch16-224", "microsoft/resnet-50")
RECIPE = """\
name: far
task: {kind: causal-lm}
model: {source: meta-llama/Llama-3.1-8B}
data: {source: hub, dataset: someone/texts, limit: 1000, max_length: 128}
batch: {global_size: 8, micro_size: 1}
stages:
  - {name: head, train: [head], steps: 2}
"""
MACHINE = Cluster(gpus_per_node=8, ranks_per_node=8, gpu_memory_bytes=80 * GIB, bf16=True)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose model and data are on the hub, which is not there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "far.yaml").write_text(RECIPE)
    return tmp_path / "far.yaml"


@pytest.mark.parametrize("source", PARAMETERS)
def test_shipped_sizes(source: str) -> None:
    found = dict(assumed.CONFIGURATIONS[source])
    config = transformers.AutoConfig.for_model(found.pop("model_type"), **found)
    kind = transformers.AutoModelForImageClassification if source in IMAGES else transformers.AutoModelForCausalLM
    config.num_labels = 1000
    with torch.device("meta"):
        module = kind.from_config(config)
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[source]


def test_a_plan_without_the_hub_tells_what_it_assumes(far: Path) -> None:
    recipe, origins = reading.load_with_origins(far)
    with survey.foresee(recipe, far.parent, MACHINE, origins) as seen:
        [stage] = seen.plan.stages
        assert seen.assumptions == [
            "the sizes of meta-llama/Llama-3.1-8B are those of the table of configurations that thawline ships",
            "the data has the 1,000 rows of data.limit",
        ]
        assert seen.plan.recipe.model.source == "meta-llama/Llama-3.1-8B"
        assert stage.trainable + stage.frozen == PARAMETERS["meta-llama/Llama-3.1-8B"]
        assert (seen.plan.data.train_rows, seen.plan.data.validation_rows) == (900, 100)
        assert stage.fits


def test_a_given_configuration_is_taken(far: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    file.write_text(json.dumps({"model_type": "llama", "vocab_size": 100, **sizes}))
    recipe, origins = reading.load_with_origins(far)
    with survey.foresee(recipe, far.parent, MACHINE, origins, file) as seen:
        assert seen.plan.stages[0].trainable == 64 * 100
        assert f"the sizes of meta-llama/Llama-3.1-8B are those of {file}" in seen.assumptions
    file.write_text("[]")
    with (
        pytest.raises(UserError, match="has no model_type"),
        survey.foresee(recipe, far.parent, MACHINE, origins, file),
    ):
        pass


def test_rows_are_not_invented(far: Path) -> None:
    recipe = reading.load(far, ["data.limit=null"])
    assert assumed.data_facts(recipe) is None


WAY = re.compile(r"model\.lora: (?P<lora>\{.*?\}) and train: (?P<train>\[.*?\]) \((?P<gib>[\d.]+) GiB\)")


@pytest.mark.parametrize(
    ("source", "gpus", "gib", "host_gib", "before", "train"),
    [
        ("meta-llama/Llama-3.1-8B", 1, 80, 64, ["train"], "[head, lora]"),
        ("meta-llama/Llama-3.1-8B", 1, 18, 1, [], "[lora]"),
        ("meta-llama/Llama-3.1-70B", 8, 80, 256, ["train"], "[head, lora]"),
    ],
)
def test_lora_is_suggested_as_the_changed_recipe_will_be_planned(
    source: str, gpus: int, gib: int, host_gib: int, before: list[str], train: str, far: Path
) -> None:
    """To train the head, half a billion parameters of the smaller one, takes more than 18 GiB leave."""
    sizes = {"gpu_memory_bytes": gib * GIB, "host_memory_bytes": host_gib * GIB}
    machine = Cluster(gpus_per_node=gpus, ranks_per_node=gpus, bf16=True, **sizes)
    overrides = [f"model.source={source}", "stages.head.train=[all]"]
    if gpus > 1:  # nothing to choose
        overrides += ["sharding.strategy=zero3", "gradient_checkpointing=true"]
    recipe, origins = reading.load_with_origins(far, overrides)
    with survey.foresee(recipe, far.parent, machine, origins) as seen:
        assert seen.plan.stages[0].fits is False
        told = seen.shortage()
    assert told
    *others, last = [line.partition("would fit: ")[2] for line in told.splitlines()[1:]]
    assert [other.partition(":")[0] for other in others] == before
    way = WAY.fullmatch(last)
    assert way, told
    assert way["train"] == train
    changed = [*overrides, f"model.lora={way['lora']}", f"stages.head.train={way['train']}"]
    recipe, origins = reading.load_with_origins(far, changed)
    with survey.foresee(recipe, far.parent, machine, origins) as seen:
        [stage] = seen.plan.stages
        assert stage.fits
        assert stage.memory
        assert f"{stage.memory.peak_bytes / GIB:.3g}" == way["gib"]
        assert seen.shortage() is None
