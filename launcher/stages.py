"""What a stage thaws, how its modules behave while it trains, and the proof afterwards.

Owns ``requires_grad``, the modes of modules (training or evaluation), and the comparison of every parameter's bits. It
takes names from the plan and never decides itself what trains. Called by `handover` and `train`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from launcher.errors import TrainingFailed
from launcher.models.parameter_names import named_parameters
from launcher.plan import StagePlan

MOST_NAMES = 8
"""Names an error lists; the proof's file has them all."""


class ParameterProof(BaseModel):
    """What happened to one parameter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    trained: bool
    """Whether the stage was to train it."""
    changed: bool
    """Whether any bit differs from the stage's start."""
    had_gradient: bool
    """Whether it ever had a gradient other than zero."""


class GroupProof(BaseModel):
    """What happened to the parameters of one group of the plan, or to the frozen ones (``frozen``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str
    trained: bool
    parameters: int
    """Tensors."""
    changed: int
    """Tensors of which any bit differs from the stage's start."""
    bit_identical: int
    """Tensors of which none does."""


class Proof(BaseModel):
    """What a stage did to every parameter; ``stages/SS-NAME/proof.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int
    stage: str
    engine: dict[str, Any]
    """The engine and its sharding as built."""
    holds: bool
    """Nothing frozen moved, and all that trained and had a gradient did."""
    groups: list[GroupProof]
    moved_though_frozen: list[str]
    still_though_trained: list[str]
    """They had a gradient and did not change."""
    unused: list[str]
    """To be trained, never a gradient: nothing in the forward pass leads from them to the loss."""
    parameters: list[ParameterProof]

    def raise_if_wrong(self) -> None:
        """Fail the run if the proof does not hold.

        Raises:
            TrainingFailed: with the names of the parameters.
        """
        if self.moved_though_frozen:
            raise TrainingFailed(
                f"stage {self.stage}: {len(self.moved_though_frozen)} frozen parameters changed: "
                f"{_shortened(self.moved_though_frozen)}; this is a defect of the engine {self.engine.get('engine')}: "
                "please report it with the stage's proof.json"
            )
        if self.still_though_trained:
            raise TrainingFailed(
                f"stage {self.stage}: {len(self.still_though_trained)} parameters had a gradient and did not change: "
                f"{_shortened(self.still_though_trained)}; the learning rate may be too small for their precision: "
                "raise it, or leave them out of train"
            )

    def summary(self) -> dict[str, Any]:
        """Counts for the log and the status."""
        trained = [group for group in self.groups if group.trained]
        return {
            "trained": sum(group.parameters for group in trained),
            "changed": sum(group.changed for group in trained),
            "frozen": sum(group.parameters for group in self.groups if not group.trained),
            "frozen_bit_identical": sum(group.bit_identical for group in self.groups if not group.trained),
            "unused": len(self.unused),
            "holds": self.holds,
        }

    def warning(self) -> str | None:
        """What to tell the user although the proof holds: parameters that were to train and never had a gradient."""
        if not self.unused:
            return None
        return (
            f"stage {self.stage}: {len(self.unused)} parameters were to train and never had a gradient: "
            f"{_shortened(self.unused)}; the model does not use them for this task"
        )


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


def proof(
    stage: StagePlan,
    before: Mapping[str, str],
    after: Mapping[str, str],
    had_gradient: AbstractSet[str],
    engine: Mapping[str, Any],
) -> Proof:
    """Compare every parameter's digest before and after a stage.

    Args:
        before, after: digests of all parameters, in model order, under the same names.
        had_gradient: names of those that ever had a gradient other than zero, on any rank.
        engine: engine and sharding as built.
    """
    if before.keys() != after.keys():
        raise AssertionError(f"parameters came or went: {sorted(before.keys() ^ after.keys())[:MOST_NAMES]}")
    trained = stage.trained_names
    parameters = [
        ParameterProof(
            name=name, trained=name in trained, changed=before[name] != after[name], had_gradient=name in had_gradient
        )
        for name in before
    ]
    moved = [p.name for p in parameters if p.changed and not p.trained]
    still = [p.name for p in parameters if p.trained and p.had_gradient and not p.changed]
    return Proof(
        index=stage.index,
        stage=stage.name,
        engine=dict(engine),
        holds=not moved and not still,
        groups=_group_proofs(stage, parameters),
        moved_though_frozen=moved,
        still_though_trained=still,
        unused=[p.name for p in parameters if p.trained and not p.had_gradient],
        parameters=parameters,
    )


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


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
