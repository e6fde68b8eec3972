"""What is assumed of a choice by values that depend on weights: which experts a router takes, how a sort orders.

Owns the operators that choose and the indices they are taken to return. Called by `fake_values`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch

Routing = Literal["even", "worst"]
"""``even``: the experts get equal shares of the tokens; ``worst``: all tokens go to the same experts."""
_ATEN = torch.ops.aten


def dim_of(packet: Any, args: Any, kwargs: Any) -> int:
    """The dimension that an operator of `CHOICES` chooses along."""
    place = 2 if packet is _ATEN.topk else 1
    if "dim" in kwargs:
        return int(kwargs["dim"])
    given = args[place] if len(args) > place else -1
    return int(given) if isinstance(given, int) and not isinstance(given, bool) else -1


def _chosen(shape: torch.Size, num_options: int, routing: Routing) -> torch.Tensor:
    """[..., k]: of each row k different ones of the options."""
    rows, k = math.prod(shape[:-1]), shape[-1]
    choice = torch.arange(k).expand(rows, k)
    if routing == "even":
        choice = choice + k * torch.arange(rows)[:, None]
    return (choice % max(num_options, 1)).reshape(shape)


def _ordered(shape: torch.Size, num_options: int, routing: Routing) -> torch.Tensor:
    """As it was."""
    return torch.arange(shape[-1]).expand(shape).contiguous()


CHOICES: dict[Any, Callable[[torch.Size, int, Routing], torch.Tensor]] = dict.fromkeys(
    (_ATEN.topk, _ATEN.argmax, _ATEN.argmin, _ATEN.max, _ATEN.min, _ATEN.multinomial), _chosen
) | dict.fromkeys((_ATEN.sort, _ATEN.argsort), _ordered)
"""Operators that order or choose -> the indices, from their shape with the choice last, and the number of options."""
