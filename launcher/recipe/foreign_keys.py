"""What other trainers' keys are here: transformers' TrainingArguments, TRL, axolotl, LLaMA-Factory, Lightning.

Owns the table; `foreign_sums` has the arithmetic between their values and ours. Called by `recipe.problems` for keys
that are none of ours; it changes no recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.recipe import foreign_sums as sums


def as_map(key: str, text: str) -> str | None:
    """What to write where a text stands for one of our maps, as in ``optimizer: adamw_torch``."""
    if key == "model":
        return f"write {{source: {sums.shown(text)}}}"
    if key == "data":
        return sums.dataset(text, lambda _: None)
    if key in ("optimizer", "schedule"):
        return (sums.optimizer if key == "optimizer" else sums.schedule)(text, lambda _: None)
    return None


def answer(key: str, value: Any, lookup: sums.Lookup) -> str | None:
    """What to write instead of another trainer's ``key: value``; None: it is no key of theirs."""
    found = KEYS.get(key.lower())
    if found is None:
        return None
    return found if isinstance(found, str) else found(value, lookup)


_RANKS = "it is not the recipe's: thawline run RECIPE --ranks N; of a cluster, thawline submit --nodes N"
_LABELS = "write data.columns: {text: COLUMN, label: COLUMN}"
_FROM_MODEL = sums.taken_out("tokenizer, classes and sizes are read from the model's own files")
_ATTENTION = sums.taken_out("the fastest attention that torch has for the model is used")
_NO_QUANT = sums.taken_out(
    "weights of 8 or 4 bits are not built yet; model.lora with precision: bf16 takes the least memory"
)
_RUN_DIR = "it is not the recipe's: thawline run RECIPE --run-dir DIR"
_HUB = "it is not the recipe's: `thawline export RUN DIR`, then upload DIR"
_FREEZE = 'name what learns: stages.NAME.train, as in [head, "layers[-4:]"] or patterns over parameter names'
_NO_PACKING = sums.taken_out("texts are not packed; each row is one sample, padded to the longest of its batch")
_PROMPTS = sums.taken_out("texts are trained as they stand in data.columns.text")

