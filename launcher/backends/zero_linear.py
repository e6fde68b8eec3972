"""Linear layers under ZeRO-3, and torch's own again afterwards.

``deepspeed.zero.Init`` replaces ``torch.nn.functional.linear`` for the whole process, and for good. Its own keeps no
gathered weight alive, but always the layer's input, and it rounds otherwise than torch's. Owns what is kept: the input
only where the weight trains, as with torch's, since adapters send gradients through many weights that do not. And
`restore`, or a later stage would keep as much, and end with other bits than a run that resumes in it.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
from torch.nn import functional

_TORCHS = functional.linear


class ZeroLinear(LinearFunctionForZeroStage3):  # type: ignore[misc]  # deepspeed has no types
    """DeepSpeed's, which needs the input for the weight's gradient alone."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        LinearFunctionForZeroStage3.setup_context(ctx, inputs, output)
        if not ctx.needs_input_grad[1]:
            weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
            ctx.save_for_backward(None, weight, bias)


def linear(given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``torch.nn.functional.linear``; shapes [..., I], [O, I] and [O]."""
    output: torch.Tensor = ZeroLinear.apply(given, weight, bias)
    return output


def replace() -> None:
    """After a module was built under ``deepspeed.zero.Init``."""
    functional.linear = linear  # type: ignore[assignment]


def restore() -> None:
    """Put torch's own back."""
    functional.linear = _TORCHS
