"""Gradient checkpointing: blocks whose activations are computed again in the backward instead of being kept.

Owns which blocks of a model those are and how they run: in transformers those that the library itself checkpoints, in
torchvision the residual blocks of ResNets and lists of equal blocks (ViT). A block that does not train, and all of them
in an evaluation, run as ever. Nothing of what is computed changes, to the bit: dropout draws what it drew, and running
statistics of norms see a batch once. Called by `handover` for a stage's model and by `activations`, which counts.
Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from launcher.errors import UserError
from launcher.models import architecture

Run = Callable[..., Any]
"""``run(forward, *inputs)`` returns ``forward(*inputs)``, and decides what of it is kept for the backward."""


def enable(module: Any, run: Run | None = None) -> None:
    """Let the module's blocks go through ``run``; without one, forget their activations and compute them again.

    Raises:
        UserError: this model has no blocks that could.
    """
    if refused := refusal(module):
        raise UserError(f"gradient_checkpointing: {refused}")
    if hasattr(module, "_set_gradient_checkpointing"):
        module._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=run or _again(module))
        return
    for name in architecture.torchvision_residual_blocks(module):
        block = module.get_submodule(name)
        block.forward = _through(block, run or _again(block))


def disable(module: Any) -> None:
    """Undo `enable`."""
    if hasattr(module, "_set_gradient_checkpointing"):
        module._set_gradient_checkpointing(enable=False)
        return
    for name in architecture.torchvision_residual_blocks(module):
        del module.get_submodule(name).forward


def refusal(module: nn.Module) -> str | None:
    """Why this model cannot; None if it can."""
    what = type(module).__name__
    if hasattr(module, "_set_gradient_checkpointing"):
        can = getattr(module, "supports_gradient_checkpointing", False)
        return None if can else f"{what} of transformers cannot compute its blocks again; set false"
    if architecture.torchvision_residual_blocks(module):
        return None
    return f"{what} has no list of equal blocks to compute again, as ResNets and ViTs have; set false"


def _through(block: nn.Module, run: Run) -> Run:
    forward = block.forward

    def checkpointed(*inputs: Any, **named: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*inputs, **named)
        return run(partial(forward, **named), *inputs)

    return checkpointed


def _again(module: nn.Module) -> Run:
    """torch's checkpoint, for the module and what is in it.

    Not reentrant, so that inputs need no gradient and DDP sees the whole graph. The run in the backward is not cut
    short at the last tensor that is missing: ZeRO-3 frees a module's gathered weights when its forward ends.
    """
    norms = [child for child in module.modules() if isinstance(child, _NormBase) and child.track_running_stats]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _apart(norms)

    return partial(checkpoint, use_reentrant=False, context_fn=contexts, early_stop=False)


@contextmanager
def _apart(norms: list[_NormBase]) -> Iterator[None]:
    """The run in the backward: on copies of running statistics, and keeping the values of weights."""
    with _on_copies(norms), _keeping_values():
        yield


@contextmanager
def _keeping_values() -> Iterator[None]:
    """Meanwhile what is kept of a frozen weight is its values, as of one that trains.

    torch's checkpoint keeps the parameter itself, which ZeRO-3 has emptied when the backward asks for it: that of a
    block's last module runs after the block's parameters were freed again.
    """
    pack, unpack = torch._C._autograd._top_saved_tensors_default_hooks(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: pack(tensor.detach()), unpack):
        yield


@contextmanager
def _on_copies(norms: list[_NormBase]) -> Iterator[None]:
    """Meanwhile the norms update copies of their running statistics, which have seen this batch already."""
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update((name, tensor.clone()) for name, tensor in buffers.items() if tensor is not None)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
