"""How hard each parameter was pushed: the witness that the stage's proof calls.

A trained weight that stayed as it was is only wrong if something pushed it hard enough. The witness listens at each
parameter to the size of its gradients, apart from the optimizer whose work it checks, until one must have moved it;
then it lets go, so that after the first steps it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from launcher.models.parameter_names import named_parameters
from launcher.plan import StagePlan
from launcher.plan.update_size import SIZEABLE, UpdateRule, half_unit

Slight = tuple[float, float]
"""The largest update so far, and the largest gradient, of a parameter that no update must have moved yet."""


@dataclass
class Pushes:
    """What the parameters of a stage were pushed by so far, on one rank or on all."""

    had_gradient: set[str] = field(default_factory=set)
    """Those that ever had a gradient other than zero."""
    slight: dict[str, Slight] = field(default_factory=dict)
    """Of these, the ones whose every update was too small to be sure that it moved them."""

    @classmethod
    def together(cls, parts: Iterable[Pushes]) -> Pushes:
        """Of all ranks: what one of them saw to be sizeable is."""
        found = list(parts)
        had_gradient = set().union(*(part.had_gradient for part in found))
        slight = {}
        for name in had_gradient:
            seen = [part.slight.get(name) for part in found if name in part.had_gradient]
            if all(one is not None for one in seen):
                pushes = [one for one in seen if one is not None]
                slight[name] = (max(push[0] for push in pushes), max(push[1] for push in pushes))
        return cls(had_gradient, slight)


class GradientWitness:
    """Keeps ``pushes`` of this rank up to date; all that trains is listened to until an update must have moved it."""

    def __init__(
        self, module: nn.Module, pushes: Pushes, rules: Mapping[str, UpdateRule], largest_values: Mapping[str, float],
        *, ranks: int = 1,
    ) -> None:  # fmt: skip
        """``largest_values``: of each parameter at the stage's start, without sign. ``ranks``: gradients are averaged
        over as many."""
        self.pushes, self._rules, self._ranks = pushes, rules, ranks
        self._sizeable = {name: SIZEABLE * half_unit(largest_values[name]) for name in rules}
        self._largest_values = largest_values
        self._peaks: dict[str, torch.Tensor] = {}
        """The largest gradient of a micro-batch since the last step, where it was computed: no rank waits for it."""
        self._handles: dict[str, RemovableHandle] = {
            name: parameter.register_hook(self._listener(name))
            for name, parameter in named_parameters(module)
            if parameter.requires_grad and (name not in pushes.had_gradient or name in pushes.slight)
        }

    def settle(self, factor: float, scale: float = 1.0, *, is_taken: bool = True) -> None:
        """Take in what a step's backwards showed, and let go of what it must have moved. Not inside a backward, which
        would be walking the hooks.

        Args:
            factor: of each parameter's peak rate.
            scale: what the gradients were multiplied by before the optimizer saw them: clipping over loss scaling.
            is_taken: whether the optimizer stepped.
        """
        if not self._peaks:
            return
        names = list(self._peaks)
        peaks = torch.stack([self._peaks[name].float() for name in names]).tolist()
        self._peaks.clear()
        for name, peak in zip(names, peaks, strict=True):
            if peak == 0.0:
                continue
            self.pushes.had_gradient.add(name)
            update, gradient = self.pushes.slight.get(name, (0.0, 0.0))
            if is_taken:
                rule, pushed = self._rules[name], peak * scale / self._ranks
                gradient = max(gradient, pushed)
                if not rule.overflows(gradient):
                    update = max(update, rule.largest(factor, pushed, self._largest_values[name]))
            if update >= self._sizeable[name]:
                self.pushes.slight.pop(name, None)
                self._handles.pop(name).remove()
            else:
                self.pushes.slight[name] = (update, gradient)

    def _listener(self, name: str) -> Callable[[torch.Tensor], None]:
        def listen(gradient: torch.Tensor) -> None:
            if not gradient.numel():
                return
            low, high = torch.aminmax(gradient.detach())
            peak = torch.maximum(-low, high)  # NaN, if any element is
            before = self._peaks.get(name)
            self._peaks[name] = peak if before is None else torch.maximum(before, peak)

        return listen


def of_stage(
    module: nn.Module, stage: StagePlan, pushes: Pushes, largest_values: Mapping[str, float]
) -> GradientWitness:
    """The witness of a stage."""
    return GradientWitness(module, pushes, stage.update_rules(), largest_values, ranks=stage.batch.ranks)
