"""What another trainer's value is in ours: the words of the answers, and the sums between their values and ours.

Owns the arithmetic: batches, epochs, warm-up, shares, ranks of adapters, ZeRO's stages. `foreign_keys` says which key
is answered by which.
"""

from __future__ import annotations

import re
from collections.abc import Callable
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


def write(key: str) -> Answer:
    """``write KEY: VALUE``"""
    return lambda value, _: f"write {key}: {shown(value)}"


def shown(value: Any) -> str:
    if value is None:
        return "…"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return "[…]" if isinstance(value, list) else "{…}"
    text = str(value)
    return text if len(text) <= 60 and text.isprintable() else "…"


def number_of(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _first(names: tuple[str, ...], lookup: Lookup) -> float | None:
    return next((found for name in names if (found := number_of(lookup(name))) is not None), None)


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


def micro_batch(value: Any, lookup: Lookup) -> str:
    return _batch(number_of(value), _first(ACCUMULATION, lookup))


def accumulation(value: Any, lookup: Lookup) -> str:
    return _batch(_first(MICRO, lookup), number_of(value))


# --- time -------------------------------------------------------------------------------------------------------------
def epochs(value: Any, _: Lookup) -> str:
    number = number_of(value)
    if number is not None and not number.is_integer():
        return (
            f"each stage has its own, in whole passes: write stages.NAME.epochs, or the {number:g} epochs as "
            f"stages.NAME.steps = {number:g} x rows / batch.global_size"
        )
    return f"each stage has its own: write stages.NAME.epochs: {shown(int(number) if number is not None else value)}"


def warmup_steps(value: Any, lookup: Lookup) -> str:
    steps, whole = number_of(value), _first(("max_steps", "steps", "total_steps"), lookup)
    if steps is not None and whole and whole > 0:
        return f"it is a share of a stage's steps: write schedule.warmup: {steps / whole:.4g} ({steps:g} / {whole:g})"
    return f"it is a share of a stage's steps: write schedule.warmup: {shown(value)} / (steps of the stage), as in 0.1"


def every(key: str) -> Answer:
    def told(value: Any, lookup: Lookup) -> str:
        if value == "steps":
            value = lookup("save_steps" if key == "checkpoint.every" else "eval_steps") or value
        if isinstance(value, str) and not number_of(value):
            every = {"epoch": "1ep", "no": "never" if key == "evaluate.every" else "auto"}.get(value, "200st")
            return f"write {key}: {every} (1ep: each epoch, 200st: each 200 steps)"
        number = number_of(value)
        if number is not None and number < 1:
            return f"write {key} in steps: {number:g} x the stage's steps, as in 200st; or 1ep, each epoch"
        return f"write {key}: {shown(value)}st"

    return told


def per_epoch(key: str) -> Answer:
    def told(value: Any, _: Lookup) -> str:
        if number_of(value) == 1:
            return f"write {key}: 1ep"
        return f"write {key} in steps: rows / batch.global_size / {shown(value)}, as in 200st"

    return told


# --- model ------------------------------------------------------------------------------------------------------------
def precision(name: str) -> Answer:
    def told(value: Any, _: Lookup) -> str:
        if value is True:
            return f"write precision: {name}"
        if value is False:
            return (
                f"take it out: precision: auto takes bf16 where the GPU has it, else fp32 (not {name}: precision: fp32)"
            )
        return f"write precision: auto, {name} or fp32"

    return told


def dtype(value: Any, _: Lookup) -> str:
    known = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "half": "fp16", "no": "fp32"}
    wanted = known.get(str(value).removeprefix("torch.").lower(), "fp32" if "32" in str(value) else "auto")
    return f"write precision: {wanted}"


def sharding(value: Any, _: Lookup) -> str:
    text = str(value)
    stage = re.search(r"(?:zero|z|stage)[\s_:'\"-]*([123])|^([123])$", text.lower())
    number = next((found for found in stage.groups() if found), None) if stage else None
    parts = [f"strategy: zero{number}" if number else "strategy: auto"]
    if "offload" in text.lower():
        parts.append("offload: cpu")
    why = "" if number else " (zero1, zero2, zero3, ddp, or auto: the fastest that fits)"
    return f"write sharding: {{{', '.join(parts)}}}{why}; DeepSpeed's own file is written for you"


def lora(value: Any, lookup: Lookup) -> str:
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


def lora_targets(value: Any, _: Lookup) -> str:
    if isinstance(value, str) and value.lower() in ("all", "all-linear"):
        return "write model.lora.targets: a list, as in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
    names = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    listed = ", ".join(str(name).strip() for name in names)
    return f"write model.lora.targets: [{listed if 0 < len(listed) < 80 and listed.isprintable() else '…'}]"


def schedule(value: Any, _: Lookup) -> str:
    kind = SCHEDULES.get(str(value).lower())
    if kind:
        return f"write schedule.kind: {kind}"
    return "write schedule.kind: constant, linear, cosine or exponential"


def optimizer(value: Any, _: Lookup) -> str:
    text = str(value).lower()
    kind = "sgd" if "sgd" in text else "adam" if text.startswith("adam") and not text.startswith("adamw") else "adamw"
    if not any(name in text for name in ("adam", "sgd")):
        return f"write optimizer.kind: adamw, adam or sgd; {shown(value)} is not built yet"
    small = "; 8-bit states: adamw with state_dtype: bf16 comes nearest" if "8bit" in text else ""
    return f"write optimizer.kind: {kind}{small}"


# --- data -------------------------------------------------------------------------------------------------------------
def dataset(value: Any, _: Lookup) -> str:
    more = ""
    if isinstance(value, list):
        more = " (one source; several files of one kind as a list)" if len(value) > 1 else ""
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("data_files") or value.get("path")
    source = SOURCES.get(PurePosixPath(str(value)).suffix.lower()) if isinstance(value, str) else None
    if source:
        return f"write data: {{source: {source}, files: {shown(value)}}}{more}"
    if value is None:
        return "write data: {source: hub, dataset: OWNER/NAME}, or {source: csv, files: FILE}"
    return f"write data: {{source: hub, dataset: {shown(value)}}}{more}, or {{source: csv, files: FILE}}"


def file(split: str) -> Answer:
    return lambda value, _: f"write data.files: {{{split}: {shown(value)}}} and data.source: csv, json, parquet or text"


def held_out(value: Any, _: Lookup) -> str:
    number = number_of(value)
    if number is not None and number >= 1:
        return f"it is a share: write data.split.validation: {number:g} / rows, as in 0.1"
    return f"write data.split.validation: {shown(value)}"


def percentage(value: Any, _: Lookup) -> str:
    number = number_of(value)
    return f"it is a share: write data.split.validation: {number / 100:g}" if number is not None else held_out(value, _)


def stage_of_training(value: Any, _: Lookup) -> str:
    kind = {"pt": "causal-lm", "sft": "causal-lm (sft is not built yet)"}.get(str(value).lower())
    return f"write task.kind: {kind}" if kind else "write task.kind, and the stages of a run under stages:"


def taken_out(why: str) -> str:
    return f"take it out: {why}"
