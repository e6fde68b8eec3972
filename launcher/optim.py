"""The optimizer of a stage, built from its spec.

Owns the translation of the recipe's names into torch's, and the carrying of optimizer state from stage to stage by
parameter name. The only importer of `thawline_kernels` and the only place that writes torch's ``lr``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from launcher.models.parameter_names import named_parameters
from launcher.plan import StagePlan
from launcher.recipe import SGD, Adam, AdamW
from thawline_kernels import FusedAdamW

Backend = Literal["auto", "cpu", "cuda", "torch"]
STATE_KEYS = {"adamw": ("exp_avg", "exp_avg_sq"), "adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""Per-element tensors of each optimizer kind, under torch's names."""


@dataclass
class OptimizerState:
    """Optimizer state by parameter name, as it goes from one stage to the next."""

    steps: dict[str, int] = field(default_factory=dict)
    """Optimizer steps each parameter has seen."""
    tensors: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Parameter -> state key -> fp32 tensor of the parameter's shape, on the host of the first rank."""


def build(stage: StagePlan, module: nn.Module, carried: Mapping[str, int]) -> torch.optim.Optimizer:
    """Build the optimizer over the stage's groups.

    Args:
        carried: parameter -> optimizer steps it has already seen. Parameters that differ in it get groups of their
            own: ZeRO keeps one step count a group, and bias correction needs the right one.
    """
    parameters = dict(named_parameters(module))
    groups: list[dict[str, Any]] = []
    for group in stage.groups:
        by_steps: dict[int, list[str]] = {}
        for name in group.names:
            by_steps.setdefault(carried.get(name, 0), []).append(name)
        for steps, names in by_steps.items():
            groups.append(
                {
                    "params": [parameters[name] for name in names],
                    "lr": group.learning_rate,
                    "weight_decay": group.weight_decay,
                    "base_learning_rate": group.learning_rate,
                    "carried_steps": steps,
                }
            )
    # What is offloaded is stepped where it lies, on the host.
    is_on_gpu = torch.cuda.is_available() and stage.settings.sharding.offload == "none"
    return _construct(stage.settings.optimizer, groups, "cuda" if is_on_gpu else "cpu", stage.settings.seed)


def _construct(
    spec: AdamW | Adam | SGD, groups: list[dict[str, Any]], compiled: Literal["cpu", "cuda"], seed: int
) -> torch.optim.Optimizer:
    match spec:
        case AdamW():
            backends: dict[str, Backend] = {"auto": "auto", "fused": compiled, "torch": "torch"}
            return FusedAdamW(
                groups,
                lr=spec.learning_rate,
                betas=spec.betas,
                eps=spec.epsilon,
                weight_decay=spec.weight_decay,
                backend=backends[spec.implementation],
                master=spec.master,
                state_dtype=spec.state_dtype,
                seed=seed,
            )
        case Adam():
            return torch.optim.Adam(
                groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, weight_decay=spec.weight_decay
            )
        case SGD():
            return torch.optim.SGD(
                groups,
                lr=spec.learning_rate,
                momentum=spec.momentum,
                nesterov=spec.nesterov,
                weight_decay=spec.weight_decay,
            )


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's rate to its own times ``factor``; return the largest, which is what logs show."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_learning_rate"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


def clipped_share(max_norm: float | None, norm: float) -> float:
    """What clipping to ``max_norm`` multiplied a gradient of that norm by."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))


def clipped_step(optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Clip by the global L2 norm of the gradient, and step; returns the norm before clipping.

    A norm that is not finite leaves weights and state alone. The norm is summed in double: in single precision it is
    off by parts in 10^5 at 20 million parameters already, and differs from ZeRO's.

    Args:
        max_norm: infinity only measures.
    """
    if isinstance(optimizer, FusedAdamW):
        return float(optimizer.step(max_norm=max_norm))
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if torch.isfinite(norm):
        if max_norm < math.inf:
            torch._foreach_mul_(gradients, min(1.0, max_norm / (float(norm) + 1e-6)))
        optimizer.step()
    return float(norm)
