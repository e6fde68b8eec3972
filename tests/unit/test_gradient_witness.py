"""The witness of gradients: sees each parameter that something pushed, and how hard, no other, and then lets go."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from launcher.gradient_witness import GradientWitness, Pushes
from launcher.plan.update_size import SIZEABLE, UpdateRule, half_unit
from launcher.recipe import SGD, Adam, AdamW
from thawline_kernels import FusedAdamW


class Branches(nn.Module):
    """Two layers, one of them not always used, and one that is multiplied by ``gate``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, gate: float = 1.0) -> torch.Tensor:
        total: torch.Tensor = (self.first(x) + gate * self.second(x)).sum()
        return total


FIRST = {"first.weight", "first.bias"}
SECOND = {"second.weight", "second.bias"}
PLAIN = UpdateRule(AdamW(learning_rate=1e-3), 1e-3, 0.0)


@pytest.fixture
def module() -> Branches:
    return Branches()


def witness_of(
    module: nn.Module,
    pushes: Pushes,
    rule: UpdateRule = PLAIN,
    values: Mapping[str, float] | None = None,
    ranks: int = 1,
) -> GradientWitness:
    names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    largest = values or {name: float(parameter.detach().abs().max()) for name, parameter in names.items()}
    return GradientWitness(module, pushes, dict.fromkeys(names, rule), largest, ranks=ranks)


def hooks(module: nn.Module) -> set[str]:
    """Parameters that somebody listens at."""
    return {name for name, parameter in module.named_parameters() if parameter._backward_hooks}


def test_unused_parameters_stay_unseen(module: Branches) -> None:
    pushes = Pushes()
    witness = witness_of(module, pushes)
    witness.settle(1.0)
    assert pushes == Pushes(), "nothing before a backward"
    module(torch.ones(2, 3)).backward()
    witness.settle(1.0)
    assert pushes == Pushes(FIRST | SECOND)


def test_a_gradient_of_zeros_is_none(module: Branches) -> None:
    pushes = Pushes()
    witness = witness_of(module, pushes)
    module(torch.ones(2, 3), gate=0.0).backward()
    witness.settle(1.0)
    assert module.second.weight.grad is not None
    assert not module.second.weight.grad.any()
    assert pushes.had_gradient == FIRST


def test_one_element_is_enough_also_if_it_is_tiny_negative_or_not_a_number() -> None:
    for value in (1e-45, -1e-30, float("nan"), float("-inf")):
        module, pushes = nn.Linear(50, 1, bias=False), Pushes()
        witness = witness_of(module, pushes)
        gradient = torch.zeros(1, 50)
        gradient[0, 37] = value
        module.weight.backward(gradient)
        witness.settle(1.0, is_taken=math.isfinite(value))
        assert pushes.had_gradient == {"weight"}, value
        assert pushes.slight.keys() == {"weight"}, "no step that was taken must have moved it"


def test_over_several_backwards_it_gathers(module: Branches) -> None:
    """As in a window of micro-batches, and over the steps of a stage."""
    pushes = Pushes()
    witness = witness_of(module, pushes)
    module(torch.zeros(2, 3), gate=0.0).backward()
    module(torch.zeros(2, 3), gate=0.0).backward()
    witness.settle(1.0)
    assert pushes.had_gradient == {"first.bias"}
    module(torch.ones(2, 3)).backward()
    witness.settle(1.0)
    assert pushes == Pushes(FIRST | SECOND)


def test_it_lets_go_of_what_must_have_moved_and_of_nothing_else(module: Branches) -> None:
    pushes = Pushes()
    witness = witness_of(module, pushes)
    everything = {name for name, _ in module.named_parameters()}
    assert hooks(module) == everything
    module(torch.ones(2, 3), gate=0.0).backward()
    assert hooks(module) == everything, "not inside a backward, nor before it is told to"
    witness.settle(1e-9)
    assert hooks(module) == everything, "at so small a rate nothing is sure to move"
    assert pushes.slight.keys() == FIRST
    module(torch.ones(2, 3), gate=0.0).backward()
    witness.settle(1.0, is_taken=False)
    assert pushes.slight.keys() == FIRST, "nor by a step that was not taken"
    module(torch.ones(2, 3), gate=0.0).backward()
    witness.settle(1.0)
    assert (hooks(module), pushes.slight) == (everything - FIRST, {})
    module(torch.ones(2, 3)).backward()
    witness.settle(1.0)
    assert hooks(module) == {"unused.weight", "unused.bias"}


