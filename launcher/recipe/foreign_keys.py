"""What other trainers' keys are here: transformers' TrainingArguments, TRL, axolotl, LLaMA-Factory, Lightning.

Owns the table, and the arithmetic between their values and ours, with the values that were written. Called by
`recipe.problems` for keys that are none of ours; it changes no recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

Lookup = Callable[[str], Any]
"""The value of another key that stands beside this one or at the top; None: none does."""
Answer = Callable[[Any, Lookup], str]

MICRO = (
    "micro_batch_size", "per_device_train_batch_size", "per_gpu_train_batch_size", "train_micro_batch_size_per_gpu",
    "device_batch_size", "device_train_microbatch_size",
)  # fmt: skip
ACCUMULATION = ("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps", "gradient_accumulation")
SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
    "cosine_with_min_lr": "cosine", "exponential": "exponential",
}  # fmt: skip
SOURCES = {
    ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow",
    ".txt": "text",
}  # fmt: skip


def as_map(key: str, text: str) -> str | None:
    """What to write where a text stands for one of our maps, as in ``optimizer: adamw_torch``."""
    if key == "model":
        return f"write {{source: {_shown(text)}}}"
    if key == "data":
        return _dataset(text, lambda _: None)
    if key in ("optimizer", "schedule"):
        return (_optimizer if key == "optimizer" else _schedule)(text, lambda _: None)
    return None


def answer(key: str, value: Any, lookup: Lookup) -> str | None:
    """What to write instead of another trainer's ``key: value``; None: it is no key of theirs."""
    found = KEYS.get(key.lower())
    if found is None:
        return None
    return found if isinstance(found, str) else found(value, lookup)


def _write(key: str) -> Answer:
    """``write KEY: VALUE``"""
    return lambda value, _: f"write {key}: {_shown(value)}"


def _shown(value: Any) -> str:
    if value is None:
        return "…"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return "[…]" if isinstance(value, list) else "{…}"
    text = str(value)
    return text if len(text) <= 60 and text.isprintable() else "…"


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _first(names: tuple[str, ...], lookup: Lookup) -> float | None:
    return next((found for name in names if (found := _number(lookup(name))) is not None), None)


# --- batches ----------------------------------------------------------------------------------------------------------
def _batch(micro: float | None, accumulation: float | None) -> str:
    """Ours and theirs: the same samples in a step, whatever the number of ranks."""
    rule = "batch.global_size = micro size x accumulation x ranks"
    if micro is None and accumulation is None:
        return f"{rule}: write batch.global_size; the accumulation follows"
    if micro is None:
        return f"{rule}; write batch.global_size: {accumulation:g} x your micro size x ranks, the accumulation follows"
    whole = micro * (accumulation or 1)
    product = f"{micro:g} x {accumulation:g} x ranks" if accumulation is not None else f"{micro:g} x ranks"
    return (
        f"{rule} = {product}: on 1 rank write batch: {{global_size: {whole:g}, micro_size: {micro:g}}}, on 8 "
        f"{{global_size: {8 * whole:g}, micro_size: {micro:g}}}"
    )


def _micro(value: Any, lookup: Lookup) -> str:
    return _batch(_number(value), _first(ACCUMULATION, lookup))


def _accumulation(value: Any, lookup: Lookup) -> str:
    return _batch(_first(MICRO, lookup), _number(value))


# --- time -------------------------------------------------------------------------------------------------------------
def _epochs(value: Any, _: Lookup) -> str:
    number = _number(value)
    if number is not None and not number.is_integer():
        return (
            f"each stage has its own, in whole passes: write stages.NAME.epochs, or the {number:g} epochs as "
            f"stages.NAME.steps = {number:g} x rows / batch.global_size"
        )
    return f"each stage has its own: write stages.NAME.epochs: {_shown(int(number) if number is not None else value)}"


