"""Which parameters ever had a gradient: the witness that the stage's proof calls.

A trained weight that stayed as it was is only wrong if something pushed it. The witness listens at each parameter until
the first gradient that is not all zeros, then lets go, so that after the first step it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from launcher.models.parameter_names import named_parameters


class GradientWitness:
    """Adds the name of each trainable parameter to ``seen`` once it has had a gradient other than zero on this rank."""

    def __init__(self, module: nn.Module, seen: set[str]) -> None:
        self.seen = seen
        self._handles: dict[str, RemovableHandle] = {
            name: parameter.register_hook(self._listener(name))
            for name, parameter in named_parameters(module)
            if parameter.requires_grad and name not in seen
        }

    def settle(self) -> None:
        """Stop listening to those that have been seen; not inside a backward, which would be walking the hooks."""
        for name in self.seen & self._handles.keys():
            self._handles.pop(name).remove()

    def _listener(self, name: str) -> Callable[[torch.Tensor], None]:
        def listen(gradient: torch.Tensor) -> None:
            if name not in self.seen and bool(gradient.any()):
                self.seen.add(name)

        return listen
