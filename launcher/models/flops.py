"""Counts what a forward pass and its backward compute, by the operators that a model really calls.

Owns the formulas of operations for matrix products, convolutions and fused attention, and the meter that sees every
operator of a pass on fake tensors. Everything else moves bytes rather than computes: those are summed up. A
multiplication and an addition count as two. tests/unit/test_flops.py compares it with ``torch.utils.flop_counter`` over
real passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from launcher.models.fake_values import FakeValues

FORWARD, BACKWARD, AGAIN, KERNELS, MOVED = "forward", "backward", "again", "kernels", "moved"
ATTENTION_BACKWARD = 2.5
"""A fused attention computes two products forward; backward the scores again and four more (Dao et al., 2022)."""


class TooMany(Exception):
    """A pass calls more operators than it may."""


class FlopMeter(FakeValues):
    """Fake tensors, which have shapes and no memory, and in ``done`` the operations of all that is called on them, and
    of the backward that follows from it."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self.fakes: dict[torch.Tensor, dict[Any, torch.Tensor]] = {}
        """Parameters and buffers -> what took their place, by dtype and device; making one takes a millisecond."""
        self.room: int | None = None
        """Operators that a pass may still call; None: as many as it likes."""
        self.is_slow = False
        """Whether a pass over a long text has called too many: see `long_texts`."""
        self.done: Counter[str] = Counter()
        """``forward``, ``backward``; ``again``: of the forward, what gradient checkpointing repeats; ``kernels``;
        ``moved``: bytes that operators without a formula read and write, forward and backward."""

    def attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Count a fused attention that is no operator of torch's here; shapes [B, H, L, D]."""
        forward = _attention(query, key, value)
        needs = any(each.requires_grad for each in (query, key, value))
        self.done.update({FORWARD: forward, BACKWARD: int(ATTENTION_BACKWARD * forward) * needs, KERNELS: 1 + needs})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.room is not None and not self._depth:
            self.room -= 1
            if self.room < 0:
                raise TooMany
        self._depth += 1
        try:
            output = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._depth -= 1
        if self._depth or _is_view(func):  # inside an operator that is made of others, it has been counted
            return output
        given = [each for each in args if isinstance(each, torch.Tensor)]
        needing = sum(each.requires_grad for each in given)
        self.done[KERNELS] += 1 + needing
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            self.done[MOVED] += _moved(func, given, output) * (1 + (needing > 0))
            return output
        forward = formula(args, output)
        self.done[FORWARD] += forward
        if func._overloadpacket in FUSED_ATTENTION:
            self.done[BACKWARD] += int(ATTENTION_BACKWARD * forward) * (needing > 0)
        else:  # one product as large for the gradient of each factor
            self.done[BACKWARD] += forward * sum(each.requires_grad for each in given if each.dim() > 1)
        return output


def _moved(func: Any, given: list[torch.Tensor], output: Any) -> int:
    """Bytes read and written. A lookup reads what it gives; its backward writes a gradient as large as the table."""
    made = [each for each in (output if isinstance(output, (tuple, list)) else [output]) if torch.is_tensor(each)]
    if func._overloadpacket is _ATEN.embedding:
        given = given if given[0].requires_grad else given[1:]
    return sum(each.numel() * each.element_size() for each in (*given, *made))


@cache
def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    aliases = [one.alias_info for one in returns if "Tensor" in str(one.type)]
    return all(alias is not None and not alias.is_write for alias in aliases)


def _product(first: torch.Tensor, output: torch.Tensor) -> int:
    return 2 * output.numel() * first.shape[-1]


def _convolution(weight: torch.Tensor, given: torch.Tensor, output: torch.Tensor, is_transposed: bool) -> int:
    """Each output meets a filter, [O, I/groups, ...]; of a transposed one each input, [I, O/groups, ...]."""
    return 2 * (given if is_transposed else output).numel() * weight[0].numel()


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Scores and their product with the values, without regard to masks: 2 B H L S (D + Dv)."""
    batch, heads, length, depth = query.shape
    return 2 * batch * heads * length * key.shape[-2] * (depth + value.shape[-1])


_ATEN = torch.ops.aten
FUSED_ATTENTION = frozenset({_ATEN._scaled_dot_product_flash_attention_for_cpu})
FORMULAS: dict[Any, Callable[[Any, Any], int]] = {
    _ATEN.mm: lambda args, output: _product(args[0], output),
    _ATEN.bmm: lambda args, output: _product(args[0], output),
    _ATEN.addmm: lambda args, output: _product(args[1], output),
    _ATEN._grouped_mm: lambda args, output: _product(args[0], output),
    _ATEN.baddbmm: lambda args, output: _product(args[1], output),
    _ATEN.convolution: lambda args, output: _convolution(args[1], args[0], output, args[6]),
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda args, output: _attention(*args[:3]),
}
"""Operator -> its operations, from its arguments and its output."""