def _warmup_steps(value: Any, lookup: Lookup) -> str:
    steps, whole = _number(value), _first(("max_steps", "steps", "total_steps"), lookup)
    if steps is not None and whole:
        return f"it is a share of a stage's steps: write schedule.warmup: {steps / whole:.4g} ({steps:g} / {whole:g})"
    return f"it is a share of a stage's steps: write schedule.warmup: {_shown(value)} / (steps of the stage), as in 0.1"


def _every(key: str) -> Answer:
    def told(value: Any, _: Lookup) -> str:
        if isinstance(value, str) and not _number(value):
            every = {"epoch": "1ep", "no": "never" if key == "evaluate.every" else "auto"}.get(value, "200st")
            return f"write {key}: {every} (1ep: each epoch, 200st: each 200 steps)"
        number = _number(value)
        if number is not None and number < 1:
            return f"write {key} in steps: {number:g} x the stage's steps, as in 200st; or 1ep, each epoch"
        return f"write {key}: {_shown(value)}st"

    return told


def _per_epoch(key: str) -> Answer:
    def told(value: Any, _: Lookup) -> str:
        if _number(value) == 1:
            return f"write {key}: 1ep"
        return f"write {key} in steps: rows / batch.global_size / {_shown(value)}, as in 200st"

    return told


# --- model ------------------------------------------------------------------------------------------------------------
def _precision(name: str) -> Answer:
    def told(value: Any, _: Lookup) -> str:
        if value is True:
            return f"write precision: {name}"
        if value is False:
            return (
                f"take it out: precision: auto takes bf16 where the GPU has it, else fp32 (not {name}: precision: fp32)"
            )
        return f"write precision: auto, {name} or fp32"

    return told


def _dtype(value: Any, _: Lookup) -> str:
    known = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "half": "fp16", "no": "fp32"}
    wanted = known.get(str(value).removeprefix("torch.").lower(), "fp32" if "32" in str(value) else "auto")
    return f"write precision: {wanted}"


def _sharding(value: Any, _: Lookup) -> str:
    text = str(value)
    stage = re.search(r"(?:zero|z|stage)[\s_:'\"-]*([123])|^([123])$", text.lower())
    number = next((found for found in stage.groups() if found), None) if stage else None
    parts = [f"strategy: zero{number}" if number else "strategy: auto"]
    if "offload" in text.lower():
        parts.append("offload: cpu")
    why = "" if number else " (zero1, zero2, zero3, ddp, or auto: the fastest that fits)"
    return f"write sharding: {{{', '.join(parts)}}}{why}; DeepSpeed's own file is written for you"


def _lora(value: Any, lookup: Lookup) -> str:
    kind = str(value).lower()
    if kind == "full":
        return "write train: [all] in a stage; nothing is frozen there"
    if kind == "freeze":
        return 'write train: ["layers[-2:]", head] in a stage; everything else is frozen there'
    rank, alpha = _first(("lora_r", "lora_rank", "r"), lookup), _first(("lora_alpha",), lookup)
    rank = rank if rank is not None else 16
    quantised = "; 4-bit weights are not built yet" if kind == "qlora" else ""
    alpha = alpha if alpha is not None else 2 * rank
    return f"write model.lora: {{rank: {rank:g}, alpha: {alpha:g}}} and train: [lora] in a stage{quantised}"


def _targets(value: Any, _: Lookup) -> str:
    if isinstance(value, str) and value.lower() in ("all", "all-linear"):
        return "write model.lora.targets: a list, as in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
    names = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    listed = ", ".join(str(name).strip() for name in names)
    return f"write model.lora.targets: [{listed if 0 < len(listed) < 80 and listed.isprintable() else '…'}]"


def _schedule(value: Any, _: Lookup) -> str:
    kind = SCHEDULES.get(str(value).lower())
    if kind:
        return f"write schedule.kind: {kind}"
    return "write schedule.kind: constant, linear, cosine or exponential"


def _optimizer(value: Any, _: Lookup) -> str:
    text = str(value).lower()
    kind = "sgd" if "sgd" in text else "adam" if text.startswith("adam") and not text.startswith("adamw") else "adamw"
    small = "; 8-bit states: adamw with state_dtype: bf16 comes nearest" if "8bit" in text else ""
    return f"write optimizer.kind: {kind}{small}"


