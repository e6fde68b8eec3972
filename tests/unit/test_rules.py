"""Each rule alone: what it refuses, at which path, and that its neighbour is fine."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from launcher.recipe import Recipe
from launcher.recipe.rules import RULES, check

PLAIN: dict[str, Any] = {
    "name": "plain",
    "task": {"kind": "text-classification"},
    "model": {"source": "org/bert"},
    "data": {"source": "csv", "files": "a.csv"},
    "stages": [
        {"name": "head", "train": ["head"], "epochs": 1},
        {"name": "full", "train": ["all"], "steps": 5},
    ],
}
IMAGES = {"task": {"kind": "image-classification"}, "data": {"source": "imagefolder", "files": "images"}}
SPLIT = {"optimizer": {"kind": "adamw", "master": "split16"}}
DDP, ZERO2, BF16 = {"sharding": {"strategy": "ddp"}}, {"sharding": {"strategy": "zero2"}}, {"precision": "bf16"}
CAUSAL = {"task": {"kind": "causal-lm"}}
NVME: dict[str, Any] = {"sharding": {"strategy": "zero3", "offload": "nvme"}}

CASES: dict[str, list[tuple[dict[str, Any], str, dict[str, Any]]]] = {
    # rule -> [(edit that it refuses, path of the problem, near edit that is fine)]
    "stage_names_are_unique": [({"stages": {1: {"name": "head"}}}, "stages.1.name", {"stages": {1: {"name": "b"}}})],
    "exactly_one_of_epochs_and_steps": [
        ({"stages": {1: {"epochs": 2}}}, "stages.full.steps", {"stages": {1: {"epochs": 2, "steps": None}}}),
        ({"stages": {1: {"steps": None}}}, "stages.full", {"stages": {1: {"steps": 1}}}),
    ],
    "micro_size_divides_global_size": [
        ({"stages": {1: {"batch": {"global_size": 8, "micro_size": 3}}}}, "stages.full.batch.micro_size",
         {"stages": {1: {"batch": {"global_size": 9, "micro_size": 3}}}}),
    ],
    "nesterov_needs_momentum": [
        ({"stages": {0: {"optimizer": {"kind": "sgd", "nesterov": True}}}}, "stages.head.optimizer.nesterov",
         {"stages": {0: {"optimizer": {"kind": "sgd", "nesterov": True, "momentum": 0.9}}}}),
    ],
    "offload_needs_zero": [
        ({"stages": {1: {"sharding": {"offload": "cpu"}}}}, "stages.full.sharding.offload",
         {"stages": {1: {"sharding": {"offload": "cpu", "strategy": "zero1"}}}}),
    ],
    "nvme_needs_zero3": [
        ({"stages": {1: NVME | {"sharding": {"strategy": "zero2", "offload": "nvme"}}}}, "stages.full.sharding.offload",
         {"stages": {1: NVME}}),
        ({"stages": {1: NVME | {"optimizer": {"kind": "adamw", "state_dtype": "bf16"}}}},
         "stages.full.optimizer.state_dtype", {"stages": {1: NVME | {"optimizer": {"kind": "adamw"}}}}),
        ({"stages": {1: {"sharding": {**NVME["sharding"], "nvme_path": "swap"}}}}, "stages.full.sharding.nvme_path",
         {"stages": {1: {"sharding": {**NVME["sharding"], "nvme_path": "$SLURM_TMPDIR"}}}}),
        ({"stages": {1: {"sharding": {"strategy": "zero3", "offload": "cpu", "nvme_path": "/scratch"}}}},
         "stages.full.sharding.nvme_path",
         {"stages": {1: {"sharding": {**NVME["sharding"], "nvme_path": "/scratch"}}}}),
    ],
    "master_needs_bf16_under_ddp": [
        ({"stages": {1: SPLIT | DDP}}, "stages.full.optimizer.master", {"stages": {1: SPLIT | DDP | BF16}}),
        ({"stages": {0: SPLIT | BF16}}, "stages.head.optimizer.master", {"stages": {0: SPLIT | BF16 | DDP}}),
        ({"stages": {1: SPLIT | BF16 | ZERO2}}, "stages.full.optimizer.master",
         {"stages": {1: BF16 | ZERO2 | {"optimizer": {"kind": "adamw", "state_dtype": "bf16"}}}}),
    ],
    "first_stage_carries_nothing": [
        ({"stages": {0: {"optimizer_state": "carry"}}}, "stages.head.optimizer_state",
         {"stages": {1: {"optimizer_state": "carry"}}}),
    ],
    "carry_needs_the_same_optimizer": [
        ({"stages": {1: {"optimizer_state": "carry", "optimizer": {"kind": "adam"}}}}, "stages.full.optimizer_state",
         {"stages": {1: {"optimizer": {"kind": "adam"}}}}),
    ],
    "columns_are_of_the_task": [
        ({"data": {"columns": {"image": "x"}}}, "data.columns.image", {"data": {"columns": {"text_pair": "x"}}}),
        ({**CAUSAL, "data": {"columns": {"label": "x"}}}, "data.columns.label",
         {**CAUSAL, "data": {"columns": {"text": "x"}}}),
    ],
    "labels_are_at_least_two_and_distinct": [
        ({"task": {"labels": ["a"]}}, "task.labels", {"task": {"labels": ["a", "b"]}}),
        ({"task": {"labels": ["a", "b", "b"]}}, "task.labels.2", {"task": {"labels": ["a", "b", "B"]}}),
    ],
    "best_is_a_metric_of_the_task": [
        ({"stages": {1: {"evaluate": {"best": "perplexity"}}}}, "stages.full.evaluate.best",
         {**CAUSAL, "stages": {1: {"evaluate": {"best": "perplexity"}}}}),
    ],
    "best_is_the_same_everywhere": [
        ({"stages": {0: {"evaluate": {"best": "f1"}}, 1: {"evaluate": {"best": "loss"}}}},
         "stages.full.evaluate.best", {"stages": {0: {}, 1: {"evaluate": {"best": "loss"}}}}),
    ],
    "best_needs_an_evaluation": [
        ({"stages": {0: {"evaluate": {"every": "never", "best": "f1"}}, 1: {"evaluate": {"every": "never"}}}},
         "stages.head.evaluate.best",
         {"stages": {0: {"evaluate": {"every": "never", "best": "f1"}}, 1: {"evaluate": {"every": "end"}}}}),
        ({"data": {"split": {"validation": 0}}, "stages": {1: {"evaluate": {"best": "f1"}}}},
         "stages.full.evaluate.best",
         {"data": {"split": {"validation": 0}, "files": {"train": "a", "validation": "b"}},
          "stages": {1: {"evaluate": {"best": "f1"}}}}),
        ({"stages": {1: {"evaluate": {"best": "f1", "every": "never"}}}}, "stages.full.evaluate.every",
         {"stages": {0: {"evaluate": {"best": "f1"}}, 1: {"evaluate": {"every": "never"}}}}),
    ],
    "head_init_needs_a_new_head": [
        ({**CAUSAL, "model": {"head": {"init": "zeros"}}}, "model.head.init", {"model": {"head": {"init": "zeros"}}}),
    ],
    "sources_fit_the_task": [
        ({**IMAGES, **CAUSAL}, "data.source", IMAGES),
        ({"data": {"source": "text"}}, "data.source", {**CAUSAL, "data": {"source": "text"}}),
    ],
    "files_name_train": [
        ({"data": {"files": {"test": "a"}}}, "data.files", {"data": {"files": {"train": "a"}}}),
        ({"data": {"files": {}}}, "data.files", {"data": {"files": ["a"]}}),
    ],
    "torchvision_is_for_images": [
        ({"model": {"source": "torchvision:resnet18"}}, "model.source",
         {**IMAGES, "model": {"source": "torchvision:resnet18"}}),
    ],
    "adapters_are_there_to_train": [
        ({"stages": {0: {"train": ["head", "lora"]}}}, "stages.head.train.1",
         {"model": {"lora": {}}, "stages": {0: {"train": ["head", "lora"]}}}),
        ({"stages": {1: {"learning_rates": {"lora": 1.0}}}}, "stages.full.learning_rates.lora",
         {"model": {"lora": {"rank": 2}}, "stages": {1: {"learning_rates": {"lora": 1.0}}}}),
    ],
    "adapters_are_for_transformers": [
        ({**IMAGES, "model": {"source": "torchvision:resnet18", "lora": {}}}, "model.lora",
         {**IMAGES, "model": {"lora": {}}}),
    ],
    "model_keys_are_of_the_source": [
        ({"model": {"source": "package:a/b", "revision": "v1"}}, "model.revision", {"model": {"revision": "v1"}}),
        ({**IMAGES, "model": {"source": "torchvision:resnet18", "gguf_file": "a"}}, "model.gguf_file",
         {"model": {"gguf_file": "a"}}),
        ({"model": {"weights": "a.pt"}}, "model.weights",
         {**IMAGES, "model": {"source": "torchvision:resnet18", "weights": "a.pt"}}),
    ],
    "data_keys_are_read_by_the_task": [
        ({"task": IMAGES["task"], "data": {"max_length": 512}}, "data.max_length", {"data": {"max_length": 512}}),
    ],
    "encoding_is_of_text": [
        ({"data": {"source": "parquet", "encoding": "utf-8"}}, "data.encoding", {"data": {"encoding": "utf-8"}}),
        ({"data": {"source": "package", "files": "a.parquet", "encoding": "utf-8"}}, "data.encoding",
         {"data": {"source": "package", "files": "a.csv", "encoding": "utf-8"}}),
        ({"data": {"source": "arrow", "encoding": "utf-8"}}, "data.encoding", {"data": {"encoding": "utf-8"}}),
    ],
    "dialect_is_of_csv": [
        ({"data": {"source": "json", "delimiter": ";"}}, "data.delimiter", {"data": {"delimiter": ";"}}),
        ({"data": {"source": "package", "files": "a.txt", "quoting": "none"}}, "data.quoting",
         {"data": {"source": "package", "files": ["a.tsv", "a.txt"], "quoting": "none"}}),
        ({"data": {"escape": "|", "delimiter": "|"}}, "data.escape", {"data": {"escape": "\\", "delimiter": "|"}}),
    ],
    "split_keys_are_read": [
        ({"data": {"split": {"validation": 0, "stratify": "x"}}}, "data.split.stratify",
         {"data": {"split": {"validation": 0.5, "stratify": "x"}}}),
        ({"data": {"files": {"train": "a", "validation": "b"}, "split": {"validation": 0.1}}},
         "data.split.validation", {"data": {"files": {"train": "a", "validation": "b"}, "split": {"dedupe": "x"}}}),
    ],
    "evaluate_micro_size_is_read": [
        ({"stages": {0: {"evaluate": {"every": "never"}}, 1: {"evaluate": {"every": "never", "micro_size": 2}}}},
         "stages.full.evaluate.micro_size", {"stages": {1: {"evaluate": {"every": "never", "micro_size": 2}}}}),
    ],
    "slurm_options_agree": [
        ({"slurm": {"gpus_per_node": 2, "gres": "gpu:2"}}, "slurm.gres", {"slurm": {"gres": "gpu:2,nvme:1"}}),
        ({"slurm": {"gres": "gpu:2", "ranks_per_node": 4}}, "slurm.ranks_per_node", {"slurm": {"ranks_per_node": 4}}),
    ],
}  # fmt: skip


def edited(edit: dict[str, Any]) -> Recipe:
    plain = copy.deepcopy(PLAIN)
    for key, value in edit.items():
        if key == "stages":
            for index, settings in value.items():
                plain["stages"][index] |= settings
        elif value.get("source", "") == "imagefolder" or "kind" in value or key not in plain:
            plain[key] = value
        else:
            plain[key] |= value
    return Recipe.model_validate(plain)


FLAT = [(rule, *case) for rule, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("rule", "wrong", "path", "fine"), FLAT, ids=[f"{one[0]}-{one[2]}" for one in FLAT])
def test_rule(rule: str, wrong: dict[str, Any], path: str, fine: dict[str, Any]) -> None:
    (alone,) = [one for one in RULES if one.__name__ == rule]
    (problem,) = alone(edited(wrong))
    assert problem.path == path
    assert problem in check(edited(wrong))
    assert check(edited(fine)) == []


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == {rule.__name__ for rule in RULES}
