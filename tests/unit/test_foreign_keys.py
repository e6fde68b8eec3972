"""Other trainers' keys are answered with ours, and the sums between them are right."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from launcher.errors import Problem, RecipeError
from launcher.recipe import Recipe
from launcher.recipe.allowed import elsewhere
from launcher.recipe.foreign_keys import KEYS, answer
from launcher.recipe.reading import load

GOOD = """\
name: good
task: {kind: causal-lm}
model: {source: org/gpt}
data: {source: text, files: a.txt}
stages:
  - {name: full, train: [all], epochs: 1}
"""


def problems(folder: Path, text: str, *sets: str) -> dict[str, Problem]:
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as raised:
        load(folder / "recipe.yaml", sets)
    return {problem.path: problem for problem in raised.value.problems}


AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
adapter: lora
lora_r: 32
lora_alpha: 64
lora_target_modules: [gate_proj, down_proj]
sequence_len: 2048
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_all.json
special_tokens: {pad_token: "<|end_of_text|>"}
"""
AXOLOTL_SAYS = {
    "base_model": "write model.source: NousResearch/Llama-3.2-1B",
    "datasets": "write data: {source: hub, dataset: teknium/GPT4-LLM-Cleaned}",
    "val_set_size": "write data.split.validation: 0.1",
    "adapter": "write model.lora: {rank: 32, alpha: 64} and train: [lora] in a stage",
    "lora_r": "write model.lora.rank: 32",
    "lora_alpha": "write model.lora.alpha: 64",
    "lora_target_modules": "write model.lora.targets: [gate_proj, down_proj]",
    "sequence_len": "write data.max_length: 2048",
    "micro_batch_size": "= 2 x 4 x ranks: on 1 rank write batch: {global_size: 8, micro_size: 2}, on 8 {global_",
    "gradient_accumulation_steps": "= 2 x 4 x ranks: on 1 rank write batch: {global_size: 8, micro_size: 2}",
    "num_epochs": "write stages.NAME.epochs: 3",
    "optimizer": "write optimizer.kind: adamw; 8-bit states",
    "lr_scheduler": "write schedule.kind: cosine",
    "learning_rate": "did you mean 'optimizer.learning_rate'?",
    "bf16": "write precision: auto, bf16 or fp32",
    "flash_attention": "take it out",
    "warmup_ratio": "write schedule.warmup: 0.1",
    "evals_per_epoch": "write evaluate.every in steps",
    "deepspeed": "write sharding: {strategy: zero3, offload: cpu}",
    "special_tokens": "take it out",
}


def test_an_axolotl_file_is_answered_key_by_key(tmp_path: Path) -> None:
    """Each line of it, and none repeats our keys."""
    found = problems(tmp_path, AXOLOTL)
    for key, says in AXOLOTL_SAYS.items():
        assert says in found[key].message, found[key]
    assert set(found) == {*AXOLOTL_SAYS, "name", "task", "model", "data", "stages"}
    assert not [key for key in AXOLOTL_SAYS if "gradient_checkpointing" in found[key].message]


TRAINER = """\
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset: identity,alpaca_en_demo
cutoff_len: 1024
stage: sft
finetuning_type: freeze
per_device_train_batch_size: 16
num_train_epochs: 1.5
warmup_steps: 50
max_steps: 400
save_steps: 500
eval_strategy: epoch
save_total_limit: 3
bf16: true
fp16: false
max_grad_norm: 0.5
output_dir: out
metric_for_best_model: eval_f1
weight_decay: 0.1
report_to: wandb
"""
TRAINER_SAYS = {
    "model_name_or_path": "write model.source: Qwen/Qwen2.5-0.5B",
    "cutoff_len": "write data.max_length: 1024",
    "stage": "write task.kind: causal-lm (sft is not built yet)",
    "finetuning_type": 'write train: ["layers[-2:]", head] in a stage',
    "per_device_train_batch_size": "= 16 x ranks: on 1 rank write batch: {global_size: 16, micro_size: 16}, on 8 {glo",
    "num_train_epochs": "stages.NAME.steps = 1.5 x rows / batch.global_size",
    "warmup_steps": "write schedule.warmup: 0.125 (50 / 400)",
    "max_steps": "write stages.NAME.steps: 400",
    "save_steps": "write checkpoint.every: 500st",
    "eval_strategy": "write evaluate.every: 1ep",
    "save_total_limit": "write checkpoint.keep: 3",
    "bf16": "write precision: bf16",
    "fp16": "take it out",
    "max_grad_norm": "clip_grad_norm",
    "output_dir": "thawline run RECIPE --run-dir DIR",
    "metric_for_best_model": "write evaluate.best: f1",
    "weight_decay": "did you mean 'optimizer.weight_decay'?",
    "report_to": "tracking.wandb",
}


def test_training_arguments_are_answered_key_by_key(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + TRAINER)
    for key, says in TRAINER_SAYS.items():
        assert says in found[key].message, found[key]


