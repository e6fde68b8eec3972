"""DDP through Accelerate: every rank holds the whole model; gradients are averaged as the backward produces them.

In low precision the module stays in fp32 and computes under autocast. With ``optimizer.master`` its parameters are in
bf16, as ZeRO's are, and the optimizer keeps what they lack of the fp32 values. Buffers stay as they are: rotary
frequencies would be rounded, and the buffers of the export with them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.backends.engine import (
    Engine,
    Parts,
    StepResult,
    cast_inputs,
    forget_accelerate,
    moment_dtype,
    refuse_mixed_norms,
    state_tensors,
    storage_bytes,
)
from launcher.models.parameter_names import named_parameters, parameter_of

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
MASTERS = ("low", "master")
"""What `thawline_kernels.FusedAdamW` names, in its state, the part of an fp32 value that is not in the parameter."""


class KeepsMasters(Protocol):
    """An optimizer over bf16 parameters that knows their fp32 values."""

    def full_value(self, param: torch.Tensor) -> torch.Tensor:
        """The fp32 value of a parameter."""

    def set_full_value(self, param: torch.Tensor, value: torch.Tensor) -> None:
        """Give a parameter an fp32 value; what bf16 cannot hold of it is kept beside it."""


def build(parts: Parts) -> Engine:
    """Build the module on this rank's device and wrap it.

    Raises:
        RuntimeError: what Accelerate built is not DDP over all ranks; it would train something else than was asked.
    """
    forget_accelerate()
    runtime, is_cast = parts.runtime, parts.stage.is_cast
    accelerator = Accelerator(
        cpu=runtime.device.type == "cpu",
        mixed_precision="no" if is_cast else MIXED_PRECISION[parts.stage.settings.precision],
        kwargs_handlers=[
            # A thawed parameter may get no gradient (an unused pooler): the proof lists it, DDP must not hang on it.
            # Buffers: Runtime.average_buffers, the same for all backends.
            DistributedDataParallelKwargs(
                find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        ],
    )
    module = parts.load_module(None)
    if is_cast:
        refuse_mixed_norms(module, parts.stage)
    optimizer = parts.make_optimizer(module)
    if is_cast:
        cast_to_bf16(module, cast(KeepsMasters, optimizer), runtime.device)
    with warnings.catch_warnings():
        # torch renamed the argument in 2.14; Accelerate still passes the old name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        wrapped = accelerator.prepare_model(module, evaluation_mode=runtime.ranks == 1)
    is_ddp = isinstance(wrapped, DistributedDataParallel)
    if is_ddp != (runtime.ranks > 1) or accelerator.num_processes != runtime.ranks:
        raise RuntimeError(
            f"asked for ddp over {runtime.ranks} ranks, got {type(wrapped).__name__} over {accelerator.num_processes}"
        )
    return DataParallelEngine(accelerator, wrapped, module, optimizer, parts)


def cast_to_bf16(module: nn.Module, optimizer: KeepsMasters, device: torch.device) -> None:
    """Move the module to the device, its parameters in bf16; the optimizer keeps what those that train lose by it.

    One after the other: the device never holds the whole module in fp32.
    """
    for parameter in module.parameters():
        value = parameter.data.to(device)
        parameter.data = value.bfloat16()
        if parameter.requires_grad:
            optimizer.set_full_value(parameter, value)
    module.to(device)  # the buffers


class DataParallelEngine(Engine):
    """One whole copy of model and optimizer a rank."""

    def __init__(
        self, accelerator: Accelerator, wrapped: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer,
        parts: Parts,
    ) -> None:  # fmt: skip
        self.accelerator = accelerator
        self.wrapped = wrapped
        self.module = module
        self.optimizer = optimizer
        self.is_cast = parts.stage.is_cast
        self.moment_dtype = moment_dtype(parts.stage)
        self.clip_grad_norm = parts.stage.settings.clip_grad_norm or math.inf
        self.clipped_step = parts.clipped_step
        self.scaler = accelerator.scaler
        self.scales_loss = self.scaler is not None
        self.runtime = parts.runtime
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self.wrapped.no_sync())

    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        return self.wrapped(**(cast_inputs(inputs, torch.bfloat16) if self.is_cast else inputs))

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self) -> StepResult:
        for parameter in self.trained:
            if parameter.grad is None:  # ZeRO sees zeros where there is no gradient, and decays: the same here
                parameter.grad = torch.zeros_like(parameter)
        if self.scaler is None:
            norm = self.clipped_step(self.optimizer, self.clip_grad_norm)
        else:
            self.scaler.unscale_(self.optimizer)
            norm = float(nn.utils.clip_grad_norm_(self.trained, self.clip_grad_norm))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm=norm, taken=math.isfinite(norm))

    def loss_scale(self) -> float:
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in named_parameters(self.module):
            has_master = self.is_cast and parameter.requires_grad
            yield name, cast(KeepsMasters, self.optimizer).full_value(parameter) if has_master else parameter.detach()

    def optimizer_state(self, keys: tuple[str, ...]) -> Iterator[tuple[str, int, dict[str, torch.Tensor]]]:
        for name, parameter in named_parameters(self.module):
            state = self.optimizer.state.get(parameter, {})
            tensors = {key: state[key].detach().float().cpu() for key in keys if state.get(key) is not None}
            if tensors:
                yield name, int(state.get("step", 0)), tensors

    def set_optimizer_state(self, name: str, steps: int, tensors: dict[str, torch.Tensor]) -> None:
        parameter = parameter_of(self.module, name)
        state: dict[str, Any] = self.optimizer.state[parameter]
        state["step"] = torch.tensor(float(steps))
        for key, value in tensors.items():
            state[key] = torch.zeros_like(parameter, dtype=self.moment_dtype).copy_(value)

    def save(self, folder: Path) -> None:
        if not self.runtime.is_first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            },
            folder / "engine.pt",
        )

    def load(self, folder: Path) -> None:
        saved = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
        self.module.load_state_dict(saved["module"], strict=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])

    def describe(self) -> dict[str, Any]:
        return {"engine": type(self.wrapped).__name__, "zero_stage": 0, "offload": "none", "ranks": self.runtime.ranks}

    def held(self) -> dict[str, int]:
        states = self.optimizer.state.values()
        masters = storage_bytes(state[key] for state in states for key in MASTERS if key in state)
        return {
            "parameters": storage_bytes(self.module.parameters()),
            "gradients": storage_bytes(parameter.grad for parameter in self.module.parameters()),
            "masters": masters,
            "optimizer": storage_bytes(state_tensors(self.optimizer)) - masters,
        }

    def close(self) -> None:
        self.accelerator.free_memory()
        del self.wrapped, self.module, self.optimizer, self.trained
        super().close()
