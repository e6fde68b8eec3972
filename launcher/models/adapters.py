"""LoRA: which linear layers get adapters, putting them there with peft, their first values, and merging them.

Owns what ``model.lora.targets`` means for a model. The adapters are peft's own layers; nothing here computes with them.
peft takes seconds to import, so only what needs it does. Called by `loading` for every module of a recipe that asks for
adapters, and by `export`. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from launcher.errors import UserError
from launcher.models.head_init import generator_for
from launcher.models.parameter_names import is_adapter, named_parameters
from launcher.models.weights import named_state
from launcher.recipe import Lora

MOST_NAMES = 12
"""Ends of names that an error lists."""


def targets_of(module: Any, lora: Lora, head: Sequence[str]) -> tuple[str, ...]:
    """What ``lora.targets`` comes to, as peft takes it: ends of names as they were written, and for globs whole names.

    ``module`` is the model without adapters.

    Raises:
        UserError: peft knows no default for this model; or a target that names no linear layer, or one of the head.
    """
    where = "model.lora.targets"
    layers = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)]
    of_head = {id(p) for name, p in module.named_parameters() if name.startswith(tuple(head))}
    inside = [name for name in layers if id(module.get_submodule(name).weight) not in of_head]
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in inside))
    there = ", ".join(ends[:MOST_NAMES]) + (f" and {len(ends) - MOST_NAMES} more" if len(ends) > MOST_NAMES else "")
    if not ends:
        raise UserError(f"{where}: {type(module).__name__} has no linear layers outside its head; take model.lora out")
    found: dict[str, None] = {}
    for target in _defaults(module, inside, there) if lora.targets == "auto" else lora.targets:
        is_glob = any(character in target for character in "*?[")
        matched = [name for name in layers if (fnmatchcase(name, target) if is_glob else _ends_with(name, target))]
        if not matched:
            raise UserError(
                f"{where}: {target!r} names no linear layer of {type(module).__name__}; its linear layers end with: "
                f"{there}"
            )
        if outside := [name for name in matched if name not in inside]:
            raise UserError(
                f"{where}: {target!r} names {outside[0]}, which is of the head: train: [head] trains it whole; "
                f"the linear layers outside of it end with: {there}"
            )
        found.update(dict.fromkeys(matched if is_glob else [target]))
    return tuple(found)


def _defaults(module: Any, inside: Sequence[str], there: str) -> Sequence[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    model_type = module.config.get_text_config().model_type
    names: Sequence[str] | str | None = DEFAULTS.get(module.config.model_type) or DEFAULTS.get(model_type)
    if isinstance(names, str):  # a regular expression over whole names
        names = [name for name in inside if re.fullmatch(names, name)]
    if not names:
        raise UserError(
            f"model.lora.targets: auto: peft has no default for {module.config.model_type} "
            f"({type(module).__name__}); name some of its linear layers, which end with: {there}"
        )
    return names


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def inject(module: nn.Module, lora: Lora, targets: Sequence[str]) -> None:
    """Put adapters beside the target layers, in place, with values that mean nothing: see `initialise`.

    Also of a module on the meta device, and under ``deepspeed.zero.Init``, which shards them as they are made.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(configuration(module, lora, targets), module)
    for parameter in module.parameters():
        shard = getattr(parameter, "ds_tensor", None)
        if shard is not None and parameter.dtype != shard.dtype:  # peft made fp32 of it, and no shard follows that
            parameter.data = parameter.data.to(shard.dtype)


def configuration(module: nn.Module, lora: Lora, targets: Sequence[str]) -> Any:
    """peft's own configuration; without initialisation of its own."""
    from peft import LoraConfig

    chosen = [child for name, child in module.named_modules() if any(_ends_with(name, target) for target in targets)]
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(targets),
        init_lora_weights=False, fan_in_fan_out=any(isinstance(child, Conv1D) for child in chosen),
    )  # fmt: skip


def initialise(module: nn.Module, seed: int) -> None:
    """Give every adapter its first values: A as peft does (Kaiming's uniform with a = √5), B zeros.

    Each A draws from its own generator, seeded from (seed, name), so its values depend on nothing else.
    """
    with torch.no_grad():
        for name, parameter in named_parameters(module):
            if is_adapter(name) and ".lora_A." in name:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator_for(seed, name))
            elif is_adapter(name):
                nn.init.zeros_(parameter)


def merged_state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What `weights.named_state` gives of the model without adapters, with W + alpha / rank · B A in the place of each
    adapted W, in its dtype: the bits of peft's ``merge_and_unload``, one tensor at a time."""
    from peft.tuners.lora import LoraLayer

    layers = {name: child for name, child in module.named_modules() if isinstance(child, LoraLayer)}
    deltas = {f"{name}.weight": layer for name, layer in layers.items()}
    with torch.no_grad():
        for name, tensor in named_state(module):
            if name in deltas:
                yield name, tensor + deltas[name].get_delta_weight("default")
            elif not is_adapter(name):
                yield name, tensor