KEYS: Mapping[str, str | sums.Answer] = {
    # the model
    **dict.fromkeys(
        ("base_model", "model_name_or_path", "model_name", "model_id", "model_path", "pretrained_model_name_or_path"),
        sums.write("model.source"),
    ),
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "tokenizer_config", "tokenizer_name", "config_name", "use_fast_tokenizer",
         "base_model_config", "tokenizer_name_or_path", "num_labels", "special_tokens", "is_llama_derived_model"),
        _FROM_MODEL,
    ),
    "model_revision": sums.write("model.revision"), "revision_of_model": sums.write("model.revision"),
    "trust_remote_code": sums.taken_out("code from the hub is never run"),
    **dict.fromkeys(
        ("load_in_8bit", "load_in_4bit", "quantization_bit", "bnb_4bit_quant_type", "quantization"), _NO_QUANT
    ),
    **dict.fromkeys(("torch_dtype", "dtype", "mixed_precision"), sums.dtype),
    "bf16": sums.precision("bf16"), "fp16": sums.precision("fp16"),
    "tf32": sums.taken_out("torch's own setting is used"),
    "pure_bf16": "write precision: bf16 and optimizer.master: split16",
    **dict.fromkeys(
        ("attn_implementation", "flash_attention", "flash_attn", "sdp_attention", "xformers_attention"), _ATTENTION
    ),
    "cache_dir": "it is not the recipe's: set HF_HOME",
    **dict.fromkeys(("adapter", "finetuning_type", "use_peft", "peft_config", "use_lora"), sums.lora),
    **dict.fromkeys(("lora_r", "lora_rank"), sums.write("model.lora.rank")),
    "lora_alpha": sums.write("model.lora.alpha"), "lora_dropout": sums.write("model.lora.dropout"),
    **dict.fromkeys(("lora_target_modules", "lora_target", "target_modules", "lora_target_linear"), sums.lora_targets),
    **dict.fromkeys(
        ("lora_modules_to_save", "modules_to_save", "additional_target"), "write train: [lora, head] in a stage"
    ),
    **dict.fromkeys(
        ("unfrozen_parameters", "freeze_trainable_layers", "freeze_layers", "num_layers_to_freeze", "freeze_encoder",
         "freeze_backbone", "freeze_base_model", "freeze_trainable_modules"), _FREEZE,
    ),
    **dict.fromkeys(
        ("lora_fan_in_fan_out", "lora_on_cpu", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_bias",
         "use_dora", "use_rslora", "loraplus_lr_ratio", "peft_use_dora", "peft_use_rslora"),
        sums.taken_out("model.lora has rank, alpha, dropout and targets"),
    ),
    **dict.fromkeys(
        ("lora_model_dir", "adapter_name_or_path"),
        sums.taken_out("adapters start from scratch; merge that one into the model first"),
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "use_liger", "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_swiglu",
         "liger_layer_norm", "liger_fused_linear_cross_entropy", "use_unsloth", "plugins"),
        sums.taken_out("third-party kernels and plugins are not used"),
    ),
    "model_init_kwargs": sums.taken_out("the model is built as its own config.json says; model.dropout can be set"),
    "hidden_dropout_prob": sums.write("model.dropout"), "attention_dropout": sums.write("model.dropout"),
    # the data
    **dict.fromkeys(
        ("datasets", "dataset", "dataset_name", "dataset_path", "train_dataset", "dataset_id", "pretraining_dataset"),
        sums.dataset,
    ),
    **dict.fromkeys(("dataset_config", "dataset_config_name", "dataset_split_config"), sums.write("data.config")),
    **dict.fromkeys(("train_file", "train_data", "train_files", "data_files", "dataset_dir"), sums.file("train")),
    **dict.fromkeys(("validation_file", "eval_file", "eval_dataset", "valid_data"), sums.file("validation")),
    **dict.fromkeys(("test_file", "test_datasets", "test_data"), sums.file("test")),
    **dict.fromkeys(
        ("dataset_text_field", "text_column", "text_column_name", "text_field"),
        lambda value, _: f"write data.columns: {{text: {sums.shown(value)}}}",
    ),
    **dict.fromkeys(
        ("label_column", "label_column_name", "label_field"),
        lambda value, _: f"write data.columns: {{label: {sums.shown(value)}}}",
    ),
    "column_mapping": _LABELS,
    **dict.fromkeys(
        ("sequence_len", "cutoff_len", "max_seq_length", "max_seq_len", "seq_length", "seq_len", "block_size",
         "model_max_length", "context_length", "max_length"), sums.write("data.max_length"),
    ),
    **dict.fromkeys(("val_set_size", "val_size", "validation_split", "test_size", "eval_split_ratio"), sums.held_out),
    "validation_split_percentage": sums.percentage,
    **dict.fromkeys(("max_samples", "max_train_samples"), sums.write("data.limit")),
    **dict.fromkeys(
        ("dataloader_num_workers", "num_workers"), sums.write("data.num_workers")
    ),
    **dict.fromkeys(
        ("preprocessing_num_workers", "dataset_num_proc", "dataset_processes"),
        sums.taken_out("texts become tokens as batches are made; data.num_workers is for that"),
    ),
    **dict.fromkeys(
        ("sample_packing", "packing", "pad_to_sequence_len", "eval_sample_packing", "neat_packing"), _NO_PACKING
    ),
    **dict.fromkeys(("template", "chat_template", "train_on_inputs", "train_on_prompt", "prompt_style"), _PROMPTS),
    "group_by_length": sums.taken_out("a batch is padded to its own longest row; grouping by length is not built yet"),
    "dataset_prepared_path": sums.taken_out("what is prepared is cached by itself"),
    **dict.fromkeys(("overwrite_cache", "tokenized_path"), sums.taken_out("what is prepared is cached by itself")),
    "shuffle_merged_datasets": sums.taken_out("training rows are shuffled in each epoch, by seed"),
    **dict.fromkeys(
        ("pad_to_max_length", "padding"), sums.taken_out("a batch is padded to its own longest row")
    ),
    **dict.fromkeys(("sep", "column_separator"), sums.write("data.delimiter")),
    **dict.fromkeys(
        ("header", "has_header", "names"),
        sums.taken_out("a csv's first line names its columns; give the file one that does"),
    ),
    **dict.fromkeys(("quotechar", "doublequote"), sums.taken_out("data.quoting is standard (double quotes) or none")),
    "escapechar": sums.write("data.escape"),
    **dict.fromkeys(("label2id", "id2label", "label_list", "class_names"), "write task.labels: [NAME, …], in order"),
    "problem_type": sums.taken_out("a row has one label; several, and regression, are not built yet"),
    **dict.fromkeys(
        ("dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_persistent_workers",
         "dataloader_drop_last", "length_column_name"),
        sums.taken_out("how batches are loaded has no setting but data.num_workers"),
    ),
    "shuffle": sums.taken_out("training rows are shuffled in each epoch, by seed"),
    "data_seed": sums.write("data.split.seed"),
    # batches
    **dict.fromkeys(sums.MICRO, sums.micro_batch),
    **dict.fromkeys(sums.ACCUMULATION, sums.accumulation),
    **dict.fromkeys(("train_batch_size", "batch_size", "global_batch_size"), sums.write("batch.global_size")),
    "auto_find_batch_size": "write batch.micro_size: auto, which is the default",
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), sums.write("evaluate.micro_size")),
    # training
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), sums.epochs),
    **dict.fromkeys(
        ("max_steps", "num_steps", "total_steps", "num_training_steps"),
        lambda value, _: sums.taken_out("-1 means epochs") if sums.number_of(value) == -1
        else f"each stage has its own: write stages.NAME.steps: {sums.shown(value)}",
    ),
    "lr": sums.write("optimizer.learning_rate"), "peak_lr": sums.write("optimizer.learning_rate"),
    "wd": sums.write("optimizer.weight_decay"),
    "adam_beta1": "write optimizer.betas: [BETA1, BETA2]", "adam_beta2": "write optimizer.betas: [BETA1, BETA2]",
    "adam_epsilon": sums.write("optimizer.epsilon"), "eps": sums.write("optimizer.epsilon"),
    "optim": sums.optimizer, "optimizer_type": sums.optimizer,
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler", "scheduler_type"), sums.schedule),
    "warmup_ratio": sums.write("schedule.warmup"), "warmup_steps": sums.warmup_steps,
    "num_warmup_steps": sums.warmup_steps,
    "cosine_min_lr_ratio": sums.write("schedule.end"), "min_lr_ratio": sums.write("schedule.end"),
    **dict.fromkeys(
        ("max_grad_norm", "gradient_clipping", "gradient_clip_val", "grad_clip"), sums.write("clip_grad_norm")
    ),
    **dict.fromkeys(("deepspeed", "zero_optimization", "zero_stage", "deepspeed_config", "ds_config"), sums.sharding),
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "fsdp_version"),
        "write sharding.strategy: zero3, which shards as FSDP does (fsdp is not built yet)",
    ),
    "gradient_checkpointing_kwargs": sums.taken_out("gradient_checkpointing: true, false or auto is all there is"),
    "neftune_noise_alpha": sums.taken_out("noise on embeddings is not built yet"),
    "label_smoothing_factor": sums.taken_out("label smoothing is not built yet"),
    "torch_compile": sums.taken_out("compiled stages are not built yet"),
    "stage": sums.stage_of_training, "rl": sums.stage_of_training,
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict"),
        sums.taken_out("`thawline run` trains, `evaluate` and `predict` do the rest"),
    ),
    **dict.fromkeys(
        ("completion_only_loss", "assistant_only_loss", "loss_type", "beta", "pref_beta", "pref_loss", "dpo_beta",
         "num_generations", "max_prompt_length", "max_completion_length"),
        sums.taken_out("instructions, preferences and rewards are not built yet; causal-lm trains on every token"),
    ),
    **dict.fromkeys(
        ("fp16_backend", "half_precision_backend", "fp16_opt_level", "bf16_full_eval", "fp16_full_eval", "float16"),
        sums.taken_out("precision: auto, bf16, fp16 or fp32 is all there is"),
    ),
    "adafactor": sums.taken_out("adafactor is not built yet; write optimizer.kind: adamw, adam or sgd"),
    **dict.fromkeys(("full_determinism", "ddp_backend", "use_ipex"), sums.taken_out("the launcher chooses it")),
    **dict.fromkeys(
        ("loss_watchdog_threshold", "loss_watchdog_patience"),
        sums.taken_out("divergence is detected without a threshold")
    ),
    # saving, measuring, telling
    **dict.fromkeys(
        ("save_safetensors", "save_only_model", "save_on_each_node"),
        sums.taken_out("checkpoints can be resumed, and the model is exported as safetensors"),
    ),
    **dict.fromkeys(
        ("eval_table_size", "eval_max_new_tokens", "predict_with_generate", "prediction_loss_only",
         "include_inputs_for_metrics", "batch_eval_metrics", "eval_accumulation_steps", "label_names"),
        sums.taken_out("each kind of task has its own metrics, and generates no text"),
    ),
    **dict.fromkeys(
        ("wandb_watch", "wandb_log_model", "wandb_run_id"),
        sums.taken_out("tracking.wandb has project, entity, group, tags and mode"),
    ),
    **dict.fromkeys(
        ("plot_loss", "use_tensorboard", "logging_strategy", "logging_first_step", "logging_nan_inf_filter",
         "log_level", "disable_tqdm", "include_tokens_per_second", "include_num_input_tokens_seen",
         "skip_memory_metrics"),
        sums.taken_out("metrics.jsonl has each logged step, and `thawline report RUN` draws the curves"),
    ),
    "log_every_n_steps": sums.write("tracking.log_every"),
    **dict.fromkeys(("check_val_every_n_epoch", "eval_on_start", "eval_delay"), "write evaluate.every: 1ep or 200st"),
    "output_dir": _RUN_DIR, "overwrite_output_dir": _RUN_DIR, "logging_dir": _RUN_DIR,
    "save_steps": sums.every("checkpoint.every"), "save_strategy": sums.every("checkpoint.every"),
    "saves_per_epoch": sums.per_epoch("checkpoint.every"), "save_total_limit": sums.write("checkpoint.keep"),
    **dict.fromkeys(("eval_steps", "eval_strategy", "evaluation_strategy"), sums.every("evaluate.every")),
    "evals_per_epoch": sums.per_epoch("evaluate.every"),
    "metric_for_best_model": lambda value, _: f"write evaluate.best: {sums.shown(value).removeprefix('eval_')}",
    "load_best_model_at_end": "write evaluate.best: METRIC; the best evaluation is exported",
    "greater_is_better": sums.taken_out("each metric knows which way is better"),
    "early_stopping_patience": sums.taken_out("stopping early is not built yet; evaluate.best exports the best"),
    "logging_steps": sums.write("tracking.log_every"),
    "report_to": "write tracking.wandb: {project: NAME} for wandb; metrics.jsonl is always written",
    "wandb_project": lambda value, _: f"write tracking.wandb: {{project: {sums.shown(value)}}}",
    "wandb_entity": sums.write("tracking.wandb.entity"), "wandb_mode": sums.write("tracking.wandb.mode"),
    **dict.fromkeys(("run_name", "wandb_name", "experiment_name"), sums.write("name")),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token"), _HUB),
    "resume_from_checkpoint": "it is not the recipe's: thawline resume RUN",
    **dict.fromkeys(
        ("nproc_per_node", "num_processes", "devices", "num_gpus", "n_gpus", "gpus", "num_nodes", "world_size",
         "local_rank", "num_machines"), _RANKS,
    ),
    "ddp_timeout": sums.taken_out("slurm.hang_timeout says when a rank counts as hung"),
    "ddp_find_unused_parameters": sums.taken_out("each stage's engine knows what it trains"),
    "remove_unused_columns": sums.taken_out("only the task's columns are read"),
    "use_cpu": "it is not the recipe's: CUDA_VISIBLE_DEVICES= thawline run RECIPE",
}  # fmt: skip
"""Another trainer's key -> what it is here."""