# --- data -------------------------------------------------------------------------------------------------------------
def _dataset(value: Any, _: Lookup) -> str:
    more = ""
    if isinstance(value, list):
        more = " (one source; several files of one kind as a list)" if len(value) > 1 else ""
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("data_files") or value.get("path")
    source = SOURCES.get(PurePosixPath(str(value)).suffix.lower()) if isinstance(value, str) else None
    if source:
        return f"write data: {{source: {source}, files: {_shown(value)}}}{more}"
    if value is None:
        return "write data: {source: hub, dataset: OWNER/NAME}, or {source: csv, files: FILE}"
    return f"write data: {{source: hub, dataset: {_shown(value)}}}{more}, or {{source: csv, files: FILE}}"


def _file(split: str) -> Answer:
    return lambda value, _: (
        f"write data.files: {{{split}: {_shown(value)}}} and data.source: csv, json, parquet or text"
    )


def _held_out(value: Any, _: Lookup) -> str:
    number = _number(value)
    if number is not None and number >= 1:
        return f"it is a share: write data.split.validation: {number:g} / rows, as in 0.1"
    return f"write data.split.validation: {_shown(value)}"


def _percentage(value: Any, _: Lookup) -> str:
    number = _number(value)
    return (
        f"it is a share: write data.split.validation: {number / 100:g}" if number is not None else _held_out(value, _)
    )


def _stage_of_training(value: Any, _: Lookup) -> str:
    kind = {"pt": "causal-lm", "sft": "causal-lm (sft is not built yet)"}.get(str(value).lower())
    return f"write task.kind: {kind}" if kind else "write task.kind, and the stages of a run under stages:"


def _taken_out(why: str) -> str:
    return f"take it out: {why}"


_RANKS = "it is not the recipe's: thawline run RECIPE --ranks N; of a cluster, thawline submit --nodes N"
_LABELS = "write data.columns: {text: COLUMN, label: COLUMN}"
_FROM_MODEL = _taken_out("tokenizer, classes and sizes are read from the model's own files")
_ATTENTION = _taken_out("the fastest attention that torch has for the model is used")
_NO_QUANT = _taken_out(
    "weights of 8 or 4 bits are not built yet; model.lora with precision: bf16 takes the least memory"
)
_RUN_DIR = "it is not the recipe's: thawline run RECIPE --run-dir DIR"
_HUB = "it is not the recipe's: `thawline export RUN DIR`, then upload DIR"
_FREEZE = 'name what learns: stages.NAME.train, as in [head, "layers[-4:]"] or patterns over parameter names'
_NO_PACKING = _taken_out("texts are not packed; each row is one sample, padded to the longest of its batch")
_PROMPTS = _taken_out("texts are trained as they stand in data.columns.text")

