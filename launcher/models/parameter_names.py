"""What a parameter is called: in recipes, plans, proofs, checkpoints and exports alike.

Owns the names of a model with adapters. peft wraps a layer, so ``q_proj.weight`` is ``q_proj.base_layer.weight`` in the
module, and an adapter's is ``q_proj.lora_A.default.weight``. Everybody else says what the model's library and peft's
own files say: ``q_proj.weight`` and ``q_proj.lora_A.weight``. Without adapters the names are the module's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

_WRAPPING = re.compile(r"\.base_layer(?=\.)|(?<=\.lora_[AB])\.default(?=\.)")
_ADAPTER = re.compile(r"\.lora_[AB]\.")


def plain(name: str) -> str:
    """The name of a parameter or buffer, from that in the module."""
    return _WRAPPING.sub("", name)


def is_adapter(name: str) -> bool:
    """Whether a name is that of an adapter's parameter."""
    return _ADAPTER.search(name) is not None


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter), each once, in the module's order."""
    return ((plain(name), parameter) for name, parameter in module.named_parameters())


def parameter_of(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter of a name.

    Raises:
        KeyError: the module has none.
    """
    return dict(named_parameters(module))[name]
