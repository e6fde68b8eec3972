"""The witness of gradients: sees each parameter that something pushed, no other, and then lets go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from launcher.gradient_witness import GradientWitness


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


@pytest.fixture
def module() -> Branches:
    return Branches()


def hooks(module: nn.Module) -> set[str]:
    """Parameters that somebody listens at."""
    return {name for name, parameter in module.named_parameters() if parameter._backward_hooks}


def test_unused_parameters_stay_unseen(module: Branches) -> None:
    seen: set[str] = set()
    GradientWitness(module, seen)
    assert seen == set(), "nothing before a backward"
    module(torch.ones(2, 3)).backward()
    assert seen == FIRST | SECOND


def test_a_gradient_of_zeros_is_none(module: Branches) -> None:
    seen: set[str] = set()
    GradientWitness(module, seen)
    module(torch.ones(2, 3), gate=0.0).backward()
    assert module.second.weight.grad is not None
    assert not module.second.weight.grad.any()
    assert seen == FIRST


def test_one_element_is_enough_also_if_it_is_tiny_negative_or_not_a_number() -> None:
    for value in (1e-45, -1e-30, float("nan"), float("-inf")):
        module, seen = nn.Linear(50, 1, bias=False), set[str]()
        GradientWitness(module, seen)
        gradient = torch.zeros(1, 50)
        gradient[0, 37] = value
        module.weight.backward(gradient)
        assert seen == {"weight"}, value


def test_over_several_backwards_it_gathers(module: Branches) -> None:
    """As in a window of micro-batches, and over the steps of a stage."""
    seen: set[str] = set()
    witness = GradientWitness(module, seen)
    module(torch.zeros(2, 3), gate=0.0).backward()
    assert seen == {"first.bias"}
    module(torch.ones(2, 3), gate=0.0).backward()
    assert seen == FIRST
    witness.settle()
    module(torch.ones(2, 3)).backward()
    assert seen == FIRST | SECOND


def test_it_lets_go_of_what_it_has_seen_and_of_nothing_else(module: Branches) -> None:
    seen: set[str] = set()
    witness = GradientWitness(module, seen)
    everything = {name for name, _ in module.named_parameters()}
    assert hooks(module) == everything
    module(torch.ones(2, 3), gate=0.0).backward()
    assert hooks(module) == everything, "not inside a backward, nor before it is told to"
    witness.settle()
    assert hooks(module) == everything - FIRST
    witness.settle()
    module(torch.ones(2, 3)).backward()
    witness.settle()
    assert hooks(module) == {"unused.weight", "unused.bias"}
    module.zero_grad(set_to_none=True)
    module(torch.ones(2, 3)).backward()
    assert seen == FIRST | SECOND


def test_frozen_parameters_and_those_seen_before_are_not_watched(module: Branches) -> None:
    module.second.requires_grad_(False)
    seen = {"first.bias"}
    witness = GradientWitness(module, seen)
    assert hooks(module) == {"first.weight", "unused.weight", "unused.bias"}
    module(torch.ones(2, 3)).backward()
    witness.settle()
    assert seen == FIRST


def test_names_of_another_module_do_no_harm(module: Branches) -> None:
    """A resumed stage starts with what all ranks saw, on this one or not."""
    witness = GradientWitness(module, {"first.weight", "elsewhere.weight"})
    witness.settle()
    assert hooks(module) == {name for name, _ in module.named_parameters()} - {"first.weight"}


def test_a_tied_parameter_is_seen_under_its_first_name() -> None:
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    seen: set[str] = set()
    GradientWitness(module, seen)
    module[1](torch.ones(1, 3)).sum().backward()
    assert seen == {"0.weight"}


def test_the_gradient_itself_is_as_without_it(module: Branches) -> None:
    module(torch.ones(2, 3)).backward()
    alone = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    GradientWitness(module, set())
    module(torch.ones(2, 3)).backward()
    assert all(torch.equal(p.grad, alone[name]) for name, p in module.named_parameters() if p.grad is not None)
