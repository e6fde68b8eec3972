"""Adapters the whole way once: three stages under three engines, the proof, what was planned, both exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from running import MINILM, ROOT, TWEETS, metrics, proof, recipe, thin_llama, walks, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from launcher import inference
from launcher.file_locations import package_path
from launcher.memory_record import read_all
from launcher.plan.saved import read_plan
from launcher.run_dir import RunDir

STAGES: list[dict[str, Any]] = [
    {"name": "head", "train": ["head"], "steps": 2, "sharding": {"strategy": "ddp"}},
    {  # the last thing in a block of BERT is a frozen norm
        "name": "adapters", "train": ["lora"], "steps": 2, "sharding": {"strategy": "zero3"},
        "gradient_checkpointing": True,
    },
    {
        "name": "both", "train": ["head", "lora"], "steps": 2, "sharding": {"strategy": "zero2"},
        "optimizer_state": "carry", "learning_rates": {"lora": 1.0e-3}, "evaluate": {"every": "end"},
    },
]  # fmt: skip
TARGETS = {f"bert.encoder.layer.{index}.attention.self.{name}" for index in range(6) for name in ("query", "value")}
ADAPTERS = {f"{layer}.lora_{part}.weight" for layer in TARGETS for part in "AB"}
HEAD = {"classifier.weight", "classifier.bias"}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    model = {"source": MINILM, "head": {"init": "xavier_uniform"}, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
    data = TWEETS | {"limit": 60, "split": {"validation": 0.2}}
    file = recipe(folder, STAGES, model=model, data=data, evaluate={"every": "never"}, batch={"global_size": 8})
    llama = folder / "llama"
    small = {
        "model.source": str(thin_llama(llama)), "model.weights": "random", "precision": "fp32", "stages.lora.steps": 3,
        "data": TWEETS | {"columns": {"text": "text"}, "split": {"validation": 0.1}, "limit": 60, "max_length": 12},
        "batch.global_size": 4,
    }  # fmt: skip
    overrides = [f"{key}={json.dumps(value)}" for key, value in small.items()]
    walks((file, [], folder / "run"), (ROOT / "recipes" / "llama8b_lora.yaml", overrides, folder / "shipped"))
    return folder / "run"


@pytest.fixture(scope="module")
def adapted(run: Path) -> PeftModel:
    """The base as anybody loads it, with the adapters as peft loads them."""
    base = AutoModelForSequenceClassification.from_pretrained(package_path(MINILM, "test"), num_labels=3)
    return PeftModel.from_pretrained(base, run / "adapter").eval()


def test_only_what_a_stage_names_changed_under_the_names_of_the_model(run: Path) -> None:
    for index, (stage, thawed) in enumerate(zip(STAGES, (HEAD, ADAPTERS, HEAD | ADAPTERS), strict=True)):
        found = proof(run, f"{index:02d}-{stage['name']}")
        assert found["holds"]
        by_name = {parameter["name"]: parameter for parameter in found["parameters"]}
        assert len(by_name) == 105 + len(ADAPTERS)
        for name, parameter in by_name.items():
            assert parameter["trained"] == (name in thawed) == parameter["changed"], (stage["name"], name)


def test_each_stage_took_the_memory_that_was_planned(run: Path) -> None:
    records = {record.stage: record for record in read_all(RunDir(run))}
    assert list(records) == [stage["name"] for stage in STAGES]
    for name, record in records.items():
        compared = record.compared()
        assert compared
        assert abs(compared.error) < 0.01, f"{name}: {compared}"
        if record.measured.activations is not None:
            assert record.predicted
            planned = record.predicted.moments["backward"]["activations"]
            assert planned == pytest.approx(record.measured.activations, rel=0.1), name
    assert {name for name, record in records.items() if record.measured.activations} == {"head", "both"}


def test_the_export_is_a_plain_model_and_the_very_one_that_peft_merges(run: Path, adapted: PeftModel) -> None:
    exported, start = weights(run), load_file(package_path(MINILM, "test") / "model.safetensors")
    merged = {f"{layer}.weight" for layer in TARGETS}
    base = {name: value for name, value in exported.items() if name.startswith("bert.")}
    assert {name for name, value in base.items() if not torch.equal(value, start[name.removeprefix("bert.")])} == merged
    assert "adapter_config.json" not in {path.name for path in (run / "model").iterdir()}
    assert "LoRA adapters of rank 4 (alpha 8, dropout 0.1) beside" in (run / "model" / "README.md").read_text()
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    ids = torch.arange(1000, 1012)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    by_peft = adapted.merge_and_unload().state_dict()
    assert all(torch.equal(by_peft[name], value) for name, value in exported.items())


def test_evaluate_measures_what_training_did(run: Path) -> None:
    [last] = [line for line in metrics(run) if line["split"] == "validation"]
    assert inference.evaluate(RunDir(run))["loss"] == pytest.approx(last["loss"], rel=1e-4)
    assert read_plan(RunDir(run)).lora_targets == ["query", "value"]


def test_the_shipped_recipe_trains_adapters_beside_every_linear_layer_but_the_output_s(run: Path) -> None:
    shipped = run.with_name("shipped")
    trained = [parameter["name"] for parameter in proof(shipped, "00-lora")["parameters"] if parameter["changed"]]
    assert len(trained) == 9 * 7 * 2
    assert all(".lora_" in name for name in trained)
    assert AutoModelForCausalLM.from_pretrained(shipped / "model").lm_head.weight.shape == (30522, 16)
    assert (run / "adapter").is_dir()
    assert not (shipped / "adapter").exists(), "for a base that is nowhere else"
