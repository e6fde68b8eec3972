"""The first values of a task's output layer.

Owns the schemes of ``model.head.init`` besides ``default``, which is the model library's own and is run by the library.
Every parameter draws from its own generator, seeded from (seed, name), so its values depend on nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn

from launcher.errors import UserError

STD = 0.02
"""Standard deviation of ``normal``, as BERT's (Devlin et al., 2019)."""

Scheme = Callable[[torch.Tensor, torch.Generator], object]

SCHEMES: dict[str, Scheme] = {
    "normal": lambda weight, generator: nn.init.normal_(weight, std=STD, generator=generator),
    "xavier_uniform": lambda weight, generator: nn.init.xavier_uniform_(weight, generator=generator),
    "xavier_normal": lambda weight, generator: nn.init.xavier_normal_(weight, generator=generator),
    "kaiming_uniform": lambda weight, generator: nn.init.kaiming_uniform_(
        weight, nonlinearity="relu", generator=generator
    ),
    "kaiming_normal": lambda weight, generator: nn.init.kaiming_normal_(
        weight, nonlinearity="relu", generator=generator
    ),
    "zeros": lambda weight, generator: nn.init.zeros_(weight),
}


def init_head(module: nn.Module, head: tuple[str, ...], scheme: str, seed: int) -> None:
    """Fill the linear and convolutional layers of a head; their biases become zero, its norms are left alone.

    ``zeros`` fills the last layer only: two layers of zeros in a row would never learn.

    Raises:
        UserError: the head has no such layer.
    """
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and _is_in_head(name, layer, head)
    ]
    if not layers:
        raise UserError(
            f"model.head.init: {scheme!r}: the head of {type(module).__name__} ({', '.join(head)}) has no linear layer "
            "of its own; use default"
        )
    with torch.no_grad():
        for name, layer in layers[-1:] if scheme == "zeros" else layers:
            SCHEMES[scheme](layer.weight, generator_for(seed, f"{name}.weight"))
            if layer.bias is not None:
                layer.bias.zero_()


def generator_for(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose stream depends on ``seed`` and ``name`` alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _is_in_head(name: str, layer: nn.Module, head: tuple[str, ...]) -> bool:
    own = [f"{name}.{parameter}" for parameter, _ in layer.named_parameters(recurse=False)]
    return any(path.startswith(prefix) if prefix.endswith(".") else path == prefix for path in own for prefix in head)