def test_inside_a_stage_the_stage_is_named(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 1", "num_train_epochs: 2, micro_batch_size: 4, gradient_accumulation_steps: 3")
    found = problems(tmp_path, text)
    assert "did you mean 'epochs'?" in found["stages.full.num_train_epochs"].message
    assert "{global_size: 12, micro_size: 4}" in found["stages.full.micro_batch_size"].message
    text = GOOD.replace("epochs: 1", "max_epochs: 2")
    assert "write stages.full.epochs: 2" in problems(tmp_path, text)["stages.full.max_epochs"].message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: reviews.csv", "write data: {source: csv, files: reviews.csv}"),
        ("data: org/reviews", "write data: {source: hub, dataset: org/reviews}"),
        ("model: org/bert", "write {source: org/bert}"),
        ("optimizer: adamw_torch_fused", "write optimizer.kind: adamw"),
        ("optimizer: paged_adamw_32bit", "write optimizer.kind: adamw"),
        ("schedule: cosine_with_min_lr", "write schedule.kind: cosine"),
        ("zero_stage: 2", "write sharding: {strategy: zero2}"),
        ("deepspeed: {zero_optimization: {stage: 3}}", "{strategy: zero3}"),
        ("deepspeed: examples/deepspeed/ds_z2_config.json", "{strategy: zero2}"),
        ("datasets: [{path: json, data_files: a.jsonl}]", "write data: {source: json, files: a.jsonl}"),
        ("lora_target: all", "q_proj"),
        ("max_steps: -1", "take it out"),
        ("validation_split_percentage: 5", "write data.split.validation: 0.05"),
        ("val_set_size: 2000", "2000 / rows"),
        ("base_model: {a: 1}", "write model.source: {…}"),
        ('run_name: "a\\nb"', "write name: …"),
    ],
)  # fmt: skip
def test_values_that_differ(text: str, says: str, tmp_path: Path) -> None:
    key = text.partition(":")[0]
    rest = "".join(line + "\n" for line in GOOD.splitlines() if not line.startswith(f"{key}:"))
    assert says in problems(tmp_path, f"{text}\n{rest}")[key].message


def test_the_long_list_of_keys_comes_once(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "zzzz: 1\nqqqq: 2\nsead: 3\n")
    lists = [key for key, problem in found.items() if "gradient_checkpointing" in problem.message]
    assert lists == ["zzzz"]
    assert found["sead"].message == "unknown key 'sead'; did you mean 'seed'?"


def test_several_values_of_set_point_to_array(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD, "seed=[1,2]", "optimizer.learning_rate=1e-4,2e-5")
    assert "thawline submit RECIPE --array 'seed=[1, 2]'" in found["seed"].message
    assert "--array 'optimizer.learning_rate=[1e-4, 2e-5]'" in found["optimizer.learning_rate"].message
    assert "--array" not in problems(tmp_path, GOOD + "seed: [1, 2]\n")["seed"].message


def test_each_answer_names_keys_that_there_are() -> None:
    """``write a.b: …`` is a path of ours, and no key of ours at the top is answered as another's."""
    for key in KEYS:
        for value in (None, True, 3, 0.5, "text", [], {"a": 1}):
            told = answer(key, value, lambda _: None)
            assert told, key
            for path in re.findall(r"write ([a-z_]+(?:\.[A-Za-z_]+)+)", told):
                assert path in elsewhere(path.rpartition(".")[2]), (key, path)
    assert not set(KEYS) & set(Recipe.model_fields)


def test_every_training_argument_of_note_has_an_answer() -> None:
    """Of transformers' own list: what people write into their files, by the examples of the library's documentation."""
    from transformers import TrainingArguments

    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    usual = theirs & {
        "output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "max_grad_norm", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "logging_steps",
        "save_strategy", "save_steps", "save_total_limit", "bf16", "fp16", "eval_strategy", "eval_steps",
        "dataloader_num_workers", "run_name", "load_best_model_at_end", "metric_for_best_model", "deepspeed", "fsdp",
        "label_smoothing_factor", "optim", "report_to", "push_to_hub", "hub_model_id", "resume_from_checkpoint",
        "adam_beta1", "adam_beta2", "adam_epsilon", "do_train", "do_eval", "torch_compile", "neftune_noise_alpha",
    }  # fmt: skip
    assert len(usual) > 30
    assert usual <= set(KEYS)


def test_a_recipe_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    assert yaml.safe_load(GOOD)["name"] == load(tmp_path / "recipe.yaml").name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim: adafactor", "adafactor is not built yet"),
        ("optim: lion_8bit", "lion_8bit is not built yet"),
        ("warmup_steps: 10\nmax_steps: -1", "10 / (steps of the stage)"),
        ("eval_strategy: steps\neval_steps: 500", "write evaluate.every: 500st"),
        ("save_strategy: steps", "write checkpoint.every: 200st"),
        ("wandb_watch: all", "take it out"),
        ("preprocessing_num_workers: 16", "take it out"),
        ("liger_rope: true", "take it out"),
        ("label2id: {a: 0, b: 1}", "write task.labels"),
    ],
)
def test_answers_that_would_mislead(text: str, says: str, tmp_path: Path) -> None:
    assert says in problems(tmp_path, f"{GOOD}{text}\n")[text.partition(":")[0]].message
