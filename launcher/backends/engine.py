"""What the loop asks of a backend, and what a stage hands it to build from.

An engine lives for one stage: the trainable set is fixed before it is built and never changes under it, because DDP and
DeepSpeed read it once. All methods are collective unless they say otherwise.
"""

from __future__ import annotations

import gc
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from launcher.distributed import Runtime
from launcher.errors import UserError
from launcher.plan import StagePlan


@dataclass(frozen=True)
class Parts:
    """What a stage gives its backend."""

    stage: StagePlan
    runtime: Runtime
    load_module: Callable[[AbstractContextManager[Any] | None], nn.Module]
    """Builds the module with the stage's starting weights and its trainable set; inside the context, if one is given,
    under which every parameter is sharded as it is made."""
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    clipped_step: Callable[[torch.optim.Optimizer, float], float]
    """Clips to a global gradient norm (infinity: measures), steps, and returns the norm before; see `optim`."""
    start_tensor: Callable[[str], torch.Tensor]
    """fp32 value of a parameter at the stage's start, read from disk."""
    run_dir: Path = Path()
    """Of the run; it names what the run leaves on a node's own disk."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    taken: bool
    """False when the gradient was not finite and the weights were left alone."""


class Engine(ABC):
    """A model, its optimizer and their sharding, for one stage."""

    module: nn.Module
    """The user's model, unwrapped."""
    optimizer: torch.optim.Optimizer
    """The client optimizer: its ``param_groups`` hold the learning rates that count."""
    scales_loss: bool
    """Whether a step that was not taken is the business of fp16 loss scaling rather than a failure."""

    @abstractmethod
    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        """Surround the forward and backward of one micro-batch; ``last`` is the one before the step."""

    @abstractmethod
    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        """Run the module; also the way to evaluate, under ``torch.no_grad`` and ``module.eval()``."""

    @abstractmethod
    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of ``loss`` (scalar, fp32); gradients are averaged over ranks."""

    @abstractmethod
    def step(self) -> StepResult:
        """Clip, step, and clear the gradients."""

    def loss_scale(self) -> float:
        """What the gradients of the step to come are multiplied by; 1 without fp16's loss scaling. Not collective."""
        return 1.0

    @abstractmethod
    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter, whole, on every rank, in module order: fp32 masters of those that train, live bits of the
        others. One at a time, so that no rank holds the whole model because of it."""

    @abstractmethod
    def optimizer_state(self, keys: tuple[str, ...]) -> Iterator[tuple[str, int, dict[str, torch.Tensor]]]:
        """(parameter, steps seen, key -> whole fp32 tensor on the host) of each parameter that has state."""

    @abstractmethod
    def set_optimizer_state(self, name: str, steps: int, tensors: dict[str, torch.Tensor]) -> None:
        """Give one parameter the state it had in an earlier stage; every rank passes the same tensors."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write model, optimizer and loss scale so that `load` on as many ranks continues to the same bits."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take up what `save` wrote."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Engine class and sharding as built, for the log and the proof; not collective."""

    @abstractmethod
    def held(self) -> dict[str, int]:
        """Bytes of this rank's tensors now: ``parameters``, ``gradients``, ``masters``, ``optimizer``; not collective.

        What `memory.ModelStates` predicts, measured. Communication buffers are not in it.
        """

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def storage_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the memory under some tensors, each piece once, however many of them are views of it."""
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors if t is not None)}
    return sum(storages.values())


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """The per-element tensors of an optimizer's state, without its step counts."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor) and value.dim())


def refuse_mixed_norms(module: nn.Module, stage: StagePlan) -> None:
    """Where the module itself is cast, BatchNorm's weights are too: its statistics then lose precision with them, or
    stay fp32, which torch's kernels do not take together.

    Raises:
        UserError: the module has a BatchNorm, and the stage is of low precision.
    """
    is_mixed = stage.settings.precision != "fp32"
    if is_mixed and any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules()):
        strategy = stage.settings.sharding.strategy
        where, other = (f"under {strategy}", "sharding.strategy: ddp"), ("with optimizer.master", "master: none")
        cause, way_out = where if stage.zero_stage else other
        raise UserError(
            f"stages.{stage.name}.precision: {stage.settings.precision}: {cause} a model with BatchNorm in it cannot "
            f"be trained in low precision; take fp32, or {way_out}"
        )


def cast_inputs(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A module's inputs as one in ``dtype`` takes them; whole numbers stay."""
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}


def moment_dtype(stage: StagePlan) -> torch.dtype:
    """Of the optimizer's per-element state."""
    is_bf16 = getattr(stage.settings.optimizer, "state_dtype", "fp32") == "bf16"
    return torch.bfloat16 if is_bf16 else torch.float32


def forget_accelerate() -> None:
    """Clear Accelerate's process-wide state, so that the next stage's Accelerator is its own kind.

    The torch process group lives on. Variables that `accelerate launch` or an earlier plugin set would otherwise
    decide the next stage's sharding behind the plan's back.
    """
    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