KEYS: Mapping[str, str | Answer] = {
    # the model
    **dict.fromkeys(
        ("base_model", "model_name_or_path", "model_name", "model_id", "model_path", "pretrained_model_name_or_path"),
        _write("model.source"),
    ),
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "tokenizer_config", "tokenizer_name", "config_name", "use_fast_tokenizer",
         "base_model_config", "tokenizer_name_or_path", "num_labels", "special_tokens", "is_llama_derived_model"),
        _FROM_MODEL,
    ),
    "model_revision": _write("model.revision"), "revision_of_model": _write("model.revision"),
    "trust_remote_code": _taken_out("code from the hub is never run"),
    **dict.fromkeys(
        ("load_in_8bit", "load_in_4bit", "quantization_bit", "bnb_4bit_quant_type", "quantization"), _NO_QUANT
    ),
    **dict.fromkeys(("torch_dtype", "dtype", "mixed_precision"), _dtype),
    "bf16": _precision("bf16"), "fp16": _precision("fp16"), "tf32": _taken_out("torch's own setting is used"),
    "pure_bf16": "write precision: bf16 and optimizer.master: split16",
    **dict.fromkeys(
        ("attn_implementation", "flash_attention", "flash_attn", "sdp_attention", "xformers_attention"), _ATTENTION
    ),
    "cache_dir": "it is not the recipe's: set HF_HOME",
    **dict.fromkeys(("adapter", "finetuning_type", "use_peft", "peft_config", "use_lora"), _lora),
    **dict.fromkeys(("lora_r", "lora_rank"), _write("model.lora.rank")),
    "lora_alpha": _write("model.lora.alpha"), "lora_dropout": _write("model.lora.dropout"),
    **dict.fromkeys(("lora_target_modules", "lora_target", "target_modules", "lora_target_linear"), _targets),
    **dict.fromkeys(
        ("lora_modules_to_save", "modules_to_save", "additional_target"), "write train: [lora, head] in a stage"
    ),
    **dict.fromkeys(
        ("unfrozen_parameters", "freeze_trainable_layers", "freeze_layers", "num_layers_to_freeze", "freeze_encoder",
         "freeze_backbone", "freeze_base_model", "freeze_trainable_modules"), _FREEZE,
    ),
    "hidden_dropout_prob": _write("model.dropout"), "attention_dropout": _write("model.dropout"),
    # the data
    **dict.fromkeys(
        ("datasets", "dataset", "dataset_name", "dataset_path", "train_dataset", "dataset_id", "pretraining_dataset"),
        _dataset,
    ),
    **dict.fromkeys(("dataset_config", "dataset_config_name", "dataset_split_config"), _write("data.config")),
    **dict.fromkeys(("train_file", "train_data", "train_files", "data_files", "dataset_dir"), _file("train")),
    **dict.fromkeys(("validation_file", "eval_file", "eval_dataset", "valid_data"), _file("validation")),
    **dict.fromkeys(("test_file", "test_datasets", "test_data"), _file("test")),
    **dict.fromkeys(
        ("dataset_text_field", "text_column", "text_column_name", "text_field"),
        lambda value, _: f"write data.columns: {{text: {_shown(value)}}}",
    ),
    **dict.fromkeys(
        ("label_column", "label_column_name", "label_field"),
        lambda value, _: f"write data.columns: {{label: {_shown(value)}}}",
    ),
    "column_mapping": _LABELS,
    **dict.fromkeys(
        ("sequence_len", "cutoff_len", "max_seq_length", "max_seq_len", "seq_length", "seq_len", "block_size",
         "model_max_length", "context_length", "max_length"), _write("data.max_length"),
    ),
    **dict.fromkeys(("val_set_size", "val_size", "validation_split", "test_size", "eval_split_ratio"), _held_out),
    "validation_split_percentage": _percentage,
    **dict.fromkeys(("max_samples", "max_train_samples"), _write("data.limit")),
    **dict.fromkeys(("dataloader_num_workers", "preprocessing_num_workers", "num_workers"), _write("data.num_workers")),
    **dict.fromkeys(
        ("sample_packing", "packing", "pad_to_sequence_len", "eval_sample_packing", "neat_packing"), _NO_PACKING
    ),
    **dict.fromkeys(("template", "chat_template", "train_on_inputs", "train_on_prompt", "prompt_style"), _PROMPTS),
    "group_by_length": _taken_out("a batch is padded to its own longest row; grouping by length is not built yet"),
    "dataset_prepared_path": _taken_out("what is prepared is cached by itself"),
    "shuffle": _taken_out("training rows are shuffled in each epoch, by seed"), "data_seed": _write("data.split.seed"),
    # batches
    **dict.fromkeys(MICRO, _micro),
    **dict.fromkeys(ACCUMULATION, _accumulation),
    **dict.fromkeys(("train_batch_size", "batch_size", "global_batch_size"), _write("batch.global_size")),
    "auto_find_batch_size": "write batch.micro_size: auto, which is the default",
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), _write("evaluate.micro_size")),
    # training
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), _epochs),
    **dict.fromkeys(
        ("max_steps", "num_steps", "total_steps", "num_training_steps"),
        lambda value, _: _taken_out("-1 means epochs") if _number(value) == -1
        else f"each stage has its own: write stages.NAME.steps: {_shown(value)}",
    ),
    "lr": _write("optimizer.learning_rate"), "peak_lr": _write("optimizer.learning_rate"),
    "wd": _write("optimizer.weight_decay"),
    "adam_beta1": "write optimizer.betas: [BETA1, BETA2]", "adam_beta2": "write optimizer.betas: [BETA1, BETA2]",
    "adam_epsilon": _write("optimizer.epsilon"), "eps": _write("optimizer.epsilon"),
    "optim": _optimizer, "optimizer_type": _optimizer,
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler", "scheduler_type"), _schedule),
    "warmup_ratio": _write("schedule.warmup"), "warmup_steps": _warmup_steps, "num_warmup_steps": _warmup_steps,
    "cosine_min_lr_ratio": _write("schedule.end"), "min_lr_ratio": _write("schedule.end"),
    **dict.fromkeys(("max_grad_norm", "gradient_clipping", "gradient_clip_val", "grad_clip"), _write("clip_grad_norm")),
    **dict.fromkeys(("deepspeed", "zero_optimization", "zero_stage", "deepspeed_config", "ds_config"), _sharding),
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "fsdp_version"),
        "write sharding.strategy: zero3, which shards as FSDP does (fsdp is not built yet)",
    ),
    "gradient_checkpointing_kwargs": _taken_out("gradient_checkpointing: true, false or auto is all there is"),
    "neftune_noise_alpha": _taken_out("noise on embeddings is not built yet"),
    "label_smoothing_factor": _taken_out("label smoothing is not built yet"),
    "torch_compile": _taken_out("compiled stages are not built yet"),
    "stage": _stage_of_training, "rl": _stage_of_training,
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"), _taken_out("`thawline run` trains, `evaluate` and `predict` do the rest")
    ),
    # saving, measuring, telling
    "output_dir": _RUN_DIR, "overwrite_output_dir": _RUN_DIR, "logging_dir": _RUN_DIR,
    "save_steps": _every("checkpoint.every"), "save_strategy": _every("checkpoint.every"),
    "saves_per_epoch": _per_epoch("checkpoint.every"), "save_total_limit": _write("checkpoint.keep"),
    **dict.fromkeys(("eval_steps", "eval_strategy", "evaluation_strategy"), _every("evaluate.every")),
    "evals_per_epoch": _per_epoch("evaluate.every"),
    "metric_for_best_model": lambda value, _: f"write evaluate.best: {_shown(value).removeprefix('eval_')}",
    "load_best_model_at_end": "write evaluate.best: METRIC; the best evaluation is exported",
    "greater_is_better": _taken_out("each metric knows which way is better"),
    "early_stopping_patience": _taken_out("stopping early is not built yet; evaluate.best exports the best evaluation"),
    "logging_steps": _write("tracking.log_every"),
    "report_to": "write tracking.wandb: {project: NAME} for wandb; metrics.jsonl is always written",
    "wandb_project": lambda value, _: f"write tracking.wandb: {{project: {_shown(value)}}}",
    "wandb_entity": _write("tracking.wandb.entity"), "wandb_mode": _write("tracking.wandb.mode"),
    **dict.fromkeys(("run_name", "wandb_name", "experiment_name"), _write("name")),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token"), _HUB),
    "resume_from_checkpoint": "it is not the recipe's: thawline resume RUN",
    **dict.fromkeys(
        ("nproc_per_node", "num_processes", "devices", "num_gpus", "n_gpus", "gpus", "num_nodes", "world_size",
         "local_rank", "num_machines"), _RANKS,
    ),
    "ddp_timeout": _taken_out("slurm.hang_timeout says when a rank counts as hung"),
    "ddp_find_unused_parameters": _taken_out("each stage's engine knows what it trains"),
    "remove_unused_columns": _taken_out("only the task's columns are read"),
    "use_cpu": "it is not the recipe's: CUDA_VISIBLE_DEVICES= thawline run RECIPE",
}  # fmt: skip
"""Another trainer's key -> what it is here."""
