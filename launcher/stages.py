"""What a stage thaws, how its modules behave while it trains, and the proof afterwards.

Owns ``requires_grad``, the modes of modules (training or evaluation), and the comparison of every parameter's bits. It
takes names from the plan and never decides itself what trains. Called by `handover` and `train`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from launcher.gradient_witness import Pushes, Slight
from launcher.models.parameter_names import named_parameters
from launcher.plan import StagePlan
from launcher.plan.update_size import UpdateRule, half_unit
from launcher.proof import MOST_NAMES, GroupProof, ParameterProof, Proof, SlightProof


def apply(module: nn.Module, stage: StagePlan) -> None:
    """Set ``requires_grad`` of every parameter by name, as the plan's groups say. Before the engine is built."""
    trained = stage.trained_names
    known = set()
    for name, parameter in named_parameters(module):
        parameter.requires_grad_(name in trained)
        known.add(name)
    if not trained <= known:
        raise AssertionError(f"the plan trains {sorted(trained - known)[:MOST_NAMES]}, which the model does not have")


def set_modes(module: nn.Module, stage: StagePlan) -> None:
    """Put every module in training or evaluation mode, as its parameters' ``requires_grad`` says (see `apply`).

    A module trains if any parameter in it does. One without parameters, such as a dropout, goes with the nearest module
    around it that has some: so dropout is off inside a frozen block and on in the one above it that trains.
    Norms with running statistics follow ``stage.batch_norm``. A language model keeps no keys and values of the tokens
    it has seen: nothing is generated, and a block that runs twice (`models.recompute`) would add its own twice.
    """
    batch_norm = stage.settings.batch_norm
    for child, trains in _trains(module).items():
        if isinstance(child, _NormBase) and batch_norm != "auto":
            child.training = batch_norm == "train"
        else:
            child.training = trains
    if (config := getattr(module, "config", None)) is not None and hasattr(config, "get_text_config"):
        config.get_text_config().use_cache = False


def _trains(module: nn.Module) -> dict[nn.Module, bool]:
    """Whether each module trains; a module used in several places trains if it does in one."""
    result: dict[nn.Module, bool] = {}

    def visit(child: nn.Module, around: bool) -> None:
        parameters = list(child.parameters())
        trains = any(parameter.requires_grad for parameter in parameters) if parameters else around
        result[child] = result.get(child, False) or trains
        for grandchild in child.children():
            visit(grandchild, trains)

    visit(module, True)
    return result


def digests(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """sha256 of the bytes of each tensor, of any dtype, device, stride and size."""
    return {name: digest(tensor) for name, tensor in named_tensors}


def digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes in row-major order."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def largest_values(
    named_tensors: Iterable[tuple[str, torch.Tensor]], found: dict[str, float]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on, and note the largest value of each without its sign; 0 of an empty one."""
    for name, tensor in named_tensors:
        is_number = tensor.numel() > 0 and tensor.is_floating_point()
        low, high = torch.aminmax(tensor.detach()) if is_number else (torch.zeros(()), torch.zeros(()))
        found[name] = float(torch.maximum(-low, high))
        yield name, tensor


def proof(
    stage: StagePlan,
    before: Mapping[str, str],
    after: Mapping[str, str],
    pushes: Pushes,
    engine: Mapping[str, Any],
    *,
    largest: Mapping[str, float],
    has_state: Callable[[], AbstractSet[str]],
    diverged: str | None = None,
) -> Proof:
    """Compare every parameter's digest before and after a stage.

    Args:
        before, after: digests of all parameters, in model order, under the same names.
        pushes: what pushed them, on all ranks.
        engine: engine and sharding as built.
        largest: the largest value of each parameter, without its sign.
        has_state: looks for the parameters that the optimizer holds state of, all of them where it needs none. What
            had a gradient and has none was left out by the optimizer, however slightly it was pushed.
        diverged: what to tell of the stage's loss, where it ran away.
    """
    if before.keys() != after.keys():
        raise AssertionError(f"parameters came or went: {sorted(before.keys() ^ after.keys())[:MOST_NAMES]}")
    trained = stage.trained_names
    parameters = [
        ParameterProof(
            name=name, trained=name in trained, changed=before[name] != after[name],
            had_gradient=name in pushes.had_gradient,
        )
        for name in before
    ]  # fmt: skip
    moved = [p.name for p in parameters if p.changed and not p.trained]
    still = [p.name for p in parameters if p.trained and p.had_gradient and not p.changed]
    slight = [name for name in still if name in pushes.slight]
    if any(gradient > 0.0 for _, gradient in (pushes.slight[name] for name in slight)):
        stepped = has_state()
        slight = [name for name in slight if name in stepped or pushes.slight[name][1] == 0.0]
    still = [name for name in still if name not in slight]
    rules = stage.update_rules()
    return Proof(
        index=stage.index,
        stage=stage.name,
        engine=dict(engine),
        holds=not moved and not still,
        groups=_group_proofs(stage, parameters),
        moved_though_frozen=moved,
        still_though_trained=still,
        unused=[p.name for p in parameters if p.trained and not p.had_gradient],
        too_slight=[_slight_proof(name, pushes.slight[name], rules[name], largest[name]) for name in slight],
        diverged=diverged,
        parameters=parameters,
    )


def _slight_proof(name: str, slight: Slight, rule: UpdateRule, largest: float) -> SlightProof:
    update, gradient = slight
    because: Literal["rate", "epsilon", "overflow", "skipped"] = "rate"
    if rule.overflows(gradient):
        because = "overflow"
    elif update == 0.0:
        because = "skipped"
    elif rule.is_below_epsilon(gradient):
        because = "epsilon"
    return SlightProof(name=name, because=because, update=update, gradient=gradient, half_unit=half_unit(largest))


def _group_proofs(stage: StagePlan, parameters: list[ParameterProof]) -> list[GroupProof]:
    changed = {p.name: p.changed for p in parameters}
    members = [(group.pattern, True, group.names) for group in stage.groups]
    frozen = [p.name for p in parameters if not p.trained]
    if frozen:
        members.append(("frozen", False, frozen))
    return [
        GroupProof(
            pattern=pattern,
            trained=is_trained,
            parameters=len(names),
            changed=sum(changed[name] for name in names),
            bit_identical=sum(not changed[name] for name in names),
        )
        for pattern, is_trained, names in members
    ]