OPTIMIZERS: dict[str, tuple[AdamW | Adam | SGD, type[torch.optim.Optimizer], dict[str, float]]] = {
    "adamw": (AdamW(), torch.optim.AdamW, {}),
    "adam": (Adam(kind="adam"), torch.optim.Adam, {}),
    "sgd": (SGD(kind="sgd", momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("gradient", [1.0, 1e-3, 1e-12])
def test_the_update_is_the_one_torch_makes(kind: str, gradient: float) -> None:
    """Under a gradient that stays: of Adam's kinds at once, of SGD when its momentum is full."""
    spec, made, settings = OPTIMIZERS[kind]
    value = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = made([value], lr=1e-3, weight_decay=0.01, **settings)
    update = 0.0
    for _ in range(200 if settings else 3):
        with torch.no_grad():
            value.fill_(1.0)
        value.grad = torch.full_like(value, gradient)
        optimizer.step()
        update = 1.0 - float(value.detach())
    assert UpdateRule(spec, 1e-3, 0.01).largest(1.0, gradient, 1.0) == pytest.approx(update, rel=1e-3)


@pytest.mark.parametrize("value", [1.0, 0.75, 1.5, 3.0, 1e-3, 2.0**-126, 1e-40, 0.0])
def test_half_a_unit_is_where_fp32_begins_to_move(value: float) -> None:
    start, half = torch.tensor(value, dtype=torch.float32), half_unit(value)
    nearest = torch.nextafter(start, torch.tensor(0.0 if value else 1.0))
    gap = abs(float(start.double() - nearest.double()))
    assert half == pytest.approx(gap / 2, rel=1e-12, abs=1e-60)


def test_pushes_scale_with_clipping_loss_scaling_and_ranks(module: Branches) -> None:
    rule = UpdateRule(SGD(kind="sgd"), 1e-12, 0.0)
    pushes = Pushes()
    witness = witness_of(module, pushes, rule, dict.fromkeys(dict(module.named_parameters()), 1.0), ranks=2)
    module(torch.ones(2, 3)).backward()
    witness.settle(0.5, scale=1 / 1024)
    assert pushes.slight["first.bias"] == pytest.approx((0.5e-12 * 2 / 1024 / 2, 2 / 1024 / 2))


def test_a_gradient_whose_square_overflows_moves_nothing_from_then_on() -> None:
    """As FusedAdamW and torch's step it."""
    for made in (torch.optim.AdamW, FusedAdamW):
        module, pushes = nn.Linear(2, 1, bias=False), Pushes()
        witness = witness_of(module, pushes)
        optimizer = made(module.parameters(), lr=1e-3, weight_decay=0.0)
        before = module.weight.detach().clone()
        for size in (1e21, 1.0):
            module.weight.grad = None
            (module(torch.ones(1, 2)).sum() * size).backward()
            optimizer.step()
            witness.settle(1.0)
        assert torch.equal(module.weight, before)
        assert pushes.slight["weight"] == pytest.approx((0.0, 1e21))


def test_sizeable_is_by_the_largest_value() -> None:
    """A tensor's gradient may be that of its largest element alone, which is the hardest to move."""
    for value, is_sizeable in ((1.0, True), (1.0e6, False)):
        module, pushes = nn.Linear(2, 1, bias=False), Pushes()
        witness = witness_of(module, pushes, values={"weight": value})
        module(torch.ones(1, 2)).sum().backward()
        witness.settle(1.0)
        assert (pushes.slight == {}) == is_sizeable
        assert (SIZEABLE * half_unit(value) <= 1e-3) == is_sizeable


def test_frozen_parameters_and_those_that_have_moved_before_are_not_watched(module: Branches) -> None:
    module.second.requires_grad_(False)
    pushes = Pushes({"first.bias", "first.weight"}, {"first.weight": (1e-9, 1.0)})
    witness = witness_of(module, pushes)
    assert hooks(module) == {"first.weight", "unused.weight", "unused.bias"}
    module(torch.ones(2, 3)).backward()
    witness.settle(1.0)
    assert pushes == Pushes(FIRST)


def test_names_of_another_module_do_no_harm(module: Branches) -> None:
    """A resumed stage starts with what all ranks saw, on this one or not."""
    witness = witness_of(module, Pushes({"first.weight", "elsewhere.weight"}))
    witness.settle(1.0)
    assert hooks(module) == {name for name, _ in module.named_parameters()} - {"first.weight"}


def test_ranks_together_take_the_hardest_push() -> None:
    one = Pushes({"a", "b", "c"}, {"a": (1e-9, 1.0), "b": (1e-9, 3.0)})
    other = Pushes({"a", "b"}, {"a": (2e-9, 0.5)})
    assert Pushes.together([one, other]) == Pushes({"a", "b", "c"}, {"a": (2e-9, 1.0)})
    assert Pushes.together([one, Pushes()]) == one, "a rank that saw no gradient knows nothing"


def test_a_tied_parameter_is_seen_under_its_first_name() -> None:
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    pushes = Pushes()
    witness = witness_of(module, pushes)
    module[1](torch.ones(1, 3)).sum().backward()
    witness.settle(1.0)
    assert pushes.had_gradient == {"0.weight"}


def test_the_gradient_itself_is_as_without_it(module: Branches) -> None:
    module(torch.ones(2, 3)).backward()
    alone = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    witness_of(module, Pushes())
    module(torch.ones(2, 3)).backward()
    assert all(torch.equal(p.grad, alone[name]) for name, p in module.named_parameters() if p.grad is not None)
